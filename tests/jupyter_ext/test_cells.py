"""`%%modal` cells in a real ipykernel against a fake gateway: what the front end gets, message by message."""

from __future__ import annotations

import json
from typing import Any

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.states import EndReason
from tests.fakes.fake_gateway_for_kernel import Cell, FakeKernelGateway
from tests.jupyter_ext.conftest import Notebook

TYPES = "msg_type"


def texts(output: list[dict[str, Any]], name: str = "stdout") -> str:
    return "".join(x["content"]["text"] for x in output if x[TYPES] == "stream" and x["content"]["name"] == name)


def test_a_plain_cell_shows_its_output_and_nothing_else(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.iopub("status", {"execution_state": "busy"})
        cell.print("one\n")
        cell.print("bad\n", "stderr")
        cell.print("two\n")
        cell.iopub("display_data", {"data": {"text/plain": "d"}, "metadata": {}, "transient": {"display_id": "i"}})
        cell.iopub(
            "update_display_data", {"data": {"text/plain": "e"}, "metadata": {}, "transient": {"display_id": "i"}}
        )
        cell.iopub("clear_output", {"wait": True})
        cell.iopub("execute_result", {"data": {"text/plain": "42"}, "metadata": {"a": 1}, "execution_count": 77})
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    reply, output = notebook.run("%%modal gpu=A100\n#!play\nx")
    assert reply["status"] == "ok"
    assert [x[TYPES] for x in output] == [
        "stream", "stream", "stream", "display_data", "update_display_data", "clear_output", "execute_result",
    ]  # fmt: skip
    assert [x["content"]["text"] for x in output[:3]] == ["one\n", "bad\n", "two\n"]
    assert output[3]["content"]["transient"] == {"display_id": "i"}
    assert output[-1]["content"]["execution_count"] == reply["execution_count"]
    assert output[-1]["content"]["metadata"] == {"a": 1}
    assert notebook.value(f"Out[{reply['execution_count']}], _").startswith("(42, 42")


def test_what_the_container_is_sent(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("def f(a):\n    return a + k\nk = 1; unused = 2")
    reply, output = notebook.run("%%modal gpu=A100 memory=2GiB timeout=5m out=y\ny = f(3)")
    assert (reply["status"], output) == ("ok", [])
    session = gateway.sessions["default"]
    request = session.cells[0].request
    assert request.code == "# %%modal gpu=A100 memory=2GiB timeout=5m out=y\ny = f(3)\n"
    assert sorted(name for group in request.names for name in group.names) == ["f", "k"]
    assert request.bound == ["y"]
    assert request.out == ["y"]
    assert request.execution_count == reply["execution_count"]
    assert request.resources is not None
    assert request.resources.timeout_seconds == 300
    assert request.image is not None
    assert request.image.identity
    assert request.allow_stdin is False


def test_a_nested_cell_magic_stays_the_first_line(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    notebook.run("%%gpu\n%%time\n1")
    assert gateway.sessions["default"].cells[0].request.code == "%%time\n1\n"


def test_a_remote_error_is_shown_as_it_was_there_and_stops_run_all(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        error = {"ename": "ValueError", "evalue": "no", "traceback": ["\x1b[31mline 1", "line 2"]}
        cell.iopub("error", error)
        cell.done({"status": "error", **error})
        cell.end(EndReason.RAISED)

    gateway.scripts["play"] = play
    id, after = notebook.send("%%modal\n#!play"), notebook.send("print('not reached')")
    reply = notebook.finish(id)
    assert (reply["status"], reply["ename"], reply["evalue"]) == ("error", "ValueError", "no")
    (error,) = notebook.output(id)
    assert error["content"]["traceback"] == ["\x1b[31mline 1", "line 2"]
    assert notebook.finish(after)["status"] == "aborted"
    caught = "try: get_ipython().run_cell_magic('modal', '', '#!play')\nexcept ValueError as e: print('caught', e)"
    assert texts(notebook.run(caught)[1]) == "caught no\n"


def test_an_error_that_the_code_showed_and_survived(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.iopub("error", {"ename": "E", "evalue": "", "traceback": ["t"]})
        cell.print("on\n")
        cell.done()
        cell.end()

    async def exits(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        error = {"ename": "SystemExit", "evalue": "3", "traceback": ["t"]}
        cell.iopub("error", error)
        cell.print("To exit: use 'exit'\n", "stderr")
        cell.done({"status": "error", **error})
        cell.end(EndReason.RAISED)

    gateway.scripts.update(play=play, exits=exits)
    reply, output = notebook.run("%%modal\n#!play")
    assert (reply["status"], [x[TYPES] for x in output]) == ("ok", ["error", "stream"])
    reply, output = notebook.run("%%modal\n#!exits")
    assert (reply["ename"], [x[TYPES] for x in output]) == ("SystemExit", ["error", "stream"])
    assert [x[TYPES] for x in notebook.run("1/0")[1]] == ["error"]  # the shell shows errors again


def test_a_syntax_error_is_found_here_with_the_editors_line(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    reply, output = notebook.run("%%modal gpu=A100\nx = 1\ny = (")
    assert reply["ename"] == "SyntaxError"
    assert "line 3" in reply["evalue"]
    assert f"In[{reply['execution_count']}]" in "".join(output[0]["content"]["traceback"])
    assert gateway.sessions == {}
    assert notebook.run("%%modal\nawait f()\n!ls\n%time 1")[0]["status"] == "ok"


def test_a_refusal_points_at_the_column(notebook: Notebook) -> None:
    reply, output = notebook.run("%%modal gpuu=A100\n1")
    assert reply["status"] == "error"
    lines = output[0]["content"]["traceback"]
    assert lines[1:3] == ["    %%modal gpuu=A100", "            ^"]
    assert any("did you mean gpu=?" in line for line in lines)


def test_payloads_capture_and_stdin(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.emit(m.StdinRequest(prompt="name? "))
        answer, _ = await cell.heard(m.StdinReply)
        cell.print(f"hi {answer.value}\n")
        cell.done({"payload": [{"source": "page", "data": {"text/plain": "help"}, "start": 0}, {"source": "ask_exit"}]})
        cell.end()

    gateway.scripts["play"] = play
    id = notebook.send("%%modal card=off\n#!play", allow_stdin=True)
    assert notebook.client.get_stdin_msg(timeout=20)["content"] == {"prompt": "name? ", "password": False}
    notebook.client.input("bob")
    reply = notebook.finish(id)
    assert texts(notebook.output(id)) == "hi bob\n"
    assert [p["source"] for p in reply["payload"]] == ["page"]

    async def prints(cell: Cell) -> None:
        cell.print("caught\n")
        cell.done()
        cell.end()

    gateway.scripts["prints"] = prints
    assert notebook.run("%%capture c\n%%modal\n#!prints")[1] == []
    assert notebook.value("c.stdout") == "'caught\\n'"


def test_an_interrupt_is_passed_on_and_the_end_waited_for(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    levels = []

    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.print("running\n")
        for _ in range(2):
            interrupt, _ = await cell.heard(m.Interrupt)
            levels.append(interrupt.level)
            cell.print(f"got {interrupt.level}\n")
        error = {"ename": "KeyboardInterrupt", "evalue": "", "traceback": ["remote frames"]}
        cell.done({"status": "error", **error})
        cell.end(EndReason.INTERRUPTED)

    gateway.scripts["play"] = play
    id = notebook.send("%%modal\n#!play")
    for awaited in ("running", "got 1"):
        notebook.until(lambda x, w=awaited: x[TYPES] == "stream" and w in x["content"]["text"])
        notebook.manager.interrupt_kernel()
    reply = notebook.finish(id)
    assert levels == [1, 2]
    assert (reply["ename"], reply["traceback"]) == ("KeyboardInterrupt", ["remote frames"])
    assert notebook.value("1 + 1") == "2"


def test_a_lost_link_loses_nothing_and_repeats_nothing(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.print("before\n")
        await cell.heard(m.StdinReply)  # never comes by itself: the test puts it there
        cell.print("after\n")
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    id = notebook.send("%%modal card=off\n#!play")
    notebook.until(lambda x: x[TYPES] == "stream" and "before" in x["content"]["text"])
    gateway.drop_links()
    cell = gateway.sessions["default"].cells[0]
    gateway._loop.call_soon_threadsafe(cell.inbox.put_nowait, (m.StdinReply(call="x"), []))
    assert notebook.finish(id)["status"] == "ok"
    assert texts(notebook.output(id)) == "before\nafter\n"
    assert len(gateway.sessions["default"].cells) == 1


def test_a_call_that_the_platform_ended_says_why(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def lost(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        info = ErrorInfo(code=ErrorCode.WORKER_LOST, message="the worker box is gone", next="run the cell again")
        cell.emit(m.ContainerEnded(container="c-1", reason=EndReason.WORKER_LOST, error=info))
        cell.end(EndReason.WORKER_LOST, info)

    gateway.scripts["lost"] = lost
    reply, output = notebook.run("%%modal\n#!lost")
    assert reply["status"] == "error"
    assert "the worker box is gone" in "".join(output[-1]["content"]["traceback"])
    assert notebook.run("%%modal\n1")[0]["status"] == "ok"


def test_names_the_container_lacks_are_sent_with_a_seal(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    got = []

    async def play(cell: Cell) -> None:
        cell.emit(m.NamesNeeded(groups=[group.hash for group in cell.request.names]))
        got.append((await cell.heard(m.NamesData))[0])
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    notebook.run("x = [1, 2]")
    assert notebook.run("%%modal\n#!play\nx")[0]["status"] == "ok"
    from cellburst_protocol.mac import verify
    from tests.fakes.fake_gateway_for_kernel import KEY

    verify(KEY, "in", got[0].groups, got[0].mac)
    assert [group.names for group in got[0].groups] == [["x"]]


def test_a_start_shows_a_card_that_folds_to_one_small_line(gateway: FakeKernelGateway, notebook: Notebook) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.Queued(position=1, waiting_for="an A100"))
        cell.emit(
            m.ContainerStarted(container=cell.session.info.container, phases=[m.PhaseTime(name="boot", seconds=1.5)])
        )
        cell.emit(m.CellStarted())
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    _, output = notebook.run("%%modal gpu=A100\n#!play", allow_stdin=False)
    card = [x for x in output if x["content"].get("metadata", {}).get("cellburst")]
    assert [x[TYPES] for x in card] == ["display_data", "update_display_data"]
    assert "waiting, next in line: an A100" in card[0]["content"]["data"]["text/plain"]
    last = card[1]["content"]["data"]
    assert "A100-40GB SIMULATED · fake on fakebox · booted 1.5 s · ran 0.1 s" in last["text/plain"]
    assert len(json.dumps(last)) < 2048
    assert "first use" in texts(output)
    assert not any(x[TYPES].startswith("comm_") for x in output)  # nobody there who could use a widget
    _, output = notebook.run("%%modal gpu=A100 card=off\n#!play")
    assert [x[TYPES] for x in output] == []


def test_a_detached_cell_reports_by_itself_and_can_be_attached_to(
    gateway: FakeKernelGateway, notebook: Notebook
) -> None:
    async def play(cell: Cell) -> None:
        cell.emit(m.CellStarted())
        cell.print("one\n")
        await cell.heard(m.StdinReply)
        cell.print("two\n")
        cell.done()
        cell.end()

    gateway.scripts["play"] = play
    id = notebook.send("%%modal detach\n#!play")
    assert notebook.finish(id)["status"] == "ok"
    update = notebook.until(lambda x: x[TYPES] == "update_display_data" and "one" in x["content"]["data"]["text/plain"])
    assert "running" in update["content"]["data"]["text/plain"]
    assert "runs" in "".join(notebook.run("%%modal\n1")[0]["traceback"])
    attach = notebook.send("%modal attach")
    notebook.until(lambda x: x["parent_header"].get("msg_id") == attach and x[TYPES] == "stream")
    cell = gateway.sessions["default"].cells[0]
    gateway._loop.call_soon_threadsafe(cell.inbox.put_nowait, (m.StdinReply(call="x"), []))
    assert notebook.finish(attach)["status"] == "ok"
    assert texts(notebook.output(attach)) == "one\ntwo\n"
