"""The gateway as a program: its files, its refusals, its end, and what a SIGKILL leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cellburst_gateway.store import Store
from cellburst_gateway.store_rows import Owner
from cellburst_protocol.messages import Done, GetStatus, IOPub, Shutdown, Status
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import EndReason
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeWorker

A100 = Resources(gpus=(GpuChoice("A100"),))


class Program:
    """A gateway process."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.data, self.run = folder / "data", folder / "run"
        self.arguments = [sys.executable, "-m", "cellburst_gateway", "--data-dir", str(self.data), "--run-dir", str(self.run),
                          "--no-local-worker", *more]  # fmt: skip
        self.process: asyncio.subprocess.Process

    async def start(self) -> dict[str, Any]:
        """Start and wait until it serves; returns what gateway.json says."""
        self.process = await asyncio.create_subprocess_exec(*self.arguments, stderr=subprocess.PIPE)
        file = self.run / "gateway.json"
        async with asyncio.timeout(30):
            while True:
                if self.process.returncode is not None:
                    raise AssertionError((await self.process.communicate())[1])
                if file.exists() and (found := json.loads(file.read_text()))["pid"] == self.process.pid:
                    return dict(found)
                await asyncio.sleep(0.01)

    async def end(self, number: int) -> int:
        """Send a signal and wait for its end."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode

    def token(self, name: str = "token") -> str:
        return (self.data / name).read_text()


@pytest.fixture
async def program(tmp_path: Path) -> AsyncIterator[Program]:
    made = Program(tmp_path)
    yield made
    if hasattr(made, "process") and made.process.returncode is None:
        await made.end(signal.SIGKILL)


async def refused(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cellburst_gateway", *arguments, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def test_files_are_private_and_the_announcement_comes_and_goes(program: Program) -> None:
    found = await program.start()
    assert set(found) == {"pid", "url", "data_folder", "instance", "started_unix_seconds", "version"}
    assert program.data.stat().st_mode & 0o777 == 0o700 and program.run.stat().st_mode & 0o777 == 0o700
    for name in ("token", "worker-token", "master-key"):
        assert (program.data / name).stat().st_mode & 0o777 == 0o600
    assert await program.end(signal.SIGTERM) == 0
    assert not (program.run / "gateway.json").exists()
    logged = (program.data / "logs" / "gateway.log").read_text()
    assert all(json.loads(line)["event"] for line in logged.splitlines())
    assert program.token() not in logged and program.token("worker-token") not in logged


async def test_a_second_gateway_on_the_folder_names_the_first(program: Program, tmp_path: Path) -> None:
    await program.start()
    code, said = await refused("--data-dir", str(program.data), "--run-dir", str(program.run), "--no-local-worker")
    assert code == 3 and f"pid {program.process.pid}" in said and "Traceback" not in said


async def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    folders = ("--data-dir", str(tmp_path / "d"), "--run-dir", str(tmp_path / "r"), "--no-local-worker")
    code, said = await refused(*folders, "--host", "0.0.0.0")
    assert code == 2 and "TLS" in said and "tunnel" in said
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = await refused(*folders, "--port", str(taken.getsockname()[1]))
    assert code == 3 and "in use" in said
    blocker = tmp_path / "file"
    blocker.write_text("")
    code, said = await refused("--data-dir", str(blocker / "d"), "--run-dir", str(tmp_path / "r"))
    assert code == 2 and "cannot be written" in said
    broken = tmp_path / "c.toml"
    broken.write_text("[gateway]\nport = 'x'\n")
    code, said = await refused(*folders, "--config", str(broken))
    assert code == 2 and "gateway.port" in said
    assert not (tmp_path / "r" / "gateway.json").exists()


async def test_a_shutdown_request_ends_containers_and_the_program(program: Program) -> None:
    found = await program.start()
    worker = await FakeWorker(found["url"], program.token("worker-token")).start()
    kernel = await FakeKernel(found["url"], program.token()).dial()
    await kernel.session()
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    cli = await FakeKernel(found["url"], program.token(), role="cli").dial()
    status = await cli.peer.request(GetStatus())
    assert isinstance(status, Status) and status.gateway_pid == program.process.pid
    assert [s.running_call for s in status.sessions] == ["c1"] and [w.free_gpus for w in status.workers] == [[]]
    assert isinstance(await cli.peer.request(Shutdown()), Done)
    assert (await kernel.ended("c1")).reason is EndReason.SHUTDOWN
    async with asyncio.timeout(30):
        await program.process.communicate()
    assert program.process.returncode == 0 and not worker.containers
    for fake in (cli, kernel):
        await fake.close()
    await worker.stop()


async def test_killed_and_started_again_a_running_cell_goes_on(program: Program) -> None:
    found = await program.start()
    worker = await FakeWorker(found["url"], program.token("worker-token")).start()
    kernel = await FakeKernel(found["url"], program.token()).dial()
    info = await kernel.session()
    await kernel.run("stream 150 300\nwait\nprint last", call="c1", resources=A100)
    await kernel.until(lambda: len(kernel.of("c1", IOPub)) > 10)
    await program.end(signal.SIGKILL)
    await kernel.close()
    worker.joined.clear()
    again = await program.start()
    assert again["url"] == found["url"]  # workers dial the address that they know
    async with asyncio.timeout(30):
        await worker.joined.wait()
    assert list(worker.joins[-1].adopted) == list(worker.containers) and not worker.joins[-1].stop
    back = await FakeKernel(again["url"], program.token()).dial()
    await back.session(session=info.session, from_sequence=kernel.events[-1][0])
    worker.release()
    ended = await back.ended("c1")
    assert ended.reason is EndReason.DONE
    everything = kernel.events + back.events
    assert [s for s, _, _ in everything] == list(range(1, len(everything) + 1))
    assert sum(isinstance(e, IOPub) for _, _, e in everything) == 151
    await back.run("print warm", call="c2", resources=A100)
    assert (await back.ended("c2")).reason is EndReason.DONE
    await back.close()
    await worker.stop()


async def test_a_cell_that_waited_is_handed_over_by_the_next_gateway(program: Program) -> None:
    found = await program.start()
    worker = await FakeWorker(found["url"], program.token("worker-token")).start()
    worker.hold_ready = True
    kernel = await FakeKernel(found["url"], program.token()).dial()
    info = await kernel.session()
    await kernel.run("print ok", call="c1", resources=A100)
    async with asyncio.timeout(30):
        while not worker.containers:
            await asyncio.sleep(0.01)
    await program.end(signal.SIGKILL)
    await kernel.close()
    worker.joined.clear()
    again = await program.start()
    async with asyncio.timeout(30):
        await worker.joined.wait()
    (container,) = worker.containers.values()
    worker.ready(container)
    back = await FakeKernel(again["url"], program.token()).dial()
    await back.session(session=info.session)
    assert (await back.ended("c1")).reason is EndReason.DONE
    assert [type(m).__name__ for m in container.received].count("RunCell") == 1
    await back.close()
    await worker.stop()


async def test_serves_within_three_seconds_with_ten_thousand_calls(program: Program) -> None:
    program.data.mkdir(mode=0o700)
    store = Store.open(program.data / "record.sqlite", now=1.0, synchronous="OFF")
    owner = Owner("home", "user")
    store.create_session("s-old", owner, notebook="n", name="default", kernel_id="k", now=1.0)
    for number in range(10_000):
        store.record_call(f"old{number}", owner, session="s-old", now=2.0)
        store.end_call(f"old{number}", EndReason.CANCELLED, now=3.0)
    store.close()
    await program.start()
    spent = psutil.Process(program.process.pid).cpu_times()
    assert spent.user + spent.system < 3.0  # its own time: other programs of the machine do not count


async def test_the_local_worker_is_started_and_started_again(
    make_house: Callable[..., Awaitable[Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the worker's package: a program that only notes its pid and arguments and waits."""
    package = tmp_path / "cellburst_worker"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(
        "import os, signal, sys, pathlib\n"
        f"note = pathlib.Path({str(tmp_path)!r}, 'pid.%d' % os.getpid())\n"
        "part = note.with_name('part.%d' % os.getpid())\n"
        "part.write_text(' '.join(sys.argv[1:]))\n"
        "part.rename(note)\n"
        "signal.pause()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    house = await make_house(local_worker=True, simulate_gpus="A100:2", engine="process")
    await house.until(lambda: len(list(tmp_path.glob("pid.*"))) == 1)
    (first,) = tmp_path.glob("pid.*")
    assert "--simulate-gpus A100:2 --engine process" in first.read_text() and house.token not in first.read_text()
    os.kill(int(first.suffix[1:]), signal.SIGKILL)
    await house.until(lambda: len(list(tmp_path.glob("pid.*"))) == 2)
    second = next(p for p in tmp_path.glob("pid.*") if p != first)
    await house.gateway._local.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(int(second.suffix[1:]), 0)
