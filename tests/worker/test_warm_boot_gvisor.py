"""The warm pool where gVisor takes no snapshots: containers that are booted beforehand, as without root.

Here as root, on a gVisor whose trial of snapshots failed; the house of a user without root is in `tests/house/test_rootless.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.resources import Resources
from cellburst_worker.warm_pool import WarmPool
from tests.worker.test_parking_gvisor import House, cell, house, until

pytestmark = pytest.mark.gvisor

ID = f"wb{os.getpid()}-"  # groups are the machine's: other tests may run beside these
SMALL = Resources(memory_mib=700)
FROM_POOL = [("image", ""), ("boot", "warm pool"), ("enter", "")]
BOOTED = [("image", ""), ("boot", ""), ("enter", "")]


@pytest.fixture(autouse=True)
def no_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a container is made as soon as no cell runs."""

    async def failed(*_: object) -> str:
        return "a test"

    monkeypatch.setattr("cellburst_runtime.engines.snapshot_test", failed)
    monkeypatch.setattr("cellburst_worker.template_policy.QUIET_SECONDS", 0.1)


def pool(h: House) -> WarmPool:
    return h.worker._pool


def held(h: House) -> list[str]:
    return [one.id for one in pool(h).usage()]


async def warm(h: House) -> str:
    """Wait until one waits; its id."""
    await until(lambda: held(h), 60)
    return held(h)[0]


def details(ready: m.ContainerReady) -> list[tuple[str, str]]:
    return [(phase.name, phase.detail) for phase in ready.phases]


def folders(h: House) -> list[str]:
    return sorted(path.name for path in (h.folder / "run" / "containers").glob("warm-*"))


async def test_a_session_takes_a_booted_container_over_with_its_imports_made(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        assert not h.runtime.inventory().engines[0].snapshot
        first, ready = await h.ready(ID + "1", resources=SMALL)
        assert details(ready) == BOOTED
        await cell(first, "call-1", "import colorsys, random; x = 1; random.seed(1)")
        id = await warm(h)
        await h.gateway.wait(lambda: any(b.snapshots and b.snapshots.warm for b in h.gateway.heartbeats))
        (shown,) = next(b.snapshots.warm for b in h.gateway.heartbeats if b.snapshots and b.snapshots.warm)
        assert shown.id == id and shown.memory_mib > 1
        pool(h).tick = lambda machine: None  # type: ignore[method-assign]  # no second one meanwhile
        (h.notebook / "later.py").write_text("value = 5")
        gpus = [gpu.uuid for gpu in h.runtime.inventory().gpus][:1]
        second, ready = await h.ready(ID + "2", gpus=gpus, resources=Resources(memory_mib=640))
        assert details(ready) == FROM_POOL and ready.start == "template" and held(h) == []
        code = """
import os, sys
print('x' in globals(), 'colorsys' in sys.modules)
import later
print(later.value, os.environ['CELLBURST_CONTAINER'], os.environ.get('CELLBURST_SIMULATED_GPUS'), os.getcwd())
"""
        text = await cell(second, "call-2", code)
        assert text.splitlines() == ["False True", f"5 {ID}2 A100-40GB:1 {h.notebook}"]
        usage = await h.worker.containers[ID + "2"].usage({})
        assert usage.memory_limit_bytes == 640 << 20
        _, ready = await h.ready(ID + "3", resources=SMALL)
        assert details(ready) == BOOTED  # it was handed out once


async def test_none_waits_where_the_pool_is_switched_off(short_path: Path) -> None:
    async with house(short_path, templates=True, warm=False) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "import colorsys")
        await h.gateway.wait(lambda: len(h.gateway.heartbeats) > 2)
        container = h.worker.containers[ID + "1"]
        facts = container.facts()
        assert container._body.prepared is not None and container._body.prepared.boot_key
        assert facts is not None and facts.key == ""  # nothing is to be made beforehand of it
        assert pool(h)._demand == {} and folders(h) == []


async def test_one_that_lacks_what_the_notebook_imports_is_made_anew(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "import colorsys")
        id = await warm(h)
        await cell(first, "call-2", "import wave")
        await until(lambda: held(h) not in ([], [id]), 60)
        assert id not in folders(h)
        pool(h).tick = lambda machine: None  # type: ignore[method-assign]
        second, ready = await h.ready(ID + "2", resources=SMALL)
        assert details(ready) == FROM_POOL
        text = await cell(second, "call-3", "import sys; print('colorsys' in sys.modules, 'wave' in sys.modules)")
        assert text == "True True\n"


async def test_one_that_shows_what_is_to_be_hidden_now_is_removed_and_the_start_boots(short_path: Path) -> None:
    async with house(short_path, templates=True) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "pass")
        id = await warm(h)
        pool(h).tick = lambda machine: None  # type: ignore[method-assign]
        (h.notebook / "sub").mkdir()
        (h.notebook / "sub" / ".env").write_text("KEY=secret")
        second, ready = await h.ready(ID + "2", resources=SMALL)
        assert ready.start == "boot" and details(ready)[-2:] == [("boot", ""), ("enter", "")]
        assert any(detail.startswith("warm container unusable: ") for _, detail in details(ready))
        assert await cell(second, "call-2", "import os; print(os.path.exists('sub/.env'))") == "False\n"
        await until(lambda: id not in folders(h))


async def test_a_session_there_is_parked_by_name_and_it_is_said_why(short_path: Path) -> None:
    async with house(short_path, templates=True, warm=False) as h:
        first, _ = await h.ready(ID + "1", resources=SMALL)
        await cell(first, "call-1", "kept = 41")
        event = await h.park(first, "p1")
        assert event.parked.kind == "names" and event.parked.names == ["kept"]
        assert event.notes == ["Its processes are not kept: the engine gvisor takes no snapshots."]
        second, ready = await h.ready(ID + "2", parked="p1", resources=SMALL)
        assert ready.start == "names" and await cell(second, "call-2", "print(kept + 1)") == "42\n"
        await cell(second, "call-3", "del kept\nlock = __import__('_thread').allocate_lock()")
        await h.gateway.request(m.ParkContainer(container=second.id, parked="p2"))
        _, failed = await second.until(m.ParkFailed)
        assert (
            failed.error.code is ErrorCode.UNPICKLABLE
            and "the engine gvisor takes no snapshots" in failed.error.message
        )
        assert "lock" in failed.error.message and await cell(second, "call-4", "print(lock.locked())") == "False\n"
