"""Cells and sessions through a real gateway on loopback, with a simulated worker.

Over 400 lines: one story after another on the same house and fakes.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import event

from cellburst_gateway.session import Session
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.messages import (
    CallEnded,
    CellAccepted,
    CellRefused,
    CellStarted,
    ContainerEnded,
    ContainerStarted,
    Interrupt,
    IOPub,
    NamesData,
    NamesNeeded,
    Notice,
    Phase,
    Queued,
    SideRequest,
    StopSession,
    ValueComing,
    decode,
)
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import CallState, ContainerState, EndReason, SessionState
from tests.gateway.house import House

A100 = Resources(gpus=(GpuChoice("A100"),))


async def test_a_whole_cell(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    accepted = await kernel.run("print hello", call="c1", resources=A100)
    assert isinstance(accepted, CellAccepted) and len(accepted.value_key) == 64
    ended = await kernel.ended("c1")
    assert (ended.state, ended.reason, ended.error) == (CallState.SUCCEEDED, EndReason.DONE, None)
    assert kernel.kinds("c1") == ["Phase", "ContainerStarted", "CellStarted", "IOPub", "CellDone", "CallEnded"]
    assert [sequence for sequence, _, _ in kernel.events] == [1, 2, 3, 4, 5, 6]
    started = kernel.of("c1", ContainerStarted)[0]
    assert started.container.gpus[0].type == "A100-80GB" and started.container.gpus[0].simulated
    assert Decimal(started.container.usd_per_second) > 0 and started.container.engine == "fake"
    assert started.container.notes == ["the fake engine isolates nothing"]
    assert started.container.python_version == "3.12.1"
    assert not started.names_lost and started.mirror_identity == "i1"
    assert {"queue", "boot", "run"} <= {phase.name for phase in ended.phases}
    container = worker.containers[started.container.id]
    assert [m.value_key for m in container.received if type(m).__name__ == "RunCell"] == [accepted.value_key]
    await house.until(lambda: not container.spool)  # everything was acknowledged
    record = house.gateway.hub.store.get_call("c1")
    house.gateway.hub.write_now()
    assert record is not None and house.gateway.hub.store.get_call("c1").state is CallState.SUCCEEDED  # type: ignore[union-attr]
    assert not list((house.gateway.config.data_folder / "inbox").iterdir())


async def test_a_warm_cell_goes_straight_through_and_a_raised_one_says_so(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    await kernel.run("", call="c1", resources=A100)
    await kernel.ended("c1")
    await kernel.run("raise ValueError", call="c2", resources=A100)
    ended = await kernel.ended("c2")
    assert (ended.state, ended.reason) == (CallState.FAILED, EndReason.RAISED)
    assert ended.error is not None and ended.error.message == "ValueError: asked to"
    assert kernel.kinds("c2") == ["CellStarted", "CellDone", "CallEnded"]


async def test_the_same_call_again_runs_once(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    first = await kernel.run("wait", call="c1", resources=A100)
    again = await kernel.run("wait", call="c1", resources=A100)
    assert isinstance(first, CellAccepted) and isinstance(again, CellAccepted)
    assert again.value_key == first.value_key
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    worker.release()
    await kernel.ended("c1")
    third = await kernel.run("print never", call="c1", resources=A100)
    assert isinstance(third, CellAccepted) and third.value_key == first.value_key
    (container,) = worker.containers.values()
    assert sum(type(m).__name__ == "RunCell" for m in container.received) == 1


async def test_refusals_record_nothing(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    cases = [
        (Resources(gpus=(GpuChoice("H100"),)), ErrorCode.NO_SUCH_HARDWARE),
        (Resources(gpus=(GpuChoice("A100", 3),)), ErrorCode.NO_SUCH_HARDWARE),
        (Resources(memory_mib=10**7), ErrorCode.NO_SUCH_HARDWARE),
        (Resources(timeout_seconds=10**6), ErrorCode.BAD_ARGUMENT),
        (Resources(budget_usd="a lot"), ErrorCode.BAD_ARGUMENT),
    ]
    for number, (resources, code) in enumerate(cases):
        refused = await kernel.run("", call=f"r{number}", resources=resources)
        assert isinstance(refused, CellRefused) and refused.error.code is code, refused
        assert house.gateway.hub.store.get_call(f"r{number}") is None
    await kernel.run("wait", call="c1", resources=A100)
    busy = await kernel.run("", call="c2", resources=A100)
    assert isinstance(busy, CellRefused) and busy.error.code is ErrorCode.BUSY
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    worker.release()
    await kernel.ended("c1")


async def test_names_needed_are_asked_and_passed_on(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("need h1 h2\nprint ok", call="c1", resources=A100)
    await kernel.until(lambda: bool(kernel.of("c1", NamesNeeded)))
    assert kernel.stream is not None
    await kernel.stream.send(NamesData(call="c1", groups=[], mac="seal"))
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    (container,) = worker.containers.values()
    assert [m.mac for m in container.received if isinstance(m, NamesData)] == ["seal"]


async def test_values_on_their_way_are_told_to_the_other_end(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("print ok", call="c1", resources=A100)
    await kernel.ended("c1")
    (container,) = worker.containers.values()
    assert kernel.stream is not None and container.stream is not None
    coming, leaving = ValueComing(file="ab" * 16, size_bytes=7), ValueComing(file="cd" * 16, size_bytes=8)
    await kernel.stream.send(coming)
    container.stream.post(leaving)
    await kernel.until(lambda: leaving in kernel.said)
    await kernel.run("print ok", call="c2", resources=A100)
    await kernel.ended("c2")
    assert coming in container.received


async def test_interrupt_reaches_the_code(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    assert kernel.info is not None
    kernel.peer.notify(Interrupt(session=kernel.info.session, level=1))
    ended = await kernel.ended("c1")
    assert (ended.state, ended.reason) == (CallState.CANCELLED, EndReason.INTERRUPTED)
    assert [i.call for i in worker.interrupts] == ["c1"]


async def test_a_queue_shows_its_position_and_can_be_left(house: House) -> None:
    worker = await house.worker()
    first = await house.kernel()
    await first.run("wait", call="c1", resources=A100)
    await first.until(lambda: "CellStarted" in first.kinds("c1"))
    second = await house.kernel(notebook="/other.ipynb")
    await second.run("print ok", call="c2", resources=A100)
    await second.until(lambda: bool(second.of("c2", Queued)))
    queued = second.of("c2", Queued)[0]
    assert queued.position == 1 and "n.ipynb" in queued.waiting_for
    assert second.info is not None and first.info is not None
    second.peer.notify(Interrupt(session=second.info.session, level=1))
    assert (await second.ended("c2")).reason is EndReason.CANCELLED
    accepted = await second.run("print ok", call="c3", resources=A100)
    assert isinstance(accepted, CellAccepted)
    worker.release()
    await first.ended("c1")
    await first.peer.request(StopSession(session=first.info.session))
    assert (await second.ended("c3")).reason is EndReason.DONE


async def test_cancel_while_the_container_starts_keeps_the_container(house: House) -> None:
    worker = await house.worker()
    worker.hold_ready = True
    kernel = await house.kernel()
    await kernel.run("print a", call="c1", resources=A100)
    await house.until(lambda: bool(worker.containers))
    assert kernel.info is not None
    kernel.peer.notify(Interrupt(session=kernel.info.session, level=1))
    assert (await kernel.ended("c1")).reason is EndReason.CANCELLED
    await kernel.run("print b", call="c2", resources=A100)
    (container,) = worker.containers.values()
    worker.ready(container)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert [m.call for m in container.received if type(m).__name__ == "RunCell"] == ["c2"]


async def test_an_executor_that_ends_fails_its_call_and_keeps_the_container(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    await kernel.run("crash", call="c1", resources=A100)
    ended = await kernel.ended("c1")
    assert ended.reason is EndReason.EXITED and ended.error is not None and "exit code 3" in ended.error.message
    await kernel.until(
        lambda: any("names it had there are gone" in e.text for _, _, e in kernel.events if isinstance(e, Notice))
    )
    await kernel.run("print on", call="c2", resources=A100)
    assert (await kernel.ended("c2")).container == ended.container


async def test_a_container_that_dies_ends_its_call_and_the_next_one_says_that_names_are_gone(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    await kernel.run("oom", call="c1", resources=A100)
    ended = await kernel.ended("c1")
    assert ended.reason is EndReason.OUT_OF_MEMORY and ended.error is not None
    assert ended.error.code is ErrorCode.OUT_OF_MEMORY and "side effects" in ended.error.message
    await kernel.run("print on", call="c2", resources=A100)
    await kernel.ended("c2")
    assert kernel.of("c2", ContainerStarted)[0].names_lost


async def test_a_worker_whose_process_is_gone_is_lost_at_once(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("print a\nwait", call="c1", resources=A100)
    await kernel.until(lambda: bool(kernel.of("c1", IOPub)))
    house.gateway.hub.fleet.workers["fake"].pid = 2**22 + 1  # more than this system's highest pid
    await worker.stop()
    ended = await kernel.ended("c1", seconds=5)
    assert ended.reason is EndReason.WORKER_LOST and ended.error is not None
    assert ended.error.code is ErrorCode.WORKER_LOST and "may have had side effects" in ended.error.message
    await house.worker(name="second")
    await kernel.run("print b", call="c2", resources=A100)
    await kernel.ended("c2")
    assert kernel.of("c2", ContainerStarted)[0].names_lost


async def test_a_silent_worker_is_unreachable_and_comes_back(make_house: Callable[..., Awaitable[House]]) -> None:
    house = await make_house(unreachable_seconds=0.5)
    worker = await house.worker()
    worker.heartbeat_seconds = 0.1
    kernel = await house.kernel()
    await kernel.run("wait\nprint after", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    worker.hold_heartbeat = True
    await kernel.until(lambda: any("cannot be reached" in n.text for n in kernel.of("c1", Notice)))
    await worker.drop_link()
    worker.release()
    worker.hold_heartbeat = False
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    assert len(kernel.of("c1", IOPub)) == 1


async def test_a_lost_worker_link_loses_and_doubles_nothing(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("stream 200 400", call="c1", resources=A100)
    await kernel.until(lambda: len(kernel.of("c1", IOPub)) > 20)
    await worker.drop_link()
    await kernel.ended("c1")
    assert len(kernel.of("c1", IOPub)) == 200
    assert [s for s, _, _ in kernel.events] == list(range(1, len(kernel.events) + 1))


async def test_a_lost_kernel_link_is_replayed(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("print one\nwait\nprint two", call="c1", resources=A100)
    await kernel.until(lambda: bool(kernel.of("c1", IOPub)))
    seen, info = kernel.events[-1][0], kernel.info
    assert info is not None
    await kernel.close()
    worker.release()
    hub = house.gateway.hub
    await house.until(lambda: hub.sessions.get(info.session).call is None)  # type: ignore[union-attr]
    back = await house.kernel(session=info.session, from_sequence=seen)
    await back.ended("c1")
    assert [s for s, _, _ in back.events] == list(range(seen + 1, seen + 1 + len(back.events)))
    assert len(back.of("c1", IOPub)) == 1


async def test_another_kernel_supersedes_and_attach_takes_back(house: House) -> None:
    await house.worker(gpus=("A100-80GB", "A100-80GB"))
    old = await house.kernel(kernel_id="k1")
    await old.run("print x", call="c1", resources=A100)
    await old.ended("c1")
    assert old.info is not None
    new = await house.kernel(kernel_id="k2")
    assert new.info is not None and new.info.session != old.info.session
    assert new.info.superseded is not None and new.info.superseded.id == old.info.session
    refused = await old.run("print y", call="c2", resources=A100)
    assert isinstance(refused, CellRefused) and refused.error.code is ErrorCode.CONFLICT
    taken = await house.kernel(session=old.info.session, attach=True, kernel_id="k3")
    assert taken.info is not None and taken.info.state is SessionState.IDLE and taken.info.container is not None
    await taken.run("print z", call="c3", resources=A100)
    assert (await taken.ended("c3")).reason is EndReason.DONE
    same = await house.kernel(kernel_id="k4", attach=True)
    assert same.info is not None and same.info.session == old.info.session


async def test_a_budget_stops_the_cell(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    await kernel.run("", call="c1", resources=A100)
    await kernel.ended("c1")
    rate = Decimal(kernel.of("c1", ContainerStarted)[0].container.usd_per_second)
    budget = format(rate * Decimal("2.5"), "f")
    await kernel.run("wait", call="c2", resources=Resources(gpus=A100.gpus, budget_usd=budget))
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.BUDGET and ended.error is not None and ended.error.code is ErrorCode.BUDGET
    assert 0 < Decimal(ended.cost_usd) <= Decimal(budget)
    small = await kernel.run("wait", call="c3", resources=Resources(gpus=A100.gpus, budget_usd=format(rate, "f")))
    assert isinstance(small, CellRefused) and small.error.code is ErrorCode.BUDGET


async def test_questions_are_answered_beside_a_cell_and_usage_arrives(house: House) -> None:
    worker = await house.worker()
    worker.heartbeat_seconds = 0.1
    kernel = await house.kernel()
    nothing = await kernel.side(SideRequest(id="q0", kind="names"))
    assert nothing.error is not None and nothing.error.code is ErrorCode.NOT_FOUND
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    reply = await kernel.side(SideRequest(id="q1", kind="fetch", content={"name": "x"}))
    assert reply.content == {"kind": "fetch"} and reply.mac == "m" and len(reply.value_key) == 64
    usage = await kernel.usage()
    assert Decimal(usage.cost_usd) >= Decimal(usage.call_cost_usd) >= 0 and Decimal(usage.usd_per_second) > 0
    worker.release()
    await kernel.ended("c1")


async def test_stopping_a_session_ends_call_container_and_lease(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("wait", call="c1", resources=A100)
    await kernel.until(lambda: "CellStarted" in kernel.kinds("c1"))
    cli = await house.cli()
    await cli.peer.request(StopSession(notebook="/n.ipynb", name="default"))
    assert (await kernel.ended("c1")).reason is EndReason.STOPPED
    await kernel.until(lambda: kernel.info is not None and kernel.info.state is SessionState.ENDED)
    await house.until(lambda: not worker.containers and not house.gateway.hub.store.leases_open())
    states = {c.state for c in [house.gateway.hub.store.get_container(kernel.of("c1", CallEnded)[0].container)] if c}
    assert states == {ContainerState.ENDED}


async def test_phases_of_a_start_are_events(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    await kernel.run("", call="c1", resources=A100)
    await kernel.ended("c1")
    (queue,) = kernel.of("c1", Phase)
    assert queue.name == "queue" and queue.seconds is not None


async def test_a_bad_event_silences_none_after_it_and_a_stopped_session_gives_its_gpu_free(house: House) -> None:
    worker = await house.worker()
    worker.hold_ready = True
    kernel = await house.kernel()
    await kernel.run("print a", call="c1", resources=A100)
    await house.until(lambda: bool(worker.containers))
    (container,) = worker.containers.values()
    container.emit(CellStarted(), "c1")  # before ContainerReady: the call cannot have started
    assert kernel.info is not None
    cli = await house.cli()
    await cli.peer.request(StopSession(session=kernel.info.session))
    assert (await kernel.ended("c1")).reason is EndReason.STOPPED
    worker.hold_ready = False
    other = await house.kernel(notebook="/other.ipynb")
    await other.run("print b", call="c2", resources=A100)
    assert (await other.ended("c2")).reason is EndReason.DONE
    assert len(house.gateway.hub.store.leases_open()) == 1


async def test_an_end_that_the_log_did_not_take_is_sent_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    await house.worker()
    kernel = await house.kernel()
    logs = house.gateway.hub.logs
    append, refused = logs.append, []

    def full_once(session: str, sequence: int, call: str, head: bytes, *rest: Any) -> bool:
        if isinstance(decode(head), ContainerEnded) and not refused:
            refused.append(sequence)
            raise CellburstError(ErrorInfo(code=ErrorCode.DISK_FULL, message="no room"))
        return append(session, sequence, call, head, *rest)

    monkeypatch.setattr(logs, "append", full_once)
    await kernel.run("oom", call="c1", resources=A100)
    assert (await kernel.ended("c1")).reason is EndReason.OUT_OF_MEMORY
    await kernel.until(lambda: any(isinstance(e, ContainerEnded) for _, _, e in kernel.events))
    assert refused
    await kernel.run("print b", call="c2", resources=A100)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    await house.until(lambda: len(house.gateway.hub.store.leases_open()) == 1)


async def test_a_cell_that_the_worker_refused_ends_with_the_workers_error(house: House) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    await kernel.run("", call="c0", resources=A100)
    await kernel.ended("c0")
    (container,) = worker.containers.values()
    await kernel.run("refuse", call="c1", resources=A100)
    ended = await kernel.ended("c1")
    assert ended.reason is EndReason.RAISED and ended.error is not None
    assert (ended.error.code, ended.error.message) == (ErrorCode.DISK_FULL, "no room for the values")
    await house.until(lambda: (r := house.gateway.hub.store.get_call("c1")) is not None and r.error == ended.error)
    assert container.state is ContainerState.READY


async def test_a_first_cell_costs_few_commits(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    store = house.gateway.hub.store
    commits: list[float] = []
    event.listen(store._engine, "commit", lambda connection: commits.append(house.gateway.clock.monotonic()))
    await kernel.run("", call="c1", resources=A100)
    ended = await kernel.ended("c1")
    await house.until(lambda: not house.gateway.hub._later)
    assert ended.reason is EndReason.DONE
    # Recorded; placed; ready and sent; started and ended. Two more for what the clock brings (tokens, leases).
    assert 4 <= len(commits) <= 6
    record = store.get_call("c1")
    assert record is not None and record.ended is not None


async def test_a_session_stopped_as_it_is_placed_starts_nothing_and_holds_nothing(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = await house.worker()
    kernel = await house.kernel()
    hub = house.gateway.hub
    start = hub.placer._start

    def start_and_stop(session: Session, *rest: Any) -> None:
        monkeypatch.undo()
        start(session, *rest)
        hub.sessions.end(session, EndReason.STOPPED)  # before the worker has been told

    monkeypatch.setattr(hub.placer, "_start", start_and_stop)
    await kernel.run("print a", call="c1", resources=A100)
    assert (await kernel.ended("c1")).reason is EndReason.STOPPED
    other = await house.kernel(notebook="/other.ipynb")
    await other.run("print b", call="c2", resources=A100)
    ended = await other.ended("c2")
    assert ended.reason is EndReason.DONE
    assert list(worker.containers) == [ended.container] and list(hub.fleet.containers) == [ended.container]
