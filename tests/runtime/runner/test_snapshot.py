"""A runner is frozen, detached and goes on: what stays, what changes, and what may come between. No sandbox, real processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from tests.fakes.runner_harness import FakeWorker, started


def _shown(cell: Any) -> str:
    found: str = cell.messages("execute_result")[0]["data"]["text/plain"]
    return found


def _frozen(incoming: Any) -> m.RunnerFrozen:
    assert isinstance(incoming.message, m.RunnerFrozen)
    return incoming.message


async def _put_away(worker: FakeWorker, **fields: Any) -> m.RunnerFrozen:
    frozen = _frozen(await worker.freeze(**fields))
    assert frozen.error is None, frozen.error
    await worker.detach()
    await worker.listen_again()
    return frozen


async def test_names_threads_and_open_files_go_on_after_detach_and_thaw(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("one\ntwo\n")
    code = f"""
import threading
x, more, printed = [1, 2], threading.Event(), threading.Event()
f = open({str(tmp_path / "data.txt")!r})
f.readline()
def later():
    more.wait()
    print('from the thread', flush=True)
    printed.set()
thread = threading.Thread(target=later)
thread.start()
"""
    async with started(tmp_path) as worker:
        await worker.run(code)
        frozen = await _put_away(worker)
        assert str(tmp_path / "data.txt") in frozen.files
        ready = await worker.thaw()
        assert ready.notes == [] and ready.executor_pid
        cell = await worker.run("x + [f.readline(), more.set(), printed.wait(30)]")
        assert _shown(cell) == "[1, 2, 'two\\n', None, True]" and cell.text() == "from the thread\n"
        assert (await worker.run("thread.join(); f.close()")).done.status == "ok"


async def test_hello_after_a_restore_says_who_it_is_now(tmp_path: Path) -> None:
    async with started(tmp_path, environment={"CELLBURST_CONTAINER": "c1"}) as worker:
        await _put_away(worker)
        await worker.thaw(environment={"CELLBURST_CONTAINER": "c2"})
        start = len(worker.received)
        worker.drop()
        hello = (await worker.wait_for(m.RunnerHello, start)).message
        assert isinstance(hello, m.RunnerHello) and hello.container == "c2"


async def test_a_thaw_takes_over_environment_folder_path_and_links(tmp_path: Path) -> None:
    for name in ("one", "two", "lib1", "lib2"):
        (tmp_path / name).mkdir()
    link, other = tmp_path / "links" / "a", tmp_path / "links" / "b"
    async with started(
        tmp_path, folder=str(tmp_path / "one"), links={str(link): str(tmp_path / "one")},
        environment={"KEPT": "1", "GONE": "1", "OTHER": "1", "CELLBURST_SYS_PATH": str(tmp_path / "lib1")},
    ) as worker:  # fmt: skip
        await worker.run("import os, sys\nos.environ['KEPT'] = 'by the user'\nos.environ['MINE'] = 'too'")
        await _put_away(worker)
        await worker.thaw(
            folder=str(tmp_path / "two"), links={str(other): str(tmp_path / "two")},
            environment={"KEPT": "1", "OTHER": "2", "NEW": "3", "CELLBURST_SYS_PATH": str(tmp_path / "lib2")},
        )  # fmt: skip
        names = ["KEPT", "GONE", "OTHER", "NEW", "MINE", "CELLBURST_SYS_PATH"]
        cell = await worker.run(
            f"import json\nprint(json.dumps([[os.environ.get(n) for n in {names}], os.getcwd(), sys.path]))"
        )
        values, folder, path = json.loads(cell.text())
        assert values == ["by the user", None, "2", "3", "too", None] and folder == str(tmp_path / "two")
        assert str(tmp_path / "lib2") in path and str(tmp_path / "lib1") not in path
        assert not link.is_symlink() and other.resolve() == (tmp_path / "two").resolve()
        # a new executor has them too
        start = len(worker.received)
        worker.begin("os._exit(1)")
        await worker.wait_for(m.RunnerReady, start)
        assert (
            await worker.run("import os\nprint(os.environ.get('NEW'), os.environ.get('GONE'))")
        ).text() == "3 None\n"


async def test_the_users_own_folder_stays_when_the_start_is_the_same(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run(f"import os\nos.chdir({str(tmp_path)!r})")
        await _put_away(worker)
        await worker.thaw()
        assert _shown(await worker.run("os.getcwd()")) == repr(str(tmp_path))


async def test_a_folder_that_cannot_be_entered_is_a_note(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await _put_away(worker)
        ready = await worker.thaw(folder=str(tmp_path / "missing"))
        assert len(ready.notes) == 1 and "missing" in ready.notes[0]
        assert (await worker.run("1")).done.status == "ok"


DRAWS = "import random, ssl, tempfile\nimport numpy as np\nrandom.seed(1); np.random.seed(1)\n_ = tempfile._get_candidate_names()"
NEXT = "print(random.random(), np.random.random())"


@pytest.mark.parametrize("reseed", [True, False])
async def test_generators_are_seeded_anew_only_when_asked(tmp_path: Path, reseed: bool) -> None:
    import random

    import numpy as np

    random.seed(1)
    expected = f"{random.random()} {np.random.RandomState(1).random_sample()}\n"
    async with started(tmp_path) as worker:
        await worker.run(DRAWS)
        await worker.run("names = tempfile._get_candidate_names()")
        await _put_away(worker)
        assert (await worker.thaw(reseed=reseed)).notes == []
        text = (await worker.run(NEXT)).text()
        same = [a == b for a, b in zip(text.split(), expected.split(), strict=True)]
        assert same == [not reseed, not reseed]
        assert _shown(await worker.run("tempfile._get_candidate_names() is names")) == str(not reseed)


HOOKS = """
import cellburst
order = []
@cellburst.before_snapshot
def close():
    order.append('close'); print('closing')
@cellburst.before_snapshot
def fails():
    raise ValueError('not now')
cellburst.before_snapshot(lambda: order.append('lambda'))
@cellburst.on_restore
def also_fails():
    raise KeyError('gone')
@cellburst.on_restore
def connect():
    order.append('connect')
"""


WITHOUT_PACKAGE = """
import sys
finders = sys.meta_path[:]
sys.meta_path[:] = [f for f in finders if type(f).__module__ == 'cellburst_runner.hooks']
import cellburst
sys.meta_path[:] = finders
"""


@pytest.mark.parametrize("installed", [True, False])
async def test_hooks_run_in_order_and_one_that_raises_is_a_note(tmp_path: Path, installed: bool) -> None:
    async with started(tmp_path) as worker:
        if not installed:
            assert (await worker.run(WITHOUT_PACKAGE)).done.status == "ok"
        cell = await worker.run(HOOKS)
        assert cell.done.status == "ok", cell.reply
        assert _shown(await worker.run("hasattr(cellburst, '__version__')")) == str(installed)
        await worker.run(HOOKS)  # the cell again: its hooks are replaced, but for the one without a name
        frozen = await _put_away(worker)
        assert frozen.notes == ["hook fails (before_snapshot) raised ValueError: not now"]
        ready = await worker.thaw()
        assert ready.notes == ["hook also_fails (on_restore) raised KeyError: 'gone'"]
        assert _shown(await worker.run("order")) == "['close', 'lambda', 'lambda', 'connect']"


async def test_an_async_hook_is_refused_where_it_is_written(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("import cellburst\n@cellburst.on_restore\nasync def f(): pass")
        assert cell.messages("error")[0]["ename"] == "TypeError"


async def test_a_freeze_is_refused_while_a_cell_runs_and_when_frozen(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin("print('go', flush=True)\ninput()")
        await worker.wait_for(m.StdinRequest, call=call)
        refused = _frozen(await worker.freeze())
        assert refused.error is not None and refused.error.code == ErrorCode.BUSY
        worker.send(m.StdinReply(call=call, value="x"))
        assert (await worker.finish(call)).done.status == "ok"
        assert _frozen(await worker.freeze()).error is None
        again = _frozen(await worker.freeze())
        assert again.error is not None and again.error.code == ErrorCode.BUSY
        await worker.thaw()
        assert (await worker.run("1")).done.status == "ok"


async def test_a_cell_that_comes_while_frozen_runs_after_the_thaw(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("order = []\nimport cellburst\ncellburst.on_restore(lambda: order.append('hook'))")
        await worker.freeze()
        call = worker.begin("order.append('cell'); order")
        worker.send(m.RunnerPing(number=1))
        await worker.wait_for(m.RunnerPong)
        assert worker.cell(call).events == []
        await worker.thaw()
        assert _shown(await worker.finish(call)) == "['hook', 'cell']"


async def test_an_interrupt_while_frozen_takes_back_a_waiting_cell_and_nothing_else(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("x = 1")
        await worker.freeze()
        call = worker.begin("x = 2")
        worker.send(m.Interrupt(call=call, level=1))
        worker.send(m.Interrupt(call="", level=3))
        assert (await worker.finish(call)).done.status == "aborted"
        await worker.thaw()
        assert _shown(await worker.run("x")) == "1"


async def test_a_hook_that_hangs_can_be_interrupted_and_nothing_is_frozen(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        hook = "import cellburst, threading\n@cellburst.before_snapshot\ndef hang():\n    print('hanging', flush=True)\n    threading.Event().wait()"
        call = worker.begin(hook + "\n@cellburst.on_restore\ndef back(): print('back', flush=True)")
        await worker.finish(call)
        worker.send(m.RunnerFreeze())
        await worker.wait_text("hanging", call)
        worker.send(m.Interrupt(call="", level=1))
        frozen = _frozen(await worker.wait_for(m.RunnerFrozen))
        assert frozen.error is not None and frozen.error.code == ErrorCode.INTERRUPTED
        await worker.wait_text("back", call)
        assert (await worker.run("1")).done.status == "ok"


@pytest.mark.parametrize(
    ("broken", "hooks"), [("freeze_sources.sources", ""), ("cell_snapshot._give_back_memory", "away\nback\n")]
)
async def test_whatever_fails_on_the_way_into_the_ice_is_answered_and_the_next_one_freezes(
    tmp_path: Path, broken: str, hooks: str
) -> None:
    name, function = broken.split(".")
    code = f"""
import cellburst
from cellburst_runner import cell_snapshot, freeze_sources
class Odd(BaseException):  # as pytest's are
    def __str__(self): raise ValueError
def fails():
    raise Odd
real, {broken} = {broken}, fails
@cellburst.before_snapshot
def away(): print('away', flush=True)
@cellburst.on_restore
def back(): print('back', flush=True)
"""
    async with started(tmp_path) as worker:
        call = worker.begin(code)
        await worker.finish(call)
        frozen = _frozen(await worker.freeze())
        assert frozen.error is not None and frozen.error.code == ErrorCode.UNAVAILABLE and "Odd" in frozen.error.message
        if hooks:
            await worker.wait_text(hooks, call)
        assert (await worker.run(f"{name}.{function} = real")).done.status == "ok"
        await _put_away(worker)
        await worker.thaw()


async def test_an_executor_killed_while_frozen_is_told_and_the_next_one_takes_over_the_start(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        ready = (await worker.wait_for(m.RunnerReady)).message
        assert isinstance(ready, m.RunnerReady)
        await worker.freeze()
        call = worker.begin("import os\nprint(os.environ['NEW'], 'x' in globals())")
        start = len(worker.received)
        os.kill(ready.executor_pid, signal.SIGKILL)
        ended = (await worker.wait_for(m.ExecutorEnded)).message
        assert isinstance(ended, m.ExecutorEnded) and ended.signal == signal.SIGKILL
        await worker.wait_for(m.RunnerReady, start)
        assert worker.cell(call).events == []  # what comes now the worker decides
        await worker.thaw(environment={"NEW": "1"})
        assert (await worker.finish(call)).text() == "1 False\n"


async def test_an_executor_that_dies_on_its_way_into_the_ice_is_an_error(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("import cellburst, os\ncellburst.before_snapshot(lambda: os._exit(3))")
        start = len(worker.received)
        frozen = _frozen(await worker.freeze())
        assert frozen.error is not None and frozen.error.code == ErrorCode.UNAVAILABLE
        await worker.wait_for(m.ExecutorEnded, start)
        await worker.wait_for(m.RunnerReady, start)
        assert (await worker.run("1")).done.status == "ok"


@pytest.mark.parametrize("when", ["freezing", "frozen"])
async def test_a_worker_that_is_gone_leaves_no_frozen_runner(tmp_path: Path, when: str) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    hook = f"import cellburst\nran = []\n@cellburst.before_snapshot\ndef wait():\n    print('waiting', flush=True)\n    open({str(gate)!r}).close()\n"
    async with started(tmp_path) as worker:
        await worker.run("x = 1")
        if when == "freezing":
            call = worker.begin(hook + "cellburst.on_restore(lambda: ran.append(1))")
            await worker.finish(call)
            worker.send(m.RunnerFreeze())
            await worker.wait_text("waiting", call)
        else:
            await worker.freeze()
        start = len(worker.received)
        worker.drop()
        await worker.wait_for(m.RunnerHello, start)
        worker.send(m.RunnerStart())  # as the next worker does, which knows of no freeze
        with open(os.open(gate, os.O_RDWR)):  # whoever waits at the gate goes on
            await worker.wait_for(m.RunnerReady, start)
        assert _shown(await worker.run("x")) == "1"
        if when == "freezing":
            assert _shown(await worker.run("ran")) == "[1]"
        assert not any(isinstance(i.message, m.RunnerFrozen) for i in worker.received[start:])


WIDGETS = """
import ipywidgets, sys
from comm import create_comm
got = []
link = create_comm(target_name='t')
link.on_msg(lambda msg: got.append(msg['content']['data']))
slider = ipywidgets.IntSlider(3)
"""


async def test_comms_and_widgets_go_on_and_a_message_meanwhile_waits(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run(WIDGETS)
        opened = [content["comm_id"] for content in cell.messages("comm_open") if content["target_name"] == "t"]
        await worker.run("import cellburst\ncellburst.on_restore(lambda: got.append('restored'))")
        await worker.freeze()
        body = {"header": {}, "metadata": {}, "content": {"comm_id": opened[0], "data": {"n": 1}}}
        worker.send(m.CommMessage(msg_type="comm_msg"), [json.dumps(body).encode()])
        await worker.detach()
        await worker.listen_again()
        await worker.thaw()
        assert _shown(await worker.run("got")) == "['restored', {'n': 1}]"
        states = (await worker.ask("widgets")).message
        assert isinstance(states, m.SideReply) and '"value": 3' in json.dumps(states.content)
        cell = await worker.run("slider.value = 5")
        assert [content["data"]["state"]["value"] for content in cell.messages("comm_msg")] == [5]


async def test_asyncio_timers_wait_as_long_as_the_process_was_frozen(tmp_path: Path) -> None:
    code = """
import asyncio, time
loop = asyncio.get_running_loop()
fired = []
timer = loop.call_later(0.2, lambda: fired.append(time.monotonic()))
due = timer.when()
"""
    async with started(tmp_path) as worker:
        await worker.run(
            code + "import cellburst\ncellburst.before_snapshot(lambda: setattr(loop, 'froze_at', time.monotonic()))"
        )
        await worker.freeze()
        worker.send(m.RunnerPing(number=1))
        await worker.wait_for(m.RunnerPong)
        await worker.thaw()
        # either it had fired before the freeze, or it came later by what the freeze took
        cell = await worker.run(
            "while not fired: await asyncio.sleep(0.01)\nbool(due < loop.froze_at or timer.when() > due)"
        )
        assert _shown(cell) == "True"


async def test_modules_are_imported_before_the_snapshot_and_are_no_news_of_a_cell(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        frozen = await _put_away(worker, preload=["colorsys", "no.such.module", "wave"])
        assert frozen.preloaded == ["colorsys", "wave"]
        await worker.thaw(reseed=True)
        assert _shown(await worker.run("import sys\n'wave' in sys.modules")) == "True"
        cell = await worker.run("import wave, imaplib")
        assert "imaplib" in cell.done.imported and "wave" not in cell.done.imported


async def test_imports_are_told_once_also_after_an_error_and_not_those_of_the_notebooks_folder(tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "beside.py").write_text("import mailbox\n")
    async with started(tmp_path, folder=str(work)) as worker:
        cell = await worker.run("import beside, nntplib_that_is_not_there")
        assert cell.done.status == "error" and "mailbox" in cell.done.imported and "beside" not in cell.done.imported
        again = await worker.run("import mailbox, beside")
        assert again.done.status == "ok" and not {"mailbox", "beside"} & set(again.done.imported)


async def test_files_lists_what_any_process_below_has_mapped_or_open(tmp_path: Path) -> None:
    for name in ("mapped", "child"):
        (tmp_path / name).write_bytes(b"x" * 8192)
    code = f"""
import mmap, subprocess, sys
mapped = open({str(tmp_path / "mapped")!r}, 'rb')
memory = mmap.mmap(mapped.fileno(), 0, prot=mmap.PROT_READ)
mapped.close()
wait = 'import sys; f = open(sys.argv[1]); print(1, flush=True); input()'
child = subprocess.Popen([sys.executable, '-c', wait, {str(tmp_path / "child")!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
"""
    async with started(tmp_path) as worker:
        assert (await worker.run(code)).done.status == "ok"
        frozen = await _put_away(worker)
        assert {str(tmp_path / "mapped"), str(tmp_path / "child")} <= set(frozen.files)
        assert any(path.endswith(".so") or ".so." in path for path in frozen.files)
        assert not any(path.startswith(("/dev/", "/proc/", "pipe:", "socket:", "anon_inode:")) for path in frozen.files)
        await worker.thaw()
        assert _shown(await worker.run("child.communicate(b'x\\n')[0]")) == "b''"
        await worker.run("memory.close()")


async def test_a_template_has_imported_what_completion_and_inspection_need_but_jedi(tmp_path: Path) -> None:
    loaded = "import sys\nprint(*(m in sys.modules for m in ('IPython.core.guarded_eval', 'pygments.lexers.python', 'jedi')))"
    async with started(tmp_path) as worker:
        await _put_away(worker)
        await worker.thaw()
        assert (await worker.run(loaded)).text() == "True True False\n"
