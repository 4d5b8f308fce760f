"""A package that is installed or changed while a session runs is told at the next cell, once."""

from __future__ import annotations

from pathlib import Path

from cellburst_protocol import messages as m
from tests.fakes.fake_gateway_for_kernel import Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook
from tests.jupyter_ext.test_cells import texts


async def starts(cell: Cell) -> None:
    cell.emit(m.ContainerStarted(container=cell.session.info.container, start="boot"))
    cell.emit(m.CellStarted())
    cell.done()
    cell.end()


def told(notebook: Notebook, code: str) -> str:
    """What a cell says of changes."""
    reply, output = notebook.run(f"%%modal card=off\n{code}")
    assert reply["status"] == "ok"
    return "".join(line for line in texts(output).splitlines(True) if "changed here" in line)


def test_what_changed_is_told_once_with_the_way_to_take_it_in(
    gateway: FakeKernelGateway, notebook: Notebook, tmp_path: Path
) -> None:
    gateway.scripts["starts"] = starts
    site = tmp_path / "env" / "site-packages"
    (site / "cb-probe-2.2.dist-info").mkdir(parents=True)
    notebook.run(f"import sys; sys.path.append({str(site)!r})")

    assert told(notebook, "#!starts") == "" and told(notebook, "1") == ""
    (site / "cb-probe-2.2.dist-info").rename(site / "cb-probe-3.1.dist-info")
    line = told(notebook, "2")
    assert "changed here since this session started: cb-probe 2.2 -> 3.1. `%modal restart` takes it in" in line
    assert told(notebook, "3") == ""
    for name in ("a", "b", "c", "d"):
        (site / f"{name}-1.0.dist-info").mkdir()
    assert "a 1.0 installed; b 1.0 installed; c 1.0 installed and 2 more. `%modal restart`" in told(notebook, "4"), (
        "another change"
    )
    assert told(notebook, "5") == ""
    assert told(notebook, "#!starts") == "" and told(notebook, "6") == "", "a new container has what is here now"


def test_a_pth_file_that_is_edited_in_place_is_told_at_the_next_cell(
    gateway: FakeKernelGateway, notebook: Notebook, tmp_path: Path
) -> None:
    gateway.scripts["starts"] = starts
    site, one, other = tmp_path / "env" / "site-packages", tmp_path / "one", tmp_path / "other"
    for folder in (site, one, other):
        folder.mkdir(parents=True)
    pth = site / "mine.pth"
    pth.write_text(f"{one}\n")
    before = site.stat().st_mtime_ns
    notebook.run(f"import sys; sys.path.append({str(site)!r})")
    assert told(notebook, "#!starts") == "" and told(notebook, "1") == ""
    pth.write_text(f"{other}\n")
    assert site.stat().st_mtime_ns == before, "the folder itself shows nothing of it"
    line = told(notebook, "2")
    assert f"changed here since this session started: {other} added; {one} no longer there. `%modal restart`" in line
    assert told(notebook, "3") == ""
