"""The panel in real JupyterLab, with a real gateway: what runs is shown and stopped, secrets stay secret, files go up and come
back, a gateway that goes away is said and comes back."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bench.harness import House, Kernel

from .lab import WAIT_MS, LabServer, lab_server, new_page
from .marks import NEEDS_PANEL
from .panel_pictures import fill

ROOT = Path(__file__).resolve().parent.parent.parent
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
VALUE = "value-that-no-page-may-hold"
pytestmark = NEEDS_PANEL


class Panel:
    """The panel in a page."""

    def __init__(self, page: Page, lab: LabServer) -> None:
        self.page = page
        self.lab = lab
        self.node = page.locator("#cellburst-panel")

    def open(self, path: str = "") -> Panel:
        """Load JupyterLab, on a notebook or on nothing, and press the panel's tab."""
        self.page.goto(f"{self.lab.url}/lab/workspaces/panel{path}?reset&token={self.lab.token}")
        self.page.get_by_role("tab", name=re.compile("^Cellburst")).click(timeout=WAIT_MS)
        expect(self.section("machines")).to_contain_text("A100", timeout=WAIT_MS)
        return self

    def section(self, name: str) -> Locator:
        """A section, unfolded."""
        section = self.node.locator(f'[data-section="{name}"]')
        button = section.locator(".cb-section-button")
        if button.get_attribute("aria-expanded", timeout=WAIT_MS) == "false":
            button.click()
        return section


@pytest.fixture(scope="module")
def panel(lab: LabServer, browser: Browser) -> Iterator[Panel]:
    """One window for the module; opening the panel starts the gateway."""
    with new_page(browser) as page:
        page.set_default_timeout(WAIT_MS)
        yield Panel(page, lab).open()


@pytest.fixture(scope="module")
def kernel(place: House, panel: Panel) -> Iterator[Kernel]:
    """A kernel beside, whose cells the panel shows."""
    made = place.kernel()
    yield made
    made.close()


def test_a_running_session_is_shown_and_stopped(panel: Panel, kernel: Kernel) -> None:
    now = panel.section("now")
    expect(now).to_contain_text("Nothing runs and nothing costs")
    kernel.check("%%modal gpu=A100 card=off\nnumber = 6 * 7")
    row = now.locator(".cb-row").first
    expect(row).to_contain_text("bench.ipynb")
    expect(row).to_contain_text("A100-40GB")
    expect(row).to_contain_text("SIMULATED")
    expect(row.locator(".cb-money")).to_have_text(re.compile(r"^(<?\$0\.\d+) at \$\d+\.\d\d/h$"))
    expect(row.get_by_role("meter", name="Memory")).to_be_visible()
    expect(panel.section("machines")).to_contain_text("in use")
    expect(panel.page.locator(".cb-status-item")).to_contain_text("A100-40GB")
    row.get_by_role("button", name=re.compile("^Show what")).click()
    expect(panel.page.locator(".jp-Dialog .cb-log")).to_contain_text("Nothing was printed yet")
    panel.page.get_by_role("button", name="Close").click()
    row.get_by_role("button", name=re.compile("^Stop")).click()
    panel.page.locator(".jp-Dialog").get_by_role("button", name="Stop").click()
    expect(now).to_contain_text("Nothing runs and nothing costs")
    expect(panel.section("cost").locator(".cb-bars").first).to_be_visible()


def test_a_secrets_value_leaves_the_page_once(panel: Panel) -> None:
    page, answers = panel.page, []
    page.on("response", lambda response: answers.append(response))
    secrets = panel.section("secrets")
    secrets.get_by_role("button", name="New secret").click()
    form = page.locator(".cb-secret-form")
    form.get_by_label("Name").fill("hub!")
    form.get_by_label("Key 1").fill("HUB_TOKEN")
    form.get_by_label("Value 1").fill(VALUE)
    page.locator(".jp-Dialog").get_by_role("button", name="Create").click()
    expect(page.get_by_text("The secret was not made").first).to_be_visible()
    expect(form.get_by_label("Name")).to_have_value("hub!")  # it is asked for again, and nothing typed is lost
    expect(form.get_by_label("Value 1")).to_have_value(VALUE)
    form.get_by_label("Name").fill("hub")
    page.locator(".jp-Dialog").get_by_role("button", name="Create").click()
    row = secrets.locator(".cb-row", has_text="hub")
    expect(row).to_contain_text("HUB_TOKEN")
    expect(form).to_have_count(0)
    assert VALUE not in page.content()
    ours = [answer for answer in answers if "/cellburst/" in answer.url]
    assert any(answer.request.method == "POST" for answer in ours)
    assert all(VALUE not in answer.text() for answer in ours)
    row.get_by_role("button", name="Delete hub").click()
    page.locator(".jp-Dialog").get_by_role("button", name="Delete").click()
    expect(secrets).to_contain_text("No secrets yet")


def test_a_file_goes_to_a_volume_and_comes_back(panel: Panel, tmp_path: Path) -> None:
    page, volumes = panel.page, panel.section("volumes")
    volumes.get_by_role("button", name="New volume").click()
    page.locator(".jp-Dialog input").fill("digits")
    page.locator(".jp-Dialog").get_by_role("button", name="Create").click()
    folder = volumes.locator(".cb-folder")
    expect(folder).to_contain_text("Empty. Drop files here")
    name = "<b>train & test</b> é.bin"
    data = os.urandom(9_000_000)  # two pieces
    file = tmp_path / name.replace("/", "_")
    file.write_bytes(data)
    folder.locator("input[type=file]").set_input_files(str(file))
    shown = folder.get_by_role("button", name=file.name, exact=True)
    expect(shown).to_have_text(file.name)  # as text: were it HTML, the tags were gone
    expect(folder).to_contain_text("9.0 MB")
    with page.expect_download(timeout=WAIT_MS) as coming:
        folder.get_by_role("button", name=f"Download {file.name}", exact=True).click()
    assert Path(coming.value.path()).read_bytes() == data
    volumes.get_by_role("button", name="Delete digits", exact=True).click()
    page.locator(".jp-Dialog").get_by_role("button", name="Delete").click()
    expect(volumes).to_contain_text("No volumes yet")


@pytest.fixture(scope="module")
def filled(panel: Panel, place: House, lab: LabServer) -> Panel:
    """Something in every section, and all of them open: a folder of a volume, a schedule with a run."""
    fill(place, lab.folder)
    for name in ("now", "machines", "cost"):
        panel.section(name)
    volumes, schedules = panel.section("volumes"), panel.section("schedules")
    volumes.get_by_role("button", name="datasets", exact=True).first.click()
    volumes.get_by_role("button", name="digits", exact=True).click()
    expect(volumes.get_by_role("button", name="labels.csv", exact=True)).to_be_visible()
    expect(panel.section("secrets").locator(".cb-row")).to_have_count(2)
    schedules.get_by_role("button", name="Run nightly now").click()
    schedules.get_by_role("button", name="nightly", exact=True).click()
    expect(schedules.locator(".cb-folder .cb-row")).to_contain_text("succeeded", timeout=2 * WAIT_MS)
    return panel


def serious(page: Page, where: str) -> str:
    """What axe finds in a part of the page."""
    if not page.evaluate("'axe' in window"):
        page.add_script_tag(path=str(AXE))
    found: list[dict[str, Any]] = page.evaluate(
        "async where => (await axe.run(where)).violations.filter(v => ['serious', 'critical'].includes(v.impact))",
        where,
    )
    shown = [(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found]
    return json.dumps(shown, indent=1) if shown else ""


def test_nothing_serious_is_found_by_axe(filled: Panel) -> None:
    assert serious(filled.page, "#cellburst-panel") == ""
    filled.section("secrets").get_by_role("button", name="New secret").click()
    dialog = filled.page.locator(".jp-Dialog")
    expect(dialog.get_by_role("button", name="Take a .env file…")).to_be_visible()
    assert serious(filled.page, ".jp-Dialog") == ""
    dialog.get_by_role("button", name="Cancel").click()


def test_at_250_pixels_nothing_is_cut_off(filled: Panel) -> None:
    panel = filled
    panel.page.evaluate("document.getElementById('cellburst-panel').style.width = '250px'")
    try:
        assert (
            panel.page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.getElementById('cellburst-panel'))") <= 0
        )
        file = panel.section("volumes").locator(".cb-row", has_text="labels.csv")
        expect(file.locator(".cb-size")).to_have_text("10.8 kB")
        expect(file.locator(".cb-size")).to_be_visible()
        expect(file.locator(".cb-name")).to_be_visible()
        name, size, row = (file.locator(one).bounding_box() for one in (".cb-name", ".cb-size", ".cb-line"))
        assert name and size and row
        assert size["y"] + size["height"] <= row["y"] + 30, "a row of a long list has 30 pixels"
        assert name["width"] > 80 and size["y"] >= name["y"] + name["height"] - 1
        icons = panel.node.locator(".cb-action svg").evaluate_all(
            "all => all.map(e => e.getBoundingClientRect().width)"
        )
        assert icons and min(icons) >= 16, "icons are not pressed together"
    finally:
        panel.page.evaluate("document.getElementById('cellburst-panel').style.width = ''")


def test_a_runs_logs_are_shown_and_a_notebook_that_is_gone_is_said(filled: Panel, lab: LabServer) -> None:
    schedules, dialog = filled.section("schedules"), filled.page.locator(".jp-Dialog")
    schedules.get_by_role("button", name=re.compile("^What the run of")).click()
    schedules.get_by_role("button", name="Show what it printed").click()
    expect(dialog.locator(".cb-log")).to_contain_text("42")
    dialog.get_by_role("button", name="Close").click()
    row = schedules.locator(".cb-row", has_text="nightly").first
    expect(row).not_to_contain_text("its notebook is gone")
    (lab.folder / "nightly.ipynb").unlink()
    expect(row).to_contain_text("its notebook is gone: runs have the one that was kept")


def test_under_any_base_url(place: House, browser: Browser, tmp_path: Path) -> None:
    """As behind JupyterHub: no request of the panel's goes past the server's own address."""
    base = "/user/ann@example.org/"
    with lab_server(place, base_url=base) as server, new_page(browser) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("websocket", lambda socket: asked.append(socket.url))
        panel = Panel(page, server).open()
        volumes = panel.section("volumes")
        volumes.get_by_role("button", name="New volume").click()
        page.locator(".jp-Dialog input").fill("elsewhere")
        page.locator(".jp-Dialog").get_by_role("button", name="Create").click()
        folder = volumes.locator(".cb-folder")
        (tmp_path / "a b.txt").write_text("there and back")
        folder.locator("input[type=file]").set_input_files(str(tmp_path / "a b.txt"))
        with page.expect_download(timeout=WAIT_MS) as coming:
            folder.get_by_role("button", name="Download a b.txt", exact=True).click(timeout=WAIT_MS)
        assert Path(coming.value.path()).read_text() == "there and back"
        ours = [url for url in asked if re.search(r"/cellburst/(live|volumes|start)", url)]
        assert {url.partition(":")[0] for url in ours} == {"http", "ws"}
        assert all(f"{base}cellburst/" in url for url in ours), ours


def test_a_gateway_that_goes_away_is_said_and_started_again(panel: Panel, place: House) -> None:
    """The last of the module: it ends the module's gateway and starts another."""
    subprocess.run(
        [sys.executable, "-m", "cellburst", "down"], env={**os.environ, **place.environment}, check=True, timeout=100,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    banner = panel.node.locator(".cb-banner")
    expect(banner).to_contain_text("The gateway is gone", timeout=WAIT_MS)
    banner.get_by_role("button", name="Start").click()
    expect(banner).to_have_count(0, timeout=2 * WAIT_MS)
    expect(panel.section("machines")).to_contain_text("A100", timeout=WAIT_MS)
