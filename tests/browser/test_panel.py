"""The panel in real JupyterLab, with a real gateway: what runs is shown and stopped, secrets stay secret, files go up and come
back, a gateway that goes away is said and comes back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from bench.harness import House, Kernel

from .lab import WAIT_MS, LabServer, new_page

ROOT = Path(__file__).resolve().parent.parent.parent
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
VALUE = "value-that-no-page-may-hold"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.gvisor,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("node") is None, reason="the panel is built with Node 20.19 or later"),
]


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
    form.get_by_label("Name").fill("hub")
    form.get_by_label("Key 1").fill("HUB_TOKEN")
    form.get_by_label("Value 1").fill(VALUE)
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


def test_nothing_serious_is_found_by_axe(panel: Panel) -> None:
    for name in ("now", "machines", "volumes", "secrets", "schedules", "cost"):
        panel.section(name)
    panel.page.add_script_tag(path=str(AXE))
    found: list[dict[str, Any]] = panel.page.evaluate(
        "async () => (await axe.run('#cellburst-panel')).violations.filter(v => ['serious', 'critical'].includes(v.impact))"
    )
    assert not found, json.dumps([(v["id"], [node["html"] for node in v["nodes"]][:3]) for v in found], indent=1)


def test_at_250_pixels_nothing_is_cut_off(panel: Panel) -> None:
    panel.page.evaluate("document.getElementById('cellburst-panel').style.width = '250px'")
    try:
        assert (
            panel.page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.getElementById('cellburst-panel'))") <= 0
        )
    finally:
        panel.page.evaluate("document.getElementById('cellburst-panel').style.width = ''")


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
