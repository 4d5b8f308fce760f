"""Makes docs/images: `python -m tests.browser.pictures [THEME [FOLDER]]`, JupyterLab's light theme by default."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from bench.harness import house

from .lab import CHROMIUM_FLAGS, WAIT_MS, Notebook, lab_server

CELL = """\
%%modal gpu=A100
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

X, y = load_digits(return_X_y=True)
model = MLPClassifier((256, 128))
for epoch in range(1, 25):
    for step in range(6):
        model.partial_fit(X / 16, y, classes=range(10))
    if epoch % 4 == 0:
        print(f"epoch {epoch:2}   loss {model.loss_:.4f}")"""


def main(theme: str, folder: Path) -> None:
    """One cell, taken while it runs and when it is done."""
    program = shutil.which("chromium")
    with house("A100:1") as place, lab_server(place, theme=theme) as server, sync_playwright() as playwright:
        data = place.folder / "data"
        data.mkdir(mode=0o700)
        (data / "first-use-told").touch()
        chromium = playwright.chromium.launch(executable_path=program, args=CHROMIUM_FLAGS)
        page = chromium.new_context(viewport={"width": 900, "height": 800}, device_scale_factor=2).new_page()
        notebook = Notebook(page, server, server.notebook("digits", [CELL])).open()
        page.keyboard.press("Control+b")  # the file browser away
        cell = notebook.run(0)
        cell.locator(".jp-OutputArea-output", has_text="epoch 16").wait_for(timeout=WAIT_MS)
        page.locator(".cb-status", has_text="running").wait_for()
        cell.screenshot(path=folder / "card.png")
        notebook.wait_done(0)
        page.mouse.move(5, 5)
        cell.screenshot(path=folder / "card-folded.png")
        chromium.close()
    for name in ("card.png", "card-folded.png"):  # a few colours are all that such a picture has
        with Image.open(folder / name) as picture:
            small = picture.convert("RGB").quantize(256)
        small.save(folder / name, optimize=True)


if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments[0] if arguments else "JupyterLab Light", Path(arguments[1] if len(arguments) > 1 else "docs/images"))
