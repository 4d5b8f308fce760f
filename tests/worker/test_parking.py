"""Putting sessions away and bringing them back, with the real runner in plain processes: names by value, refusals, failures.

What needs an engine with snapshots is in test_parking_gvisor.py.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, PlatformError
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import EndReason
from cellburst_runtime.snapshot_manifest import Manifest
from cellburst_runtime.snapshots import Draft
from cellburst_worker.starting import TOO_OFTEN
from tests.fakes.fake_gateway import FakeContainer
from tests.worker.conftest import MIRROR, Setup

# A hook that runs while the session is frozen: what comes behind it is the hook's body.
HOOK = "import cellburst, os, time\n@cellburst.before_snapshot\ndef hook():\n    "


async def cell(container: FakeContainer, call: str, code: str) -> str:
    """Run a cell and give what it printed."""
    await container.run(call, code)
    _, done = await container.until(m.CellDone, call)
    assert done.status == "ok", container.text(call)
    return container.text(call)


async def park(setup: Setup, id: str = "c1", parked: str = "p1", **fields: int) -> m.ContainerParked:
    """Park a container and wait for its end."""
    await setup.gateway.request(m.ParkContainer(container=id, parked=parked, **fields))
    container = setup.gateway.containers[id]
    _, event = await container.until(m.ContainerParked)
    _, ended = await container.until(m.ContainerEnded)
    assert ended.reason is EndReason.PARKED and ended.error is None
    await gone(setup, id)
    return event


async def gone(setup: Setup, id: str) -> None:
    async with asyncio.timeout(10):
        while id in setup.worker.containers:
            await asyncio.sleep(0.01)


def drafts(setup: Setup) -> list[Path]:
    return list((setup.runtime.snapshots.folder / "drafts").iterdir())


async def refused(setup: Setup, request: m.Message) -> ErrorCode:
    with pytest.raises(CellburstError) as problem:
        await setup.gateway.request(request)
    return problem.value.code


async def test_names_come_back_in_the_next_container(setup: Setup) -> None:
    first = await setup.ready(gpus=["SIM-0"])
    await cell(
        first,
        "call-1",
        "big = b'x' * 3_000_000; small = {'a': [1]}; also = small['a']; import threading; lock = threading.Lock()",
    )
    event = await park(setup)
    parked = event.parked
    assert (parked.id, parked.session, parked.kind) == ("p1", "s1", "names") and event.seconds > 0
    assert sorted(parked.names) == ["also", "big", "small", "threading"] and [lost.name for lost in parked.lost] == [
        "lock"
    ]
    assert parked.size_bytes > 3_000_000 and drafts(setup) == []
    assert [p.id for p in setup.worker.join().parked] == ["p1"]
    second = await setup.ready("c2", gpus=["SIM-0"], parked="p1")  # the lease is free
    _, ready = await second.until(m.ContainerReady)
    assert ready.start == "names" and [lost.name for lost in ready.lost] == ["lock"]
    assert [phase.name for phase in ready.phases] == ["image", "boot", "enter", "values"]
    assert await cell(second, "call-2", "print(len(big), small, also is small['a'])") == "3000000 {'a': [1]} True\n"
    async with asyncio.timeout(10):  # the gateway knows: the bytes are not kept twice
        while setup.runtime.snapshots.parked("p1") is not None:
            await asyncio.sleep(0.01)


async def test_the_parked_bytes_stay_until_the_gateway_knows(setup: Setup) -> None:
    await cell(await setup.ready(), "call-1", "x = 1")
    await park(setup)
    await setup.gateway.joined()
    request = m.StartContainer(
        container="c2",
        lease="l2",
        epoch=1,
        session="s1",
        notebook="n",
        resources=Resources(),
        gpus=[],
        image=MIRROR,
        parked="p1",
    )
    container = setup.gateway.containers["c2"] = FakeContainer("c2", request, acknowledge=False)
    await setup.gateway.request(request)
    await container.until(m.ContainerReady)
    setup.worker.containers["c2"].disown()  # its worker goes away before the gateway has recorded that it is up
    await setup.gateway.request(m.StopContainer(container="c2", reason=EndReason.STOPPED))
    await gone(setup, "c2")
    third = await setup.ready("c3", parked="p1")
    assert await cell(third, "call-2", "print(x)") == "1\n"


async def test_a_session_that_is_gone_or_damaged_boots_and_says_so(setup: Setup) -> None:
    lost = await setup.ready("c1", parked="nowhere")
    _, ready = await lost.until(m.ContainerReady)
    assert ready.start == "boot" and any("not on this machine" in note for note in ready.notes)
    await cell(lost, "call-1", "x = 1; big = b'y' * 2_000_000")
    await park(setup)
    manifest = setup.runtime.snapshots.parked("p1")
    assert manifest is not None
    for file in (setup.runtime.snapshots.path(manifest) / "names").iterdir():
        if file.stat().st_size > 1_000_000:
            os.truncate(file, 1_000_000)
    second = await setup.ready("c2", parked="p1")
    _, ready = await second.until(m.ContainerReady)
    assert ready.start == "boot" and sorted(name.name for name in ready.lost) == ["big", "x"]
    assert any("cannot be used" in note for note in ready.notes)


async def test_only_an_idle_container_can_be_parked(setup: Setup) -> None:
    container = await setup.ready()
    request = m.ParkContainer(container="c1", parked="p1")
    assert await refused(setup, m.ParkContainer(container="c9", parked="p9")) is ErrorCode.NOT_FOUND
    await container.run("call-1", "import time\ntime.sleep(60)")
    await container.until(m.CellStarted, "call-1")
    assert await refused(setup, request) is ErrorCode.BUSY
    setup.gateway.notify(m.Interrupt(container="c1", call="call-1", level=1))
    await container.until(m.CellDone, "call-1")
    await park(setup)
    assert await setup.gateway.request(request) == m.Done()  # it is parked: the same request again


async def test_the_same_request_again_is_one_parking(setup: Setup) -> None:
    container = await setup.ready()
    await cell(container, "call-1", HOOK + "while not os.path.exists('go'): time.sleep(0.01)")
    request = m.ParkContainer(container="c1", parked="p1")
    await setup.gateway.request(request)
    await setup.gateway.request(request)
    assert await refused(setup, m.ParkContainer(container="c1", parked="p2")) is ErrorCode.CONFLICT
    (setup.folder / "run" / "c1" / "work" / "go").touch()
    await container.until(m.ContainerEnded)
    assert len(container.of(m.ContainerParked)) == 1 and container.of(m.ParkFailed) == []


async def test_a_checkpoint_that_fails_lets_the_session_live_on(setup: Setup) -> None:
    setup.runtime.key = "k1"
    container = await setup.ready()
    await cell(container, "call-1", "x = [1]; before = id(x)")
    setup.runtime.containers["c1"].checkpoint_gate = gate = asyncio.Event()
    await setup.gateway.request(m.ParkContainer(container="c1", parked="p1"))
    await container.run("call-2", "print(x, id(x) == before)")  # waits for the end of the parking
    gate.set()
    _, failed = await container.until(m.ParkFailed)
    assert failed.parked == "p1" and failed.error.code is ErrorCode.UNAVAILABLE
    await container.until(m.CellDone, "call-2")
    assert container.text("call-2") == "[1] True\n"
    assert drafts(setup) == [] and setup.runtime.snapshots.parked("p1") is None
    setup.runtime.containers["c1"].checkpoint_gate = None
    await setup.gateway.request(m.ParkContainer(container="c1", parked="p2"))  # and can be tried again
    await container.wait(lambda: len(container.of(m.ParkFailed)) == 2)
    assert await cell(container, "call-3", "print(x)") == "[1]\n"


async def test_a_checkpoint_that_takes_the_container_leaves_the_names(setup: Setup) -> None:
    setup.runtime.key = "k1"
    container = await setup.ready()
    await cell(container, "call-1", "x = 5")
    setup.runtime.containers["c1"].dies_of_checkpoint = True
    event = await park(setup)
    assert event.parked.kind == "names" and any("no checkpoint" in note for note in event.notes)
    second = await setup.ready("c2", parked="p1")
    assert await cell(second, "call-2", "print(x)") == "5\n"
    assert setup.runtime.restores == []


async def test_a_snapshot_that_cannot_be_sealed_leaves_the_names(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.runtime.key = "k1"
    container = await setup.ready()
    await cell(container, "call-1", "x = 5; big = b'x' * 2_000_000")
    setup.runtime.containers["c1"].writes_checkpoint = True
    commit = Draft.commit

    def full_at_first(self: Draft, manifest: Manifest, *more: Any) -> Manifest:
        if (self.folder / "checkpoint").exists():
            raise PlatformError(ErrorInfo(code=ErrorCode.DISK_FULL, message="no space is left"))
        return commit(self, manifest, *more)

    monkeypatch.setattr(Draft, "commit", full_at_first)
    event = await park(setup)
    assert event.parked.kind == "names" and any("no space is left" in note for note in event.notes)
    second = await setup.ready("c2", parked="p1")
    assert await cell(second, "call-2", "print(x, len(big))") == "5 2000000\n"


async def test_names_that_cannot_be_kept_do_not_cost_the_snapshot(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OSError(5, "Input/output error")

    setup.runtime.key = "k1"
    await cell(await setup.ready(), "call-1", "x = 5")
    setup.runtime.containers["c1"].writes_checkpoint = True
    monkeypatch.setattr("cellburst_worker.parking.keep", broken)
    event = await park(setup)
    assert event.parked.kind == "snapshot" and [lost.name for lost in event.parked.lost] == ["x"]
    assert any("Input/output error" in note for note in event.notes)


async def test_a_stop_during_a_resume_keeps_what_is_parked(setup: Setup) -> None:
    await cell(await setup.ready("c0"), "call-0", "x = 5")
    await park(setup, "c0", "p0")
    keep_with_checkpoint(setup, "p0", "p1")
    setup.runtime.key, setup.runtime.restore_gate = "k1", asyncio.Event()
    container = await setup.gateway.start("c1", MIRROR, parked="p1")
    await until(lambda: setup.runtime.restores)
    await setup.gateway.request(m.StopContainer(container="c1", reason=EndReason.CANCELLED))
    await container.until(m.ContainerEnded)
    assert setup.runtime.snapshots.parked("p1") is not None
    setup.runtime.restore_gate.set()
    again = await setup.ready("c2", parked="p1")
    assert await cell(again, "call-1", "print(x)") == "5\n"


async def test_a_restore_that_fails_falls_back_to_the_names(setup: Setup) -> None:
    await cell(await setup.ready("c0"), "call-0", "x = [5]")
    await park(setup, "c0", "p0")
    setup.runtime.key = "k1"
    for number in range(1, 5):
        keep_with_checkpoint(setup, f"p{number - 1}", f"p{number}")
        container = await setup.ready(f"c{number}", parked=f"p{number}")
        _, ready = await container.until(m.ContainerReady)
        assert (ready.start, ready.lost) == ("names", [])
        said = "a plain process cannot be restored" if number < 4 else TOO_OFTEN
        assert [p.detail for p in ready.phases if p.name == "restore"] == [f"snapshot unusable: {said}"]
        assert len(setup.runtime.restores) == min(number, 3)
        assert await cell(container, "call-1", "print(x)") == "[5]\n"


def keep_with_checkpoint(setup: Setup, of: str, id: str, key: str = "k1") -> None:
    """Keep a parked session's names again, under another id, with what passes for a checkpoint."""
    snapshots = setup.runtime.snapshots
    old = setup.kept or snapshots.parked(of)
    assert old is not None
    if setup.kept is None:
        shutil.copytree(snapshots.path(old) / "names", setup.folder / "names")
        setup.kept = old
    draft = snapshots.draft("session", id, 1000)
    shutil.copytree(setup.folder / "names", draft.folder / "names")
    (draft.folder / "checkpoint").mkdir()
    (draft.folder / "checkpoint" / "pages").write_bytes(b"memory")
    draft.commit(msgspec.structs.replace(old, id=id, key=key, key_parts={"engine": key}))


def keep_template(setup: Setup) -> None:
    """Keep what passes for a template of the key k1."""
    draft = setup.runtime.snapshots.draft("template", "k1", 1000)
    (draft.folder / "checkpoint").mkdir()
    (draft.folder / "checkpoint" / "pages").write_bytes(b"memory")
    draft.commit(Manifest(kind="template", id="k1", key="k1"))


async def test_another_engine_version_is_told_and_boots(setup: Setup) -> None:
    await cell(await setup.ready("c0"), "call-0", "x = 5")
    await park(setup, "c0", "p0")
    keep_with_checkpoint(setup, "p0", "p1", key="k0")
    setup.runtime.key = "k1"
    container = await setup.ready("c1", parked="p1")
    _, ready = await container.until(m.ContainerReady)
    assert [p.detail for p in ready.phases if p.name == "restore"] == [
        "snapshot unusable: gVisor on this machine is another version now"
    ]
    assert setup.runtime.restores == []


async def test_a_template_that_fails_is_a_boot_and_after_three_it_is_not_tried(setup: Setup) -> None:
    setup.runtime.key = "k1"
    keep_template(setup)
    for number in range(4):
        container = await setup.ready(f"c{number}")
        _, ready = await container.until(m.ContainerReady)
        assert ready.start == "boot" and len(setup.runtime.restores) == min(number + 1, 3)
    assert setup.runtime.snapshots.template("k1") is None


async def test_a_tampered_template_is_not_given_to_the_engine(setup: Setup) -> None:
    setup.runtime.key = "k1"
    keep_template(setup)
    (setup.runtime.snapshots.folder / "templates" / "k1" / "checkpoint" / "pages").write_bytes(b"memorY")
    container = await setup.ready("c1")
    _, ready = await container.until(m.ContainerReady)
    assert ready.start == "boot" and setup.runtime.restores == []
    assert any("template unusable" in phase.detail for phase in ready.phases)
    assert setup.runtime.snapshots.template("k1") is None


async def test_a_stop_while_parking_keeps_nothing(setup: Setup) -> None:
    setup.runtime.key = "k1"
    container = await setup.ready()
    setup.runtime.containers["c1"].checkpoint_gate = asyncio.Event()
    await setup.gateway.request(m.ParkContainer(container="c1", parked="p1"))
    await until(lambda: len(drafts(setup)) == 1)
    await setup.gateway.request(m.StopContainer(container="c1", reason=EndReason.STOPPED))
    _, ended = await container.until(m.ContainerEnded)
    assert ended.reason is EndReason.STOPPED and container.of(m.ContainerParked) == []
    assert drafts(setup) == [] and setup.runtime.snapshots.parked("p1") is None


async def test_a_worker_that_shuts_down_lets_a_parking_end(setup: Setup) -> None:
    container = await setup.ready()
    await cell(container, "call-1", HOOK + "while not os.path.exists('go'): time.sleep(0.01)")
    await setup.gateway.request(m.ParkContainer(container="c1", parked="p1"))
    stopping = asyncio.create_task(setup.worker.shutdown())
    await until(setup.worker.shutdown_asked.is_set)
    (setup.folder / "run" / "c1" / "work" / "go").touch()
    async with asyncio.timeout(20):
        await stopping
    assert container.of(m.ContainerEnded)[0][1].reason is EndReason.PARKED
    assert setup.runtime.snapshots.parked("p1") is not None


async def test_a_container_that_dies_while_it_is_frozen_is_lost(setup: Setup) -> None:
    container = await setup.ready()
    await cell(container, "call-1", HOOK + "os.kill(os.getppid(), 9)")
    await setup.gateway.request(m.ParkContainer(container="c1", parked="p1"))
    _, failed = await container.until(m.ParkFailed)
    assert "ended while it was put away" in failed.error.message
    _, ended = await container.until(m.ContainerEnded)
    assert ended.reason is EndReason.CONTAINER_LOST and drafts(setup) == []


async def test_parked_sessions_are_listed_counted_and_forgotten(setup: Setup) -> None:
    await cell(await setup.ready(), "call-1", "x = 1")
    await park(setup)
    beat = await setup.gateway.wait(
        lambda: next((b for b in setup.gateway.heartbeats if b.snapshots and b.snapshots.parked_count), None)
    )
    assert beat.snapshots is not None and beat.snapshots.parked_bytes > 0
    await setup.gateway.request(m.ForgetParked(parked=["p1", "unknown"]))
    await until(lambda: setup.runtime.snapshots.parked("p1") is None)


async def test_the_names_limit_is_the_runners(setup: Setup) -> None:
    container = await setup.ready()
    await cell(container, "call-1", "small = 1; big = b'x' * 3_000_000")
    event = await park(setup, names_limit_bytes=1_000_000)
    assert event.parked.names == ["small"] and [(lost.name, lost.why) for lost in event.parked.lost] == [
        ("big", "too_large")
    ]


async def test_a_silent_runner_is_noticed_after_a_failed_parking(setup: Setup) -> None:
    setup.runtime.key = "k1"
    container = await setup.ready()
    await setup.gateway.request(m.ParkContainer(container="c1", parked="p1"))
    await container.until(m.ParkFailed)
    os.kill(setup.runtime.containers["c1"].process.pid, signal.SIGSTOP)
    _, ended = await container.until(m.ContainerEnded, seconds=20)
    assert ended.error is not None and "no sign" in ended.error.message


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until `condition()` is true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
