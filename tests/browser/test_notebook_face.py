"""What is in the notebook itself: "Run on", the mark of what is idle, what is told when it ends, the status bar, completion."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bench.harness import House, Kernel

from .lab import WAIT_MS, LabServer, Notebook, new_page
from .marks import NEEDS_PANEL
from .test_panel import AXE, Panel

pytestmark = NEEDS_PANEL
LONG_AGO = 3600.0  # seconds that the page's clock is set forward: more than a session has to be idle to be marked


@pytest.fixture(scope="module")
def notebook(lab: LabServer, browser: Browser) -> Iterator[Notebook]:
    """A window with a notebook, and the panel opened."""
    path = lab.notebook("face", ["%%time\nx = 1", "# second", "y = 2"])
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        Panel(page, lab).open(f"/tree/{path.name}")
        made = Notebook(page, lab, path)
        made.wait_loaded()
        yield made


@pytest.fixture(scope="module")
def kernel(place: House, notebook: Notebook) -> Iterator[Kernel]:
    """A kernel beside, whose sessions the window sees."""
    made = place.kernel()
    yield made
    made.close()


def choose(notebook: Notebook, number: int, words: re.Pattern[str]) -> None:
    """Open the cell's menu by its toolbar and choose."""
    menu_of(notebook, number).get_by_role("menuitem", name=words).click()


def menu_of(notebook: Notebook, number: int) -> Locator:
    cell = notebook.cell(number)
    cell.locator(".cm-content").click()
    cell.locator('.jp-cell-toolbar [data-jp-item-name="cellburst-run-on"]').get_by_role("button").click()
    menu = notebook.page.locator(".cb-run-on")
    expect(menu).to_be_visible(timeout=WAIT_MS)
    return menu


def source(notebook: Notebook, number: int) -> str:
    notebook.save()
    text = json.loads(notebook.path.read_text())["cells"][number]["source"]
    return text if isinstance(text, str) else "".join(text)


def test_run_on_writes_and_edits_the_cells_line(notebook: Notebook) -> None:
    menu = menu_of(notebook, 0)
    expect(menu.get_by_role("menuitem", name=re.compile("^A100"))).to_have_text(
        re.compile(r"A100-40GB · \$\d+\.\d\d/h · \d of 2 free · SIMULATED"), timeout=WAIT_MS
    )
    expect(menu.get_by_role("menuitem", name=re.compile("^2 × A100"))).to_be_visible()
    expect(menu.locator(".lm-mod-toggled")).to_contain_text("this notebook's kernel")
    menu.get_by_role("menuitem", name=re.compile("^A100")).click()
    expect(menu).to_have_count(0)
    assert source(notebook, 0) == "%%modal gpu=A100-40GB\n%%time\nx = 1"
    cell = notebook.cell(0)
    cell.locator(".cm-content").click()
    notebook.page.keyboard.press("Control+Home")
    notebook.page.keyboard.press("End")
    notebook.page.keyboard.type(" session=train")
    choose(notebook, 0, re.compile("^2 × A100"))
    assert source(notebook, 0) == "%%modal gpu=A100-40GB:2 session=train\n%%time\nx = 1"
    choose(notebook, 0, re.compile("^A container without a GPU"))
    assert source(notebook, 0) == "%%modal session=train\n%%time\nx = 1"
    choose(notebook, 0, re.compile("^Here"))
    assert source(notebook, 0) == "%%time\nx = 1"


def test_run_on_by_the_keyboard(notebook: Notebook) -> None:
    """From the palette, down one entry, Enter; Escape leaves the cell as it is."""
    page = notebook.page
    for keys, wanted in ((["Escape"], "# second"), (["ArrowDown", "Enter"], "%%modal gpu=A100-40GB\n# second")):
        notebook.cell(1).locator(".cm-content").click()
        page.keyboard.press("Control+Shift+c")
        page.locator(".lm-CommandPalette-input:visible").fill("Run This Cell On")
        expect(page.locator(".lm-CommandPalette-item.lm-mod-active")).to_contain_text(
            "Run This Cell On", timeout=WAIT_MS
        )
        page.keyboard.press("Enter")
        expect(page.locator(".cb-run-on")).to_be_visible(timeout=WAIT_MS)
        for key in keys:
            page.keyboard.press(key)
        expect(page.locator(".cb-run-on")).to_have_count(0, timeout=WAIT_MS)
        assert source(notebook, 1) == wanted


def test_an_idle_session_that_costs_marks_the_panels_tab(notebook: Notebook, kernel: Kernel) -> None:
    page = notebook.page
    tab = page.get_by_role("tab", name=re.compile("^Cellburst"))
    expect(tab).not_to_have_class(re.compile("cb-costs-idle"))
    kernel.check("%%modal gpu=A100 card=off\nnumber = 1")
    item = page.locator(".cb-status-item")
    expect(item).to_have_text(re.compile(r"A100-40GB · \$\d+\.\d\d/h"), timeout=WAIT_MS)
    item.click()  # the panel is open already: it stays
    expect(page.locator("#cellburst-panel")).to_be_visible()
    page.evaluate(f"Date.now = (now => () => now() + {LONG_AGO * 1000})(Date.now)")
    try:
        expect(tab).to_have_class(re.compile("cb-costs-idle"), timeout=WAIT_MS)
        expect(tab).to_have_attribute("title", re.compile(r"1 idle session costs \$\d+\.\d\d/h"), timeout=WAIT_MS)
    finally:
        page.evaluate(f"Date.now = (now => () => now() - {LONG_AGO * 1000})(Date.now)")
    expect(tab).not_to_have_class(re.compile("cb-costs-idle"), timeout=WAIT_MS)


def test_a_detached_cell_that_ends_is_told_once(notebook: Notebook, kernel: Kernel, lab: LabServer) -> None:
    toasts = notebook.page.locator(".Toastify__toast")
    kernel.check("%%modal detach\nprint('by itself')")
    expect(toasts.filter(has_text="The detached cell of bench.ipynb is done")).to_be_visible(timeout=WAIT_MS)
    kernel.check("%%modal detach\nraise ValueError('spilt milk')")
    expect(toasts.filter(has_text="spilt milk")).to_be_visible(timeout=WAIT_MS)

    # The page is loaded again. What is told comes in order: when the next end is shown, an older one would be.
    Panel(notebook.page, lab).open(f"/tree/{notebook.path.name}")
    notebook.wait_loaded()
    kernel.check("%%modal detach\nraise ValueError('more milk')")
    expect(toasts.filter(has_text="more milk")).to_be_visible(timeout=WAIT_MS)
    expect(toasts.filter(has_text="spilt milk")).to_have_count(0)
    expect(toasts.filter(has_text="is done")).to_have_count(0)


def test_volumes_and_secrets_are_completed_by_name(notebook: Notebook, kernel: Kernel, lab: LabServer) -> None:
    page, panel = notebook.page, Panel(notebook.page, lab)
    volumes = panel.section("volumes")
    volumes.get_by_role("button", name="New volume").click()
    page.locator(".jp-Dialog input").fill("dataset-one")
    page.locator(".jp-Dialog").get_by_role("button", name="Create").click()
    expect(volumes.get_by_role("button", name="dataset-one", exact=True).first).to_be_visible(timeout=WAIT_MS)
    for line, wanted in (("%%modal volumes=/data:da", "dataset-one"), ("%%modal gpu=A10", "A100-40GB")):
        assert wanted in completions(kernel, line)
    assert completions(kernel, "%%modal volumes=/data:zz") == []


def completions(kernel: Kernel, line: str) -> list[str]:
    """What the kernel offers at the end of a line."""
    reply = kernel.client.complete(line, len(line), reply=True, timeout=WAIT_MS / 1000)
    matches: list[str] = reply["content"]["matches"]
    return matches


def test_nothing_serious_is_found_by_axe_in_menu_and_status_bar(notebook: Notebook) -> None:
    page: Page = notebook.page
    menu_of(notebook, 1)
    page.add_script_tag(path=str(AXE))
    found = page.evaluate(
        "async () => (await axe.run({include: [['.cb-run-on'], ['.cb-status-item']]})).violations"
        ".filter(v => ['serious', 'critical'].includes(v.impact))"
    )
    page.keyboard.press("Escape")
    assert not found, json.dumps([(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found], indent=1)
