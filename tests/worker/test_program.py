"""`python -m cellburst_worker` as a process: real engines, real signals, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_jupyter.environment import collect_environment
from cellburst_protocol import mac
from cellburst_protocol import messages as m
from cellburst_protocol.states import EndReason
from cellburst_runtime.cgroups import Cgroups
from tests.fakes.fake_gateway import MASTER_KEY, TOKEN, FakeGateway

ENGINES = ["process", pytest.param("gvisor", marks=pytest.mark.gvisor)]


@dataclass
class Program:
    """A worker's process and its gateway."""

    gateway: FakeGateway
    folder: Path
    engine: str
    process: asyncio.subprocess.Process

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal it and wait for its end."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(40):
            return await self.process.wait()


async def start(folder: Path, gateway: FakeGateway, engine: str, *more: str) -> Program:
    (folder / "token").write_text(TOKEN + "\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cellburst_worker", "--join", gateway.url, "--token-file", str(folder / "token"),
        "--data-dir", str(folder / "data"), "--run-dir", str(folder / "run"), "--engine", engine,
        "--simulate-gpus", "A100:2", "--log-json", *more,
    )  # fmt: skip
    return Program(gateway, folder, engine, process)


@contextlib.asynccontextmanager
async def program(folder: Path, engine: str, *, shares_blobs: bool = True) -> AsyncIterator[Program]:
    async with FakeGateway(folder / "gateway", shares_blobs=shares_blobs) as gateway:
        running = await start(folder, gateway, engine)
        try:
            yield running
        finally:
            await running.stop()


def mirror(folder: Path) -> m.MirrorSpec:
    notebook = folder / "notebook"
    notebook.mkdir(exist_ok=True)
    notebook.chmod(0o755)
    return collect_environment(notebook_folder=str(notebook))


def processes_of(container: str) -> list[int]:
    """Pids whose environment or command line names the container."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if container.encode() in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return found


def traces_of(container: str, run: Path) -> list[str]:
    """What is left of a container: processes, mounts, folders, cgroups."""
    mounts = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if container in line or str(run) in line
    ]
    groups = [name for name in Cgroups().names() if name.endswith(container)]
    return [*map(str, processes_of(container)), *mounts, *groups, *(str(p) for p in (run / "containers").glob("*"))]


@pytest.mark.parametrize("engine", ENGINES)
async def test_cells_values_and_sigterm(short_path: Path, engine: str) -> None:
    async with program(short_path, engine) as worker:
        join = await worker.gateway.joined()
        assert join.inventory.engines[0].name == engine
        gpus = [gpu.uuid for gpu in join.inventory.gpus if gpu.simulated]
        id = f"c{os.getpid()}{engine[0]}"
        container = await worker.gateway.start(id, mirror(short_path), gpus=gpus[:1])
        _, ready = await container.until(m.ContainerReady)
        assert ready.engine.name == engine and ready.engine.isolates == (engine == "gvisor")
        await container.run("call-1", "big = b'x' * 3_000_000\nprint('made')", bound=["big"], out=["big"])
        _, cell = await container.until(m.CellDone, "call-1")
        assert container.text("call-1") == "made\n"
        mac.verify(mac.value_key(MASTER_KEY, "call-1"), "out", cell.home, cell.mac)
        blobs = [part for group in cell.home for part in group.parts if part.at == "blob"]
        assert [blake3(blob_file(worker, part.hash).read_bytes()).hexdigest() for part in blobs] == [
            p.hash for p in blobs
        ]
        assert sum(part.size_bytes for part in blobs) >= 3_000_000
        assert await worker.stop() == 0
        assert container.of(m.ContainerEnded)[0][1].reason is EndReason.SHUTDOWN
        assert traces_of(id, short_path / "run") == []


def blob_file(worker: Program, hash: str) -> Path:
    return worker.gateway.folder / "blobs" / hash[:2] / hash


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_killed_worker_is_cleaned_up_by_the_next(short_path: Path, engine: str) -> None:
    async with program(short_path, engine) as first:
        await first.gateway.joined()
        id = f"k{os.getpid()}{engine[0]}"
        container = await first.gateway.start(id, mirror(short_path))
        await container.until(m.ContainerReady)
        await first.stop(signal.SIGKILL)
        assert traces_of(id, short_path / "run")
        second = await start(short_path, first.gateway, engine)
        join = await first.gateway.joined(2)
        assert join.containers == [] and traces_of(id, short_path / "run") == []
        assert await second.stop() == 0


@pytest.mark.gvisor
async def test_a_killed_sandbox_is_told_within_ten_seconds(short_path: Path) -> None:
    async with program(short_path, "gvisor") as worker:
        await worker.gateway.joined()
        id = f"s{os.getpid()}"
        container = await worker.gateway.start(id, mirror(short_path))
        await container.until(m.ContainerReady)
        for pid in processes_of(id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _, ended = await container.until(m.ContainerEnded, seconds=10)
        assert ended.reason is EndReason.CONTAINER_LOST


async def in_its_self_test(worker: Program) -> str:
    """The container that a worker tries its engine with at its first start, once its sandbox runs."""
    run = worker.folder / "run"

    def sandbox() -> str:
        return next((path.name for path in (run / "containers").glob("*") if processes_of(path.name)), "")

    async with asyncio.timeout(30):
        while not (id := sandbox()):
            assert worker.process.returncode is None, "the worker ended"
            await asyncio.sleep(0.005)
    return id


@pytest.mark.gvisor
async def test_a_worker_told_to_stop_while_it_tries_its_engine_leaves_nothing(short_path: Path) -> None:
    async with program(short_path, "gvisor") as worker:
        id = await in_its_self_test(worker)
        assert await worker.stop() == 0
        assert worker.gateway.joins == [] and traces_of(id, short_path / "run") == []


@pytest.mark.gvisor
async def test_a_worker_killed_while_it_tries_its_engine_is_cleaned_up_by_the_next(short_path: Path) -> None:
    async with program(short_path, "gvisor") as first:
        id = await in_its_self_test(first)
        await first.stop(signal.SIGKILL)
        second = await start(short_path, first.gateway, "gvisor")
        await first.gateway.joined()
        assert traces_of(id, short_path / "run") == []
        assert await second.stop() == 0
    assert processes_of(str(short_path)) == []


async def test_one_worker_for_each_run_folder(short_path: Path) -> None:
    async with program(short_path, "process") as first:
        await first.gateway.joined()
        second = await start(short_path, first.gateway, "process")
        async with asyncio.timeout(30):
            assert await second.process.wait() == 2
        assert len(first.gateway.joins) == 1


async def test_a_missing_token_file_is_said_at_once(short_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cellburst_worker", "--join", "http://127.0.0.1:1", "--token-file", str(short_path / "none"),
        "--data-dir", str(short_path / "data"), "--run-dir", str(short_path / "run"),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 2 and b"cannot be read" in errors


@pytest.fixture
def small_disk(short_path: Path) -> Iterator[Path]:
    folder = short_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.gvisor
@pytest.mark.parametrize("full", ["data", "run"])
async def test_a_full_disk_is_said_before_anything_is_started(short_path: Path, small_disk: Path, full: str) -> None:
    (short_path / "token").write_text(TOKEN)
    folders = {name: str((small_disk if name == full else short_path) / name) for name in ("data", "run")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cellburst_worker", "--join", "http://127.0.0.1:1", "--token-file", str(short_path / "token"),
        "--data-dir", folders["data"], "--run-dir", folders["run"], stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(60):
            _, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    said = errors.decode()
    assert process.returncode == 2 and "Traceback" not in said, said
    assert f"the disk of the {full} folder {folders[full]!r} is full" in said and f"--{full}-dir" in said, said
    assert list((small_disk / full).iterdir()) == []
