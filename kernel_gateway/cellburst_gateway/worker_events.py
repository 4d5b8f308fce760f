"""What a container's worker reports, and what follows for its session: events, ends, losses."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.messages import (
    BuildLog,
    CellDone,
    CellStarted,
    ContainerEnded,
    ContainerParked,
    ContainerReady,
    ContainerReport,
    ContainerStarted,
    ExecutorEnded,
    IOPub,
    Message,
    Numbered,
    ParkFailed,
    Phase,
    SideReply,
    ValueComing,
    decode,
)
from cellburst_protocol.states import CallState, ContainerState, EndReason, SessionState

from .calls import Call, merged
from .containers import ContainerHandle
from .ending import executor_end, how_a_cell_ended, lost_error
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub

MAX_STARTS = 3  # a cell whose containers die while they start is placed again this often: then it may be the cause

log = logging.getLogger(__name__)


class WorkerEvents:
    """Handlers of everything that arrives for a container."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        hub.metrics.counter("cellburst_events_total", "Numbered events taken from workers.")
        hub.metrics.counter(
            "cellburst_events_failed_total", "Events that could not be taken, by a defect or a bad worker."
        )
        hub.metrics.counter("cellburst_containers_ended_total", "Containers that ended, by reason.")
        hub.metrics.counter("cellburst_starts_total", "Containers that became ready.")

    # -- the container's stream ------------------------------------------------------------------------------------

    async def message(self, handle: ContainerHandle, message: Message, buffers: list[memoryview]) -> None:
        """One message of a container's stream."""
        if isinstance(message, Numbered):
            self._numbered(handle, message, buffers)
        elif isinstance(message, SideReply):
            session = self._hub.sessions.get(handle.session)
            if session is not None:
                session.side_answered(message, buffers)
        elif isinstance(message, ValueComing):
            session = self._hub.sessions.get(handle.session)
            if session is not None and session.subscriber is not None:
                session.subscriber.post(message)

    def _numbered(self, handle: ContainerHandle, message: Numbered, buffers: list[memoryview]) -> None:
        if message.sequence > handle.recorded:
            try:
                self._new_event(handle, message, buffers)
            except CellburstError:
                raise
            except Exception:
                # A defect, or a worker that breaks the protocol. Those after it, above all the end, must still be heard.
                log.exception(
                    "an event could not be taken", extra={"container": handle.id, "sequence": message.sequence}
                )
                self._hub.metrics.add("cellburst_events_failed_total")
            handle.recorded = message.sequence
            self._hub.metrics.add("cellburst_events_total")
        if handle.state is ContainerState.ENDED:
            handle.ack_now()
            handle.close_stream()
            return
        handle.ack_soon()
        if handle.expected and handle.recorded >= handle.expected:
            handle.expected = 0
            self._caught_up(handle)

    def _new_event(self, handle: ContainerHandle, message: Numbered, buffers: list[memoryview]) -> None:
        session = self._hub.sessions.get(handle.session)
        if session is not None:
            self._event(session, handle, message, buffers)
            return
        event = decode(message.event)
        if isinstance(event, ContainerEnded):
            source = (handle.id, message.sequence)
            self.container_gone(handle, handle.stop_reason or event.reason, event.error, source=source)
        elif isinstance(event, ContainerParked):
            self._hub.parking.orphan(handle.worker, event)

    def _event(self, session: Session, handle: ContainerHandle, message: Numbered, buffers: list[memoryview]) -> None:
        event = decode(message.event)
        source = (handle.id, message.sequence)
        call = session.call if session.call is not None and session.call.id == message.call else None
        match event:
            case ContainerReady():
                self._ready(session, handle, event, source)
            case ContainerEnded():
                self.container_gone(handle, handle.stop_reason or event.reason, event.error, source=source)
            case CellDone():
                session.emit_raw(bytes(message.event), call=message.call, buffers=buffers, source=source)
                if call is not None:
                    self.cell_done(session, call, event, buffers)
            case ContainerParked():
                self._hub.parking.parked(session, handle, event, source)
            case ParkFailed():
                self._hub.parking.failed(session, event, source)
            case ExecutorEnded():
                self._executor_ended(session, handle, call, event, source)
            case _:
                session.emit_raw(bytes(message.event), call=message.call, buffers=buffers, source=source)
                if isinstance(event, BuildLog | Phase):
                    handle.building = isinstance(event, BuildLog)
                if call is not None:
                    self._progress(session, call, event)

    def _progress(self, session: Session, call: Call, event: Message) -> None:
        if isinstance(event, CellStarted) or (isinstance(event, IOPub) and call.state is CallState.SENT):
            self._hub.cells.started(session, call)
        elif isinstance(event, Phase):
            call.add_phase(event)

    def cell_done(self, session: Session, call: Call, event: CellDone, buffers: list[memoryview]) -> None:
        """The executor has finished the cell: its call ends."""
        reason, why = how_a_cell_ended(call, event, buffers)
        if call.state is CallState.UNREACHABLE:
            call.move(CallState.RUNNING)
        if event.run_seconds:
            call.add_phase(Phase(name="run", seconds=event.run_seconds))
        self._hub.cells.end(session, call, reason, error=why, run_seconds=event.run_seconds)

    def _executor_ended(
        self,
        session: Session,
        handle: ContainerHandle,
        call: Call | None,
        event: ExecutorEnded,
        source: tuple[str, int],
    ) -> None:
        call_id = call.id if call is not None else event.call
        session.emit(event, call=call_id, source=source)
        if call is not None:
            reason, why = executor_end(call, event, handle)
            self._hub.cells.end(session, call, reason, error=why)
        if handle.state is ContainerState.READY:
            session.notice("The session's Python process was replaced; the names it had there are gone.")

    # -- starting --------------------------------------------------------------------------------------------------

    def _ready(self, session: Session, handle: ContainerHandle, event: ContainerReady, source: tuple[str, int]) -> None:
        if handle.state is not ContainerState.STARTING:
            return  # it is being stopped
        call = session.call
        sends = call is not None and call.state is CallState.STARTING
        state = SessionState.BUSY if sends else SessionState.IDLE if call is None else session.state
        if session.is_superseded:
            state = session.state
        handle.move(ContainerState.READY)
        info = handle.detail.info
        info.engine, info.isolates, info.network = event.engine.name, event.engine.isolates, event.network
        info.python_version, info.image = event.python_version, event.image_id
        info.notes = [*([event.engine.warning] if event.engine.warning else []), *event.notes]
        if call is not None:
            for phase in merged(event.phases):
                call.add_phase(phase)
        info.phases = call.phase_list() if call else merged(event.phases)
        now = self._hub.clock.monotonic()
        not_resumed = bool(handle.detail.parked or handle.detail.moved) and event.start not in ("snapshot", "names")
        started = ContainerStarted(
            container=handle.info(now), phases=info.phases, names_lost=handle.detail.names_lost or not_resumed,
            mirror_identity=handle.detail.mirror_identity, start=event.start, lost=event.lost,
        )  # fmt: skip
        try:
            session.emit(started, call=call.id if call else "", source=source)
            self._record_ready(handle, call.id if call is not None and sends else "", session, state)
        except CellburstError:
            handle.state = info.state = ContainerState.STARTING  # the worker keeps the event and sends it again
            raise
        session.lost_container = False
        session.record = dataclasses.replace(session.record, state=state, parked="")
        self._hub.parking.give_up(session, handle.detail.parked)
        self._hub.metrics.add("cellburst_starts_total")
        session.tell_info()
        if call is not None and sends:
            call.move(CallState.SENT)
            call.container = handle.id
            self._hub.spawn(self._hub.cells.hand_over(session, call))
        elif call is None:
            session.idle_since = now

    def _record_ready(self, handle: ContainerHandle, call: str, session: Session, state: SessionState) -> None:
        """One commit: the container is ready, and the cell that waited for it may be sent."""
        self._hub.write_now()
        store, wall = self._hub.store, self._hub.clock.wall()
        with store.together():
            store.move_container(
                handle.id, ContainerState.READY, now=wall, detail=msgspec.json.encode(handle.detail).decode()
            )
            if call:
                store.move_call(call, CallState.SENT, now=wall, container=handle.id)
            if state is not session.state or session.kept is not None:
                store.update_session(session.id, now=wall, state=state, parked="")

    # -- a worker's link came back ---------------------------------------------------------------------------------

    def adopted(self, handle: ContainerHandle, report: ContainerReport) -> None:
        """A joining worker still has the container; the replay of its spool follows on a new stream."""
        handle.reported_call = report.running_call
        if handle.state is ContainerState.PLACED:
            handle.move(ContainerState.STARTING)
        self.reachable_again(handle)
        if report.last_sequence <= handle.recorded:
            handle.expected = 0
            self._caught_up(handle)

    def _caught_up(self, handle: ContainerHandle) -> None:
        """All that the worker had spooled is recorded: now it is known whether a cell, or a park, had arrived there."""
        session = self._hub.sessions.get(handle.session)
        if session is not None and session.container is handle and session.kept is None:
            self._hub.parking.ask_worker(session, handle)
        call = session.call if session is not None else None
        if session is None or call is None or call.container != handle.id:
            return
        if call.interrupt_due:
            self._hub.cells.send_interrupt(handle, call, call.interrupt_due)
        if call.state is not CallState.SENT:
            return
        if handle.reported_call != call.id:
            self._hub.spawn(self._hub.cells.hand_over(session, call))
        elif call.names is not None:
            self._hub.spawn(handle.send(*call.names))

    def unreachable(self, handle: ContainerHandle) -> None:
        """The container's worker is silent: that is no end, and it is said."""
        session = self._hub.sessions.get(handle.session)
        call = session.call if session is not None else None
        if session is None or call is None or call.container != handle.id:
            return
        if call.state in (CallState.SENT, CallState.RUNNING):
            call.reached_state = call.state
            call.move(CallState.UNREACHABLE)
            wall = self._hub.clock.wall()
            self._hub.later(lambda: self._hub.store.move_call(call.id, CallState.UNREACHABLE, now=wall))
            grace = self._hub.config.disconnect_grace_seconds
            session.notice(
                f"The worker on {self._hub.fleet.machine(handle.worker)} cannot be reached. The cell may still run there; "
                f"its output comes when it is back, and it is given up after {grace:.0f} s."
            )

    def reachable_again(self, handle: ContainerHandle) -> None:
        """The container's worker is heard again."""
        session = self._hub.sessions.get(handle.session)
        call = session.call if session is not None else None
        if session is None or call is None or call.container != handle.id or call.state is not CallState.UNREACHABLE:
            return
        back = call.reached_state
        call.move(back)
        wall = self._hub.clock.wall()
        self._hub.later(lambda: self._hub.store.move_call(call.id, back, now=wall))
        session.notice("The worker is back.", warning=False)

    # -- ending ----------------------------------------------------------------------------------------------------

    def release(self, handle: ContainerHandle, reason: EndReason) -> None:
        """Take a container from its session and have its worker end it. Its names are gone from now on."""
        session = self._hub.sessions.get(handle.session)
        if session is not None and session.container is handle:
            self._take_away(session, handle, reason, None, None)
        self._hub.fleet.stop(handle, reason)

    def container_gone(
        self,
        handle: ContainerHandle,
        reason: EndReason,
        why: ErrorInfo | None = None,
        *,
        source: tuple[str, int] | None = None,
    ) -> None:
        """A container has ended, whoever ended it: close its lease, end or place again its call."""
        if handle.id not in self._hub.fleet.containers:
            return
        now = self._hub.clock.monotonic()
        seconds = handle.uptime(now)
        handle.freeze(now)
        session = self._hub.sessions.get(handle.session)
        if session is not None and session.container is handle:
            try:
                self._take_away(session, handle, reason, why, source)
            except CellburstError as problem:
                if source is not None:
                    raise  # a full disk: the worker keeps the event and sends it again, and all is as it was
                log.error(
                    "a container's end could not be told: %s", problem.info.message, extra={"container": handle.id}
                )
            except Exception:
                log.exception("a container's end could not be told", extra={"container": handle.id})
        self._hub.fleet.containers.pop(handle.id, None)  # whatever failed above, what it held is free
        handle.state = ContainerState.ENDED
        try:
            self._hub.write_now()
            self._hub.store.end_container(handle.id, reason, now=self._hub.clock.wall(), seconds=seconds)
        except CellburstError as problem:
            log.error("the record could not be written: %s", problem.info.message, extra={"container": handle.id})
        self._hub.metrics.add("cellburst_containers_ended_total", reason=reason.value)
        log.info("container ended", extra={"container": handle.id, "reason": reason.value, "seconds": seconds})
        if source is None:  # else its stream's last event is acknowledged first
            handle.close_stream()
        self._hub.placer.kick()

    def _take_away(
        self,
        session: Session,
        handle: ContainerHandle,
        reason: EndReason,
        why: ErrorInfo | None,
        source: tuple[str, int] | None,
    ) -> None:
        had_names = handle.state in (ContainerState.READY, ContainerState.STOPPING)
        call, park = session.call, session.park
        if call is not None and call.state is CallState.STARTING:
            self._start_failed(session, call, handle, reason, why)
        elif call is not None and call.container == handle.id and not call.before_code:
            end, text = (call.end_reason or reason), lost_error(call, handle, reason, why, self._hub.clock.monotonic())
            self._hub.cells.end(session, call, end, error=text)
        session.emit(ContainerEnded(container=handle.id, reason=reason, error=why), source=source)
        parks = park is not None or session.kept is not None
        state = self._hub.parking.leaves(session, handle, reason)
        session.container = session.park = None
        session.lost_container = session.lost_container or (had_names and session.kept is None)
        session.record = dataclasses.replace(session.record, container="", state=state)
        detail, wall = "names_lost" if session.lost_container else "", self._hub.clock.wall()
        kept = session.kept_text()
        moved = state if parks and not session.is_superseded else None
        self._hub.later(
            lambda: self._hub.store.update_session(
                session.id, now=wall, state=moved, container="", detail=detail, parking="", parked=kept
            )
        )  # the log has it
        session.tell_info()
        self._hub.parking.left(session, park)

    def _start_failed(
        self, session: Session, call: Call, handle: ContainerHandle, reason: EndReason, why: ErrorInfo | None
    ) -> None:
        lost = reason in (EndReason.WORKER_LOST, EndReason.CONTAINER_LOST, EndReason.EVICTED)
        if lost and call.starts < MAX_STARTS and call.image is not None:
            session.container = None
            call.move(CallState.QUEUED)
            call.container = ""
            self._hub.store.move_call(call.id, CallState.QUEUED, now=self._hub.clock.wall(), container="")
            self._hub.placer.enqueue(session, call)
            return
        info = why or ErrorInfo(
            code=ErrorCode.START_FAILED, message=f"the container could not be started ({reason.value})",
            next="`cellburst logs` and the worker's log say more; the cell can be run again",
        )  # fmt: skip
        end = (
            reason
            if reason in (EndReason.STOPPED, EndReason.SHUTDOWN, EndReason.SUPERSEDED)
            else EndReason.START_FAILED
        )
        self._hub.cells.end(session, call, end, error=info)
