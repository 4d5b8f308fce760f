"""Every cell of the table shows under `%%modal`, in a gVisor container, what it shows in a plain local kernel."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from bench.harness import House, Kernel, house

from .cells import CELLS, WIDGET_FROM_FRONT, WIDGET_WITHOUT_SUBSHELL, Cell
from .compare import pixels, run

pytestmark = pytest.mark.gvisor

HELPER = "def double(x):\n    return 2 * x\n\n\ndef fails():\n    raise ValueError('from the helper')\n"


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house() as made:
        yield made


@pytest.fixture(scope="module")
def kernels(place: House) -> Iterator[tuple[Kernel, Kernel]]:
    """A plain kernel and one with the magic, each in a folder with the same files; counts start equal."""
    local, remote = place.kernel(), place.kernel()
    try:
        for folder in place.folder.glob("notebook-*"):
            write_files(folder)
        for kernel in (local, remote):
            kernel.client.execute("import cellburst_jupyter", silent=True, reply=True, timeout=60)
        loaded = remote.client.execute(
            "get_ipython().run_line_magic('load_ext', 'cellburst_jupyter')", silent=True, reply=True, timeout=60
        )
        assert loaded["content"]["status"] == "ok", loaded["content"]
        local.check("warm = 1"), remote.check("%%modal card=off\nwarm = 1")
        yield local, remote
    finally:
        local.close(), remote.close()


def write_files(folder: Path) -> None:
    (folder / "data.txt").write_text("seven lines of data")
    (folder / "helper.py").write_text(HELPER)
    (folder / "script.py").write_text("print('script ran', __name__)\nfrom_script = 7\n")


@pytest.mark.parametrize("cell", CELLS, ids=[c.id for c in CELLS])
def test_same_as_local(cell: Cell, kernels: tuple[Kernel, Kernel]) -> None:
    local, remote = kernels
    expected = run(local, cell, "# %%modal card=off")
    found = run(remote, cell, "%%modal card=off")
    assert found["outputs"] == expected["outputs"]
    assert found["reply"] == expected["reply"]


def test_a_widget_moved_by_the_front_end_reaches_the_running_cell(kernels: tuple[Kernel, Kernel]) -> None:
    found = run(kernels[1], WIDGET_FROM_FRONT, "%%modal card=off")
    kernels[0].check("count = 'kept in step'")
    assert ["stdout", "became 42\n"] in found["outputs"]


def test_without_subshells_the_change_comes_when_the_cell_has_ended(kernels: tuple[Kernel, Kernel]) -> None:
    found = run(kernels[1], WIDGET_WITHOUT_SUBSHELL, "%%modal card=off")
    assert ["stdout", "is 1\n"] in found["outputs"]
    assert kernels[1].check("%%modal card=off\nprint('now', late.value)").text == "now 42\n"
    kernels[0].check("count = 'kept in step'"), kernels[0].check("count = 'once more'")


def test_the_table_is_as_large_as_promised() -> None:
    assert len(CELLS) >= 60 and len({c.id for c in CELLS}) == len(CELLS)


def test_one_other_pixel_is_another_figure() -> None:
    def png(color: tuple[int, int, int], note: str) -> bytes:
        image = Image.new("RGB", (8, 4))
        image.putpixel((3, 2), color)
        made, about = io.BytesIO(), PngImagePlugin.PngInfo()
        about.add_text("Software", note)
        image.save(made, "png", pnginfo=about)
        return made.getvalue()

    assert pixels(png((9, 9, 9), "one")) == pixels(png((9, 9, 9), "two"))
    assert pixels(png((9, 9, 9), "one")) != pixels(png((9, 9, 8), "one"))
