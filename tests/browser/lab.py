"""JupyterLab as a real server and a real page: what the browser tests and the pictures in the docs are made with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Locator, Page

from bench.harness import House

CHROMIUM_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT_MS = 40_000  # a first cell starts a gateway, a worker and a container, on a machine that others use too
READY_MARK = "/lab?token="


@dataclass
class LabServer:
    """A running `jupyter lab` and the folder that it serves."""

    url: str
    token: str
    folder: Path
    process: subprocess.Popen[str]

    def notebook(self, name: str, cells: Sequence[str]) -> Path:
        """Write a notebook of these code cells."""
        made: list[dict[str, Any]] = [
            {
                "cell_type": "code",
                "id": f"{name}-{number}",
                "metadata": {},
                "source": cell,
                "outputs": [],
                "execution_count": None,
            }
            for number, cell in enumerate(cells)
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        book = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
        path = self.folder / f"{name}.ipynb"
        path.write_text(json.dumps(book))
        return path

    def address(self, path: Path) -> str:
        """Where the browser opens a notebook, in a workspace of its own and with no tab of an earlier one."""
        return f"{self.url}/lab/workspaces/{path.stem}/tree/{path.name}?reset&token={self.token}"


def wait_listening(url: str, seconds: float = 60.0) -> None:
    """Jupyter says its address a moment before it listens there."""
    where = urlsplit(url)
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((where.hostname or "", where.port or 0), timeout=5).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


@contextlib.contextmanager
def lab_server(
    house: House, *, theme: str = "JupyterLab Light", disabled: Sequence[str] = (), base_url: str = "/"
) -> Iterator[LabServer]:
    """Start JupyterLab on a fresh folder, with settings of its own, without the `disabled` front-end extensions; ended by its pid."""
    place = house.folder / f"lab-{secrets.token_hex(4)}"
    folder = place / "notebooks"
    folder.mkdir(parents=True)
    settings = place / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "themes.jupyterlab-settings").write_text(json.dumps({"theme": theme}))
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    labconfig = place / "config" / "labconfig"
    labconfig.mkdir(parents=True)
    (labconfig / "page_config.json").write_text(json.dumps({"disabledExtensions": dict.fromkeys(disabled, True)}))
    environment = {
        **os.environ, **house.environment, "JUPYTER_RUNTIME_DIR": str(place / "runtime"),
        "JUPYTER_CONFIG_DIR": str(place / "config"), "JUPYTER_DATA_DIR": str(place / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(place / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(place / "workspaces"),
        "IPYTHONDIR": str(place / "ipython"),
    }  # fmt: skip
    token = secrets.token_hex(16)
    log = place / "server.log"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--port=0", "--allow-root",
            f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}",
            f"--ServerApp.base_url={base_url}", "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ],
        env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:  # it says its address when it serves; the end of its output is its death
            lines.append(line)
            if READY_MARK in line and "http://127.0.0.1" in line:
                break
        else:
            raise RuntimeError("JupyterLab did not start:\n" + "".join(lines[-20:]))
        url = line[line.index("http://") : line.index("/lab?")]
        wait_listening(url)
        # Its pipe must be read on, or a talkative server would stand still.
        with log.open("w") as kept, subprocess.Popen(["cat"], stdin=process.stderr, stdout=kept) as drain:
            try:
                yield LabServer(url, token, folder, process)
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:  # it waits for a kernel that will not go
                    process.kill()
                drain.wait(20)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(20)
        if process.stderr is not None:
            process.stderr.close()


@contextlib.contextmanager
def new_page(browser: Browser) -> Iterator[Page]:
    """A page with its own cookies."""
    context = browser.new_context(viewport={"width": 1180, "height": 860})
    try:
        yield context.new_page()
    finally:
        context.close()


class Notebook:
    """A notebook in a page, driven as a person drives it."""

    def __init__(self, page: Page, server: LabServer, path: Path) -> None:
        self.page = page
        self.server = server
        self.path = path

    def open(self) -> Notebook:
        """Load the page and wait for the notebook's cells and kernel."""
        self.page.goto(self.server.address(self.path))
        self.wait_loaded()
        return self

    def wait_loaded(self) -> None:
        """The cells are there and the kernel is idle or busy."""
        self.cell(0).locator(".cm-content").wait_for(timeout=WAIT_MS)
        # Not the toolbar's indicator: that one says idle before there is a kernel, and a cell run then is dropped.
        self.page.locator("#jp-main-statusbar", has_text=re.compile(r"\| (Idle|Busy)")).wait_for(timeout=WAIT_MS)

    def cell(self, number: int) -> Locator:
        """A code cell with its output."""
        return self.page.locator(f'.jp-CodeCell[data-windowed-list-index="{number}"]')

    def run(self, number: int) -> Locator:
        """Press Ctrl+Enter in a cell. Returns the cell."""
        cell = self.cell(number)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        return cell

    def wait_done(self, number: int) -> None:
        """The cell has run: its prompt shows a number again."""
        self.cell(number).locator(".jp-InputPrompt", has_text="]:").filter(has_not_text="*").filter(
            has_not_text="[ ]"
        ).wait_for(timeout=WAIT_MS)

    def save(self) -> dict[str, Any]:
        """Save with Ctrl+S and give the file's content when it is written."""
        with self.page.expect_response(
            lambda answer: answer.request.method == "PUT" and f"/api/contents/{self.path.name}" in answer.url,
            timeout=WAIT_MS,
        ):
            self.page.keyboard.press("Control+s")
        book: dict[str, Any] = json.loads(self.path.read_text())
        return book
