"""One fork server on real processes: what comes out of it, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_runtime import fork_server
from cellburst_runtime.fork_server import UNKNOWN_CODE, ForkFailed, ForkServer, PreloadRefused
from cellburst_runtime.proc import MARK, is_same_process, marked, process_stat
from tests.fakes.forks import Forked, forked, make_plan, until, write_module

Start = Callable[..., Awaitable[ForkServer]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts servers that are ended with the test."""
    servers: list[ForkServer] = []

    async def start(*preload: str) -> ForkServer:
        servers.append(await ForkServer.start(make_plan(tmp_path), preload))
        return servers[-1]

    yield start
    for server in servers:
        await server.end()
    folder = tmp_path / "containers"
    assert not folder.exists() or list(folder.iterdir()) == []


def by(server: ForkServer) -> Callable[[dict[str, str], Path], object]:
    return lambda environment, folder: server.fork(environment, folder, [])


async def shown(fork: Forked, code: str) -> object:
    cell = await fork.worker.run(f"import json, os, sys\nprint(json.dumps({code}))")
    return json.loads(cell.text())


async def test_two_forks_at_once_have_the_imports_and_differ_in_all_else(start: Start, tmp_path: Path) -> None:
    counted = tmp_path / "counted"
    write_module(tmp_path, "costly", f"import random, numpy\nopen({str(counted)!r}, 'a').write('x')\n")
    server = await start("costly", "numpy.random")
    assert server.preloaded == ["costly", "numpy.random"]
    secret, secret_end = os.pipe()
    os.set_inheritable(secret, True)
    try:
        async with (
            forked(tmp_path, server.plan, by(server), WHO="one") as one,
            forked(tmp_path, server.plan, by(server), WHO="two") as two,
        ):
            draws = "[costly.random.random(), costly.numpy.random.rand(), os.environ['WHO'], os.environ['CELLBURST_CONTAINER']]"
            await asyncio.gather(*(fork.worker.run("import costly") for fork in (one, two)))
            first, second = await asyncio.gather(*(shown(fork, draws) for fork in (one, two)))
            assert isinstance(first, list) and isinstance(second, list)
            assert all(a != b for a, b in zip(first, second, strict=True))
            assert first[2:] == ["one", one.id] and second[2:] == ["two", two.id]
            assert await shown(one, "[os.getcwd(), sys.argv]") == [server.plan.folder, ["ipykernel_launcher.py"]]
            assert "CELLBURST_ROOM" not in str(await shown(one, "dict(os.environ)"))
            assert counted.read_text() == "x"
            for fork in (one, two):
                pids = marked(fork.id)
                assert len(pids) == 2 and fork.child.pid in pids
                for pid in pids:
                    assert os.getsid(pid) == pid
                    opened = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
                    assert os.readlink(f"/proc/self/fd/{secret}") not in opened
    finally:
        os.close(secret)
        os.close(secret_end)


async def test_an_executor_has_no_descriptor_of_its_supervisor(start: Start, tmp_path: Path) -> None:
    server = await start()
    async with forked(tmp_path, server.plan, by(server)) as fork:
        executor = await shown(fork, "os.getpid()")
        assert isinstance(executor, int) and executor != fork.child.pid

        def targets(pid: int) -> set[str]:
            found = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd")}
            return {target for target in found if not target.startswith("/")} - {"anon_inode:[eventpoll]"}

        # each of them has its own end of a socket pair; the pipes of 1 and 2 are read by both
        common = targets(executor) & targets(fork.child.pid)
        assert len(common) == 3 and all(target.startswith("pipe:") for target in common)


async def test_an_executor_that_died_is_followed_by_another_fork(start: Start, tmp_path: Path) -> None:
    write_module(tmp_path, "costly", "import os\nimported_by = os.getpid()\n")
    server = await start("costly")
    async with forked(tmp_path, server.plan, by(server)) as fork:
        before = len(fork.worker.received)
        fork.worker.begin("import os\nos._exit(3)")
        ended = (await fork.worker.wait_for(m.ExecutorEnded, before)).message
        assert isinstance(ended, m.ExecutorEnded) and ended.exit_code == 3
        await fork.worker.wait_for(m.RunnerReady, before)
        await fork.worker.run("import costly")
        answer = await shown(fork, "[costly.imported_by, os.getppid()]")
        assert answer == [server.pid, fork.child.pid]
        before = len(fork.worker.received)
        fork.worker.begin("os.kill(os.getpid(), 9)")
        ended = (await fork.worker.wait_for(m.ExecutorEnded, before)).message
        assert isinstance(ended, m.ExecutorEnded) and ended.signal == 9


async def test_an_interrupt_reaches_a_cell(start: Start, tmp_path: Path) -> None:
    server = await start()
    async with forked(tmp_path, server.plan, by(server)) as fork:
        call = fork.worker.begin("import signal\nprint('waits', flush=True)\nsignal.pause()")
        await fork.worker.wait_text("waits", call)
        fork.worker.send(m.Interrupt(call=call))
        assert (await fork.worker.finish(call)).reply["ename"] == "KeyboardInterrupt"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 0)])
async def test_the_end_of_a_fork_is_told(start: Start, tmp_path: Path, number: int, code: int) -> None:
    server = await start()
    async with forked(tmp_path, server.plan, by(server)) as fork:
        os.kill(fork.child.pid, number)
        assert await asyncio.wait_for(fork.child.wait(), 30) == code
        assert server.children == {}


async def test_what_it_prints_is_its_own(start: Start, tmp_path: Path) -> None:
    write_module(tmp_path, "loud", "print('of the preload')\nimport sys; sys.stderr.write('this too\\n')\n")
    server = await start("loud")
    async with forked(tmp_path, server.plan, by(server)) as fork:
        text = (await fork.worker.run("import loud\nprint('of the cell')")).text()
        assert text == "of the cell\n"
        os.kill(fork.child.pid, signal.SIGTERM)
        await fork.child.wait()
        assert await fork.child.output() == ""


async def test_a_killed_server_takes_no_fork_with_it(start: Start, tmp_path: Path) -> None:
    server = await start()
    async with forked(tmp_path, server.plan, by(server)) as fork:
        os.kill(server.pid, signal.SIGKILL)
        await until(lambda: not server.usable)
        assert await shown(fork, "1") == 1
        with pytest.raises(ForkFailed, match="has ended"):
            await server.fork({**fork.environment, MARK: f"{fork.id}-2"}, tmp_path, [])
        assert await shown(fork, "2") == 2  # that failure ended nobody else's
        os.kill(fork.child.pid, signal.SIGKILL)
        assert await asyncio.wait_for(fork.child.wait(), 30) == UNKNOWN_CODE
        assert "not known" in await fork.child.output()


async def test_a_server_that_hangs_is_ended_and_its_forks_ends_are_seen(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_server, "TOLD_SECONDS", 0.05)
    server = await start()
    async with forked(tmp_path, server.plan, by(server)) as fork:
        os.kill(server.pid, signal.SIGSTOP)
        os.kill(fork.child.pid, signal.SIGKILL)
        assert await asyncio.wait_for(fork.child.wait(), 30) == UNKNOWN_CODE
        monkeypatch.setattr(fork_server, "FORK_SECONDS", 0.05)
        with pytest.raises(ForkFailed, match="no answer"):
            await server.fork({**fork.environment, MARK: f"{fork.id}-2"}, tmp_path, [])
        assert not server.usable and marked(f"{fork.id}-2") == []
        await until(lambda: process_stat(server.pid) is None or process_stat(server.pid).state == "Z")  # type: ignore[union-attr]


THREAD = "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
IPYTHON = "from IPython import get_ipython\nshell = get_ipython()\n"
BUILTIN = "try:\n    shell = get_ipython()\nexcept NameError:\n    shell = None\n"


@pytest.mark.parametrize(
    ("text", "why"), [(THREAD, "started a thread"), (IPYTHON, "asks for IPython"), (BUILTIN, "asks for IPython")]
)
async def test_a_module_that_a_fork_cannot_have_is_refused(start: Start, tmp_path: Path, text: str, why: str) -> None:
    write_module(tmp_path, "unfit", text)
    with pytest.raises(PreloadRefused, match=why) as caught:
        await start("json", "unfit", "numpy")
    assert caught.value.name == "unfit"
    assert list((tmp_path / "containers").iterdir()) == []


async def test_a_module_that_decides_by_a_gpu_is_refused(start: Start, tmp_path: Path) -> None:
    """With a torch of the test's own: a fork's session may have a GPU, its server has none."""
    (tmp_path / "lib" / "torch").mkdir(parents=True)
    write_module(tmp_path, "torch/__init__", "from . import cuda\n")
    write_module(tmp_path, "torch/cuda", "def is_available():\n    return False\n")
    write_module(tmp_path, "decides", "import torch\nDEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'\n")
    write_module(
        tmp_path,
        "keeps",
        "import os\nfrom torch.cuda import is_available\nVISIBLE = os.environ['CUDA_VISIBLE_DEVICES']\n",
    )
    with pytest.raises(PreloadRefused, match="asks for a GPU"):
        await start("torch", "keeps", "decides")
    server = await start("torch", "keeps")
    assert server.preloaded == ["torch", "keeps"]
    async with forked(tmp_path, server.plan, by(server), CUDA_VISIBLE_DEVICES="GPU-1") as fork:
        await fork.worker.run("import keeps, torch")
        answer = await shown(
            fork,
            "[keeps.is_available(), torch.cuda.is_available.__name__, keeps.VISIBLE, os.environ['CUDA_VISIBLE_DEVICES']]",
        )
        assert answer == [False, "is_available", "", "GPU-1"]


async def test_a_thread_that_ends_and_a_pool_that_ends_at_a_fork_are_no_hindrance(start: Start, tmp_path: Path) -> None:
    write_module(
        tmp_path, "brief", "import threading\nt = threading.Thread(target=lambda: None)\nt.start(); t.join()\n"
    )
    server = await start("brief", "numpy")  # OpenBLAS has one thread for each core when it is loaded
    async with forked(tmp_path, server.plan, by(server)) as fork:
        await fork.worker.run("import numpy as np")
        assert await shown(fork, "float((np.ones((300, 300)) @ np.ones((300, 300)))[0, 0])") == 300.0


async def test_modules_that_raise_are_passed_over(start: Start, tmp_path: Path) -> None:
    write_module(tmp_path, "raises", "1 / 0\n")
    write_module(tmp_path, "leaves", "raise SystemExit(3)\n")
    assert (await start("raises", "leaves", "missing", "json")).preloaded == ["json"]


async def test_a_module_that_ends_the_process_is_told_with_its_last_words(start: Start, tmp_path: Path) -> None:
    write_module(tmp_path, "ends", "import os, sys\nprint('last words', flush=True)\nos._exit(5)\n")
    with pytest.raises(ForkFailed, match="last words"):
        await start("ends")
    assert list((tmp_path / "containers").iterdir()) == []


async def test_a_start_that_is_cancelled_leaves_nothing(start: Start, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    write_module(tmp_path, "hangs", f"open({str(begun)!r}, 'w')\nimport signal\nsignal.pause()\n")
    task = asyncio.create_task(start("hangs"))
    await until(begun.exists)
    (folder,) = (tmp_path / "containers").iterdir()
    (pid,) = marked(folder.name)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not folder.exists() and marked(folder.name) == []
    assert process_stat(pid) is None or process_stat(pid).state == "Z"  # type: ignore[union-attr]


async def test_a_changed_file_is_noticed(start: Start, tmp_path: Path) -> None:
    path = write_module(tmp_path, "edited", "x = 1\n")
    server = await start("edited")
    path.write_text("x = 2\n")
    environment = {**server.plan.environment, MARK: "changed-1", "CELLBURST_VAR": str(tmp_path)}
    with pytest.raises(ForkFailed, match=r"edited.py has changed") as caught:
        await server.fork(environment, tmp_path, [])
    assert caught.value.stale and server.usable and marked("changed-1") == []
    with pytest.raises(PreloadRefused, match="just written"):
        await start("edited")


async def test_a_fork_that_fails_leaves_nothing_and_the_server_goes_on(start: Start, tmp_path: Path) -> None:
    # EAGAIN as the kernel gives it: only the fork of this call fails
    write_module(
        tmp_path, "refuses",
        "import errno, os\nreal = os.fork\ndef fork():\n    os.fork = real\n    raise OSError(errno.EAGAIN, 'Try again')\nos.fork = fork\n",
    )  # fmt: skip
    server = await start("refuses")
    environment = {**server.plan.environment, MARK: "fails-1", "CELLBURST_VAR": str(tmp_path)}
    with pytest.raises(ForkFailed, match="fork: Try again"):
        await server.fork(environment, tmp_path, [])
    for change, group, why in (
        ({}, tmp_path / "no" / "such" / "group", "FileNotFoundError"),
        ({MARK: "fails-1" + "x" * 300}, None, "too long"),
    ):
        with pytest.raises(ForkFailed, match=why) as caught:
            await server.fork({**environment, **change}, tmp_path, [group] if group else [])
        assert not caught.value.stale
    assert server.usable and marked("fails-1") == []
    async with forked(tmp_path, server.plan, by(server)) as fork:
        assert await shown(fork, "3") == 3


async def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    """Also while it imports, when it does not read its socket."""
    plan = make_plan(tmp_path)
    begun = tmp_path / "begun"
    write_module(
        tmp_path, "hangs", f"import os, signal\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\nsignal.pause()\n"
    )
    script = f"""
import asyncio
from pathlib import Path
from cellburst_runtime.fork_plan import ForkPlan
from cellburst_runtime.fork_server import ForkServer
plan = ForkPlan("k", {plan.python!r}, {plan.main!r}, {dict(plan.environment)!r}, {plan.folder!r}, Path({str(plan.containers)!r}))
asyncio.run(ForkServer.start(plan, ["hangs"]))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, start_new_session=True)
    try:
        await until(lambda: begun.exists() and bool(begun.read_text()))
        pid = int(begun.read_text())
        stat = process_stat(pid)
        assert stat is not None
        process.kill()
        await until(lambda: not is_same_process(pid, stat.start_ticks))
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
