"""`image=` in a real ipykernel against a fake gateway: what is sent, what is refused, how a build is shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cellburst_jupyter.card_model import CardModel
from cellburst_jupyter.cell_image import CellImage
from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.images import (
    AptInstall,
    DebianSlim,
    FromRegistry,
    ImageRecipe,
    PipInstall,
    RunCommands,
    debian_slim,
    packs,
)
from cellburst_protocol.states import EndReason
from tests.fakes.fake_gateway_for_kernel import BOX, Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook

HERE = ".".join(map(str, sys.version_info[:2]))
OTHER = "3.11" if HERE != "3.11" else "3.12"
TAIL = "\n".join(f"output {number}" for number in range(40))
FAILED = ErrorInfo(
    code=ErrorCode.IMAGE_BUILD,
    message=f"step 2 of 2 failed: apt_install nothing: exit code 100\n{TAIL}",
    next="mend it",
)


def shown(output: list[dict[str, Any]]) -> str:
    (error,) = [one for one in output if one["msg_type"] == "error"]
    return "\n".join(error["content"]["traceback"])


def share_blobs(gateway: FakeKernelGateway, folder: Path) -> Path:
    """Have the kernel use a blob folder of this machine."""
    blobs = folder / "blobs"
    blobs.mkdir()
    (blobs / "proof").write_text("word")
    gateway.welcomes = {"blob_folder": str(blobs), "blob_proof_path": str(blobs / "proof"), "blob_proof": "word"}
    return blobs


def cards(output: list[dict[str, Any]]) -> list[str]:
    kinds = ("display_data", "update_display_data")
    return [one["content"]["data"]["text/plain"] for one in output if one["msg_type"] in kinds]


def test_a_cell_says_its_image_once_and_the_session_goes_on_in_it(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    notebook.run("import cellburst\nimg = cellburst.Image.debian_slim('3.11').apt_install('git')")
    for line in ("image=img", "", "--image img"):
        assert notebook.run(f"%%modal {line}\n1")[0]["status"] == "ok"
    first, second, third = (cell.request for cell in gateway.sessions["default"].cells)
    assert first.recipe == ImageRecipe(steps=[DebianSlim(), AptInstall(packages=["git"])])
    assert third.recipe == first.recipe and (first.keep_image, third.keep_image) == (False, False)
    assert second.recipe is None and second.keep_image is True
    assert first.image is not None and first.image.notebook_folder  # the folder is shown in every image


def test_the_mirror_is_no_recipe_until_something_is_added(
    gateway: FakeKernelGateway, notebook: Notebook, tmp_path: Path
) -> None:
    share_blobs(gateway, tmp_path)
    notebook.run("import cellburst\nhere = cellburst.Image.mirror(); more = here.run_commands('true')")
    notebook.run("%%modal image=here\n1")
    notebook.run("%%modal image=more\n1")
    first, second = (cell.request for cell in gateway.sessions["default"].cells)
    assert (first.recipe, first.keep_image) == (None, False)
    assert second.recipe is not None and second.recipe.steps[-1] == RunCommands(commands=["true"])


def test_what_is_no_image_is_refused_with_those_there_are(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    text = shown(notebook.run("%%modal image=img\n1")[1])
    assert "img is no variable of this notebook" in text and "img = cellburst.Image.debian_slim()" in text
    notebook.run("import cellburst\nbase = cellburst.Image.debian_slim()\nimg = 'debian:12'")
    text = shown(notebook.run("%%modal gpu=A100 image=img\n1")[1])
    assert "image=img: img is a str" in text and "a cellburst.Image: base" in text and "image=base" in text
    caret = next(line for line in text.splitlines() if line.strip() == "^")
    line = next(line for line in text.splitlines() if "%%modal gpu=A100 image=img" in line)
    assert line[caret.index("^") :] == "img"
    assert not gateway.sessions or not gateway.sessions["default"].cells


def test_local_files_are_sent_before_the_cell_and_once(
    gateway: FakeKernelGateway, notebook: Notebook, tmp_path: Path
) -> None:
    blobs = share_blobs(gateway, tmp_path)
    own = tmp_path / "own"
    own.mkdir()
    notebook.run(f"import tempfile; tempfile.tempdir = {str(own)!r}")
    (tmp_path / "nb" / "data.txt").write_text("what the image gets")
    notebook.run("import cellburst\nimg = cellburst.Image.debian_slim().add_local_file('data.txt', '/data/')")
    assert notebook.run("%%modal image=img\n1")[0]["status"] == "ok"
    recipe = gateway.sessions["default"].cells[0].request.recipe
    assert recipe is not None
    (pack,) = packs(recipe)
    blob = blobs / pack.hash[:2] / pack.hash
    assert b"what the image gets" in blob.read_bytes() and not list((blobs / "tmp").iterdir())
    before = blob.stat().st_ino
    notebook.run("%%modal image=img\n1")
    assert blob.stat().st_ino == before
    (tmp_path / "nb" / "data.txt").unlink()
    text = shown(notebook.run("%%modal image=img\n1")[1])
    assert "data.txt" in text and len(gateway.sessions["default"].cells) == 2
    assert not list(own.iterdir())


def test_a_build_is_a_line_that_changes_and_its_words_are_in_the_logs_only(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.Phase(name="image"))
        cell.emit(m.BuildLog(lines=["Get:1 bookworm"], step=1, steps=2, title="debian_slim bookworm"))
        cell.emit(m.BuildLog(lines=["Get:2 bookworm"], step=1, steps=2, title="debian_slim bookworm"))
        cell.emit(m.BuildLog(lines=["Setting up git"], step=2, steps=2, title="apt_install git"))
        cell.emit(m.Phase(name="image", seconds=3.5))
        cell.emit(m.ContainerStarted(container=BOX, phases=[m.PhaseTime(name="image", seconds=3.5)]))
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("import cellburst\nimg = cellburst.Image.debian_slim().apt_install('git')")
    reply, output = notebook.run("%%modal image=img\n#!play")
    assert reply["status"] == "ok"
    lines = cards(output)
    steps = [line for line in lines if "building, step" in line]
    assert (
        len(steps) == 2
        and "step 1 of 2: debian_slim bookworm" in steps[0]
        and "step 2 of 2: apt_install git" in steps[1]
    )
    assert "image 3.5 s" in lines[-1] and "building" not in lines[-1]
    assert not any(one["msg_type"] == "stream" and "Setting up" in one["content"]["text"] for one in output)


def test_what_a_card_says_of_a_build() -> None:
    model = CardModel(asked="no GPU", began=0.0)
    model.waiting = "sending files: 1 MB of 2 MB"
    model.phase("image", None, 10.0)
    log = m.BuildLog(lines=["Get:1", "  Setting up git  ", ""], step=1, steps=2, title="apt_install git")
    assert model.build(log) is True and model.build(log) is False
    assert model.status(22.0) == "building, step 1 of 2: apt_install git 12 s: Setting up git"
    assert model.build(m.BuildLog(lines=[], step=2, steps=2, title="env A")) is True
    assert model.status(23.0) == "building, step 2 of 2: env A 13 s"
    said = m.BuildLog(lines=["Step 2 of 2: env A"], step=2, steps=2, title="env A")
    assert model.build(said) is False and model.status(23.0) == "building, step 2 of 2: env A 13 s"
    model.phase("image", 13.0, 23.0)
    assert "building" not in model.status(23.0)
    there = m.BuildLog(lines=["Step 1 of 2: env A: there already"], step=1, steps=2, title="env A")
    assert model.build(there) is False and "building" not in model.status(23.0)


def test_a_session_that_is_moved_to_another_image_says_what_came(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        first = len(cell.session.cells) == 1
        box = msgspec.structs.replace(BOX, id=f"c-{len(cell.session.cells)}", image="" if first else "ab" * 20)
        why = [m.PhaseTime(name="boot", seconds=1.0, detail="snapshot unusable: image was one, is another")]
        cell.emit(m.ContainerStarted(container=box, start="boot" if first else "names", phases=[] if first else why))
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("import cellburst\nimg = cellburst.Image.from_registry('debian:12')")
    notebook.run("%%modal\n#!play")
    _, output = notebook.run("%%modal image=img\n#!play")
    text = "".join(one["content"]["text"] for one in output if one["msg_type"] == "stream")
    assert "in another image now, with its names" in text and "unusable" not in text
    _, output = notebook.run(
        "%%modal image=img\n#!play"
    )  # the same image: why its snapshot was no good is worth knowing
    text = "".join(one["content"]["text"] for one in output if one["msg_type"] == "stream")
    assert "snapshot unusable: image was one" in text


def test_a_kernel_that_is_asked_sends_its_environment_as_an_image(
    gateway: FakeKernelGateway, notebook: Notebook, tmp_path: Path
) -> None:
    blobs, answers = share_blobs(gateway, tmp_path), []

    async def play(cell: Cell) -> None:
        assert cell.session.stream is not None
        cell.session.stream.post(m.MirrorNeeded(call=cell.request.call, machine="the-box"))
        cell.session.stream.post(m.MirrorNeeded(call=cell.request.call, machine="the-box"))
        answers.append((await cell.heard(m.MirrorRecipe))[0])
        box = msgspec.structs.replace(BOX, image="ab" * 20)
        cell.emit(m.ContainerStarted(container=box, mirror_identity="of this kernel", start="names"))
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal\n1")
    for name in ("data.txt", ".env", "other.ipynb"):
        (tmp_path / "nb" / name).write_text("what")
    _, output = notebook.run("%%modal\n#!play")
    assert [cell.request.has_mirror for cell in gateway.sessions["default"].cells] == [True, True]
    (answer,) = answers
    assert answer.recipe is not None and answer.recipe.mirror and answer.error is None
    [pip] = [step for step in answer.recipe.steps if isinstance(step, PipInstall)]
    assert f"msgspec=={msgspec.__version__}" in pip.packages and pip.no_deps
    sent = packs(answer.recipe)
    assert len(sent) == 1 and answer.folder is not None and answer.recipe.folder is None
    for pack in (*sent, answer.folder):
        assert (blobs / pack.hash[:2] / pack.hash).stat().st_size == pack.size_bytes
    assert any("this environment is to be built on the-box" in line for line in cards(output))
    text = "".join(one["content"]["text"] for one in output if one["msg_type"] == "stream")
    assert "this environment was built on fakebox" in text and "went along as it is now: 1 files, 4 B" in text, text
    assert "came back with its names only" in text and "in another image" not in text
    # What goes wrong here is told there, where the cell waits.
    notebook.run("import cellburst.image_mirror as mirror\nmirror.frozen_packages = lambda *a: 1 / 0")
    notebook.run("%%modal\n#!play")
    assert answers[-1].recipe is None and answers[-1].error is not None
    assert "could not be read: ZeroDivisionError" in answers[-1].error.message


def test_a_detached_cell_says_that_its_image_is_built(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.BuildLog(lines=["Get:1"], step=1, steps=2, title="apt_install git"))
        await cell.heard(m.StdinReply)
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal detach\n#!play")
    words = "building its image, step 1 of 2: apt_install git"
    notebook.until(lambda one: words in str(one["content"].get("data", {}).get("text/plain", "")))
    session = gateway.sessions["default"]

    async def go_on() -> None:
        session.cells[0].inbox.put_nowait((m.StdinReply(call=""), []))

    gateway.call(go_on())
    notebook.until(lambda one: "ended: done" in str(one["content"].get("data", {}).get("text/plain", "")))


def test_a_failed_build_is_the_cells_error_with_the_end_of_its_output_once(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.Phase(name="image"))
        cell.emit(m.BuildLog(lines=TAIL.splitlines(), step=2, steps=2, title="apt_install nothing"))
        cell.end(EndReason.START_FAILED, FAILED)

    gateway.scripts["play"] = play
    notebook.run("import cellburst\nimg = cellburst.Image.debian_slim().apt_install('nothing')")
    reply, output = notebook.run("%%modal image=img\n#!play")
    assert reply["status"] == "error"
    text = shown(output)
    assert "apt_install nothing: exit code 100" in text and "Next:    mend it" in text
    assert [text.count(f"output {number}\n") for number in (0, 20, 39)] == [1, 1, 1]
    assert not any(one["msg_type"] == "stream" for one in output)


def test_code_is_refused_before_the_first_cell_of_an_image_with_another_python(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    notebook.run(f"import cellburst\nold = cellburst.Image.debian_slim('{OTHER}')\nx = [1]\ndef f(): return x")
    text = shown(notebook.run("%%modal image=old\nf()")[1])
    assert f"this kernel has {HERE}, the container {OTHER}" in text and not gateway.sessions["default"].cells
    assert notebook.run("%%modal image=old\nx")[0]["status"] == "ok"


def test_the_python_of_an_image_session_is_remembered_while_it_is_parked(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        box = msgspec.structs.replace(BOX, python_version="3.99.2", image="ab" * 20)
        cell.emit(m.ContainerStarted(container=box))
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("import cellburst\nimg = cellburst.Image.from_registry('debian:12')\ndef f(): return 1")
    assert notebook.run("%%modal image=img\n#!play")[0]["status"] == "ok"
    session = gateway.sessions["default"]
    gateway.tell(session, lambda: session.park(m.ParkedInfo(id="p-1", session="s-1")))
    assert "the container 3.99" in shown(notebook.run("%%modal\nf()")[1])


@pytest.mark.parametrize(
    ("image", "session", "python"),
    [
        (CellImage(keep=True), "", "3.13.1"),
        (CellImage(keep=True), "3.11.2", "3.11.2"),
        (CellImage(), "3.11.2", "3.13.1"),
        (CellImage(recipe=ImageRecipe(steps=debian_slim("3.12"))), "3.11.2", "3.12"),
        (CellImage(recipe=ImageRecipe(steps=[FromRegistry(reference="x")])), "3.11.2", "3.11.2"),
        (CellImage(recipe=ImageRecipe(steps=[FromRegistry(reference="x")])), "", ""),
    ],
)
def test_whose_python_reads_what_is_sent(image: CellImage, session: str, python: str) -> None:
    assert image.python("3.13.1", session) == python
