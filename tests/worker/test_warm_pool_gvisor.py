"""The warm pool with real sandboxes: what a session finds in a container that was made before it was asked for."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import sys
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import EndReason
from cellburst_runtime.record import load_record
from cellburst_worker.clock import SystemClock
from cellburst_worker.warm_policy import KEEP_SECONDS
from cellburst_worker.warm_pool import WarmPool
from tests.fakes.fake_gateway import TOKEN, FakeGateway
from tests.worker.test_parking_gvisor import House, cell, house, until
from tests.worker.test_program import mirror, traces_of

pytestmark = pytest.mark.gvisor

ID = f"wp{os.getpid()}-"  # groups are the machine's: other tests may run beside these
SMALL = Resources(memory_mib=700)
FROM_POOL = [("image", ""), ("restore", "warm pool"), ("enter", "")]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first template does not wait for a quiet session: what is tested comes after it."""
    monkeypatch.setattr("cellburst_worker.template_policy.QUIET_SECONDS", 0.1)


class Later(SystemClock):
    """The real clock, so many seconds later."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def monotonic(self) -> float:
        return super().monotonic() + self._seconds


def pool(h: House) -> WarmPool:
    return h.worker._pool


def held(h: House) -> list[str]:
    return [one.id for one in pool(h).usage()]


def folders(h: House) -> list[str]:
    return sorted(path.name for path in (h.folder / "run" / "containers").glob("warm-*"))


async def warm(h: House) -> str:
    """Wait until one is warm; its id."""
    await until(lambda: held(h), 60)
    return held(h)[0]


def details(ready: m.ContainerReady) -> list[tuple[str, str]]:
    return [(phase.name, phase.detail) for phase in ready.phases]


async def test_a_session_takes_a_warm_container_over_as_its_own(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        (h.notebook / "before.txt").write_text("old")
        first, ready = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "import colorsys; x = 1")
        id = await warm(h)
        await h.gateway.wait(lambda: any(b.snapshots and b.snapshots.warm for b in h.gateway.heartbeats))
        (shown,) = next(b.snapshots.warm for b in h.gateway.heartbeats if b.snapshots and b.snapshots.warm)
        assert (shown.id, shown.image) == (id, sys.executable) and shown.memory_mib > 1
        assert [c.container for c in h.worker.join().containers] == [ID + "1"] and folders(h) == [id]
        # The notebook's folder is live also while nobody has the container.
        (h.notebook / "new").write_text("new")
        (h.notebook / "new").replace(h.notebook / "before.txt")
        (h.notebook / "later.txt").write_text("later")
        (h.notebook / "later.py").write_text("value = 5")
        gpus = [gpu.uuid for gpu in h.runtime.inventory().gpus][:1]
        pool(h).tick = lambda machine: None  # type: ignore[method-assign]  # no second one meanwhile
        both = [h.ready(ID + "2", gpus=gpus, resources=SMALL), h.ready(ID + "3", gpus=[], resources=SMALL)]
        (second, at_second), (third, at_third) = await asyncio.gather(*both)
        assert (at_second.start, at_third.start) == ("template", "template")
        # One was warm, so one of them has it.
        assert sorted([details(at_second) == FROM_POOL, details(at_third) == FROM_POOL]) == [False, True]
        assert id not in held(h)
        code = """
import os, random, subprocess, sys, later
print('x' in globals(), 'colorsys' in sys.modules, later.value)
print(os.environ['CELLBURST_CONTAINER'], os.environ.get('CELLBURST_SIMULATED_GPUS'), os.getcwd())
print(open('before.txt').read(), open('later.txt').read(), sorted(os.listdir()))
print('SIMULATED' in subprocess.run('nvidia-smi || true', shell=True, capture_output=True, text=True).stdout)
print(random.random())
"""
        drawn = set()
        for container, gpu in ((second, "A100-40GB:1"), (third, None)):
            *lines, random = (await cell(container, "call-2", code)).splitlines()
            there = "['before.txt', 'later.py', 'later.txt']"
            assert lines == [
                "False True 5", f"{container.id} {gpu} {h.notebook}", f"new later {there}", str(gpu is not None)
            ]  # fmt: skip
            drawn.add(random)
        assert len(drawn) == 2
        # What it writes is its own, and comes back with it when it was parked.
        taken = second if details(at_second) == FROM_POOL else third
        await cell(taken, "call-3", "y = iter([1, 2]); next(y); open('before.txt', 'w').write('mine')")
        assert (h.notebook / "before.txt").read_text() == "new"
        event = await h.park(taken, "p1")
        assert event.parked.kind == "snapshot"
        await until(lambda: id not in folders(h))
        resumed, ready = await h.ready(ID + "4", parked="p1", resources=SMALL, gpus=gpus if taken is second else [])
        assert ready.start == "snapshot" and details(ready)[1] == ("restore", "session")
        assert await cell(resumed, "call-4", "print(next(y), open('before.txt').read())") == "2 mine\n"


async def test_its_limits_and_its_randomness_are_its_own(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready(ID + "1", resources=Resources(memory_mib=1000, cpu=1.0))
        await cell(first, "call-1", "pass")
        await warm(h)
        second, ready = await h.ready(ID + "2", resources=Resources(memory_mib=520, cpu=0.5))
        assert details(ready) == FROM_POOL
        usage = await h.worker.containers[ID + "2"].usage({})
        assert usage.memory_limit_bytes == 520 << 20
        draw = "import random; print(random.random())"
        drawn = await cell(second, "call-1", draw)
        await second.run("call-2", "len(b'x' * (600 << 20))")
        _, ended = await second.until(m.ContainerEnded)
        assert ended.reason is EndReason.OUT_OF_MEMORY and ended.error and "520" in ended.error.text()
        await warm(h)  # made for what was asked for last
        third, ready = await h.ready(ID + "3", resources=Resources(memory_mib=1000))
        assert details(ready) == FROM_POOL and await cell(third, "call-1", draw) != drawn
        await cell(third, "call-3", "len(b'x' * (600 << 20))")


async def test_one_that_does_not_fit_any_more_or_has_died_is_not_handed_out(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "pass")
        stale = await warm(h)
        (h.notebook / "sub").mkdir()
        (h.notebook / "sub" / ".env").write_text("KEY=secret")
        _, ready = await h.ready(ID + "2", resources=SMALL)
        assert details(ready)[1] == ("restore", "template")
        await until(lambda: stale not in folders(h))
        dead = await warm(h)
        record = load_record(h.folder / "run" / "containers" / dead)
        assert record is not None and record.pid
        pool(h)._held[0].watch.cancel()  # type: ignore[union-attr]  # as if it had not been looked at yet
        os.kill(record.pid, signal.SIGKILL)
        third, ready = await h.ready(ID + "3", resources=SMALL)
        assert details(ready)[-2] == ("restore", "template") and FROM_POOL[1] not in details(ready)
        assert await cell(third, "call-2", "import os; print(os.path.exists('sub/.env'))") == "False\n"
        await until(lambda: dead not in folders(h))
        noticed = await warm(h)
        record = load_record(h.folder / "run" / "containers" / noticed)
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        await until(lambda: noticed not in folders(h) and noticed not in held(h))


async def test_what_a_request_waits_for_is_given_back_at_once(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "pass")
        id = await warm(h)
        h.worker._heartbeat_seconds = 3600.0  # nothing is done by time from here on
        await h.gateway.request(m.Waiting(count=1, memory_mib=h.runtime.inventory().memory_mib))
        await until(lambda: id not in held(h) and not folders(h))
        assert held(h) == []


async def test_none_are_left_after_ten_minutes_or_at_the_end(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "pass")
        id = await warm(h)
        pool(h).site = dataclasses.replace(pool(h).site, clock=Later(KEEP_SECONDS))
        await until(lambda: not folders(h) and not held(h))
        assert not traces_of(id, h.folder / "none")
        _, ready = await h.ready(ID + "2", resources=SMALL)
        assert details(ready)[1] == ("restore", "template")
        id = await warm(h)
        async with asyncio.timeout(60):
            await h.worker.shutdown()
        assert traces_of(id, h.folder / "run") == [] and pool(h).usage() == []


async def test_a_killed_worker_s_warm_containers_are_removed_by_the_next(short_path: Path) -> None:
    (short_path / "token").write_text(TOKEN + "\n")
    (short_path / "run").mkdir()
    command = [
        sys.executable, "-m", "cellburst_worker", "--token-file", str(short_path / "token"), "--data-dir",
        str(short_path / "data"), "--run-dir", str(short_path / "run"), "--engine", "gvisor", "--log-json",
    ]  # fmt: skip
    async with FakeGateway(short_path / "gateway") as gateway:
        process = await asyncio.create_subprocess_exec(*command, "--join", gateway.url)
        try:
            await gateway.joined()
            container = await gateway.start(f"kw{os.getpid()}", mirror(short_path), resources=SMALL)
            await cell(container, "call-1", "pass")
            await gateway.wait(lambda: any(b.snapshots and b.snapshots.warm for b in gateway.heartbeats), 60)
            (shown,) = next(b.snapshots.warm for b in gateway.heartbeats if b.snapshots and b.snapshots.warm)
            process.kill()
            await process.wait()
            assert traces_of(shown.id, short_path / "run")
            process = await asyncio.create_subprocess_exec(*command, "--join", gateway.url, "--no-warm-pool")
            join = await gateway.joined(2)
            assert join.containers == [] and traces_of(shown.id, short_path / "run") == []
        finally:
            if process.returncode is None:
                process.terminate()
            async with asyncio.timeout(60):
                await process.wait()
