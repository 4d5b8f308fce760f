"""One JupyterLab server, one Chromium, and a house of their own for the browser tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from bench.harness import House, house

from .chromium import script
from .lab import CHROMIUM_FLAGS, WAIT_MS, LabServer, lab_server, new_page

expect.set_options(timeout=WAIT_MS)  # five seconds are little on a machine that others use too


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    """A gateway and worker for the module, with two simulated A100; the first cell starts them."""
    with house("A100:2") as made:
        yield made


@pytest.fixture(scope="module")
def lab(place: House) -> Iterator[LabServer]:
    """JupyterLab on a folder of notebooks."""
    with lab_server(place) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium, which containers' network interfaces do not disturb (chromium.py)."""
    program = shutil.which("chromium")
    assert program is not None, "Chromium is not installed: `make test` as root installs it"
    quiet = script(tmp_path_factory.mktemp("chromium"), program)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=quiet, args=CHROMIUM_FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A fresh page."""
    with new_page(browser) as made:
        yield made
