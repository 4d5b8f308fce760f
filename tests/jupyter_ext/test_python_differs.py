"""A session whose container has another Python: what is told in the notebook, before and after the container is known."""

from __future__ import annotations

import sys

import msgspec

from cellburst_protocol import messages as m
from tests.fakes.fake_gateway_for_kernel import BOX, Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook

HERE = ".".join(map(str, sys.version_info[:2]))


async def start_other(cell: Cell) -> None:
    """The session's container turns out to have Python 3.99."""
    cell.emit(m.ContainerStarted(container=msgspec.structs.replace(BOX, python_version="3.99.2")))
    cell.emit(m.CellStarted())
    cell.done()
    cell.end()


def test_code_is_refused_with_the_way_out_and_nothing_is_sent(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    gateway.scripts["start"] = start_other
    assert notebook.run("%%modal\n#!start")[0]["status"] == "ok"
    notebook.run("x = [1]\ndef f(): return x")
    (session,) = gateway.sessions.values()
    sent = len(session.cells)
    reply, output = notebook.run("%%modal\n#!ok\nf()")
    assert reply["status"] == "error" and len(session.cells) == sent
    shown = "\n".join(next(o for o in output if o["msg_type"] == "error")["content"]["traceback"])
    assert "`f` cannot be sent" in shown and f"this kernel has {HERE}, the container 3.99" in shown
    assert f"python_version={HERE}" in shown
    assert notebook.run("%%modal\n#!ok\nx")[0]["status"] == "ok" and len(session.cells) == sent + 1
    assert session.cells[-1].request.python_version.startswith(f"{HERE}.")


def test_the_same_minor_version_is_sent(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def start_same(cell: Cell) -> None:
        cell.emit(m.ContainerStarted(container=msgspec.structs.replace(BOX, python_version=f"{HERE}.0")))
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["start"] = start_same
    notebook.run("%%modal\n#!start")
    notebook.run("def f(): return 1")
    assert notebook.run("%%modal\n#!ok\nf()")[0]["status"] == "ok"
