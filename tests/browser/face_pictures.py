"""Makes the notebook's pictures of docs/images: `python -m tests.browser.face_pictures [FOLDER]`: the form of a schedule, "Run on"."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from bench.harness import house

from .lab import CHROMIUM_FLAGS, WAIT_MS, LabServer, Notebook, lab_server
from .test_panel import Panel

PARAMETERS = 'least = 0.9\nregion = "eu"\ndetailed = True'
CELLS = [
    PARAMETERS,
    "%%modal gpu=A100\nfrom sklearn.datasets import load_digits\nX, y = load_digits(return_X_y=True)\nX.shape",
]


def take(page: Page, server: LabServer, target: Path, ending: str) -> None:
    """Both, in one theme."""
    path = server.notebook(f"nightly-{ending}", CELLS)
    book = json.loads(path.read_text())
    book["cells"][0]["metadata"]["tags"] = ["parameters"]
    path.write_text(json.dumps(book))
    Panel(page, server).open(f"/tree/{path.name}")
    notebook = Notebook(page, server, path)
    notebook.wait_loaded()
    cell = notebook.cell(1)
    cell.locator(".cm-content").click()
    cell.locator('.jp-cell-toolbar [data-jp-item-name="cellburst-run-on"]').get_by_role("button").click()
    page.locator(".cb-run-on").get_by_role("menuitem", name=re.compile("^2 × A100")).hover()
    box = cell.bounding_box()
    assert box is not None
    clip = {"x": box["x"], "y": max(0.0, box["y"] - 70), "width": 1140.0 - box["x"], "height": 330.0}
    page.screenshot(path=target / f"run-on-{ending}.png", clip=clip)  # type: ignore[arg-type]  # a plain dict of that shape
    page.keyboard.press("Escape")
    page.locator('.jp-NotebookPanel:visible [data-jp-item-name="cellburst-schedule"]').get_by_role("button").click()
    form = page.locator(".cb-schedule:visible")
    form.get_by_label("least (float)").fill("0.95")
    form.locator(".cb-reading li").nth(4).wait_for()
    form.get_by_text("Nothing was found").wait_for()
    form.screenshot(path=target / f"schedule-form-{ending}.png")


def main(target: Path) -> None:
    """One house for both themes."""
    with house("A100:2,T4:1") as place, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM_FLAGS)
        for ending, theme in (("light", "JupyterLab Light"), ("dark", "JupyterLab Dark")):
            with lab_server(place, theme=theme) as server:
                context = chromium.new_context(viewport={"width": 1140, "height": 1640}, device_scale_factor=1.5)
                page = context.new_page()
                page.set_default_timeout(2 * WAIT_MS)
                take(page, server, target, ending)
                context.close()
        chromium.close()
    for name in ("run-on", "schedule-form"):
        for ending in ("light", "dark"):
            file = target / f"{name}-{ending}.png"
            with Image.open(file) as picture:
                small = picture.convert("RGB").quantize(128)
            small.save(file, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images"))
