"""At start: take up what an earlier gateway left. The record says what there is, each session's log what happened last.

The log is written first and the record follows, so where they differ the log is right.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.mac import value_key
from cellburst_protocol.messages import (
    CallEnded,
    CellDone,
    CellStarted,
    ContainerEnded,
    ContainerParked,
    ContainerStarted,
    IOPub,
    NamesData,
    ParkFailed,
    Phase,
    RunCell,
    decode,
)
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import CALL_TRANSITIONS, CallState, ContainerState, EndReason, SessionState, is_terminal

from .calls import Call
from .containers import ContainerDetail, ContainerHandle
from .session import ParkUnderWay, Session
from .store_rows import CallRecord, ContainerRecord, LeaseRecord

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger(__name__)


@dataclass
class Story:
    """What a session's log says of one call and of containers."""

    started: bool = False
    done: tuple[CellDone, list[memoryview]] | None = None
    ended: CallEnded | None = None
    phases: list[Phase] = field(default_factory=list)
    containers_started: dict[str, ContainerStarted] = field(default_factory=dict)
    containers_ended: dict[str, ContainerEnded] = field(default_factory=dict)
    parked: dict[str, ContainerParked] = field(default_factory=dict)
    parks_failed: set[str] = field(default_factory=set)


def read_story(hub: Hub, session_id: str, call_id: str) -> Story:
    """Read a session's log for one call."""
    story = Story()
    for event in hub.logs.read(session_id):
        try:
            message = decode(event.head)
        except CellburstError:
            continue  # of a newer gateway
        if isinstance(message, ContainerStarted):
            story.containers_started[message.container.id] = message
        elif isinstance(message, ContainerEnded):
            story.containers_ended[message.container] = message
        elif isinstance(message, ContainerParked):
            story.parked[message.parked.id] = message
        elif isinstance(message, ParkFailed):
            story.parks_failed.add(message.parked)
        if event.call != call_id or not call_id:
            continue
        match message:
            case CellStarted() | IOPub():
                story.started = True
            case CellDone():
                story.done = (message, [memoryview(b) for b in event.buffers])
            case CallEnded():
                story.ended = message
            case Phase():
                story.phases.append(message)
    return story


def recover(hub: Hub) -> None:
    """Make sessions, containers and calls of the record live again."""
    for worker in hub.store.list_workers():
        hub.fleet.restore(worker)
    for record in hub.store.list_sessions():
        hub.sessions.add(Session(hub, record, hub.logs.last_sequence(record.id)))
    leases = {lease.id: lease for lease in hub.store.leases_open()}
    containers = hub.store.live_containers()
    for session in hub.sessions:
        _volumes(hub, session)
        if session.park is not None:
            _park(hub, session, session.park)
    for container in containers:
        _container(hub, container, leases.get(container.lease))
    calls = hub.store.running_calls()
    hub.inbox.drop_all_but({call.id for call in calls})
    for call in calls:
        _call(hub, call)
    _ends_in_the_log(hub)
    log.info(
        "taken up",
        extra={"sessions": len(list(hub.sessions)), "containers": len(hub.fleet.containers), "calls": len(calls)},
    )


def _volumes(hub: Hub, session: Session) -> None:
    """Those of its parked state, else of its last container."""
    record = None if session.volumes else hub.store.last_container(session.id)
    volumes = msgspec.json.decode(record.detail, type=ContainerDetail).volumes if record is not None else []
    if volumes or session.volumes:
        session.has_volumes(session.volumes or volumes)


def _park(hub: Hub, session: Session, park: ParkUnderWay) -> None:
    """A park that was under way: what the log says of it and the record does not."""
    story = read_story(hub, session.id, "")
    said = story.parked.get(park.id)
    if said is not None and session.kept is None:
        session.kept, park.safe = said.parked, True  # as this gateway's predecessor completed it
        container = hub.store.get_container(session.record.container)
        if container is not None:
            session.kept_recipe = msgspec.json.decode(container.detail, type=ContainerDetail).recipe
        session.update(parked=session.kept_text())
    elif park.id in story.parks_failed and session.kept is None:
        session.park = None
        session.update(state=None if session.is_superseded else SessionState.IDLE, parking="")


def _container(hub: Hub, record: ContainerRecord, lease: LeaseRecord | None) -> None:
    detail = msgspec.json.decode(record.detail, type=ContainerDetail)
    now = hub.clock.monotonic()
    handle = ContainerHandle(
        id=record.id, session=record.session, worker=record.worker, lease=record.lease, epoch=record.epoch, detail=detail,
        gpus=lease.gpus if lease else (), now=now,
    )  # fmt: skip
    handle.state = record.state
    handle.stop_reason = record.reason
    handle.opened_unix_seconds = record.created
    if lease is not None:
        handle.reported(lease.billed_seconds, now)
        handle.touched_seconds = lease.billed_seconds
    handle.freeze(now)
    session = hub.sessions.get(record.session)
    if session is not None:
        handle.recorded = hub.logs.last_source(session.id, record.id)
        if session.record.container == record.id and record.state is not ContainerState.STOPPING:
            session.container = handle
    hub.fleet.containers[handle.id] = handle
    if lease is None or record.worker not in hub.fleet.workers:
        hub.events.container_gone(handle, record.reason or EndReason.WORKER_LOST)


def _call(hub: Hub, record: CallRecord) -> None:
    session = hub.sessions.get(record.session)
    if session is None:
        why, now = _session_gone(), hub.clock.wall()
        with hub.store.together():
            hub.store.end_call(record.id, EndReason.CONTAINER_LOST, now=now, error=why)
            _told(hub, record, EndReason.CONTAINER_LOST, why, 0.0, now)
        return
    story = read_story(hub, session.id, record.id)
    if story.ended is not None:
        ended, now = story.ended, hub.clock.wall()
        with hub.store.together():
            hub.store.end_call(
                record.id, ended.reason, now=now, error=ended.error, run_seconds=ended.run_seconds,
                cost_usd=Decimal(ended.cost_usd),
            )  # fmt: skip
            _told(hub, record, ended.reason, ended.error, ended.run_seconds, now)
        _idle(session)
        return
    call = _rebuild(hub, record, story)
    session.call = call
    if call.state in (CallState.SENT, CallState.RUNNING) and session.state is SessionState.IDLE:
        session.update(state=SessionState.BUSY)  # the record of the last cell's end came after that of this one
    _know_started(hub, session, story)
    if story.done is not None:
        hub.events.cell_done(session, call, *story.done)
    elif call.state in (CallState.CREATED, CallState.QUEUED, CallState.STARTING):
        _before_code(hub, session, call)
    elif session.container is None:
        reason = EndReason.CONTAINER_LOST
        why = ErrorInfo(
            code=ErrorCode.CONTAINER_LOST,
            message="the container was gone when the gateway was started again",
            next="run the cell again",
        )
        hub.cells.end(session, call, reason, error=why)


def _told(hub: Hub, record: CallRecord, reason: EndReason, why: ErrorInfo | None, seconds: float, now: float) -> None:
    """An end that only the log had: of a detached cell it is told like any other. In the commit that ends the call: later nothing
    would look for it again."""
    kept = hub.inbox.get(record.id, "cell")
    if kept is not None and isinstance(kept[0], RunCell) and kept[0].detach:
        hub.endings.cell(hub.store.get_session(record.session), record.id, reason, why, seconds, now, at_once=True)


def _rebuild(hub: Hub, record: CallRecord, story: Story) -> Call:
    now = hub.clock.monotonic()
    state = record.state
    if story.started or state is CallState.RUNNING:
        state = CallState.RUNNING
    elif state is CallState.UNREACHABLE:
        state = CallState.SENT
    kept = hub.inbox.get(record.id, "cell")
    cell = kept[0] if kept is not None and isinstance(kept[0], RunCell) else None
    names = hub.inbox.get(record.id, "names")
    call = Call(
        id=record.id, resources=msgspec.json.decode(record.detail, type=Resources) if record.detail else Resources(),
        value_key=value_key(hub.secrets.master_key, record.id, cell.input if cell else 0, cell.attempt if cell else 1),
        accepted_at=now, state=state, cell=cell, buffers=kept[1] if kept else [], image=cell.image if cell else None,
        recipe=cell.recipe if cell else None, container=record.container, starts=1 if record.container else 0,
        detached=cell.detach if cell else False,
    )  # fmt: skip
    if names is not None and isinstance(names[0], NamesData):
        call.names = (names[0], names[1])
    if state is CallState.RUNNING:
        since = record.started if record.started is not None else record.created
        call.started_at = now - max(0.0, hub.clock.wall() - since)
    for phase in story.phases:
        call.add_phase(phase)
    if state is not record.state and not is_terminal(CALL_TRANSITIONS, state):
        hub.store.move_call(record.id, state, now=hub.clock.wall())
    return call


def _know_started(hub: Hub, session: Session, story: Story) -> None:
    """A container whose start is in the log and not yet in the record."""
    handle = session.container
    if handle is None or handle.state is not ContainerState.STARTING or handle.id not in story.containers_started:
        return
    handle.detail.info = story.containers_started[handle.id].container
    handle.state = ContainerState.READY
    hub.store.move_container(
        handle.id, ContainerState.READY, now=hub.clock.wall(), detail=msgspec.json.encode(handle.detail).decode()
    )


def _before_code(hub: Hub, session: Session, call: Call) -> None:
    handle = session.container
    if call.cell is None:
        hub.cells.not_handed_over(session, call)
        return
    if session.park is not None and call.state is CallState.QUEUED:
        return  # it waits for the end of that
    if handle is None:
        if call.state is not CallState.QUEUED:
            hub.store.move_call(call.id, CallState.QUEUED, now=hub.clock.wall(), container="")
        call.state, call.container = CallState.QUEUED, ""
        hub.placer.enqueue(session, call)
        return
    if call.state is not CallState.STARTING:
        hub.store.move_call(call.id, CallState.STARTING, now=hub.clock.wall(), container=handle.id)
        call.state, call.container = CallState.STARTING, handle.id
    if handle.state is ContainerState.READY:  # handed over once the worker has said what it has
        hub.store.move_call(call.id, CallState.SENT, now=hub.clock.wall(), container=handle.id)
        call.state = CallState.SENT


def _ends_in_the_log(hub: Hub) -> None:
    """Containers that left their session in the log and not yet in the record."""
    for handle in list(hub.fleet.containers.values()):
        session = hub.sessions.get(handle.session)
        if session is None or session.container is not handle:
            continue
        ended = read_story(hub, session.id, "").containers_ended.get(handle.id)
        if ended is not None:
            _left_in_the_log(hub, session, handle, ended.reason)
            handle.stop_reason = ended.reason
            hub.fleet.stop(handle, ended.reason)


def _left_in_the_log(hub: Hub, session: Session, handle: ContainerHandle, reason: EndReason) -> None:
    park, call = session.park, session.call
    state = hub.parking.leaves(session, handle, reason)
    session.container = session.park = None
    session.lost_container = session.kept is None
    moves = state in (SessionState.PARKED, SessionState.IDLE) and session.state is not SessionState.BUSY
    session.update(
        state=state if moves else None, container="", detail="names_lost" if session.lost_container else "", parking="",
        parked=session.kept_text(),
    )  # fmt: skip
    if call is not None and call.before_code and call.cell is not None:
        if call.state is not CallState.QUEUED:
            hub.store.move_call(call.id, CallState.QUEUED, now=hub.clock.wall(), container="")
        call.state, call.container = CallState.QUEUED, ""
        hub.placer.enqueue(session, call)
    else:
        hub.parking.left(session, park)


def _idle(session: Session) -> None:
    if session.state in (SessionState.BUSY, SessionState.STARTING) and session.at_rest is not session.state:
        session.update(state=session.at_rest)


def _session_gone() -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.CONTAINER_LOST, message="its session ended while the gateway was away", next="run the cell again"
    )
