"""What the supervisor does whatever user code does: interrupts, ends, silence, reconnects. Real processes, real signals."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from tests.fakes.runner_harness import FakeWorker, started

# One C call that keeps the GIL for seconds: PyDLL does not release it.
HOLD_GIL = """
import ctypes, subprocess
subprocess.Popen(['sh', '-c', 'sleep 1; echo below'])
print('held', flush=True)
ctypes.PyDLL(None).sleep({seconds})
print('after')
"""
SPIN = "print('go', flush=True)\nwhile True: pass"


async def _ended(worker: FakeWorker, call: str) -> m.ExecutorEnded:
    incoming = await worker.wait(lambda i: isinstance(i.message, m.ExecutorEnded) and i.call == call)
    assert isinstance(incoming.message, m.ExecutorEnded)
    return incoming.message


async def _ready_again(worker: FakeWorker, start: int) -> None:
    await worker.wait_for(m.RunnerReady, start)
    assert (await worker.run("'x' in globals()")).messages("execute_result")[0]["data"]["text/plain"] == "False"


async def test_hello_says_who_this_is(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        hello = worker.received[0].message
        assert isinstance(hello, m.RunnerHello)
        assert hello.container == "c1" and hello.protocol == (1, 0) and hello.pid == worker.process.pid


async def test_start_sets_environment_folder_and_links(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    link = tmp_path / "linked" / "data"
    async with started(
        tmp_path, environment={"ANSWER": "42"}, folder=str(work), links={str(link): str(work)}
    ) as worker:
        cell = await worker.run("import os\nprint(os.environ['ANSWER'], os.getcwd())")
        assert cell.text().split() == ["42", str(work)] and link.resolve() == work.resolve()


async def test_an_interrupt_stops_the_cell_and_keeps_the_names(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("x = 5")
        call = worker.begin(SPIN)
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call=call, level=1))
        cell = await worker.finish(call)
        assert cell.messages("error")[0]["ename"] == "KeyboardInterrupt" and cell.reply["status"] == "error"
        assert (await worker.run("x")).messages("execute_result")[0]["data"]["text/plain"] == "5"


async def test_an_interrupt_reaches_shell_escapes_and_sleeping_children(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin("import subprocess\nprint('go', flush=True)\nsubprocess.run(['sleep', '600'])")
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call=call, level=1))
        assert (await worker.finish(call)).messages("error")[0]["ename"] == "KeyboardInterrupt"
        call = worker.begin("!echo go; sleep 600")
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call=call, level=1))
        await worker.finish(call)
        assert (await worker.run("1")).done.status == "ok"


async def test_an_async_cell_is_cancelled_by_an_interrupt(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin("import asyncio\nprint('go', flush=True)\nawait asyncio.sleep(600)")
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call=call, level=1))
        assert (await worker.finish(call)).messages("error")[0]["ename"] in ("CancelledError", "KeyboardInterrupt")
        assert (await worker.run("await asyncio.sleep(0)\n2")).done.status == "ok"


async def test_an_interrupt_of_another_call_or_of_none_does_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        worker.send(m.Interrupt(call="", level=3))
        call = worker.begin("import time\nprint('go', flush=True)\ntime.sleep(0.3)\nprint('through')")
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call="someone else", level=3))
        assert (await worker.finish(call)).text() == "go\nthrough\n"


async def test_a_second_interrupt_kills_code_that_ignores_the_first(tmp_path: Path) -> None:
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nx = 1\nprint('go', flush=True)\nwhile True: pass"
    )
    async with started(tmp_path) as worker:
        call = worker.begin(code)
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call=call, level=1))
        worker.send(m.RunnerPing(number=1))
        await worker.wait_for(m.RunnerPong)
        assert not any(isinstance(i.message, m.ExecutorEnded) for i in worker.received)
        start = len(worker.received)
        worker.send(m.Interrupt(call=call, level=2))
        ended = await _ended(worker, call)
        assert ended.signal == signal.SIGKILL and ended.killed_by_runner
        await _ready_again(worker, start)


async def test_a_second_interrupt_is_forgotten_when_the_cell_ends_by_itself(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin(SPIN)
        await worker.wait_text("go", call)
        worker.send(m.Interrupt(call=call, level=2))
        await worker.finish(call)
        after = await worker.run("import time\ntime.sleep(2.5)\n'alive'")
        assert after.messages("execute_result")[0]["data"]["text/plain"] == "'alive'"


async def test_level_three_kills_at_once_and_takes_the_children_too(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin(
            "import subprocess\np = subprocess.Popen(['sleep', '600'])\nprint(p.pid, flush=True)\np.wait()"
        )
        await worker.wait_text("\n", call)
        child = int(worker.cell(call).text())
        start = len(worker.received)
        worker.send(m.Interrupt(call=call, level=3))
        assert (await _ended(worker, call)).killed_by_runner
        await worker.wait_for(m.RunnerReady, start)
        assert not Path(f"/proc/{child}").exists()  # killed with the group, and reaped by the supervisor


@pytest.mark.parametrize(
    ("code", "exit_code", "number"),
    [
        ("libc._exit(3)", 3, None),
        ("getattr(libc, 'raise')(9)", None, signal.SIGKILL),
        ("ctypes.string_at(0)", None, signal.SIGSEGV),
        ("libc.abort()", None, signal.SIGABRT),
    ],
)
async def test_an_executor_that_dies_is_told_and_replaced(
    tmp_path: Path, code: str, exit_code: int | None, number: int | None
) -> None:
    async with started(tmp_path) as worker:
        await worker.run("x = 1")
        start = len(worker.received)
        # with the GIL held from the write to the end: only the supervisor can find what lies in the pipe
        call = worker.begin(
            f"import ctypes\nlibc = ctypes.PyDLL(None)\nprint('last words', flush=True)\nlibc.write(2, b'raw', 3); {code}"
        )
        ended = await _ended(worker, call)
        assert (ended.exit_code, ended.signal, ended.killed_by_runner) == (exit_code, number, False)
        assert ("Fatal Python error" in ended.text) == (number in (signal.SIGSEGV, signal.SIGABRT))
        cell = worker.cell(call)
        assert cell.text() == "last words\n" and cell.text("stderr") == "raw"
        await _ready_again(worker, start)


async def test_exit_ends_the_executor_after_the_cell(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        start = len(worker.received)
        cell = await worker.run(
            "import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\nexit()"
        )
        assert cell.done.status == "ok" and cell.reply["payload"][0]["source"] == "ask_exit"
        assert (await _ended(worker, "")).exit_code == 0
        await _ready_again(worker, start)


async def test_a_held_gil_silences_nothing(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin(HOLD_GIL.format(seconds=5))
        # what lies below Python's streams reaches us although nobody in the executor can read it
        await worker.wait_text("below", call)
        assert not any(isinstance(i.message, m.CellDone) for i in worker.received)
        worker.send(m.RunnerPing(number=9))
        pong = (await worker.wait_for(m.RunnerPong)).message
        assert isinstance(pong, m.RunnerPong) and pong.executor_alive_seconds > 1.5
        cell = await worker.finish(call)
        assert sorted(cell.text().splitlines()) == ["after", "below", "held"]
        worker.send(m.RunnerPing(number=10))
        pong = (await worker.wait(lambda i: isinstance(i.message, m.RunnerPong) and i.message.number == 10)).message
        assert isinstance(pong, m.RunnerPong) and pong.executor_alive_seconds < 1.5


async def test_a_held_gil_can_be_killed(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin(HOLD_GIL.format(seconds=600))
        await worker.wait_text("held", call)
        worker.send(m.Interrupt(call=call, level=3))
        assert (await _ended(worker, call)).signal == signal.SIGKILL


async def test_orphans_are_reaped(tmp_path: Path) -> None:
    code = "import subprocess\nprint(subprocess.run(['sh', '-c', 'setsid sleep 0.2 & echo $!'], capture_output=True, text=True).stdout)"
    async with started(tmp_path) as worker:
        orphan = int((await worker.run(code)).text())
        await worker.run("import time\ntime.sleep(0.5)")
        assert not Path(f"/proc/{orphan}").exists()


async def test_the_link_may_close_and_come_back(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("x = 7")
        call = worker.begin(
            "import time\nprint('go', flush=True)\nfor i in range(30):\n    print(i)\n    time.sleep(0.02)"
        )
        await worker.wait_text("go", call)
        start = len(worker.received)
        worker.drop()
        await worker.wait_for(m.RunnerHello, start)
        cell = await worker.finish(call)
        assert cell.text() == "go\n" + "".join(f"{i}\n" for i in range(30))
        assert worker.connections == 2 and (await worker.run("x")).messages("execute_result")
        worker.send(m.RunnerStart())  # a worker that took over says it again: nothing is started twice
        await worker.wait_for(m.RunnerReady, start)
        assert (await worker.run("x")).messages("execute_result")[0]["data"]["text/plain"] == "7"


async def test_cells_that_come_early_or_together_run_in_order(tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path)
    await worker.start()
    try:
        calls = [worker.begin(f"order = globals().get('order', []) + [{n}]\nprint(order)") for n in range(3)]
        texts = [(await worker.finish(call)).text() for call in calls]
        assert texts == ["[0]\n", "[0, 1]\n", "[0, 1, 2]\n"]
    finally:
        await worker.stop()


async def test_a_waiting_cell_is_cancelled_by_an_interrupt(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        first = worker.begin("print('go', flush=True)\nimport time\ntime.sleep(0.5)")
        second = worker.begin("y = 1")
        await worker.wait_text("go", first)
        worker.send(m.Interrupt(call=second, level=1))
        assert (await worker.finish(second)).done.status == "aborted"
        assert (await worker.finish(first)).done.status == "ok"
        assert (await worker.run("'y' in globals()")).messages("execute_result")[0]["data"]["text/plain"] == "False"


async def test_a_python_that_cannot_start_ends_the_runner_and_says_why(tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "ipykernel.py").write_text("raise ImportError('no such kernel')")
    await worker.start(environment={"PYTHONPATH": str(tmp_path / "broken")})
    try:
        ended = await _ended(worker, "")
        assert "no such kernel" in ended.text and ended.exit_code == 1
        assert await worker.process.wait() == 1
    finally:
        await worker.stop()


async def test_a_python_that_is_not_there_is_told(tmp_path: Path) -> None:
    worker = FakeWorker(tmp_path)
    (tmp_path / "ctl").mkdir()
    await worker.listen()
    environment = {**os.environ, "CELLBURST_VAR": str(tmp_path)}
    import asyncio
    import sys

    from tests.fakes.runner_harness import RUNNER

    worker.process = await asyncio.create_subprocess_exec(
        sys.executable, str(RUNNER), env=environment, start_new_session=True
    )
    try:
        await worker.wait_for(m.RunnerHello)
        worker.send(m.RunnerStart(python=["/no/such/python"]))
        assert "/no/such/python" in (await _ended(worker, "")).text
        assert await worker.process.wait() == 1
    finally:
        await worker.stop()


async def test_nothing_stays_when_the_supervisor_is_ended(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        ready = (await worker.wait_for(m.RunnerReady)).message
        assert isinstance(ready, m.RunnerReady)
        worker.begin(SPIN)
    with pytest.raises(ProcessLookupError):
        os.kill(ready.executor_pid, 0)


async def test_code_that_closes_our_descriptors_is_ended(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        start = len(worker.received)
        call = worker.begin("import os, time\nos.closerange(3, 256)\ntime.sleep(600)")
        assert (await _ended(worker, call)).killed_by_runner
        await _ready_again(worker, start)
