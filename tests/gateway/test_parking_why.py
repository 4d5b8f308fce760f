"""Who is parked and when, where a resumed session goes, and what is refused: a real gateway, a simulated worker."""

from __future__ import annotations

import msgspec

from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.messages import (
    CellAccepted,
    CellRefused,
    ContainerStarted,
    Notice,
    ParkFailed,
    ParkSession,
    Queued,
)
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import EndReason, SessionState
from tests.fakes.fake_kernel import IMAGE
from tests.gateway.house import House
from tests.gateway.parking_house import (
    A100,
    H100,
    NO_ROOM,
    MakeHouse,
    begin_to_park,
    is_free,
    leave,
    park,
    refusal,
    seen,
    session_of,
    with_session,
)

# -- who waits, who is gone ---------------------------------------------------------------------------------------------


async def test_the_session_idle_longest_is_parked_for_who_waits(house: House) -> None:
    worker = await house.worker(gpus=("A100-80GB", "A100-80GB"))
    one = await with_session(house, worker, notebook="/one.ipynb")
    two = await with_session(house, worker, notebook="/two.ipynb")
    session_of(house, one).idle_since -= 40
    session_of(house, two).idle_since -= 60
    three = await house.kernel(notebook="/three.ipynb")
    await three.run("wait", call="c3", resources=A100)
    await three.until(lambda: "CellStarted" in three.kinds("c3"))
    assert session_of(house, two).state is SessionState.PARKED
    assert session_of(house, one).state is SessionState.IDLE and len(worker.parks_asked) == 1
    await two.run("print back", call="back", resources=A100)  # and now the other one has to go
    assert (await two.ended("back")).reason is EndReason.DONE
    assert two.of("back", ContainerStarted)[0].start == "snapshot"
    assert session_of(house, one).state is SessionState.PARKED


async def test_what_is_on_its_way_out_is_enough_for_who_waits_and_a_busy_one_is_left_alone(house: House) -> None:
    worker = await house.worker(gpus=("A100-80GB",) * 3)
    worker.hold_park = True
    oldest = await with_session(house, worker, notebook="/oldest.ipynb")
    idle = await with_session(house, worker, notebook="/idle.ipynb")
    busy = await house.kernel(notebook="/busy.ipynb")
    await busy.run("wait", call="b1", resources=A100)
    await busy.until(lambda: "CellStarted" in busy.kinds("b1"))
    session_of(house, oldest).idle_since -= 60
    session_of(house, idle).idle_since -= 40
    session_of(house, busy).idle_since -= 4000
    first, second = await house.kernel(notebook="/4.ipynb"), await house.kernel(notebook="/5.ipynb")
    await first.run("print a", call="c4", resources=A100)
    await house.until(lambda: len(worker.parks_asked) == 1)
    for _ in range(5):
        house.gateway.hub.placer.tick()  # more passes, while it is on its way out
    assert session_of(house, oldest).park is not None and session_of(house, idle).park is None
    await second.run("print b", call="c5", resources=A100)
    await house.until(lambda: len(worker.parks_asked) == 2)
    assert session_of(house, idle).park is not None and session_of(house, busy).park is None
    await second.until(lambda: bool(second.of("c5", Queued)))
    assert "oldest.ipynb (default), being parked" in second.of("c5", Queued)[0].waiting_for
    worker.hold_park = False
    for container in [c for c in worker.containers.values() if c.parking]:
        worker.finish_park(container)
    for kernel, call in ((first, "c4"), (second, "c5")):
        assert (await kernel.ended(call)).reason is EndReason.DONE


async def test_an_idle_session_that_cannot_be_parked_stays_and_says_so_once(house: House) -> None:
    worker = await house.worker()
    worker.park_fails = NO_ROOM
    kernel = await with_session(house, worker, Resources(gpus=A100.gpus, scaledown_seconds=0.1))
    await kernel.until(lambda: bool(seen(kernel, Notice)))
    assert "keeps what it holds" in seen(kernel, Notice)[0].text and NO_ROOM.message in seen(kernel, Notice)[0].text
    session = session_of(house, kernel)
    assert session.state is SessionState.IDLE and len(worker.parks_asked) == 1
    house.gateway.hub.parking.tick(session, house.gateway.clock.monotonic())
    assert session.park is None  # not again for ten minutes
    assert session.park_failed_at is not None
    session.park_failed_at -= 601
    await house.until(lambda: len(worker.parks_asked) == 2)
    await house.until(lambda: session.park is None)
    assert len(seen(kernel, Notice)) == 1
    assert [f.error for f in seen(kernel, ParkFailed)][:1] == [NO_ROOM]


async def test_a_kernel_that_is_gone_leaves_its_session_parked_and_another_attaches(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    session = session_of(house, kernel)
    await leave(house, kernel)
    await house.until(lambda: session.state is SessionState.PARKED and is_free(house))
    later = await house.kernel(kernel_id="k2", attach=True)
    assert later.info is not None and later.info.session == session.id and later.info.parked is not None
    await later.run("print y", call="c2", resources=None)
    assert (await later.ended("c2")).reason is EndReason.DONE
    assert later.of("c2", ContainerStarted)[0].start == "snapshot"


async def test_without_a_kernel_a_session_that_cannot_be_parked_ends_as_before(house: House) -> None:
    worker = await house.worker()
    worker.park_fails = NO_ROOM
    kernel = await with_session(house, worker)
    await leave(house, kernel)
    await house.until(lambda: not list(house.gateway.hub.sessions) and not worker.containers)
    assert house.gateway.hub.store.list_sessions(ended=True)[0].reason is EndReason.KERNEL_GONE


async def test_a_restarted_kernel_gets_a_fresh_session_and_is_offered_the_parked_one(house: House) -> None:
    worker = await house.worker()
    old = await with_session(house, worker, kernel_id="k1")
    answer = await park(house, old)
    new = await house.kernel(kernel_id="k2")
    assert new.info is not None and new.info.session != answer.parked.session
    assert new.info.superseded is not None and new.info.superseded.names == ["x", "y"]
    assert new.info.superseded.parked is not None and new.info.superseded.state is SessionState.SUPERSEDED
    taken = await house.kernel(session=answer.parked.session, attach=True, kernel_id="k2")
    assert taken.info is not None and taken.info.state is SessionState.PARKED
    await taken.run("print z", call="c3", resources=A100)
    assert (await taken.ended("c3")).reason is EndReason.DONE
    assert taken.of("c3", ContainerStarted)[0].start == "snapshot"


async def test_a_superseded_idle_session_is_parked_at_once_for_who_waits(house: House) -> None:
    worker = await house.worker()
    old = await with_session(house, worker, kernel_id="k1")
    new = await house.kernel(kernel_id="k2")
    await new.run("print y", call="c2", resources=A100)
    assert (await new.ended("c2")).reason is EndReason.DONE
    session = session_of(house, old)
    assert session.state is SessionState.SUPERSEDED and session.shown_parked is not None
    taken = await house.kernel(session=session.id, attach=True, kernel_id="k3")
    assert taken.info is not None and taken.info.state is SessionState.PARKED


async def test_taken_back_while_it_parks_a_session_goes_on_parking(house: House) -> None:
    worker = await house.worker()
    old = await with_session(house, worker, kernel_id="k1")
    asked, container = await begin_to_park(house, old, worker)
    await house.kernel(kernel_id="k2")
    assert session_of(house, old).state is SessionState.SUPERSEDED
    taken = await house.kernel(session=container.start.session, attach=True, kernel_id="k3")
    assert taken.info is not None and taken.info.state is SessionState.PARKING
    worker.finish_park(container)
    await asked
    await taken.until(lambda: taken.info is not None and taken.info.state is SessionState.PARKED)


async def test_a_parked_session_expires(make_house: MakeHouse) -> None:
    house = await make_house(parked_keep_days=0.1 / 86400)
    worker = await house.worker()
    kernel = await with_session(house, worker)
    answer = await park(house, kernel)
    await house.until(lambda: not list(house.gateway.hub.sessions) and worker.forgotten == [answer.parked.id])
    assert house.gateway.hub.store.get_session(answer.parked.session).reason is EndReason.EXPIRED


# -- moving -------------------------------------------------------------------------------------------------------------


async def test_a_cell_that_asks_for_other_hardware_moves_its_session(house: House) -> None:
    worker = await house.worker(gpus=("A100-80GB", "H100"))
    worker.resumes_by = "names"
    kernel = await with_session(house, worker)
    accepted = await kernel.run("print y", call="c2", resources=H100)
    assert isinstance(accepted, CellAccepted)
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.DONE
    started = kernel.of("c2", ContainerStarted)[0]
    assert started.container.gpus[0].type == "H100" and [n.name for n in started.lost] == ["gen"]
    assert "moved" in kernel.of("c2", Queued)[0].waiting_for
    await house.until(lambda: len(house.gateway.hub.store.leases_open()) == 1)


async def test_a_cell_that_what_it_has_can_serve_does_not_move_it(house: House) -> None:
    worker = await house.worker(gpus=("A100-80GB", "H100"))
    kernel = await with_session(house, worker)
    for number, gpu in enumerate(("A100-80GB", "any", "A100")):
        await kernel.run("", call=f"c{number}", resources=Resources(gpus=(GpuChoice(gpu),)))
        assert (await kernel.ended(f"c{number}")).reason is EndReason.DONE
    assert worker.parks_asked == [] and len(worker.containers) == 1


async def test_a_move_that_fails_ends_the_cell_and_leaves_the_session(house: House) -> None:
    worker = await house.worker(gpus=("A100-80GB", "H100"))
    worker.park_fails = NO_ROOM
    kernel = await with_session(house, worker)
    await kernel.run("print y", call="c2", resources=H100)
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.START_FAILED and ended.error is not None
    assert ended.error.code is ErrorCode.DISK_FULL and "could not be moved" in ended.error.message
    await kernel.run("print z", call="c3", resources=A100)
    assert (await kernel.ended("c3")).reason is EndReason.DONE and not kernel.of("c3", ContainerStarted)


async def test_a_move_to_what_its_machine_has_not_is_refused_and_changes_nothing(house: House) -> None:
    worker = await house.worker(machine_id="m1")
    kernel = await with_session(house, worker)
    await house.worker(name="other", gpus=("H100",), hostname="another-machine", machine_id="m2")
    mine = msgspec.structs.replace(IMAGE, machine_id="m1")
    for parked in (False, True):
        if parked:
            await park(house, kernel)
        refused = await kernel.run("print y", call=f"c2-{parked}", resources=H100, image=mine)
        assert isinstance(refused, CellRefused) and refused.error.code is ErrorCode.CONFLICT
        assert "can never give gpu=H100" in refused.error.message and "%modal restart" in refused.error.next
        assert "own environment is not on another-machine" in refused.error.message
    assert len(worker.parks_asked) == 1 and len(worker.parked) == 1


# -- what cannot be parked ----------------------------------------------------------------------------------------------


async def test_what_cannot_be_parked_is_refused_with_the_reason(house: House) -> None:
    worker = await house.worker()
    cli = await house.cli()
    assert (await refusal(cli.peer.request(ParkSession(session="s-nope")))).code is ErrorCode.NOT_FOUND
    kernel = await house.kernel()
    assert (await refusal(park(house, kernel))).code is ErrorCode.NOT_FOUND
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    busy = await refusal(park(house, kernel))
    assert (busy.code, busy.detail) == (ErrorCode.BUSY, {"running": "c1"})
    worker.release()
    await kernel.ended("c1")
    worker.may_dial.clear()
    await worker.drop_link()
    await house.until(lambda: house.gateway.hub.fleet.workers["fake"].peer is None)
    assert (await refusal(park(house, kernel))).code is ErrorCode.UNAVAILABLE
    assert session_of(house, kernel).state is SessionState.IDLE
