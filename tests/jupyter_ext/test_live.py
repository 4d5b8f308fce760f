"""What goes on beside a cell's own output: widgets both ways, completion, late output, hints, attaching, line magics."""

from __future__ import annotations

import json
import time

import msgspec
import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import SessionState
from tests.fakes.fake_gateway_for_kernel import BOX, Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook

TYPES = "msg_type"


def subshell(notebook: Notebook) -> str:
    client = notebook.client
    client.control_channel.send(client.session.msg("create_subshell_request"))
    return str(client.get_control_msg(timeout=20)["content"]["subshell_id"])


def open_widget(cell: Cell) -> None:
    state = {"_model_name": "M", "_model_module": "m", "_model_module_version": "1", "value": 1}
    content = {"comm_id": "w1", "target_name": "jupyter.widget", "data": {"state": state, "buffer_paths": [["b"]]}}
    cell.iopub("comm_open", content, b"buffer")


def test_a_widget_hears_the_front_end_while_its_cell_runs(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        open_widget(cell)
        message, buffers = await cell.heard(m.CommMessage)
        cell.print(f"{message.msg_type} {json.loads(buffers[0])['content']['data']['state']} {buffers[1:]}")
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    id = notebook.send("%%modal card=off\n#!play")
    opened = notebook.until(lambda x: x[TYPES] == "comm_open")
    assert opened["parent_header"]["msg_id"] == id
    assert [bytes(buffer) for buffer in opened["buffers"]] == [b"buffer"]
    client = notebook.client
    data = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
    message = client.session.msg("comm_msg", {"comm_id": "w1", "data": data})
    message["header"]["subshell_id"] = subshell(notebook)
    client.session.send(client.shell_channel.socket, message, buffers=[b"back"])
    assert notebook.finish(id)["status"] == "ok"
    assert notebook.output(id)[-1]["content"]["text"] == "comm_msg {'value': 7} [b'back']"


def test_widgets_are_closed_when_their_container_is_gone(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        open_widget(cell)
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal\n#!play")
    session = gateway.sessions["default"]
    from cellburst_protocol.states import EndReason

    event = m.ContainerEnded(container="c-1", reason=EndReason.WORKER_LOST)
    gateway._loop.call_soon_threadsafe(session.emit, event, "")
    closed = notebook.until(lambda x: x[TYPES] == "comm_close")
    assert closed["content"]["comm_id"] == "w1"


def test_late_output_goes_under_its_own_cell(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    cells: list[Cell] = []

    async def play(cell: Cell) -> None:
        cells.append(cell)
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    id = notebook.send("%%modal\n#!play")
    notebook.finish(id)
    notebook.run("1")
    gateway._loop.call_soon_threadsafe(cells[0].print, "late\n")
    late = notebook.until(lambda x: x[TYPES] == "stream" and x["content"]["text"] == "late\n")
    assert late["parent_header"]["msg_id"] == id


def test_completion_and_inspection_ask_the_container(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    asked: list[m.SideRequest] = []

    def answer(request: m.SideRequest) -> m.SideReply:
        asked.append(request)
        end = len(str(request.content["code"]))
        content: dict[str, object] = {"matches": ["head"], "cursor_start": end - 2, "cursor_end": end, "status": "ok"}
        if request.kind == "inspect":
            content = {"status": "ok", "found": True, "data": {"text/plain": "remote help"}, "metadata": {}}
        return m.SideReply(id=request.id, content=content)

    gateway.side = answer
    notebook.run("%%modal\n1")
    code = "%%modal gpu=A100\nframe.he"
    notebook.client.complete(code, len(code))
    reply = notebook.client.get_shell_msg(timeout=20)["content"]
    assert (reply["matches"], reply["cursor_start"], reply["cursor_end"]) == (["head"], len(code) - 2, len(code))
    assert asked[0].content["code"] == "# %%modal gpu=A100\nframe.he"
    notebook.client.inspect(code, len(code))
    assert notebook.client.get_shell_msg(timeout=20)["content"]["data"] == {"text/plain": "remote help"}
    notebook.client.complete("%modal sta", 10)
    assert notebook.client.get_shell_msg(timeout=20)["content"]["matches"] == ["status"]

    gateway.side = lambda request: None  # a container that does not answer: the local kernel's own, in time
    notebook.run("frame_here = 1")
    notebook.client.complete("%%modal\nframe_h", 15)
    assert "frame_here" in notebook.client.get_shell_msg(timeout=20)["content"]["matches"]


def test_a_local_name_error_says_where_the_name_lives(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.done(changed_there=[m.RemoteName(name="model", type="Model")])
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal\n#!play\nmodel = 1")
    _, output = notebook.run("model")
    assert [x[TYPES] for x in output] == ["error", "stream"]
    assert "`model` (Model) lives in session 'default'" in output[1]["content"]["text"]
    assert [x[TYPES] for x in notebook.run("quite_unknown")[1]] == ["error"]


def test_files_are_told_once_and_names_listed(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.done(files=[m.FileChange(path="a.csv", size_bytes=1500), m.FileChange(path="old", deleted=True)])
        cell.end()

    gateway.scripts["play"] = play
    text = "".join(x["content"]["text"] for x in notebook.run("%%modal\n#!play")[1])
    assert "written there: a.csv (1.5 kB); `%modal get a.csv` brings it here" in text
    assert "deleted there only: old" in text
    assert notebook.run("%%modal\n#!play")[1] == []

    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.IDLE, container=BOX)
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    gateway.side = lambda request: m.SideReply(
        id=request.id, content={"names": [{"name": "x", "type": "int", "size_bytes": 28}]}
    )
    assert notebook.run("%modal names")[1][0]["content"]["text"] == "x  int 28 B\n"
    assert notebook.run("%modal stop")[0]["status"] == "ok"
    assert any(isinstance(control, m.StopSession) and control.session == "s-1" for control in gateway.controls)


def test_get_without_a_file_lists_what_was_written(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    files: list[dict[str, object]] = []
    gateway.side = lambda request: m.SideReply(
        id=request.id, content={"files": files} if request.kind == "file_list" else {}
    )
    notebook.run("%%modal\n1")
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.IDLE, container=BOX)
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    assert notebook.run("%modal get")[1][0]["content"]["text"] == "session 'default' has written no files\n"
    files += [{"path": "a b.csv", "size_bytes": 1500}, {"path": "old", "deleted": True}]
    assert "".join(x["content"]["text"] for x in notebook.run("%modal get")[1]) == (
        'a b.csv  1.5 kB\nold      deleted there only\n`%modal get "a b.csv"` brings that one here\n'
    )


def test_line_magic_refusals_say_the_way_out(notebook: Notebook) -> None:
    for line, words in {
        "%modal statsu": "did you mean `%modal status`?", "%modal put": "needs a file", "%modal park now": "takes no 'now'",
        "%modal stop now": "takes no 'now'",
    }.items():  # fmt: skip
        reply, _ = notebook.run(line)
        assert words in reply["evalue"], line


def test_after_a_restart_the_earlier_cell_can_be_attached_to(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.print("before\n")
        await cell.heard(m.StdinReply)
        cell.print("after\n")
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal\n1")
    notebook.send("%%modal card=off\n#!play")
    notebook.until(lambda x: x[TYPES] == "stream" and "before" in x["content"]["text"])
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=30)
    session = gateway.sessions["default"]
    cell = session.cells[-1]
    session.info.running_call = cell.request.call
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.BUSY, kernel_id="other", names=["x"])
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    attach = notebook.send("%modal attach")
    notebook.until(lambda x: x["parent_header"].get("msg_id") == attach and "before" in str(x["content"].get("text")))
    gateway._loop.call_soon_threadsafe(cell.inbox.put_nowait, (m.StdinReply(call="x"), []))
    assert notebook.finish(attach)["status"] == "ok"
    text = "".join(x["content"]["text"] for x in notebook.output(attach))
    assert text == "cellburst: attached to session 'default' with x\nbefore\nafter\n"


@pytest.mark.parametrize("seen", [True, False])
def test_attach_shows_an_ended_cell_only_if_nobody_saw_its_end(
    seen: bool, gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        cell.print("of the last cell\n")
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal card=off\n#!play")
    session = gateway.sessions["default"]
    end = time.monotonic() + 20
    while session.acked < len(session.log):
        assert time.monotonic() < end, "the kernel acknowledges what it has shown"
        time.sleep(0.01)
    if not seen:
        session.acked -= 1
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=30)
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.IDLE, kernel_id="other", names=["x"])
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    reply, output = notebook.run("%modal attach")
    assert reply["status"] == "ok"
    text = "".join(x["content"]["text"] for x in output)
    assert text == "cellburst: attached to session 'default' with x\n" + ("" if seen else "of the last cell\n")
    assert notebook.run("%%modal card=off\n#!play")[1][-1]["content"]["text"] == "of the last cell\n"


def test_after_attach_a_line_with_only_limits_takes_the_containers_resources(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    notebook.run("%%modal\n1")
    session = gateway.sessions["default"]
    asked = Resources(gpus=(GpuChoice("A100"),), cpu=2.0, memory_mib=8192, network="none", budget_usd="9")
    session.info.container = msgspec.structs.replace(BOX, resources=asked)
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=30)
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.IDLE, kernel_id="other")
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    notebook.run("%modal attach")
    notebook.run("%%modal timeout=60s\n1")
    assert session.cells[-1].request.resources == msgspec.structs.replace(asked, timeout_seconds=60.0, budget_usd=None)
    notebook.run("%%modal\n1")
    assert session.cells[-1].request.resources == msgspec.structs.replace(asked, budget_usd=None)


@pytest.mark.parametrize("home", [False, True])
def test_a_detached_cell_that_ended_is_shown_by_a_later_kernel_unless_it_was_brought_home(
    home: bool, gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.print("from far\n")
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("%%modal card=off\n1")
    notebook.run("%%modal detach\n#!play")
    notebook.until(lambda x: x[TYPES] == "update_display_data" and "[ended" in str(x["content"]))
    session = gateway.sessions["default"]
    if home:
        notebook.run("%modal attach")
    wanted = len(session.log) - (not home)
    end = time.monotonic() + 20
    while session.acked < wanted:
        assert time.monotonic() < end
        time.sleep(0.01)
    notebook.manager.restart_kernel(now=True)
    notebook.client.wait_for_ready(timeout=30)
    row = m.SessionRow(id="s-1", notebook="n", name="default", state=SessionState.IDLE, kernel_id="other")
    gateway.answers[m.FindSession] = m.SessionFound(sessions=[row])
    text = "".join(x["content"]["text"] for x in notebook.run("%modal attach")[1])
    assert ("from far\n" in text) is not home
