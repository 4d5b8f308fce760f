"""Parking and resuming through a real gateway on loopback, with a simulated worker that speaks the protocol."""

from __future__ import annotations

import asyncio

import pytest

from cellburst_gateway import placer
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.messages import (
    CellAccepted,
    CellRefused,
    ContainerEnded,
    ContainerParked,
    ContainerStarted,
    GetStatus,
    Interrupt,
    PhaseTime,
    Queued,
    SessionParked,
    SideRequest,
    Status,
    StopSession,
)
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import EndReason, SessionState
from tests.gateway.house import House
from tests.gateway.parking_house import (
    A100,
    NO_ROOM,
    begin_to_park,
    is_free,
    park,
    refusal,
    seen,
    session_of,
    with_session,
)

# -- parked and resumed -------------------------------------------------------------------------------------------------


async def test_a_person_parks_a_session_and_the_next_cell_brings_it_back(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    before = house.gateway.clock.wall()
    answer = await park(house, kernel, notebook="/n.ipynb", name="default")
    assert (answer.parked.size_bytes, answer.seconds, answer.notes) == (1_200_000_000, 0.5, ["a note of the park"])
    assert answer.parked.worker == "fake" and answer.parked.names == ["x", "y"]
    week = answer.parked.expires_unix_seconds - before
    assert 7 * 86400 <= week < 7 * 86400 + 60
    await house.until(lambda: is_free(house))
    await kernel.until(lambda: kernel.info is not None and kernel.info.state is SessionState.PARKED)
    assert kernel.info is not None and kernel.info.parked == answer.parked and kernel.info.container is None
    await kernel.until(lambda: bool(seen(kernel, ContainerEnded)))
    assert seen(kernel, ContainerParked)[0].parked == answer.parked
    assert seen(kernel, ContainerEnded)[0].reason is EndReason.PARKED
    assert (await park(house, kernel)).parked == answer.parked  # it is already
    await kernel.run("print y", call="c2", resources=A100)
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.DONE
    started = kernel.of("c2", ContainerStarted)[0]
    assert (started.start, started.lost, started.names_lost) == ("snapshot", [], False)
    (container,) = worker.containers.values()
    assert container.start.parked == answer.parked.id
    session = session_of(house, kernel)
    assert session.kept is None and session.record.parked == "" and session.shown_parked is None
    await house.until(lambda: not worker.parked)
    assert worker.forgotten == []  # it removed them by itself, and was not told to


async def test_an_idle_session_is_parked_and_shown_with_size_age_and_expiry(house: House) -> None:
    worker = await house.worker()
    worker.heartbeat_seconds = 0.05
    kernel = await with_session(house, worker, Resources(gpus=A100.gpus, scaledown_seconds=0.1))
    await house.until(lambda: session_of(house, kernel).state is SessionState.PARKED and is_free(house))
    cli = await house.cli()
    await house.until(lambda: house.gateway.hub.fleet.rows()[0].snapshots is not None)
    status = await cli.peer.request(GetStatus())
    assert isinstance(status, Status)
    (row,) = status.sessions
    assert row.state is SessionState.PARKED and row.container is None and row.parked is not None
    assert row.parked.size_bytes == 1_200_000_000 and row.parked.parked_unix_seconds > 0
    assert row.parked.expires_unix_seconds > row.parked.parked_unix_seconds and row.names == ["x", "y"]
    usage = status.workers[0].snapshots
    assert usage is not None and usage.limit_bytes == 10**12
    assert row.cost_usd == "0"


async def test_a_later_cell_says_how_long_it_may_be_idle(house: House) -> None:
    worker = await house.worker()
    worker.heartbeat_seconds = 0.05
    kernel = await with_session(house, worker, Resources(gpus=A100.gpus))
    await kernel.run("print y", call="c2", resources=Resources(gpus=A100.gpus, scaledown_seconds=0.1))
    await kernel.ended("c2")
    await house.until(lambda: session_of(house, kernel).state is SessionState.PARKED)


async def test_names_that_did_not_come_back_are_said(house: House) -> None:
    worker = await house.worker()
    worker.resumes_by = "names"
    kernel = await with_session(house, worker)
    await park(house, kernel)
    await kernel.run("print y", call="c2", resources=A100)
    await kernel.ended("c2")
    started = kernel.of("c2", ContainerStarted)[0]
    assert (started.start, [n.name for n in started.lost], started.names_lost) == ("names", ["gen"], False)


async def test_all_rungs_of_a_resume_are_in_its_phases(house: House) -> None:
    worker = await house.worker()
    worker.phases = [
        PhaseTime(name="restore", seconds=0.25, detail="snapshot unusable: a.so was replaced"),
        PhaseTime(name="restore", seconds=0.5, detail="template"),
        PhaseTime(name="enter", seconds=0.125),
    ]
    kernel = await with_session(house, worker)
    await park(house, kernel)
    await kernel.run("print y", call="c2", resources=A100)
    ended = await kernel.ended("c2")
    started = kernel.of("c2", ContainerStarted)[0]
    for phases in (started.phases, ended.phases, started.container.phases):
        (restore,) = [phase for phase in phases if phase.name == "restore"]
        assert (restore.seconds, restore.detail) == (0.75, "snapshot unusable: a.so was replaced; template")


async def test_a_cell_without_resources_resumes_with_those_it_had(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker, Resources(gpus=A100.gpus, memory_mib=8192))
    await park(house, kernel)
    await kernel.run("print y", call="c2", resources=None)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    (container,) = worker.containers.values()
    assert container.start.resources.memory_mib == 8192 and container.start.resources.gpus == A100.gpus


# -- a cell, a stop, a loss while it parks ------------------------------------------------------------------------------


async def test_a_cell_while_it_parks_waits_and_resumes_it(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    accepted = await kernel.run("print y", call="c2", resources=A100)
    assert isinstance(accepted, CellAccepted)
    await kernel.until(lambda: bool(kernel.of("c2", Queued)))
    assert "being parked" in kernel.of("c2", Queued)[0].waiting_for
    assert isinstance(await kernel.run("print z", call="c3", resources=A100), CellRefused)
    reply = await kernel.side(SideRequest(id="q", kind="names"))
    assert reply.error is not None and "is being parked" in reply.error.message
    assert (await refusal(park(house, kernel))).code is ErrorCode.BUSY
    worker.finish_park(container)
    await asked
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert kernel.of("c2", ContainerStarted)[0].start == "snapshot"
    assert not [m for m in container.received if type(m).__name__ == "RunCell" and m.call == "c2"]


async def test_a_cell_that_waits_goes_to_the_container_that_could_not_be_parked(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    await kernel.run("print y", call="c2", resources=A100)
    worker.park_fails = NO_ROOM
    worker.finish_park(container)
    assert (await refusal(asked)) == NO_ROOM
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.DONE and ended.container == container.start.container
    assert not kernel.of("c2", ContainerStarted)
    session = session_of(house, kernel)
    assert (session.park, session.record.parking, session.state) == (None, "", SessionState.IDLE)


async def test_a_cell_that_waits_can_be_interrupted_and_the_park_goes_on(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    await kernel.run("print y", call="c2", resources=A100)
    assert kernel.info is not None
    kernel.peer.notify(Interrupt(session=kernel.info.session, level=1))
    assert (await kernel.ended("c2")).reason is EndReason.CANCELLED
    assert session_of(house, kernel).state is SessionState.PARKING
    worker.finish_park(container)
    await asked
    await house.until(lambda: session_of(house, kernel).state is SessionState.PARKED)


async def test_a_cell_that_waits_for_a_place_leaves_the_session_parked_when_it_is_cancelled(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    await park(house, kernel)
    other = await house.kernel(notebook="/other.ipynb")
    await other.run("wait", call="o1", resources=A100)
    await kernel.run("print y", call="c2", resources=A100)
    await kernel.until(lambda: bool(kernel.of("c2", Queued)))
    assert kernel.info is not None
    kernel.peer.notify(Interrupt(session=kernel.info.session, level=1))
    assert (await kernel.ended("c2")).reason is EndReason.CANCELLED
    assert session_of(house, kernel).state is SessionState.PARKED and len(worker.parked) == 1


async def test_cancelled_while_it_is_resumed_it_comes_back_all_the_same(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    await park(house, kernel)
    worker.hold_ready = True
    await kernel.run("print y", call="c2", resources=A100)
    await house.until(lambda: bool(worker.containers))
    assert kernel.info is not None
    kernel.peer.notify(Interrupt(session=kernel.info.session, level=1))
    assert (await kernel.ended("c2")).reason is EndReason.CANCELLED
    (container,) = worker.containers.values()
    worker.ready(container)
    await house.until(lambda: session_of(house, kernel).state is SessionState.IDLE and not worker.parked)
    await kernel.run("print z", call="c3", resources=A100)
    assert (await kernel.ended("c3")).container == container.start.container


async def test_stopped_while_it_parks_it_ends_and_is_forgotten(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    cli, id = await house.cli(), container.parking
    # As a real worker may: it commits while the stop is on its way, and says so before the container's end.
    container.emit(ContainerParked(parked=worker.commit(id, container)))
    worker.park_fails = NO_ROOM
    await cli.peer.request(StopSession(notebook="/n.ipynb", name="default"))
    await house.until(lambda: not worker.parked and is_free(house))
    await asyncio.gather(asked, return_exceptions=True)
    assert id in worker.forgotten
    assert not list(house.gateway.hub.sessions)


async def test_a_parked_session_that_is_stopped_is_forgotten_and_its_kernel_told(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    answer = await park(house, kernel)
    cli = await house.cli()
    await cli.peer.request(StopSession(session=answer.parked.session))
    await house.until(lambda: worker.forgotten == [answer.parked.id])
    await kernel.until(lambda: kernel.info is not None and kernel.info.state is SessionState.ENDED)
    refused = await kernel.run("print y", call="c2", resources=A100)
    assert isinstance(refused, CellRefused) and refused.error.code is ErrorCode.NOT_FOUND
    assert "has ended (stopped)" in refused.error.message


async def test_a_container_that_dies_while_it_is_parked_is_lost_and_the_cell_that_waits_is_told(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    await kernel.run("print y", call="c2", resources=A100)
    worker.end(container.start.container, EndReason.OUT_OF_MEMORY)
    assert (await refusal(asked)).code is ErrorCode.CONTAINER_LOST
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    started = kernel.of("c2", ContainerStarted)[0]
    assert started.names_lost and started.start == "boot"


@pytest.mark.parametrize("committed", [True, False])
async def test_a_worker_killed_while_it_parks_and_back(house: House, committed: bool) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    if committed:
        worker.commit(container.parking, container)
    hub = house.gateway.hub
    hub.fleet.workers["fake"].pid = 2**22 + 1  # more than this system's highest pid
    worker.hold_park = False
    await worker.kill()
    await house.until(lambda: "fake" not in hub.fleet.workers)
    await house.until(lambda: session_of(house, kernel).state is SessionState.PARKED and is_free(house))
    assert (await refusal(asked)).code is ErrorCode.WORKER_LOST  # it is not known yet
    await kernel.run("print y", call="c2", resources=A100)
    await kernel.until(lambda: any("which is away" in q.waiting_for for q in kernel.of("c2", Queued)))
    worker.revive()
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    started = kernel.of("c2", ContainerStarted)[0]
    assert (started.start, started.names_lost) == (("snapshot", False) if committed else ("boot", True))
    assert session_of(house, kernel).kept is None


@pytest.mark.parametrize("committed", [True, False])
async def test_a_worker_restarted_while_it_parks_says_by_its_list_what_became_of_it(
    house: House, committed: bool
) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    if committed:
        worker.commit(container.parking, container)
    await worker.kill()
    worker.revive()  # before the gateway knew
    outcome = (await asyncio.gather(asked, return_exceptions=True))[0]
    state = SessionState.PARKED if committed else SessionState.IDLE
    await house.until(lambda: session_of(house, kernel).state is state and is_free(house))
    assert isinstance(outcome, SessionParked) == committed
    shown = session_of(house, kernel).shown_parked
    assert (shown is not None and shown.size_bytes == 1_200_000_000) == committed
    await kernel.run("print y", call="c2", resources=A100)
    await kernel.ended("c2")
    assert kernel.of("c2", ContainerStarted)[0].names_lost is not committed


async def test_a_lost_link_while_it_parks_is_asked_again_with_the_same_id(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    await worker.drop_link()
    await house.until(lambda: len(worker.parks_asked) == 2)
    assert worker.parks_asked[0] == worker.parks_asked[1]
    worker.finish_park(container)
    assert (await asked).parked.id == worker.parks_asked[0].parked


async def test_a_worker_killed_while_it_resumes_does_it_again(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    await park(house, kernel)
    worker.hold_ready = True
    await kernel.run("print y", call="c2", resources=A100)
    await house.until(lambda: bool(worker.containers))
    house.gateway.hub.fleet.workers["fake"].pid = 2**22 + 1
    await worker.kill()
    await house.until(lambda: "fake" not in house.gateway.hub.fleet.workers)
    worker.hold_ready = False
    worker.revive()
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert (
        kernel.of("c2", ContainerStarted)[0].start == "snapshot" and not kernel.of("c2", ContainerStarted)[0].names_lost
    )


async def test_a_start_that_fails_leaves_the_session_parked(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    await park(house, kernel)
    worker.hold_ready = True
    await kernel.run("print y", call="c2", resources=A100)
    await house.until(lambda: bool(worker.containers))
    (container,) = worker.containers
    worker.end(container, EndReason.START_FAILED)
    assert (await kernel.ended("c2")).reason is EndReason.START_FAILED
    await house.until(lambda: is_free(house))
    session = session_of(house, kernel)
    assert session.state is SessionState.PARKED and len(worker.parked) == 1
    assert house.gateway.hub.store.get_session(session.id).state is SessionState.PARKED
    worker.hold_ready = False
    await kernel.run("print z", call="c3", resources=A100)
    await kernel.ended("c3")
    assert kernel.of("c3", ContainerStarted)[0].start == "snapshot"


async def test_a_worker_that_joins_without_the_bytes_has_lost_the_names(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    await park(house, kernel)
    worker.parked.clear()
    await worker.drop_link()
    await house.until(lambda: session_of(house, kernel).kept_missing)
    assert session_of(house, kernel).shown_parked is None
    await kernel.run("print y", call="c2", resources=A100)
    await kernel.ended("c2")
    started = kernel.of("c2", ContainerStarted)[0]
    assert started.names_lost and not next(iter(worker.containers.values())).start.parked
    assert session_of(house, kernel).kept is None


async def test_a_lost_worker_is_not_waited_for_for_ever(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placer, "KEEPER_SECONDS", 0.3)
    worker = await house.worker()
    kernel = await with_session(house, worker)
    answer = await park(house, kernel)
    house.gateway.hub.fleet.workers["fake"].pid = 2**22 + 1
    await worker.kill()
    other = await house.worker(name="other")
    await house.until(lambda: "fake" not in house.gateway.hub.fleet.workers)
    await kernel.run("print y", call="c2", resources=A100)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert kernel.of("c2", ContainerStarted)[0].names_lost and len(other.containers) == 1
    worker.revive()
    await house.until(lambda: worker.forgotten == [answer.parked.id])  # what it kept is of no use any more


async def test_the_keeper_is_waited_for_while_it_is_full(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    await park(house, kernel)
    busy = await house.kernel(notebook="/busy.ipynb")
    await busy.run("wait", call="b1", resources=A100)
    await busy.until(lambda: "CellStarted" in busy.kinds("b1"))
    other = await house.worker(name="other")
    await kernel.run("print y", call="c2", resources=A100)
    await kernel.until(lambda: bool(kernel.of("c2", Queued)))
    assert "busy.ipynb" in kernel.of("c2", Queued)[0].waiting_for and not other.containers
    assert busy.info is not None
    await busy.peer.request(StopSession(session=busy.info.session))
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert kernel.of("c2", ContainerStarted)[0].start == "snapshot" and not other.containers
