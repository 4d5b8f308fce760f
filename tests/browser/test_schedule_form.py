"""The form of a schedule in real JupyterLab: made from a notebook, changed by two, run, and what the run wrote opened."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from .lab import WAIT_MS, LabServer, Notebook, new_page
from .marks import NEEDS_PANEL
from .test_panel import AXE, Panel

CELLS = [
    "rate = 0.5\nlabel = 'a'",
    "print(f'rate is {rate}, label {label}')\nwith open('sum é.csv', 'w') as f:\n    f.write('1,2')",
]
# Answers come from a server, a gateway and containers, on a machine that others use too: no wait is of Playwright's five seconds.
SOON = WAIT_MS
pytestmark = NEEDS_PANEL


def tagged(path: Path) -> Path:
    """The notebook with the tag `parameters` on its first cell."""
    book = json.loads(path.read_text())
    book["cells"][0]["metadata"]["tags"] = ["parameters"]
    path.write_text(json.dumps(book))
    return path


@pytest.fixture(scope="module")
def notebook(lab: LabServer, browser: Browser) -> Iterator[Notebook]:
    """A window with a notebook that has parameters; the panel was opened, so a gateway runs."""
    path = tagged(lab.notebook("report", CELLS))
    lab.notebook("asks", ["x = 1", "name = input()"])
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        Panel(page, lab).open(f"/tree/{path.name}")
        made = Notebook(page, lab, path)
        made.wait_loaded()
        yield made


def form_of(page: Page) -> Locator:
    return page.locator(".cb-schedule:visible .cb-form")


def open_form(notebook: Notebook) -> Locator:
    """The button in the notebook's toolbar."""
    notebook.page.locator('.jp-NotebookPanel:visible [data-jp-item-name="cellburst-schedule"]').get_by_role(
        "button"
    ).click()
    form = form_of(notebook.page)
    expect(form.get_by_role("button", name="Schedule", exact=True)).to_be_visible(timeout=WAIT_MS)
    return form


def close_form(page: Page) -> None:
    page.locator(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabCloseIcon").click()
    expect(form_of(page)).to_have_count(0, timeout=SOON)


def test_times_are_read_back_as_they_are_typed(notebook: Notebook) -> None:
    form = open_form(notebook)
    reading = form.locator(".cb-reading")
    expect(form.get_by_label("Name")).to_have_value("report", timeout=SOON)
    expect(reading).to_contain_text("Runs at 07:00 on Monday to Friday", timeout=SOON)
    expect(reading.locator("li")).to_have_count(5, timeout=SOON)
    expect(reading).to_contain_text("must be on then", timeout=SOON)
    expect(reading).to_contain_text("No run has succeeded yet", timeout=SOON)
    line = form.get_by_label("Cron line")
    for wrong, said in (("61 * * * *", "61"), ("0 0 31 2 *", "never"), ("0 0 0 1 1 *", "6 fields")):
        line.fill(wrong)
        expect(reading.locator(".cb-note-error")).to_contain_text(said, timeout=SOON)
        expect(form.get_by_role("button", name="Schedule", exact=True)).to_have_attribute(
            "aria-disabled", "true", timeout=SOON
        )
    line.fill("30 6 * * 1")
    expect(reading).to_contain_text("Runs at 06:30 on Monday", timeout=SOON)
    form.get_by_label("Time zone").fill("Europe/Berlln")
    expect(reading.locator(".cb-note-error")).to_contain_text("Europe/Berlin", timeout=SOON)
    form.get_by_label("Time zone").fill("Asia/Tokyo")
    expect(reading.locator("li").first).to_contain_text("JST", timeout=SOON)
    form.get_by_text("Every so often").click()
    form.get_by_label("Every", exact=True).fill("6h")
    expect(reading).to_contain_text("Runs every 6 hours", timeout=SOON)
    form.get_by_text("At fixed times").click()
    expect(line).to_have_value("30 6 * * 1", timeout=SOON)  # what was typed is still there
    close_form(notebook.page)


def test_a_form_that_is_wrong_says_where_and_is_not_saved(notebook: Notebook) -> None:
    form = open_form(notebook)
    form.get_by_label("rate (float)").fill("fast")
    expect(form.locator(".cb-field-problem[role=alert]")).to_contain_text("a number", timeout=SOON)
    expect(form.get_by_label("rate (float)")).to_have_attribute("aria-invalid", "true", timeout=SOON)
    form.get_by_label("rate (float)").fill("")
    form.get_by_label("GPU").fill("B999")
    expect(form.locator("[role=alert]", has_text="B999")).to_contain_text("Allowed", timeout=SOON)
    expect(form.get_by_role("button", name="Schedule", exact=True)).to_have_attribute(
        "aria-disabled", "true", timeout=SOON
    )
    form.get_by_label("Name").press("Enter")
    expect(form).to_be_visible(timeout=SOON)
    form.get_by_label("GPU").fill("")
    expect(form.get_by_label("Environment", exact=True)).to_have_value("frozen", timeout=SOON)
    form.get_by_label("Image", exact=True).fill("gone.py:img")
    expect(form.locator("[role=alert]", has_text="there is no file")).to_be_visible(timeout=SOON)
    expect(form.get_by_label("Environment", exact=True)).to_have_count(0, timeout=SOON)
    close_form(notebook.page)


def test_a_schedule_is_made_run_opened_changed_by_two_and_taken_over(notebook: Notebook, browser: Browser) -> None:
    """One story, since each part needs the one before."""
    page, lab = notebook.page, notebook.server
    form = open_form(notebook)
    form.get_by_label("rate (float)").fill("1.5")
    form.get_by_label("Name").fill("nightly <b>report</b>")
    form.get_by_label("Name").press("Enter")  # by the keyboard
    expect(page.locator(".Toastify__toast", has_text="is scheduled")).to_contain_text("07:00", timeout=SOON)
    panel = Panel(page, lab)
    schedules = panel.section("schedules")
    row = schedules.locator(".cb-row", has_text="nightly <b>report</b>").first  # as text
    expect(row).to_contain_text("at 07:00 on Monday to Friday", timeout=SOON)

    # run, and open what it wrote
    row.get_by_role("button", name=re.compile("^Run ")).click()
    row.get_by_role("button", name="nightly <b>report</b>", exact=True).click()
    runs = schedules.locator(".cb-folder")
    expect(page.locator(".Toastify__toast", has_text="has succeeded")).to_be_visible(timeout=2 * WAIT_MS)
    expect(runs.locator(".cb-run-succeeded")).to_be_visible(timeout=SOON)
    runs.get_by_role("button", name=re.compile("^Open what the run")).click()
    shown = page.locator(".jp-NotebookPanel:visible")
    expect(shown.locator(".jp-OutputArea-output")).to_have_text("rate is 1.5, label a\n", timeout=SOON)
    expect(page.locator(".lm-DockPanel-tabBar .lm-mod-current")).to_contain_text(
        re.compile(r"report 20\d\d-.*\.ipynb"), timeout=SOON
    )
    # what else it left, to be downloaded
    runs.get_by_role("button", name=re.compile("^What the run")).click()
    left = runs.locator(".cb-run-left")
    with page.expect_download(timeout=WAIT_MS) as download:
        left.get_by_role("link", name="sum é.csv").click()
    assert (download.value.suggested_filename, download.value.path().read_text()) == ("sum é.csv", "1,2")
    # It wrote no file here.
    assert sorted(file.name for file in lab.folder.glob("*.ipynb")) == ["asks.ipynb", "report.ipynb"]
    page.locator(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabCloseIcon").click()

    # two windows change it: the second is told, what it typed stays, and it may save over
    row.get_by_role("button", name=re.compile("^Change ")).click()
    mine = form_of(page)
    expect(mine.locator(".cb-reading")).to_contain_text(
        re.compile(r"About <?\$0\.?\d* a run, .* a month, from the last run"), timeout=SOON
    )
    expect(mine.get_by_label("rate (float)")).to_have_value("1.5", timeout=SOON)
    mine.get_by_label("Cron line").fill("15 6 * * *")
    with new_page(browser) as second:
        second.set_default_timeout(WAIT_MS)
        other = Panel(second, lab).open()
        other.section("schedules").get_by_role("button", name=re.compile("^Change ")).click()
        theirs = form_of(second)
        theirs.get_by_label("Cron line").fill("45 5 * * *")
        expect(theirs.locator(".cb-reading")).to_contain_text("05:45", timeout=SOON)
        theirs.get_by_role("button", name="Save the change").click()
        expect(theirs).to_have_count(0, timeout=SOON)
    expect(mine.locator(".cb-reading")).to_contain_text("06:15", timeout=SOON)
    mine.get_by_role("button", name="Save the change").click()
    conflict = mine.locator(".cb-conflict")
    expect(conflict).to_contain_text("theirs 45 5 * * *, yours 15 6 * * *", timeout=SOON)
    expect(mine.get_by_label("Cron line")).to_have_value("15 6 * * *", timeout=SOON)
    conflict.get_by_role("button", name="Save mine over it").click()
    expect(mine).to_have_count(0, timeout=SOON)
    expect(row).to_contain_text("at 06:15", timeout=SOON)

    # the notebook changes: shown, and one click takes it over
    expect(schedules.get_by_text("the notebook has changed since")).to_have_count(0, timeout=SOON)
    notebook.cell(1).locator(".cm-content").click()
    page.keyboard.press("End")
    page.keyboard.type("  # more")
    notebook.save()
    expect(row).to_contain_text("the notebook has changed since", timeout=SOON)
    row.get_by_role("button", name=re.compile("^Take the change")).click()
    expect(schedules.get_by_text("the notebook has changed since")).to_have_count(0, timeout=SOON)

    row.get_by_role("button", name=re.compile("^Delete ")).click()
    page.locator(".jp-Dialog").get_by_role("button", name="Delete").click()
    expect(schedules).to_contain_text("No schedules yet", timeout=SOON)


def test_a_name_that_is_taken_is_said_and_an_empty_text_is_kept(notebook: Notebook) -> None:
    page, schedules = notebook.page, Panel(notebook.page, notebook.server).section("schedules")
    for label, saves in (("first", "Schedule"), ("", "Save as taken 2")):
        form = open_form(notebook)
        form.get_by_label("Name", exact=True).fill("taken")
        if label:
            form.get_by_label("label (str)").fill(label)
        else:
            form.get_by_label("label is the empty text").check()
        form.get_by_role("button", name="Schedule", exact=True).click()
        if not label:
            told = form.locator(".cb-conflict")
            expect(told).to_contain_text("there is another schedule with the name taken", timeout=SOON)
            expect(told).to_contain_text("report.ipynb at 07:00", timeout=SOON)
            told.get_by_role("button", name=saves).click()
        expect(form).to_have_count(0, timeout=SOON)
    for name, label, empty in (("taken", "first", None), ("taken 2", "", True)):
        schedules.get_by_role("button", name=f"Change {name}", exact=True).click()
        form = form_of(page)
        expect(form.get_by_label("label (str)")).to_have_value(label, timeout=SOON)
        expect(form.get_by_label("label is the empty text")).to_have_count(1 if empty else 0, timeout=SOON)
        if empty:
            expect(form.get_by_label("label is the empty text")).to_be_checked(timeout=SOON)
            form.get_by_label("Name", exact=True).fill(
                "taken"
            )  # an edit that takes another's name is no quarrel of two editors
            form.get_by_role("button", name="Save the change").click()
            expect(form.locator(".cb-conflict")).to_contain_text("another schedule with the name taken", timeout=SOON)
            form.locator(".cb-conflict").get_by_role("button", name="Open the other schedule").click()
            expect(page.locator(".lm-DockPanel-tabBar .lm-mod-current")).to_have_text("Schedule: taken", timeout=SOON)
            page.locator(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabCloseIcon").click()
        page.locator(".lm-DockPanel-tabBar .lm-mod-current .lm-TabBar-tabCloseIcon").click()
        expect(page.locator(".cb-schedule")).to_have_count(0, timeout=SOON)
    for name in ("taken", "taken 2"):
        schedules.get_by_role("button", name=f"Delete {name}", exact=True).click()
        page.locator(".jp-Dialog").get_by_role("button", name="Delete").click()
        expect(schedules.get_by_role("button", name=f"Delete {name}", exact=True)).to_have_count(0, timeout=SOON)


def test_what_a_run_would_stumble_over_is_shown_before_it_is_saved(notebook: Notebook) -> None:
    """Opened from the file browser's menu, of a notebook that is not in front."""
    page = notebook.page
    page.get_by_role("tab", name=re.compile("File Browser")).click()
    page.locator('.jp-DirListing-item[data-file-type="notebook"]', has_text="asks.ipynb").click(button="right")
    page.get_by_role("menuitem", name="Schedule…").click()
    form = form_of(page)
    expect(form.get_by_label("Name")).to_have_value("asks", timeout=SOON)
    expect(form.locator(".cb-findings")).to_contain_text("cell 2: input() waits for a person", timeout=SOON)
    expect(form.get_by_role("button", name="Save all the same")).to_be_visible(timeout=SOON)
    close_form(page)
    page.get_by_role("tab", name=re.compile("^Cellburst")).click()


def test_nothing_serious_is_found_in_the_form_by_axe(notebook: Notebook) -> None:
    form = open_form(notebook)
    expect(form.locator(".cb-reading li")).to_have_count(5, timeout=SOON)
    notebook.page.add_script_tag(path=str(AXE))
    found = notebook.page.evaluate(
        "async () => (await axe.run('.cb-schedule')).violations.filter(v => ['serious', 'critical'].includes(v.impact))"
    )
    assert not found, json.dumps([(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found], indent=1)
    close_form(notebook.page)
