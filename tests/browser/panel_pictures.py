"""Makes the panel's pictures of docs/images: `python -m tests.browser.panel_pictures [FOLDER]`, each section in light and dark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from bench.harness import House, house

from .lab import CHROMIUM_FLAGS, WAIT_MS, Notebook, lab_server

TRAIN = """\
%%modal gpu=A100
import time
print("training")
while True:
    sum(range(2_000_000)); time.sleep(0.05)"""
SMALL = "%%modal gpu=T4\nnumber = 42"
PARK = "%modal park"
THEMES = (
    ("light", "JupyterLab Light"), ("dark", "JupyterLab Dark"), ("contrast", "JupyterLab Dark High Contrast"),
)  # fmt: skip
SECTIONS = ("now", "machines", "volumes", "secrets", "schedules", "cost")


def fill(place: House, folder: Path) -> None:
    """A volume with files, two secrets and a schedule that names one of them, made by the command line."""

    def cellburst(*arguments: str) -> None:
        subprocess.run(
            [sys.executable, "-m", "cellburst", *arguments],
            env={**os.environ, **place.environment},
            check=True,
            cwd=folder,
        )

    files = folder / "set"
    (files / "images").mkdir(parents=True)
    (files / "labels.csv").write_text("file,label\na.png,7\nb.png,3\n" * 400)
    (files / "readme.md").write_text("# Digits\n")
    for number in range(3):
        (files / "images" / f"{number}.png").write_bytes(os.urandom(40_000))
    for name in ("datasets", "checkpoints"):
        cellburst("volume", "create", name)
    cellburst("volume", "put", "datasets", str(files), "/digits")
    cellburst("nfs", "create", "scratch")
    cellburst("nfs", "put", "scratch", str(files / "labels.csv"), "/runs/")
    cellburst("secret", "create", "huggingface", "HF_TOKEN=hf_0123456789")
    cellburst("secret", "create", "warehouse", "PGHOST=db", "PGUSER=ann", "PGPASSWORD=0123456789")
    cell = {
        "cell_type": "code",
        "id": "a",
        "metadata": {},
        "source": "print(42)",
        "outputs": [],
        "execution_count": None,
    }
    book = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (folder / "nightly.ipynb").write_text(json.dumps(book))
    cellburst(
        "schedule", "create", "nightly.ipynb", "--cron=0 3 * * *", "--no-folder", "--yes", "--volumes=/data:datasets",
        "--secrets=warehouse", "--python", sys.executable,
    )  # fmt: skip


def take(page: Page, target: Path, ending: str) -> None:
    """Each section by itself, and the whole window."""
    page.screenshot(path=target / f"panel-{ending}.png")
    if ending == "contrast":
        return
    for section in SECTIONS:
        button = page.locator(f'[data-section="{section}"] .cb-section-button')
        if button.get_attribute("aria-expanded") == "false":
            button.click()
        if section == "volumes":
            page.get_by_role("button", name="datasets", exact=True).first.click()
            page.get_by_role("button", name="digits", exact=True).click()
            page.get_by_text("labels.csv").wait_for()
        page.wait_for_timeout(1500)
        page.locator(f'[data-section="{section}"]').screenshot(path=target / f"panel-{section}-{ending}.png")
        if section not in ("now", "machines"):
            button.click()


def main(target: Path) -> None:
    """One house for both themes."""
    with house("A100:2,T4:1") as place, sync_playwright() as playwright:
        data = place.folder / "data"
        data.mkdir(mode=0o700)
        (data / "first-use-told").touch()
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        for ending, theme in THEMES:
            with lab_server(place, theme=theme) as server:
                page = chromium.new_context(viewport={"width": 1100, "height": 900}, device_scale_factor=2).new_page()
                page.set_default_timeout(4 * WAIT_MS)
                page.on(
                    "console",
                    lambda m: print("console", m.type, m.text[:300]) if m.type in ("error", "warning") else None,
                )
                notebook = Notebook(page, server, server.notebook(f"train-{ending}", [TRAIN])).open()
                if ending == "light":
                    kernel = place.kernel()
                    kernel.check(SMALL)
                    kernel.check(PARK)
                    kernel.close()
                    fill(place, server.folder)
                page.request.put(
                    f"{server.url}/cellburst/budget", data={"usd_per_month": "5"},
                    headers={"Authorization": f"token {server.token}"},
                )  # fmt: skip
                cell = notebook.run(0)
                cell.locator(".jp-OutputArea-output", has_text="training").wait_for(timeout=WAIT_MS)
                page.get_by_role("tab", name="Cellburst").click()
                page.locator('[data-section="now"] .cb-meter').first.wait_for(timeout=WAIT_MS)
                page.wait_for_timeout(2500)
                take(page, target, ending)
                notebook.page.keyboard.press("Escape")
                page.context.close()
                subprocess.run(
                    [sys.executable, "-m", "cellburst", "stop", str(notebook.path)], env={**os.environ, **place.environment},
                    check=False,
                )  # fmt: skip
        chromium.close()
    for file in target.glob("panel-*.png"):
        with Image.open(file) as picture:
            small = picture.convert("RGB").quantize(256)
        small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
