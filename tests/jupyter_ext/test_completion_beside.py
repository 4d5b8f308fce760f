"""Completion and inspection of `%%modal` cells while one runs: a real ipykernel answers before the cell's end."""

from __future__ import annotations

import asyncio

from cellburst_protocol import messages as m
from tests.fakes.fake_gateway_for_kernel import Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Message, Notebook


def answer(request: m.SideRequest) -> m.SideReply:
    end = len(str(request.content["code"]))
    content: dict[str, object] = {"matches": ["head"], "cursor_start": end - 2, "cursor_end": end, "status": "ok"}
    if request.kind == "inspect":
        content = {"status": "ok", "found": True, "data": {"text/plain": "remote help"}, "metadata": {}}
    return m.SideReply(id=request.id, content=content)


class Held:
    """A script whose cell runs until it is let go."""

    def __init__(self, gateway: FakeKernelGateway) -> None:
        self._loop = gateway._loop
        self._let_go = asyncio.Event()
        gateway.scripts["held"] = self.play
        gateway.side = answer

    async def play(self, cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.print("runs\n")
        await self._let_go.wait()
        cell.done()
        cell.end()

    def release(self) -> None:
        self._loop.call_soon_threadsafe(self._let_go.set)


def statuses(notebook: Notebook, id: str) -> list[str]:
    return [
        x["content"]["execution_state"]
        for x in notebook.iopub
        if x["msg_type"] == "status" and x["parent_header"].get("msg_id") == id
    ]


def replied(notebook: Notebook, id: str) -> Message:
    """The next reply on the shell channel, which is that request's and no other's."""
    reply = notebook.client.get_shell_msg(timeout=30)
    assert reply["parent_header"]["msg_id"] == id, reply["msg_type"]
    content: Message = reply["content"]
    return content


def asked(notebook: Notebook, kind: str = "complete") -> tuple[str, Message]:
    """The id and reply of a request that the container answered. One that came after 300 ms is asked for again."""
    code = "%%modal\nframe.he"
    for _ in range(50):
        id = (notebook.client.complete if kind == "complete" else notebook.client.inspect)(code, len(code))
        content = replied(notebook, id)
        if content.get("matches") or content.get("found"):
            return id, content
    raise AssertionError("the container never answered")


def test_a_running_cell_does_not_keep_them(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    held = Held(gateway)
    notebook.run("frame_here = 1")
    cell = notebook.send("%%modal card=off\n#!held")
    notebook.until(lambda x: x["msg_type"] == "stream")
    completion, found = asked(notebook)  # before the cell's own reply
    assert found["matches"][0] == "head" and found["cursor_end"] == len("%%modal\nframe.he")
    inspection, found = asked(notebook, "inspect")
    assert found["data"] == {"text/plain": "remote help"}
    notebook.until(lambda x: statuses(notebook, inspection)[2:] == ["busy"])
    assert statuses(notebook, completion) == ["busy", "idle", "busy"], "it is done, and the kernel still busy"
    gateway.side = lambda request: None  # a container that says nothing: names that are here
    code = "%%modal\nframe_h"
    assert "frame_here" in replied(notebook, notebook.client.complete(code, len(code)))["matches"]
    assert replied(notebook, notebook.client.complete("%%modal gp", 10))["matches"] == ["gpu="]
    held.release()
    assert notebook.finish(cell)["status"] == "ok"
    assert statuses(notebook, cell) == ["busy", "idle"]


def test_other_requests_wait_as_they_do_in_any_kernel(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    held = Held(gateway)
    notebook.run("frame_here = 1")
    cell = notebook.send("%%modal card=off\n#!held")
    notebook.until(lambda x: x["msg_type"] == "stream")
    local = notebook.client.complete("frame_h", 7)
    assert asked(notebook)[1]["matches"][0] == "head"
    held.release()
    assert replied(notebook, cell)["status"] == "ok"
    assert replied(notebook, local)["matches"] == ["frame_here"]
    notebook.until(lambda x: statuses(notebook, local) == ["busy", "idle"])


def test_after_unloading_they_go_their_way_again_and_a_cell_may_load_it(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    held = Held(gateway)
    notebook.run("%%modal card=off\nframe_here = 1")
    notebook.run("frame_here = 1")
    assert notebook.run("%unload_ext cellburst_jupyter")[0]["status"] == "ok"
    assert replied(notebook, notebook.client.complete("frame_h", 7))["matches"] == ["frame_here"]
    assert notebook.run("%load_ext cellburst_jupyter")[0]["status"] == "ok"
    cell = notebook.send("%%modal card=off\n#!held")
    notebook.until(lambda x: x["msg_type"] == "stream")
    assert asked(notebook)[1]["matches"][0] == "head"
    held.release()
    assert notebook.finish(cell)["status"] == "ok"
