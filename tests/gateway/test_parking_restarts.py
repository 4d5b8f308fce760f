"""Parking when the gateway is killed, stopped and started again: the record, the log and the worker together know."""

from __future__ import annotations

import asyncio

import pytest

from cellburst_gateway.hub import Hub
from cellburst_gateway.session import Session
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.messages import (
    ContainerEnded,
    ContainerParked,
    ContainerStarted,
    ParkFailed,
)
from cellburst_protocol.states import CallState, EndReason, SessionState
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House
from tests.gateway.parking_house import (
    A100,
    NO_ROOM,
    MakeHouse,
    begin_to_park,
    is_free,
    park,
    seen,
    session_of,
    with_session,
)

# -- the gateway is started again ---------------------------------------------------------------------------------------


async def die(house: House) -> None:
    """End a gateway as SIGKILL does for its files: what it had deferred is not written."""
    house.gateway.hub._later.clear()
    await house.close()


async def again(make_house: MakeHouse, worker: FakeWorker) -> House:
    """The next gateway on the same folders and port, with the same worker dialling it."""
    second = await make_house()
    worker.url = second.url.replace("http", "ws", 1) + "/link"
    worker.token = second.gateway.hub.secrets.worker_token
    second._closing.append(worker.stop)
    return second


async def first_house(make_house: MakeHouse) -> tuple[House, FakeWorker, FakeKernel]:
    house = await make_house()
    worker = await house.worker()
    house._closing.remove(worker.stop)  # it outlives this gateway
    return house, worker, await with_session(house, worker)


async def resumed(house: House, session: str, start: str = "snapshot") -> ContainerStarted:
    back = await house.kernel(session=session)
    await back.run("print y", call="again", resources=A100)
    assert (await back.ended("again")).reason is EndReason.DONE
    started = back.of("again", ContainerStarted)[0]
    assert isinstance(started, ContainerStarted) and started.start == start
    return started


async def test_a_parked_session_outlives_the_gateway_killed_or_stopped(make_house: MakeHouse) -> None:
    house, worker, kernel = await first_house(make_house)
    answer = await park(house, kernel)
    await house.until(lambda: session_of(house, kernel).state is SessionState.PARKED)
    await die(house)
    second = await again(make_house, worker)
    (session,) = second.gateway.hub.sessions
    assert session.state is SessionState.PARKED and session.kept is not None and session.kept == answer.parked
    await second.gateway.stop()
    third = await again(make_house, worker)
    (session,) = third.gateway.hub.sessions
    assert session.state is SessionState.PARKED
    await third.until(lambda: len(worker.joins) >= 2)
    assert worker.forgotten == []
    started = await resumed(third, answer.parked.session)
    assert not started.names_lost


async def test_a_gateway_stopped_while_a_session_resumes_leaves_it_parked(make_house: MakeHouse) -> None:
    house, worker, kernel = await first_house(make_house)
    answer = await park(house, kernel)
    worker.hold_ready = True
    await kernel.run("print y", call="c2", resources=A100)
    await house.until(lambda: bool(worker.containers))
    await house.gateway.stop()
    worker.hold_ready = False
    second = await again(make_house, worker)
    assert next(iter(second.gateway.hub.sessions)).state is SessionState.PARKED
    await resumed(second, answer.parked.session)


async def test_a_gateway_stopped_while_a_session_parks_finds_it_parked(make_house: MakeHouse) -> None:
    house, worker, kernel = await first_house(make_house)
    asked, container = await begin_to_park(house, kernel, worker)
    info = worker.commit(container.parking, container)
    container.emit(ContainerParked(parked=info))  # a stopped worker finishes it, and says so before the end
    await house.gateway.stop()
    await asyncio.gather(asked, return_exceptions=True)
    second = await again(make_house, worker)
    (session,) = second.gateway.hub.sessions
    await second.until(lambda: len(worker.joins) >= 2)
    assert session.state is SessionState.PARKED and worker.forgotten == []
    await resumed(second, session.id)


@pytest.mark.parametrize("waits", [False, True])
async def test_a_gateway_killed_while_a_session_parks_asks_again(make_house: MakeHouse, waits: bool) -> None:
    house, worker, kernel = await first_house(make_house)
    asked, container = await begin_to_park(house, kernel, worker)
    if waits:
        await kernel.run("print y", call="c2", resources=A100)
    session = session_of(house, kernel).id
    await die(house)
    await asyncio.gather(asked, return_exceptions=True)
    second = await again(make_house, worker)
    await second.until(lambda: len(worker.parks_asked) >= 2)
    assert worker.parks_asked[-1] == worker.parks_asked[0]
    worker.finish_park(container)
    if waits:
        back = await second.kernel(session=session)
        assert (await back.ended("c2")).reason is EndReason.DONE
        assert back.of("c2", ContainerStarted)[0].start == "snapshot"
    else:
        await second.until(lambda: next(iter(second.gateway.hub.sessions)).state is SessionState.PARKED)
        await resumed(second, session)


@pytest.mark.parametrize("fails", [False, True])
async def test_what_the_log_says_of_a_park_is_found_there(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    house, worker, kernel = await first_house(make_house)
    asked, container = await begin_to_park(house, kernel, worker)
    worker.park_fails = NO_ROOM if fails else None
    session = session_of(house, kernel)

    def killed(*args: object, **kwargs: object) -> None:
        raise CellburstError(ErrorInfo(code=ErrorCode.STORE, message="as if killed here"))

    monkeypatch.setattr(Session, "update", killed)
    monkeypatch.setattr(Hub, "later", lambda self, write: None)
    worker.finish_park(container)
    kind = ParkFailed if fails else ContainerParked
    await kernel.until(lambda: bool(seen(kernel, kind)))
    await die(house)
    await asyncio.gather(asked, return_exceptions=True)
    monkeypatch.undo()
    assert house.gateway.config.data_folder.exists()
    second = await again(make_house, worker)
    (taken,) = second.gateway.hub.sessions
    if fails:
        assert (taken.state, taken.park, taken.record.parking) == (SessionState.IDLE, None, "")
        await second.until(lambda: bool(second.gateway.hub.fleet.workers["fake"].peer))
        back = await second.kernel(session=session.id)
        await back.run("print y", call="c2", resources=A100)
        assert (await back.ended("c2")).container == container.start.container
    else:
        assert taken.kept is not None and taken.kept.size_bytes == 1_200_000_000
        await second.until(lambda: taken.state is SessionState.PARKED and is_free(second))
        await resumed(second, session.id)


async def test_an_end_that_only_the_log_has_leaves_the_session_parked(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    house, worker, kernel = await first_house(make_house)
    asked, container = await begin_to_park(house, kernel, worker)
    await kernel.run("print y", call="c2", resources=A100)
    monkeypatch.setattr(Hub, "later", lambda self, write: None)
    monkeypatch.setattr(type(house.gateway.hub.store), "end_container", lambda *a, **k: None)
    monkeypatch.setattr(house.gateway.hub.placer, "enqueue", lambda *a: None)
    worker.finish_park(container)
    await kernel.until(lambda: bool(seen(kernel, ContainerEnded)))
    await die(house)
    await asyncio.gather(asked, return_exceptions=True)
    monkeypatch.undo()
    second = await again(make_house, worker)
    (session,) = second.gateway.hub.sessions
    assert session.state is SessionState.PARKED and session.call is not None
    back = await second.kernel(session=session.id)
    assert (await back.ended("c2")).state is CallState.SUCCEEDED
    assert back.of("c2", ContainerStarted)[0].start == "snapshot"
