"""A worker killed by SIGKILL while it parks or resumes: what the next worker finds.

The worker is the real program, but for one of its steps, before or after which it stops until it is killed.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cellburst_jupyter.environment import collect_environment
from cellburst_protocol import messages as m
from cellburst_protocol.states import EndReason
from tests.fakes.fake_gateway import TOKEN, FakeContainer, FakeGateway
from tests.worker.test_program import traces_of

pytestmark = pytest.mark.gvisor

# argv: the file to touch when it stops, then the step. The rest is the worker's own command line.
PROGRAM = """
import asyncio, pathlib, sys, threading
from cellburst_runtime.runtime import PreparedContainer
from cellburst_runtime.snapshots import Draft
from cellburst_worker.__main__ import main
from cellburst_worker.templates import Templates
Templates.tick = lambda *_: None  # it would stop at these steps too
marker, step = pathlib.Path(sys.argv[1]), sys.argv[2]
sys.argv[1:3] = []
commit, start = Draft.commit, PreparedContainer.start
def stopped_before(self, *what):
    marker.touch()
    threading.Event().wait()
def stopped_after(self, *what):
    sealed = commit(self, *what)
    marker.touch()
    threading.Event().wait()
async def stopped_while_restoring(self, checkpoint=None):
    running = await start(self, checkpoint)
    if checkpoint is not None:
        marker.touch()
        await asyncio.Event().wait()
    return running
if step == "before commit": Draft.commit = stopped_before
if step == "after commit": Draft.commit = stopped_after
if step == "restored": PreparedContainer.start = stopped_while_restoring
sys.exit(main())
"""


class Killable:
    """A worker that stops at a step, and its gateway."""

    def __init__(self, folder: Path, gateway: FakeGateway) -> None:
        self.folder, self.gateway = folder, gateway
        self.process: asyncio.subprocess.Process | None = None
        self.marker = folder / "stopped"
        (folder / "token").write_text(TOKEN + "\n")
        (folder / "notebook").mkdir(mode=0o755)
        self.joins = 0

    async def work(self, step: str = "") -> m.JoinWorker:
        """Start a worker that stops at this step, and wait until it has joined."""
        await self.kill()
        self.marker.unlink(missing_ok=True)
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, str(self.marker), step, "--join", self.gateway.url, "--token-file",
            str(self.folder / "token"), "--data-dir", str(self.folder / "data"), "--run-dir", str(self.folder / "run"),
            "--engine", "gvisor", "--log-json",
        )  # fmt: skip
        self.joins += 1
        return await self.gateway.joined(self.joins)

    async def until_stopped(self) -> None:
        async with asyncio.timeout(60):
            while not self.marker.exists():
                await asyncio.sleep(0.01)

    async def kill(self) -> None:
        """SIGKILL, whatever it is at."""
        if self.process is not None:
            if self.process.returncode is None:
                self.process.kill()
            await self.process.wait()
            await self.gateway.wait(lambda: self.gateway.peer is None)

    async def end(self) -> None:
        """End the last one cleanly."""
        if self.process is not None and self.process.returncode is None:
            self.process.terminate()
            async with asyncio.timeout(60):
                await self.process.wait()

    async def start(self, id: str, **fields: object) -> FakeContainer:
        mirror = collect_environment(notebook_folder=str(self.folder / "notebook"))
        return await self.gateway.start(id, mirror, **fields)


@pytest.fixture
async def worker(short_path: Path) -> AsyncIterator[Killable]:
    async with FakeGateway(short_path / "gateway") as gateway:
        killable = Killable(short_path, gateway)
        try:
            yield killable
        finally:
            await killable.end()


async def cell(container: FakeContainer, call: str, code: str) -> str:
    await container.run(call, code)
    _, done = await container.until(m.CellDone, call)
    assert done.status == "ok"
    return container.text(call)


def left(worker: Killable) -> list[str]:
    """What lies in the snapshot folder that is no whole snapshot."""
    return [path.name for path in (worker.folder / "data" / "snapshots" / "drafts").iterdir()]


async def test_killed_before_the_snapshot_is_whole_it_ends_as_ever(worker: Killable) -> None:
    id = f"kb{os.getpid()}"
    await worker.work("before commit")
    container = await worker.start(id)
    await cell(container, "call-1", "x = 1")
    await worker.gateway.request(m.ParkContainer(container=id, parked="p1"))
    await worker.until_stopped()
    assert len(left(worker)) == 1
    join = await worker.work()
    assert (join.parked, join.containers) == ([], []) and container.of(m.ContainerParked) == []
    assert left(worker) == [] and traces_of(id, worker.folder / "run") == []
    assert list((worker.folder / "data" / "stores").iterdir()) == []


async def test_killed_after_the_commit_and_killed_while_it_resumes_it_is_still_there(worker: Killable) -> None:
    id = f"ka{os.getpid()}"
    await worker.work("after commit")
    container = await worker.start(id)
    await cell(container, "call-1", "x = [1]; x.append(x); open('written', 'w').write('kept'); held = open('written')")
    await worker.gateway.request(m.ParkContainer(container=id, parked="p1"))
    await worker.until_stopped()
    join = await worker.work("restored")
    assert [parked.id for parked in join.parked] == ["p1"] and join.containers == [] and left(worker) == []
    assert traces_of(id, worker.folder / "run") == []
    await worker.start(f"{id}b", parked="p1")
    await worker.until_stopped()
    join = await worker.work()
    assert [parked.id for parked in join.parked] == ["p1"] and traces_of(f"{id}b", worker.folder / "run") == []
    assert list((worker.folder / "data" / "stores").iterdir()) == []
    resumed = await worker.start(f"{id}c", parked="p1")
    _, ready = await resumed.until(m.ContainerReady)
    assert (ready.start, ready.lost) == ("snapshot", [])
    assert await cell(resumed, "call-2", "print(x[1] is x, held.read(), open('written').read())") == "True kept kept\n"
    await worker.gateway.request(m.StopContainer(container=f"{id}c", reason=EndReason.STOPPED))
    await resumed.until(m.ContainerEnded)
    async with asyncio.timeout(30):
        while any((worker.folder / "data" / "snapshots" / "sessions").iterdir()):
            await asyncio.sleep(0.01)
    assert (await worker.work()).parked == []
