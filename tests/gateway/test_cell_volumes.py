"""The volumes of a cell: found by name, kept on the session through loss, parking and restarts, never exchanged under it."""

from __future__ import annotations

from typing import Any

import pytest

from cellburst_gateway.store import Store
from cellburst_gateway.store_rows import Owner
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.messages import CellRefused, ParkSession
from cellburst_protocol.states import ContainerState, EndReason, SessionState
from cellburst_protocol.volumes import CreateVolume, VolumeMount
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House
from tests.gateway.parking_house import A100, MakeHouse, is_free, park, session_of
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures
from tests.gateway.test_parking_restarts import again, die
from tests.gateway.test_store import store  # noqa: F401  a fixture


def at(path: str, name: str, **options: bool) -> VolumeMount:
    return VolumeMount(volume="", name=name, path=path, **options)


async def create(house: House, name: str) -> str:
    owner = Owner("home", "user")
    return (await house.gateway.hub.volumes.create(owner, CreateVolume(name=name)))[0].id


async def ran(kernel: FakeKernel, call: str, **more: Any) -> None:
    await kernel.run("print x", call=call, resources=A100, **more)
    assert (await kernel.ended(call)).reason is EndReason.DONE


async def refused(kernel: FakeKernel, call: str, **more: Any) -> CellRefused:
    answer = await kernel.run("print x", call=call, resources=A100, **more)
    assert isinstance(answer, CellRefused)
    return answer


def given(worker: FakeWorker) -> list[tuple[str, str, str, bool]]:
    """The volumes of its newest container."""
    start = list(worker.containers.values())[-1].start
    return [(v.path, v.name, v.volume, v.read_only) for v in start.volumes]


async def test_a_session_has_its_volumes_until_it_ends(make_house: MakeHouse) -> None:
    house = await make_house()
    data, models = await create(house, "data"), await create(house, "models")
    worker = await house.worker()
    house._closing.remove(worker.stop)  # it outlives this gateway
    kernel = await house.kernel()
    await ran(kernel, "1", volumes=[at("/data", "data"), at("/models", "models", read_only=True)])
    wanted = [("/data", "data", data, False), ("/models", "models", models, True)]
    assert given(worker) == wanted
    # A later cell has them without a word, and may name them again; other ones are another session's.
    await ran(kernel, "2")
    await ran(kernel, "3", volumes=[at("/models", "models", read_only=True), at("/data", "data")])
    for other in ([], [at("/data", "data")], [at("/data", "data"), at("/models", "models")]):
        answer = await refused(kernel, f"4{len(other)}{other and other[-1].name}", volumes=other)
        assert answer.error.code is ErrorCode.CONFLICT and "%modal restart" in answer.error.next
        assert "/models:models:ro" in answer.error.message
    assert "session default" in (await house.gateway.hub.volumes.get("home", "data")).used_by[0]
    # Parked, with a gateway killed meanwhile.
    await park(house, kernel)
    await house.until(lambda: is_free(house))
    await die(house)
    second = await again(make_house, worker)
    (session,) = second.gateway.hub.sessions
    assert session.state is SessionState.PARKED
    assert "session default" in (await second.gateway.hub.volumes.get("home", data)).used_by[0]
    back = await second.kernel(session=session.id)
    answer = await refused(back, "5", volumes=[at("/other", "data")])
    assert answer.error.code is ErrorCode.CONFLICT
    await ran(back, "6")
    assert given(worker) == wanted
    # Its container is lost: the next one has them again, also after a restart of the gateway.
    await worker.kill()
    worker.revive()
    await second.until(lambda: session.container is None)
    await die(second)
    third = await make_house()
    other = await third.worker()
    last = await third.kernel(session=session.id)
    await ran(last, "7")
    assert given(other) == wanted


async def test_what_cannot_be_is_refused_before_anything_is_recorded(house: House) -> None:
    await create(house, "data")
    await create(house, "more")
    worker = await house.worker()
    kernel = await house.kernel()
    answer = await refused(kernel, "1", volumes=[at("/data", "nothing")])
    assert answer.error.code is ErrorCode.NOT_FOUND
    assert "nothing" in answer.error.message and "cellburst volume create" in answer.error.next
    for number, bad in enumerate([
        [at("/data", "data"), at("/data", "more")], [at("/data", "data"), at("/more", "data")],
        [at("/data", "data"), at("/data/more", "more")], [at("/etc/x", "data")], [at("data", "data")], [at("/", "data")],
    ]):  # fmt: skip
        answer = await refused(kernel, f"bad {number}", volumes=bad)
        assert answer.error.code is ErrorCode.BAD_ARGUMENT, bad
    assert not worker.containers and session_of(house, kernel).volumes == []
    await ran(kernel, "2", volumes=[])
    assert given(worker) == []


@pytest.mark.parametrize("by", ["name", "id"])
async def test_a_deleted_volume_does_not_keep_a_session_from_going_on(house: House, by: str) -> None:
    id = await create(house, "data")
    worker = await house.worker()
    kernel = await house.kernel()
    mount = at("/data", "data") if by == "name" else VolumeMount(volume=id, name="", path="/data")
    await ran(kernel, "1", volumes=[mount])
    assert given(worker) == [("/data", "data", id, False)]
    await kernel.peer.request(ParkSession(session=session_of(house, kernel).id))
    await house.until(lambda: is_free(house))
    await house.gateway.hub.volumes.delete("home", "data", used=True)
    await ran(kernel, "2")  # its worker says what there is of it
    assert given(worker) == [("/data", "data", id, False)]
    answer = await refused(kernel, "3", volumes=[mount])
    assert answer.error.code is ErrorCode.NOT_FOUND


def test_the_last_container_of_a_session(store: Store) -> None:  # noqa: F811
    owner = Owner("home", "ann")
    assert store.last_container("s1") is None
    for number in (1, 2):
        id, now = f"c{number}", float(number)
        store.create_container(id, owner, session="s1", worker="w", lease="l", epoch=1, now=now, detail=f"{{{number}}}")
    store.create_container("c3", owner, session="s2", worker="w", lease="l", epoch=1, now=9.0)
    store.move_container("c2", ContainerState.ENDED, now=5.0, reason=EndReason.STOPPED)
    last = store.last_container("s1")
    assert last is not None and (last.id, last.detail) == ("c2", "{2}")
