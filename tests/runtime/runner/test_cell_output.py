"""Every kind of output through a real runner with a real ipykernel: what a notebook would have shown."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from tests.fakes.runner_harness import started

SGR = re.compile(r"\x1b\[[0-9;]*m")


async def test_a_cell_without_output_starts_is_done_and_says_nothing_else(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("x = 1", execution_count=41)
        assert [type(e.message) for e in cell.events] == [m.CellStarted, m.CellDone]
        assert cell.done.status == "ok"
        assert cell.reply == {"status": "ok", "execution_count": 41, "user_expressions": {}, "payload": []}


async def test_streams_results_and_the_parent_header(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("import sys\nprint('out é')\nprint('err', file=sys.stderr)\n6 * 7", execution_count=5)
        assert cell.text() == "out é\n" and cell.text("stderr") == "err\n"
        assert cell.messages("execute_result") == [{"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 5}]
        for event in cell.events:
            if isinstance(event.message, m.IOPub):
                whole = json.loads(bytes(event.buffers[0]))
                assert whole["parent_header"]["msg_id"] == f"msg-{cell.call}"
                if event.message.msg_type == "stream":
                    assert event.message.text_bytes == len(whole["content"]["text"].encode())
        again = await worker.run("_, Out[5], In[5][:10]", execution_count=9)
        assert again.messages("execute_result")[0]["data"]["text/plain"] == "(42, 42, 'import sys')"


async def test_displays_updates_and_clear(tmp_path: Path) -> None:
    code = """
from IPython.display import display, HTML, clear_output
handle = display(HTML('<b>1</b>'), display_id='D')
handle.update(HTML('<b>2</b>'))
clear_output(wait=True)
print('after')
"""
    async with started(tmp_path) as worker:
        cell = await worker.run(code)
        kinds = [kind for kind, _ in cell.jupyter()]
        assert kinds == ["display_data", "update_display_data", "clear_output", "stream"]
        assert cell.messages("display_data")[0]["transient"] == {"display_id": "D"}
        assert cell.messages("update_display_data")[0]["data"]["text/html"] == "<b>2</b>"
        assert cell.messages("clear_output") == [{"wait": True}]


async def test_errors_have_the_right_lines_and_only_user_frames(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("# %%modal gpu=A100\n\ndef f():\n    return 1 / 0\nf()", execution_count=7)
        (error,) = cell.messages("error")
        assert error["ename"] == "ZeroDivisionError" and cell.reply["traceback"] == error["traceback"]
        text = SGR.sub("", "\n".join(error["traceback"]))
        assert "Cell In[7], line 5" in text and "Cell In[7], line 4, in f()" in text
        assert "cellburst" not in text and "ipykernel" not in text
        assert cell.done.status == "error" and "\x1b[" in error["traceback"][0]
        syntax = await worker.run("a = (", execution_count=8)
        assert syntax.messages("error")[0]["ename"] in ("SyntaxError", "_IncompleteInputError")
        assert (await worker.run("1 + 1")).done.status == "ok"


async def test_magics_payloads_and_shell_escapes(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        assert "Wall time" in (await worker.run("%%time\ny = 2")).text()
        shown = await worker.run("len?")
        assert "Return the number of items" in shown.reply["payload"][0]["data"]["text/plain"]
        await worker.run("get_ipython().set_next_input('next')")
        assert (await worker.run("get_ipython().set_next_input('a')")).reply["payload"][0]["text"] == "a"
        assert "hello" in (await worker.run("!echo hello")).text()
        lines = await worker.run("found = !printf 'a\\nb'\nprint(found)")
        assert lines.text() == "['a', 'b']\n"
        assert (await worker.run("%matplotlib --list")).done.status == "ok"


# What a command writes when pexpect has found nothing to read, and before it asks whether the command lives.
LAST_WORDS = """
import os, pexpect
os.mkfifo('go')
plain, asked = pexpect.spawn.isalive, []
def isalive(command):
    asked.append(1)
    if len(asked) == 2:
        with open('go', 'w') as go:
            go.write('last words')
        os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
    return plain(command)
pexpect.spawn.isalive = isalive
try:
    !cat go; [ -t 1 ] && echo " to a terminal"; exit 3
finally:
    pexpect.spawn.isalive = plain
print(_exit_code, len(asked) > 2)
"""

# The stream thread has its turn only 0.2 s after the cell's own code, by a clock that counts what is slept.
LATE_TURN = """
import os, sys, threading, types
from cellburst_runner import cell_streams
turn, real, slept = threading.Event(), cell_streams.time, []
def sleep(seconds):
    slept.append(seconds)
    if sum(slept) >= 0.2:
        turn.set()
        real.sleep(seconds)
cell_streams.time = types.SimpleNamespace(sleep=sleep, monotonic=lambda: sum(slept))
def late(of, name):
    plain = getattr(of, name)
    def in_its_turn(*arguments):
        turn.wait(30)
        delattr(of, name)
        return plain(*arguments)
    setattr(of, name, in_its_turn)
"""
OF_A_PROGRAM = """
late(sys.stdout, 'write')
os.write(1, b'the last line')
None
"""
OF_A_CHILD = """
turn.clear(), slept.clear(), late(sys.stdout.session.sender, 'relay_child')
if not (pid := os.fork()):
    print("a child's line")
    os._exit(0)
os.waitpid(pid, 0)
None
"""


async def test_what_a_command_wrote_last_is_shown(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        assert (await worker.run(LAST_WORDS)).text() == "last words to a terminal\r\n3 True\n"
        assert (await worker.run(LATE_TURN + OF_A_PROGRAM)).text() == "the last line"
        assert (await worker.run(OF_A_CHILD)).text() == "a child's line\n"


async def test_output_below_python_is_out_before_the_cell_is_done(tmp_path: Path) -> None:
    code = """
import os, subprocess, sys
os.write(1, b'direct\\n')
os.write(2, 'é'.encode())
subprocess.run(['sh', '-c', 'echo child'])
subprocess.run(['sh', '-c', 'echo given'], stdout=sys.stdout)
"""
    async with started(tmp_path) as worker:
        for _ in range(5):
            cell = await worker.run(code)
            done = next(i for i, e in enumerate(cell.events) if isinstance(e.message, m.CellDone))
            assert done == len(cell.events) - 1
            assert cell.text() == "direct\nchild\ngiven\n" and cell.text("stderr") == "é"


async def test_forked_children_print_and_display_through_the_parent(tmp_path: Path) -> None:
    code = """
import multiprocessing
from IPython.display import display, HTML
def work(n):
    print('child', n)
    display(HTML('x' * 100_000))
context = multiprocessing.get_context('fork')
children = [context.Process(target=work, args=(n,)) for n in range(3)]
for child in children: child.start()
for child in children: child.join()
"""
    async with started(tmp_path) as worker:
        call = worker.begin(code)
        await worker.finish(call)
        await worker.wait(lambda i: len(worker.cell(call).messages("display_data")) == 3)
        cell = worker.cell(call)
        assert sorted(cell.text().splitlines()) == ["child 0", "child 1", "child 2"]
        assert {len(c["data"]["text/html"]) for c in cell.messages("display_data")} == {100_000}
        assert (await worker.run("print('parent')")).text() == "parent\n"


async def test_threads_print_into_their_cell_also_after_it(tmp_path: Path) -> None:
    code = (
        "import threading\ngo = threading.Event()\nthreading.Thread(target=lambda: (go.wait(), print('late'))).start()"
    )
    async with started(tmp_path) as worker:
        first = await worker.run(code)
        await worker.run("go.set()")
        await worker.wait(lambda i: isinstance(i.message, m.IOPub) and b"late" in bytes(i.buffers[0]))
        assert first.text() == ""


async def test_async_cells_share_one_loop(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run(
            "import asyncio\nawait asyncio.sleep(0)\ntask = asyncio.create_task(asyncio.sleep(0, 'done'))\n1"
        )
        assert cell.messages("execute_result")[0]["data"]["text/plain"] == "1"
        assert (await worker.run("await task")).messages("execute_result")[0]["data"]["text/plain"] == "'done'"
        failed = await worker.run("await asyncio.sleep(0)\n1 / 0")
        assert failed.done.status == "error"


async def test_context_variables_stay_from_cell_to_cell(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("import contextvars\nv = contextvars.ContextVar('v')\nv.set(3);")
        assert (await worker.run("v.get()")).messages("execute_result")[0]["data"]["text/plain"] == "3"


async def test_matplotlib_draws_inline(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
        (figure,) = cell.messages("display_data")
        assert figure["data"]["image/png"].startswith("iVBOR")


async def test_many_lines_are_complete_and_in_order(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("for i in range(200_000): print(i)")
        assert cell.text() == "".join(f"{i}\n" for i in range(200_000))


def _resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


async def test_a_flood_is_cut_with_an_exact_count_and_bounded_memory(tmp_path: Path) -> None:
    async with started(tmp_path, output_limit_bytes=1 << 20, output_tail_bytes=65536) as worker:
        executor_pid = (await worker.wait_for(m.RunnerReady)).message.executor_pid
        pids = (worker.process.pid, executor_pid)
        before = [_resident_mib(pid) for pid in pids]
        code = "line = 'x' * 99\nfor i in range(2_000_000): print(line)\nprint('the end')"
        cell = await worker.run(code)
        text = cell.text()
        whole = 2_000_000 * 100 + len("the end\n")
        dropped = int(re.search(r"\n\[(\d+) bytes of output dropped\]\n", text)[1])  # type: ignore[index]
        marker = len(f"\n[{dropped} bytes of output dropped]\n")
        assert dropped == whole - (len(text) - marker)
        assert text.endswith("the end\n") and len(text) < (1 << 20) + 65536 + 100
        assert all(_resident_mib(pid) - b < 40 for pid, b in zip(pids, before, strict=True))
        assert [k for k, _ in (await worker.run("print('next')")).jupyter()] == ["stream"]


async def test_a_flood_keeps_the_error_last(tmp_path: Path) -> None:
    async with started(tmp_path, output_limit_bytes=1000, output_tail_bytes=100) as worker:
        cell = await worker.run("print('y' * 5000)\nprint('tail')\n1 / 0")
        kinds = [kind for kind, _ in cell.jupyter()]
        assert kinds[-1] == "error" and "bytes of output dropped" in cell.text() and cell.text().endswith("tail\n")


async def test_a_reader_that_does_not_read_stops_the_code_and_not_the_runner(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        worker.give_credit = False
        call = worker.begin("n = 0\nfor n in range(200_000): print('z' * 99)")
        await worker.wait(lambda i: worker.owed_bytes >= 3 << 20)
        # the code waits: control messages come all the same, and the answers of the side
        for number in range(3):
            worker.send(m.RunnerPing(number=number))
            await worker.wait(lambda i, n=number: isinstance(i.message, m.RunnerPong) and i.message.number == n)
        assert not (await worker.ask("names")).message.error
        assert worker.owed_bytes < 6 << 20 and not any(isinstance(i.message, m.CellDone) for i in worker.received)
        worker.give_credit = True
        worker.pay()
        assert (await worker.finish(call)).text() == ("z" * 99 + "\n") * 200_000


async def test_an_interrupt_reaches_code_that_waits_for_a_reader(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        worker.give_credit = False
        call = worker.begin(
            "try:\n    while True: print('w' * 999)\nexcept KeyboardInterrupt:\n    stopped = True\n    raise"
        )
        await worker.wait(lambda i: worker.owed_bytes >= 3 << 20)
        worker.send(m.Interrupt(call=call, level=1))
        worker.give_credit = True
        worker.pay()
        cell = await worker.finish(call)
        assert cell.messages("error")[0]["ename"] == "KeyboardInterrupt"
        lines = cell.text().splitlines()
        assert lines and all(line == "w" * 999 for line in lines[:-1])
        assert (await worker.run("stopped")).messages("execute_result")[0]["data"]["text/plain"] == "True"


async def test_a_display_over_the_wire_limit_is_replaced_by_a_line(tmp_path: Path) -> None:
    code = "from IPython.display import display, HTML\ndisplay(HTML('x' * (65 << 20)))\nprint('on')"
    async with started(tmp_path) as worker:
        cell = await worker.run(code)
        assert "a display_data message was not sent" in cell.text("stderr") and cell.text() == "on\n"


@pytest.mark.parametrize("code", ["print('a\\ud800b')", "import sys; sys.stdout.write('a\\ud800b\\n')"])
async def test_text_that_has_no_utf8_is_shown_as_it_can(tmp_path: Path, code: str) -> None:
    async with started(tmp_path) as worker:
        assert (await worker.run(code)).text() == "a?b\n"


async def test_a_print_arrives_within_30_ms(tmp_path: Path) -> None:
    code = "import time\nfor _ in range(20):\n    print(time.time())\n    time.sleep(0.05)"
    async with started(tmp_path) as worker:
        call = worker.begin(code)
        delays: list[float] = []
        seen = 0
        import time

        while not any(isinstance(i.message, m.CellDone) and i.call == call for i in worker.received):
            start = len(worker.received)
            await worker.wait(lambda i: i.call == call, start)
            now = time.time()
            lines = worker.cell(call).text().splitlines()
            delays += [now - float(line) for line in lines[seen:]]
            seen = len(lines)
        assert len(delays) == 20 and sorted(delays)[10] < 0.030


async def test_the_cancelled_wait_of_this_harness_leaves_it_usable(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await worker.wait_for(m.Notice)
        assert (await worker.run("1")).done.status == "ok"
