"""Parking, resuming and templates with real sandboxes: what came back, and what a fault leaves."""

from __future__ import annotations

import _heapq
import asyncio
import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cellburst_jupyter.environment import collect_environment
from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.states import EndReason
from cellburst_runtime.runtime import Runtime
from cellburst_runtime.volume_tree import VolumeStore
from cellburst_worker import early
from cellburst_worker.clock import SystemClock
from cellburst_worker.exchange import Exchange
from cellburst_worker.gateway_link import GatewayLink, http_url, link_url
from cellburst_worker.imports import Imports
from cellburst_worker.site import Limits, Site
from cellburst_worker.volume_desk import VolumeDesk
from cellburst_worker.volume_gateway import GatewayVolumes
from cellburst_worker.volume_outbox import Outbox
from cellburst_worker.worker import Identity, Worker
from tests.fakes.fake_gateway import TOKEN, FakeContainer, FakeGateway

pytestmark = pytest.mark.gvisor
READY_SECONDS = 240.0  # a Debian may have to be made first, on a machine with other work


@dataclass
class House:
    """A gateway, and a worker with the real runtime in this process."""

    gateway: FakeGateway
    folder: Path
    runtime: Runtime
    worker: Worker
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @property
    def notebook(self) -> Path:
        return self.folder / "notebook"

    async def ready(self, id: str, **fields: object) -> tuple[FakeContainer, m.ContainerReady]:
        await self.gateway.joined()
        container = await self.gateway.start(id, self.mirror(), **({"engine": "gvisor"} | fields))
        ended = asyncio.create_task(container.until(m.ContainerEnded, seconds=READY_SECONDS))
        up = asyncio.create_task(container.until(m.ContainerReady, seconds=READY_SECONDS))
        await asyncio.wait({ended, up}, return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        await asyncio.gather(ended, return_exceptions=True)
        assert up.done(), container.of(m.ContainerEnded)
        return container, up.result()[1]

    def mirror(self) -> m.MirrorSpec:
        return collect_environment(notebook_folder=str(self.notebook))

    async def park(self, container: FakeContainer, parked: str) -> m.ContainerParked:
        await self.gateway.request(m.ParkContainer(container=container.id, parked=parked))
        _, ended = await container.until(m.ContainerEnded)
        assert ended.reason is EndReason.PARKED, (ended, container.of(m.ParkFailed))
        await until(lambda: container.id not in self.worker.containers)
        return container.of(m.ContainerParked)[0][1]


@contextlib.asynccontextmanager
async def house(
    folder: Path, *, templates: bool = False, warm: bool = True, volumes_url: str = "", engine: str = "gvisor",
    limits: Limits | None = None,
) -> AsyncIterator[House]:  # fmt: skip
    notebook = folder / "notebook"
    notebook.mkdir(exist_ok=True)
    notebook.chmod(0o755)
    for name in ("run", "data"):
        (folder / name).mkdir(exist_ok=True)
    async with FakeGateway(folder / "gateway") as gateway:
        runtime = await Runtime.create(
            run_folder=folder / "run", data_folder=folder / "data", simulate_gpus="A100:2", engine=engine
        )
        exchange = Exchange(folder / "data" / "blobs", http_url(link_url(gateway.url)), lambda: TOKEN)
        imports = Imports(folder / "data" / "imports")
        spool = folder / "data" / "spool"
        volumes = None
        if volumes_url:
            routes, folder_of = GatewayVolumes(volumes_url, lambda: TOKEN), folder / "data" / "volumes"
            volumes = VolumeDesk(VolumeStore(folder_of), routes, Outbox(folder_of / "outbox", routes))
        site = Site(runtime, SystemClock(), exchange, spool, imports, limits or Limits(), templates, warm, volumes)
        worker = Worker(Identity("w1"), runtime.inventory(), site)
        link = GatewayLink(link_url(gateway.url), lambda: TOKEN, worker)
        found = House(gateway, folder, runtime, worker)
        found.tasks += [asyncio.create_task(link.run()), asyncio.create_task(worker.beat())]
        try:
            yield found
        finally:
            async with asyncio.timeout(60):
                await worker.shutdown()
            for task in found.tasks:
                task.cancel()
            await asyncio.gather(*found.tasks, return_exceptions=True)
            await runtime.close()


async def cell(container: FakeContainer, call: str, code: str) -> str:
    await container.run(call, code)
    _, done = await container.until(m.CellDone, call)
    assert done.status == "ok", (container.text(call), [g.json() for g, _ in container.of(m.IOPub, call)])
    return container.text(call)


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


BEFORE = """
import os, subprocess, threading, time
class Counter: pass
me = Counter(); me.self = me
wrote = open('written.txt', 'w'); wrote.write('before'); wrote.flush()
child = subprocess.Popen(['sleep', '1000'])
ticks = []
def tick():
    while True:
        ticks.append(1); time.sleep(0.01)
thread = threading.Thread(target=tick, daemon=True); thread.start()
lock = threading.Lock(); lock.acquire()
generator = (n for n in range(10)); next(generator)
"""
AFTER = """
import os
seen = len(ticks)
until = time.monotonic() + 20
while len(ticks) == seen and time.monotonic() < until: time.sleep(0.01)
wrote.write(' after'); wrote.flush()
print(me.self is me, len(ticks) > seen, child.poll(), lock.locked(), next(generator), open('written.txt').read())
"""


async def test_a_session_comes_back_whole_also_after_its_worker_was_restarted(short_path: Path) -> None:
    async with house(short_path) as h:
        gpus = [gpu.uuid for gpu in h.runtime.inventory().gpus][:1]
        container, ready = await h.ready("c1", gpus=gpus)
        assert ready.start == "boot"
        await cell(container, "call-1", BEFORE)
        event = await h.park(container, "p1")
        assert event.parked.kind == "snapshot" and "me" in event.parked.names and event.parked.size_bytes > 1_000_000
        assert (event.parked.session, event.seconds > 0, event.notes) == ("s1", True, [])
    async with house(short_path) as h:
        assert [(p.id, p.kind) for p in (await h.gateway.joined()).parked] == [("p1", "snapshot")]
        resumed, ready = await h.ready("c2", gpus=gpus, parked="p1")
        assert (ready.start, ready.lost) == ("snapshot", [])
        assert [(p.name, p.detail) for p in ready.phases] == [("image", ""), ("restore", "session"), ("enter", "")]
        assert await cell(resumed, "call-2", AFTER) == "True True None True 1 before after\n"
        await until(lambda: h.runtime.snapshots.parked("p1") is None)
        again = await h.park(resumed, "p2")  # and once more, by the memory it has now
        assert again.parked.kind == "snapshot"
        third, ready = await h.ready("c3", gpus=gpus, parked="p2")
        assert ready.start == "snapshot" and await cell(third, "call-3", "print(next(generator))") == "2\n"


async def test_what_cannot_be_restored_comes_by_value_and_says_why(short_path: Path) -> None:
    async with house(short_path) as h:
        shutil.copyfile(_heapq.__file__, h.notebook / "lib.so")
        container, _ = await h.ready("c1")
        code = "import ctypes, threading; handle = ctypes.CDLL('./lib.so')._handle; x = [1, 2]; lock = threading.Lock(); open('w', 'w').write('kept')"
        await cell(container, "call-1", code)
        event = await h.park(container, "p1")
        assert event.parked.kind == "snapshot" and [lost.name for lost in event.parked.lost] == ["lock"]
        content = (h.notebook / "lib.so").read_bytes()
        (h.notebook / "lib.so").unlink()
        (h.notebook / "lib.so").write_bytes(content)  # another file of the same bytes: nobody can tell what else is new
        resumed, ready = await h.ready("c2", parked="p1")
        assert ready.start == "names" and [lost.name for lost in ready.lost] == ["lock"]
        (said,) = [p.detail for p in ready.phases if p.name == "restore"]
        assert said.startswith("snapshot unusable: ") and "lib.so" in said
        assert await cell(resumed, "call-2", "print(x, open('w').read())") == "[1, 2] kept\n"
        await cell(resumed, "call-3", "x.append(3)")
        await h.park(resumed, "p2")
        manifest = h.runtime.snapshots.parked("p2")
        assert manifest is not None
        for image in (h.runtime.snapshots.path(manifest) / "checkpoint").iterdir():
            os.truncate(image, image.stat().st_size // 2)
        third, ready = await h.ready("c3", parked="p2")
        assert ready.start == "names" and any("snapshot unusable" in phase.detail for phase in ready.phases)
        assert await cell(third, "call-4", "print(x, open('w').read())") == "[1, 2, 3] kept\n"


async def test_large_names_are_copied_while_they_are_written(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []
    finish = early.CopyBehind.finish

    def finished(self: early.CopyBehind, size_bytes: int, staged: Path) -> str:
        copied.append(finish(self, size_bytes, staged))
        return copied[-1]

    begin = early.Copies.begin

    def begun(self: early.Copies, source: Path, staged: Path, size_bytes: int) -> None:
        begin(self, source, staged, size_bytes)
        given_up = source.with_name("ab" * 16)  # announced, and never whole
        given_up.write_bytes(b"x" * (20 << 20))
        begin(self, given_up, staged.with_name(f"{staged.name}-"), 1 << 30)

    monkeypatch.setattr(early.CopyBehind, "finish", finished)
    monkeypatch.setattr(early.Copies, "begin", begun)
    async with house(short_path) as h:
        container, _ = await h.ready("c1")
        make = "import os, zlib; big = bytearray(os.urandom(1 << 20)) * 40; less = bytearray(3 << 20)"
        told = await cell(container, "call-1", f"{make}; print(zlib.crc32(big))")
        event = await h.park(container, "p1")
        assert {"big", "less"} <= set(event.parked.names) and event.notes == []
        manifest = h.runtime.snapshots.parked("p1")
        assert manifest is not None
        kept = h.runtime.snapshots.path(manifest)
        assert [(kept / "names" / hash).stat().st_size > 40 << 20 for hash in copied] == [True]
        assert not list((kept / "names").glob("new-*")) and not list((kept.parent.parent / "drafts").iterdir())
        for image in (kept / "checkpoint").iterdir():
            os.truncate(image, image.stat().st_size // 2)
        resumed, ready = await h.ready("c2", parked="p1")
        assert ready.start == "names"
        again = "import zlib; print(zlib.crc32(big)); print(less == bytearray(3 << 20))"
        assert await cell(resumed, "call-2", again) == f"{told}True\n"


async def test_a_file_that_is_open_and_deleted_leaves_the_names(short_path: Path) -> None:
    async with house(short_path) as h:
        (h.notebook / "data.txt").write_text("data")
        container, _ = await h.ready("c1")
        await cell(container, "call-1", "file = open('data.txt'); x = 5; open('w', 'w').write('kept')")
        (h.notebook / "data.txt").unlink()
        event = await h.park(container, "p1")
        assert event.parked.kind == "names" and any("data.txt" in note for note in event.notes)
        resumed, ready = await h.ready("c2", parked="p1")
        assert ready.start == "names" and [lost.name for lost in ready.lost] == ["file"]
        assert await cell(resumed, "call-2", "print(x, open('w').read())") == "5 kept\n"


async def test_without_disk_for_a_snapshot_the_session_lives_on(short_path: Path) -> None:
    snapshots = short_path / "data" / "snapshots"
    snapshots.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(snapshots)], check=True)
    try:
        async with house(short_path) as h:
            container, _ = await h.ready("c1")
            await cell(container, "call-1", "x = 1; import os; pid = os.getpid()")
            await h.gateway.request(m.ParkContainer(container="c1", parked="p1"))
            _, failed = await container.until(m.ParkFailed)
            assert failed.error.code is ErrorCode.DISK_FULL and failed.error.next
            assert await cell(container, "call-2", "print(x, os.getpid() == pid)") == "1 True\n"
            assert list((snapshots / "drafts").iterdir()) == []
    finally:
        subprocess.run(["umount", str(snapshots)], check=True)


async def test_a_template_starts_the_next_container_with_its_imports(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, ready = await h.ready("c1")
        assert ready.start == "boot"
        await cell(first, "call-1", "import fractions, colorsys")
        await h.gateway.wait(lambda: any(b.snapshots and b.snapshots.template_count for b in h.gateway.heartbeats), 60)
        drawn = set()
        for id in ("c2", "c3"):
            started, ready = await h.ready(id)
            assert ready.start == "template", [(p.name, p.detail) for p in ready.phases]
            code = (
                "import sys, random; print('colorsys' in sys.modules, 'fractions' in globals()); print(random.random())"
            )
            there, random = (await cell(started, "call-2", code)).splitlines()
            assert there == "True False"  # imported, and no name of the session's
            drawn.add(random)
            assert (
                await cell(started, "call-3", f"print(abs(__import__('time').time() - {time.time()}) < 100)")
                == "True\n"
            )
        assert len(drawn) == 2
        assert not [path for path in (short_path / "run" / "containers").iterdir() if path.name.startswith("template")]
