"""`%debug` in a real kernel against a fake gateway: in the container, here, or why not."""

from __future__ import annotations

from typing import Any

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.states import EndReason
from tests.fakes.fake_gateway_for_kernel import Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook
from tests.jupyter_ext.test_cells import texts

ERROR = {"ename": "ValueError", "evalue": "no", "traceback": ["remote frames"]}
REMOTE_PROMPT, LOCAL_PROMPT = "(remote) ", "ipdb> "


async def fails(cell: Cell) -> None:
    cell.emit(m.CellStarted())
    cell.iopub("error", ERROR)
    cell.done({"status": "error", **ERROR})
    cell.end(EndReason.RAISED)


async def lost(cell: Cell) -> None:
    cell.emit(m.CellStarted())
    cell.end(EndReason.WORKER_LOST, ErrorInfo(code=ErrorCode.WORKER_LOST, message="the worker box is gone"))


async def debugger(cell: Cell) -> None:
    """What the fake container answers to any other cell."""
    cell.emit(m.CellStarted())
    cell.emit(m.StdinRequest(prompt=REMOTE_PROMPT))
    answer, _ = await cell.heard(m.StdinReply)
    cell.print(f"heard {answer.value}\n")
    cell.done()
    cell.end()


@pytest.fixture
def played(gateway: FakeKernelGateway) -> FakeKernelGateway:
    gateway.scripts.update(fails=fails, lost=lost, ok=debugger)
    return gateway


def codes(gateway: FakeKernelGateway) -> list[str]:
    return [cell.request.code for cell in gateway.sessions["default"].cells]


def debug(notebook: Notebook, prompt: str, answer: str) -> list[dict[str, Any]]:
    """Run %debug, answer its one question; its output."""
    id = notebook.send("%debug", allow_stdin=True)
    assert notebook.client.get_stdin_msg(timeout=20)["content"]["prompt"] == prompt
    notebook.client.input(answer)
    assert notebook.finish(id)["status"] == "ok"
    return notebook.output(id)


def test_after_a_remote_error_it_runs_in_the_container(played: FakeKernelGateway, notebook: Notebook) -> None:
    assert notebook.run("%%modal\n#!fails")[0]["ename"] == "ValueError"
    assert texts(debug(notebook, REMOTE_PROMPT, "where")) == "heard where\n"
    request = played.sessions["default"].cells[-1].request
    assert request.code.splitlines()[-1] == "%debug" and request.allow_stdin and request.names == []


def test_after_a_local_error_it_stays_here(played: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%modal\n#!fails")
    notebook.run("def broken_here():\n    1/0\nbroken_here()")
    assert "broken_here" in texts(debug(notebook, LOCAL_PROMPT, "q")), "the frame of the local error"
    assert len(codes(played)) == 1


def test_without_a_front_end_that_takes_input_it_says_so(played: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%modal\n#!fails")
    reply, output = notebook.run("%debug")
    assert reply["status"] == "ok"
    assert "needs a front end that takes input" in texts(output, "stderr") + texts(output)
    assert len(codes(played)) == 1


def test_when_the_container_is_gone_it_says_so(played: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%modal\n#!fails")
    session = played.sessions["default"]
    played.tell(session, lambda: session.emit(m.ContainerEnded(container="c-1", reason=EndReason.WORKER_LOST), ""))
    reply, output = notebook.run("%debug", allow_stdin=True)
    assert reply["status"] == "ok"
    assert "is gone, and its frames with it" in texts(output, "stderr") + texts(output)
    assert len(codes(played)) == 1


def test_after_a_cell_that_the_platform_ended_there_is_nothing_to_see(
    played: FakeKernelGateway, notebook: Notebook
) -> None:
    """Also when no cell raised before it: our own frames are not shown."""
    assert notebook.run("%%modal\n#!lost")[0]["status"] == "error"
    reply, output = notebook.run("%debug", allow_stdin=True)
    assert reply["status"] == "ok"
    assert "there are no frames to look at" in texts(output, "stderr") + texts(output)
    assert len(codes(played)) == 1
