"""Questions and comms, answered while a cell runs too."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from tests.fakes.runner_harness import FakeWorker, started

LOOP = "import time\nstop = False\nprint('go', flush=True)\nwhile not stop: time.sleep(0.01)\nprint('stopped')"
SHELF = "class Shelf:\n    def thousands(self):\n        'counts them'\nonly_there = Shelf()"
# Whoever imports jedi waits for good.
NO_JEDI = """
import importlib.machinery, sys, threading
class Never:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == 'jedi' else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        threading.Event().wait()
sys.meta_path.insert(0, Never())
"""
HELD = "n = 0\nprint('go', flush=True)\nwhile True: n += 1"
COMM = """
from comm import create_comm
seen = []
comm = create_comm(target_name='t', data={'a': 1}, buffers=[b'raw'])
def on_msg(msg):
    global stop
    import threading
    print('got', msg['content']['data'], bytes(msg['buffers'][0]) if msg['buffers'] else b'')
    comm.send({'thread': threading.current_thread() is threading.main_thread()})
    stop = True
comm.on_msg(on_msg)
"""


def _comm(
    worker: FakeWorker, comm_id: str, data: dict[str, Any], buffers: tuple[bytes, ...] = (), kind: str = "comm_msg"
) -> None:
    head = {"header": {"msg_id": "front-end", "username": "u", "session": "s"}, "metadata": {}}
    parts = json.dumps({**head, "content": {"comm_id": comm_id, "data": data}}).encode()
    worker.send(m.CommMessage(msg_type=kind), [parts, *buffers])


async def test_completion_and_inspection_while_a_cell_runs(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("longish_name = [1, 2]")
        call = worker.begin(LOOP)
        await worker.wait_text("go", call)
        reply = (await worker.ask("complete", code="longi", cursor_pos=5)).message
        assert isinstance(reply, m.SideReply) and "longish_name" in reply.content["matches"]
        assert reply.content["cursor_start"] == 0 and reply.content["status"] == "ok"
        reply = (await worker.ask("inspect", code="longish_name", cursor_pos=4, detail_level=0)).message
        assert isinstance(reply, m.SideReply) and reply.content["found"] is True
        assert "list" in str(reply.content["data"])
        worker.send(m.Interrupt(call=call, level=1))
        assert (await worker.finish(call)).done.status == "error"


async def test_completion_does_not_wait_for_jedi_beside_a_cell_that_holds_the_interpreter(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run(NO_JEDI + SHELF)

        async def is_answered(code: str, start: int) -> None:
            reply = (await worker.ask("complete", code=code, cursor_pos=len(code))).message
            assert isinstance(reply, m.SideReply) and reply.content["matches"] == ["thousands"]
            assert (reply.content["cursor_start"], reply.content["cursor_end"]) == (start, len(code))

        names = "import threading\nprint([t.name for t in threading.enumerate() if 'completion' in t.name])"
        for _ in range(100):  # until a moment after its end is told a cell counts as running: jedi is not asked then
            await is_answered("only_there.thou", 11)
            if (there := (await worker.run(names)).text()) != "[]\n":
                break
        assert there == "['cellburst-completion']\n"  # from here on one question waits for jedi
        call = worker.begin(HELD)
        await worker.wait_text("go", call)
        await is_answered("only_there.thou", 11)
        await is_answered("x = 1\nlen(only_there.thou", 21)
        worker.send(m.Interrupt(call=call, level=1))
        assert (await worker.finish(call)).done.status == "error"
        assert (await worker.run(names)).text() == "['cellburst-completion']\n"


async def test_completion_is_jedi_s_where_it_answers(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run(SHELF)

        async def types() -> Any:
            reply = (await worker.ask("complete", code="only_there.thou", cursor_pos=15)).message
            assert isinstance(reply, m.SideReply) and reply.content["matches"] == ["thousands"]
            return reply.content["metadata"].get("_jupyter_types_experimental")

        while (found := await types()) is None:  # jedi is being imported
            pass
        assert found[0]["type"] == "function" and found[0]["signature"] == "()"


async def test_names_and_fetch(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("alpha = 'x' * 10")
        names = (await worker.ask("names")).message
        assert isinstance(names, m.SideReply)
        assert [n["name"] for n in names.content["names"]] == ["alpha"]  # type: ignore[index,union-attr]
        fetched = await worker.ask("fetch", name="alpha")
        assert isinstance(fetched.message, m.SideReply)
        (group,) = fetched.message.groups
        assert group.names == ["alpha"] and pickle.loads(bytes(fetched.buffers[0])) is not None
        unknown = (await worker.ask("fetch", name="beta")).message
        assert isinstance(unknown, m.SideReply) and unknown.error is not None
        assert unknown.error.code is ErrorCode.UNKNOWN_NAME and "beta" in unknown.error.message


async def test_an_object_that_raises_when_asked_ends_in_an_error(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("import threading\nlock = threading.Lock()")
        reply = (await worker.ask("fetch", name="lock")).message
        assert isinstance(reply, m.SideReply) and reply.error is not None and reply.error.code is ErrorCode.RAISED


async def test_comm_messages_reach_a_running_cell_and_an_idle_kernel(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run(COMM)
        opened = next(e for e in cell.events if isinstance(e.message, m.IOPub) and e.message.msg_type == "comm_open")
        assert bytes(opened.buffers[1]) == b"raw"
        comm_id = cell.messages("comm_open")[0]["comm_id"]

        def sent() -> list[Any]:
            found = [json.loads(bytes(i.buffers[0])) for i in worker.received if isinstance(i.message, m.IOPub)]
            return [f for f in found if f["header"]["msg_type"] == "comm_msg"]

        _comm(worker, comm_id, {"n": 1}, (b"\x01\x02",))  # idle: on the main thread, as in ipykernel
        await worker.wait(lambda i: len(sent()) == 1)
        assert sent()[0]["content"]["data"] == {"thread": True}
        assert sent()[0]["parent_header"]["msg_id"] == "front-end"
        call = worker.begin(LOOP)
        await worker.wait_text("go", call)
        _comm(worker, comm_id, {"n": 2})  # running: at once, beside the cell
        running = await worker.finish(call)
        assert running.text() == "go\ngot {'n': 2} b''\nstopped\n" and sent()[1]["content"]["data"] == {"thread": False}
        own = [json.loads(bytes(e.buffers[0])) for e in running.events if isinstance(e.message, m.IOPub)]
        parents = [w["parent_header"]["msg_id"] for w in own if w["content"].get("text") == "stopped\n"]
        assert parents == [f"msg-{call}"]  # the comm's parent did not become the cell's
        _comm(worker, comm_id, {}, kind="comm_close")
        gone = await worker.run("comm.comm_id in get_ipython().kernel.comm_manager.comms")
        assert gone.messages("execute_result")[0]["data"]["text/plain"] == "False"


async def test_widgets_change_while_the_cell_runs_and_their_states_can_be_had(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        before = (await worker.ask("widgets")).message
        assert isinstance(before, m.SideReply) and before.content == {"states": {}, "buffer_paths": []}
        code = "import ipywidgets as w, time\ns = w.IntSlider(value=3)\ndisplay(s)\nprint('go', flush=True)\n"
        call = worker.begin(code + "while s.value == 3: time.sleep(0.01)\nprint('value', s.value)")
        await worker.wait_text("go", call)
        view = worker.cell(call).messages("display_data")[0]["data"]["application/vnd.jupyter.widget-view+json"]
        _comm(worker, view["model_id"], {"method": "update", "state": {"value": 8}, "buffer_paths": []})
        assert (await worker.finish(call)).text() == "go\nvalue 8\n"
        reply = (await worker.ask("widgets")).message
        assert isinstance(reply, m.SideReply)
        states: Any = reply.content["states"]
        assert (
            states[view["model_id"]]["state"]["value"] == 8
            and states[view["model_id"]]["model_name"] == "IntSliderModel"
        )


async def test_a_comm_handler_that_raises_does_not_end_the_side(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run(
            "from comm import create_comm\nc = create_comm(target_name='t')\nc.on_msg(lambda m: 1 / 0)"
        )
        _comm(worker, cell.messages("comm_open")[0]["comm_id"], {})
        _comm(worker, "no-such-comm", {})
        worker.send(m.CommMessage(msg_type="comm_msg"), [b"not json"])
        reply = (await worker.ask("names")).message
        assert isinstance(reply, m.SideReply) and reply.error is None


async def test_a_question_before_the_executor_is_ready_is_refused(tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path)
    await worker.start()
    try:
        reply = (await worker.ask("names")).message
        assert isinstance(reply, m.SideReply) and reply.error is not None and reply.error.code is ErrorCode.UNAVAILABLE
    finally:
        await worker.stop()
