"""What a gateway takes up that another left: the log is right where the record is behind."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cellburst_gateway.cells import Cells
from cellburst_gateway.hub import Hub
from cellburst_gateway.local_worker import running_worker
from cellburst_gateway.store import Store
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.messages import CallEnded, ContainerStarted, Interrupt, Notice
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import CallState, EndReason, SessionState
from tests.gateway.house import House

A100 = Resources(gpus=(GpuChoice("A100"),))
MakeHouse = Callable[..., Awaitable[House]]


async def die(house: House) -> None:
    """End a gateway as SIGKILL does for its files: what it had deferred is not written."""
    house.gateway.hub._later.clear()
    await house.close()


async def test_writes_that_were_deferred_are_found_in_the_log(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Hub, "later", lambda self, write: None)
    first = await make_house()
    await first.worker()
    kernel = await first.kernel()
    await kernel.run("print x", call="c1", resources=A100)
    await kernel.ended("c1")
    assert first.gateway.hub.store.get_call("c1").state is CallState.SENT  # type: ignore[union-attr]
    await die(first)
    monkeypatch.undo()
    second = await make_house()
    record = second.gateway.hub.store.get_call("c1")
    assert record is not None and (record.state, record.reason) == (CallState.SUCCEEDED, EndReason.DONE)
    session = next(iter(second.gateway.hub.sessions))
    assert session.call is None and session.state is SessionState.IDLE


async def test_the_end_of_a_detached_cell_is_told_though_its_gateway_dies_in_the_recovery(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make_house()
    await first.worker()
    kernel = await first.kernel()
    monkeypatch.setattr(Hub, "later", lambda self, write: None)  # the end is in the log only
    await kernel.run("print x", call="c1", resources=A100, detach=True)
    await kernel.ended("c1")
    await die(first)
    commits: list[object] = []

    def noted(verb: Callable[..., object]) -> Callable[..., object]:
        def call(self: Store, *args: object, **named: object) -> object:
            commits.append(self._current.get_transaction() if self._current is not None else None)
            return verb(self, *args, **named)

        return call

    for name in ("end_call", "add_end"):
        monkeypatch.setattr(Store, name, noted(getattr(Store, name)))
    second = await make_house()  # what it defers is not written either
    assert len(commits) == 2 and commits[0] is commits[1] is not None, "one commit, or a death between them loses it"
    record = second.gateway.hub.store.get_call("c1")
    assert record is not None and record.reason is EndReason.DONE, "it is not looked for again"
    assert [one.id for one in second.gateway.hub.store.last_ends(record.owner.workspace, limit=9)] == ["c1"]
    await die(second)


async def test_a_cell_that_was_done_but_not_ended_is_ended(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await make_house()
    worker = await first.worker()
    kernel = await first.kernel()
    monkeypatch.setattr(Cells, "end", lambda *args, **kwargs: None)
    await kernel.run("print x", call="c1", resources=A100)
    await kernel.until(lambda: "CellDone" in kernel.kinds("c1"))
    assert "CallEnded" not in kernel.kinds("c1") and kernel.info is not None
    await die(first)
    monkeypatch.undo()
    second = await make_house()
    back = await second.kernel(session=kernel.info.session)
    ended = await back.ended("c1")
    assert ended.reason is EndReason.DONE and back.kinds("c1")[-1] == "CallEnded"
    assert worker.containers  # it runs on


async def test_without_its_code_a_waiting_cell_ends_and_says_that_nothing_ran(make_house: MakeHouse) -> None:
    first = await make_house()
    worker = await first.worker()
    worker.hold_ready = True
    kernel = await first.kernel()
    await kernel.run("print x", call="c1", resources=A100)
    await first.until(lambda: bool(worker.containers))
    assert kernel.info is not None
    await die(first)
    for file in (first.gateway.config.data_folder / "inbox").iterdir():
        file.unlink()  # as after a power cut
    second = await make_house()
    back = await second.kernel(session=kernel.info.session)
    ended = await back.ended("c1")
    assert ended.state is CallState.FAILED and ended.error is not None and "none of its code ran" in ended.error.message


async def test_a_worker_that_was_started_again_has_lost_its_containers(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    worker.instance = "fake-2"
    worker.containers.clear()
    await worker.drop_link()
    ended = await kernel.ended("c1")
    assert (
        ended.reason is EndReason.WORKER_LOST and ended.error is not None and ended.error.code is ErrorCode.WORKER_LOST
    )
    await kernel.run("print x", call="c2", resources=A100)
    await kernel.ended("c2")
    assert kernel.of("c2", ContainerStarted)[0].names_lost


async def test_a_container_that_dies_while_it_starts_is_started_again(house: House) -> None:
    worker = await house.worker()
    worker.hold_ready = True
    kernel = await house.kernel()
    await kernel.run("print x", call="c1", resources=A100)
    await house.until(lambda: len(worker.containers) == 1)
    (first,) = worker.containers
    worker.hold_ready = False
    worker.end(first, EndReason.CONTAINER_LOST)
    ended = await kernel.ended("c1")
    assert ended.reason is EndReason.DONE and ended.container != first
    assert len(kernel.of("c1", CallEnded)) == 1


async def test_containers_that_are_not_in_the_record_are_stopped(make_house: MakeHouse) -> None:
    house = await make_house()
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("print x", call="c1", resources=A100)
    await kernel.ended("c1")
    (container,) = worker.containers.values()
    container.start.lease = "l-of-another-gateway"
    await worker.drop_link()
    await house.until(lambda: len(worker.joins) == 2)
    assert worker.joins[-1].stop == [container.start.container] and not worker.joins[-1].adopted
    await house.until(lambda: not house.gateway.hub.store.leases_open())


def test_the_lock_of_a_running_worker_tells_its_pid(tmp_path: Path) -> None:
    folder = tmp_path
    assert running_worker(folder) == 0
    with open(folder / "worker.lock", "a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(str(os.getpid()))
        file.flush()
        assert running_worker(folder) == os.getpid()
    assert running_worker(folder) == 0


async def test_an_interrupt_that_could_not_be_delivered_follows_the_worker_home(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    handle = next(iter(house.gateway.hub.fleet.workers.values()))
    worker.may_dial.clear()
    await worker.drop_link()
    await house.until(lambda: handle.peer is None)
    assert kernel.info is not None
    kernel.peer.notify(Interrupt(session=kernel.info.session, level=2))
    await kernel.until(lambda: any("delivered when it is back" in notice.text for notice in kernel.of("c1", Notice)))
    worker.may_dial.set()
    ended = await kernel.ended("c1")
    assert ended.reason is EndReason.INTERRUPTED
    assert [i.level for i in worker.interrupts] == [2]
