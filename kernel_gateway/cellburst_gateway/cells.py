"""A cell from RunCell to CallEnded: checked, recorded, handed over, interrupted, ended.

Over 400 lines: the steps of one call, which share its state.
"""

from __future__ import annotations

import dataclasses
import logging
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.mac import sign, value_key
from cellburst_protocol.messages import CallEnded, CellAccepted, CellRefused, Interrupt, NamesData, PhaseTime, RunCell
from cellburst_protocol.resources import Resources, parse_usd
from cellburst_protocol.states import CALL_END_STATE, CallState, ContainerState, EndReason, SessionState

from .budget import exhausted, plan
from .build_needs import check_build_needs
from .build_secrets import check_build_secrets
from .calls import Call
from .cell_volumes import check_bucket_secrets, volumes_of
from .containers import ContainerHandle, same_image
from .images import checked
from .park_rules import Cause
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub

MAX_CALL_ID_CHARACTERS = 200

log = logging.getLogger(__name__)


class Cells:
    """What happens to cells. One cell runs at a time in a session."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        hub.metrics.counter("cellburst_calls_total", "Calls that ended, by reason.")
        hub.metrics.counter("cellburst_calls_refused_total", "Cells refused, by whose fault.")
        hub.metrics.histogram("cellburst_accept_seconds", "From RunCell to its durable record.")

    # -- accepting -------------------------------------------------------------------------------------------------

    async def run(self, session: Session, cell: RunCell, buffers: list[memoryview]) -> None:
        """Take a RunCell: answer CellAccepted or CellRefused, then hand it over or queue it."""
        began = self._hub.clock.monotonic()
        call: Call | None = None
        try:
            if session.call is not None and session.call.id == cell.call:
                answer = self._accepted(cell, session.call.accepted_sequence)
            else:
                if cell.secrets is not None or self._hub.secret_desk.of(session) is not None:
                    cell = await self._hub.secret_desk.resolved(session, cell)
                await check_bucket_secrets(self._hub, session, cell)
                recipe = self._recipe(session, cell)
                await check_build_secrets(self._hub, session, recipe)
                if session.container is None or not same_image(recipe, session.container.detail.recipe):
                    await check_build_needs(self._hub, session.record.owner, recipe)
                call = self._accept(session, cell, buffers)
                answer = self._accepted(cell, session.last_sequence if call else 0)
        except CellburstError as why:
            if not self._recorded(session, cell):
                self._hub.metrics.add("cellburst_calls_refused_total", fault=why.code.fault.value)
                _reply(session, CellRefused(call=cell.call, error=why.info))
                return
            answer = self._accepted(cell, 0)
        _reply(session, answer)
        self._hub.metrics.observe("cellburst_accept_seconds", self._hub.clock.monotonic() - began)
        if call is None:
            return  # a repeat: nothing else happens
        if call.state is CallState.SENT:
            await self.hand_over(session, call)
        elif call.state is CallState.QUEUED and session.park is not None:
            self._hub.parking.waits(session, call)
        elif call.state is CallState.QUEUED:
            self._hub.placer.enqueue(session, call)

    def _accepted(self, cell: RunCell, sequence: int) -> CellAccepted:
        return CellAccepted(call=cell.call, value_key=self._value_key(cell), sequence=sequence)

    def _recorded(self, session: Session, cell: RunCell) -> bool:
        """Whether a call that cannot be accepted now was accepted before (its end is in the session's log)."""
        try:
            record = self._hub.store.get_call(cell.call)
        except CellburstError:
            return False
        return record is not None and record.session == session.id

    def _accept(self, session: Session, cell: RunCell, buffers: list[memoryview]) -> Call | None:
        """Record the call. None: it was recorded before and has ended."""
        self._check(session, cell)
        resources = self._resources(session, cell)
        container = session.container
        recipe = self._recipe(session, cell)
        volumes = volumes_of(self._hub, session, cell)
        if container is None or not container.detail.serves(resources, recipe):
            if recipe is not None and recipe is not session.recipe:
                self._hub.images.check(session.record.owner.workspace, recipe)
            self._hub.placer.check(resources, session, recipe, cell)
            if container is not None and session.park is None:
                self._hub.parking.begin(session, Cause.MOVE)
        else:
            container.note_scaledown(resources.scaledown_seconds)
        state = _first_state(session)
        cell = msgspec.structs.replace(
            cell, recipe=recipe, keep_image=False, volumes=volumes
        )  # as the inbox has it for the next gateway
        call = Call(
            id=cell.call, resources=resources, value_key=self._value_key(cell), accepted_at=self._hub.clock.monotonic(),
            cell=cell, buffers=buffers, image=cell.image, recipe=recipe, accepted_sequence=session.last_sequence,
            container=container.id if container else "", detached=cell.detach,
        )  # fmt: skip
        self._hub.inbox.put(call.id, "cell", cell, buffers)
        busy = SessionState.BUSY if state is CallState.SENT else SessionState.STARTING
        waits = (SessionState.BUSY, SessionState.PARKING, SessionState.PARKED)  # parked until it is placed
        if session.is_superseded or (busy is SessionState.STARTING and session.state in waits):
            busy = session.state
        try:
            if state is not CallState.SENT:  # else the record of the last cell's end need not come first
                self._hub.write_now()
            _, created = self._hub.store.record_call(
                call.id, session.record.owner, session=session.id, now=self._hub.clock.wall(), state=state,
                container=call.container, session_state=busy, detail=msgspec.json.encode(resources).decode(),
            )  # fmt: skip
        except CellburstError:
            self._hub.inbox.drop(call.id)
            raise
        if not created:
            self._hub.inbox.drop(call.id)
            return None
        call.move(state)
        session.call = call
        session.record = dataclasses.replace(session.record, state=busy, last_used=self._hub.clock.wall())
        return call

    def _check(self, session: Session, cell: RunCell) -> None:
        if self._hub.stopping:
            raise error(ErrorCode.UNAVAILABLE, "the gateway is shutting down", next="start it with `cellburst up`")
        if not 0 < len(cell.call) <= MAX_CALL_ID_CHARACTERS:
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"a call id of {len(cell.call)} characters",
                allowed=f"1 to {MAX_CALL_ID_CHARACTERS}",
            )
        if session.call is not None:
            raise error(
                ErrorCode.BUSY, f"session {session.record.name!r} is running another cell",
                next="wait for it, interrupt it, or use session=NAME for one beside it", running=session.call.id,
            )  # fmt: skip
        if session.is_superseded:
            raise error(
                ErrorCode.CONFLICT, f"another kernel has taken over session {session.record.name!r} of this notebook",
                next="`%modal attach` takes it back",
            )  # fmt: skip
        if session.state is SessionState.ENDED:
            raise error(
                ErrorCode.NOT_FOUND, f"session {session.record.name!r} has ended ({_ended_why(session)})",
                next="run the cell again: it starts a new one",
            )  # fmt: skip
        if cell.image is None and (session.container is None or session.park is not None):
            raise error(
                ErrorCode.BAD_ARGUMENT, "this session has no container, and the cell does not say what image to start"
            )

    def _recipe(self, session: Session, cell: RunCell) -> ImageRecipe | None:
        """The image that the cell runs in, None for the mirror. Raises RequestError (BAD_ARGUMENT)."""
        goes_on = session.container is not None or session.kept is not None
        return session.recipe if cell.keep_image and goes_on else checked(cell.recipe)

    def _resources(self, session: Session, cell: RunCell) -> Resources:
        container, kept = session.container, session.kept
        had = container.detail.resources if container else kept.resources if kept else None
        asked = cell.resources or had or Resources()
        most = self._hub.config.max_timeout_seconds
        if asked.timeout_seconds is not None and not 0 < asked.timeout_seconds <= most:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"timeout={asked.timeout_seconds:g}s is not possible here",
                allowed=f"more than 0 and at most {most:g}s", next="the operator can raise gateway.max_timeout_seconds",
            )  # fmt: skip
        if (
            not 0.1 <= asked.cpu <= 1024
            or not 64 <= asked.memory_mib <= 64 * 1024**2
            or not 0 < asked.scaledown_seconds <= 30 * 86400
        ):
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"cpu={asked.cpu:g}, memory={asked.memory_mib}MiB, scaledown_window={asked.scaledown_seconds:g}s cannot be had",
                allowed="cpu 0.1 to 1024, memory 64MiB to 64TiB, scaledown_window up to 30 days",
            )
        if asked.budget_usd is not None:
            asked = msgspec.structs.replace(asked, budget_usd=parse_usd(asked.budget_usd))
            if container is not None and container.detail.serves(asked, self._recipe(session, cell)):
                refused = plan(Decimal(asked.budget_usd or 0), container.usd_per_second).refused
                if refused is not None:
                    raise from_info(refused)
        return asked

    def _value_key(self, cell: RunCell) -> str:
        return value_key(self._hub.secrets.master_key, cell.call, cell.input, cell.attempt)

    # -- handing over ----------------------------------------------------------------------------------------------

    async def hand_over(self, session: Session, call: Call) -> None:
        """Send the cell to its container; it is SENT in the record. Also a second time, after a lost link."""
        container, cell = session.container, call.cell
        assert container is not None
        if cell is None:
            self.not_handed_over(session, call)
            return
        if call.starts == 0:
            call.billed_from_uptime = container.uptime(self._hub.clock.monotonic())
        if (why := self._over_budget(call, container)) is not None:
            self.end(session, call, EndReason.BUDGET, error=why)
            return
        if not await self._secrets_released(session, call, container):
            return
        try:
            # The caller had no key yet when it sent the cell: over its authenticated link its word is the seal.
            carried = [g for g in (*cell.names, *cell.modules) if any(part.at != "there" for part in g.parts)]
            seal = sign(call.value_key, "in", carried) if carried else ""
            told = msgspec.structs.replace(
                cell, value_key=call.value_key, mac=seal, recipe=None, volumes=None, has_mirror=False
            )
            await container.send(told, call.buffers)
            if call.names is not None:
                await container.send(*call.names)
        except CellburstError as why_not:
            if session.call is call:
                self.end(session, call, EndReason.CONTAINER_LOST, error=why_not.info)

    async def _secrets_released(self, session: Session, call: Call, container: ContainerHandle) -> bool:
        """Whether the cell may be sent: its container has its secrets. Else the call has ended, or somebody else goes on."""
        cell, desk = call.cell, self._hub.secret_desk
        if cell is None or (cell.secrets is None and not desk.ever(session)):
            return True
        try:
            await desk.release(session, call, container)
        except CellburstError as why:
            if session.call is call and session.container is container:
                self.end(session, call, EndReason.START_FAILED, error=why.info)
            return False
        return session.call is call and session.container is container and call.cell is not None

    def not_handed_over(self, session: Session, call: Call) -> None:
        """End a call whose code is known no more: after a power cut."""
        self.end(session, call, EndReason.CONTAINER_LOST, error=_not_handed_over())

    async def names(self, session: Session, message: NamesData, buffers: list[memoryview]) -> None:
        """The kernel's answer to NamesNeeded: kept until the code has started, and passed on."""
        call = session.call
        if call is None or call.id != message.call or session.container is None:
            return  # the call ended meanwhile
        self._hub.inbox.put(call.id, "names", message, buffers)
        call.names = (message, buffers)
        await session.container.send(message, buffers)

    def started(self, session: Session, call: Call) -> None:
        """User code has started: from here on at most once."""
        if call.state is CallState.RUNNING:
            return
        call.move(CallState.RUNNING)
        call.started_at = self._hub.clock.monotonic()
        call.cell, call.buffers, call.names = None, [], None
        now = self._hub.clock.wall()
        self._hub.later(lambda: self._hub.store.move_call(call.id, CallState.RUNNING, now=now))
        self._hub.later(lambda: self._hub.inbox.drop(call.id))

    # -- stopping --------------------------------------------------------------------------------------------------

    def interrupt(self, session: Session, level: int, call_id: str = "") -> None:
        """A person's interrupt. Before the code started it cancels; else each hop passes it on at once."""
        call = session.call
        if call is None or (call_id and call.id != call_id):
            return
        call.interrupted = True
        if call.before_code:
            self._hub.placer.forget(call)
            self.end(session, call, EndReason.CANCELLED)
            if session.container is not None and session.container.building:  # minutes of a lease that nobody waits for
                self._hub.events.release(session.container, EndReason.STOPPED)
        elif session.container is not None and not self.send_interrupt(session.container, call, level):
            session.notice("The worker cannot be reached now; the interrupt is delivered when it is back.")

    def send_interrupt(self, container: ContainerHandle, call: Call, level: int) -> bool:
        """Pass an interrupt to the container's worker. False: it is not connected."""
        told = self._hub.fleet.notify(container.worker, Interrupt(container=container.id, call=call.id, level=level))
        call.interrupt_due = 0 if told else level
        return told

    def tick(self, session: Session) -> None:
        """Stop what has spent its budget. Called several times a second."""
        call, container = session.call, session.container
        if call is None or container is None or call.end_reason is not None or call.before_code:
            return
        if self._over_budget(call, container) is not None:
            call.end_reason = EndReason.BUDGET
            session.notice(f"The budget of ${call.resources.budget_usd} is nearly used: the cell is stopped.")
            self.send_interrupt(container, call, 2)

    def _over_budget(self, call: Call, container: ContainerHandle) -> ErrorInfo | None:
        budget = call.budget_usd
        if budget is None:
            return None
        spent = container.cost(self._hub.clock.monotonic(), call.billed_from_uptime)
        return plan(budget, container.usd_per_second, spent).refused

    # -- ending ----------------------------------------------------------------------------------------------------

    def end(
        self,
        session: Session,
        call: Call,
        reason: EndReason,
        *,
        error: ErrorInfo | None = None,
        run_seconds: float | None = None,
    ) -> None:
        """End a call: in the log first, which the record then follows."""
        if session.call is not call or call.ended:
            return
        now = self._hub.clock.monotonic()
        container = session.container
        if run_seconds is None:
            run_seconds = now - call.started_at if call.started_at is not None else 0.0
        if call.started_at is not None and "run" not in call.phases:
            call.add_phase(PhaseTime(name="run", seconds=run_seconds))
        if (
            reason is EndReason.BUDGET
            and call.budget_usd is not None
            and container is not None
            and call.started_at is not None
        ):
            error = exhausted(call.budget_usd, container.usd_per_second, run_seconds)
        cost = (
            container.cost(now, call.billed_from_uptime)
            if container and call.container == container.id and not call.before_code
            else Decimal(0)
        )
        call.state = CALL_END_STATE[reason]
        session.call = None
        session.idle_since = now
        session.emit(
            CallEnded(
                state=call.state, reason=reason, error=error, run_seconds=round(run_seconds, 4), phases=call.phase_list(),
                cost_usd=format(cost, "f"), container=call.container,
            ),
            call=call.id,
        )  # fmt: skip
        session.record = dataclasses.replace(session.record, state=session.at_rest)
        wall = self._hub.clock.wall()
        self._hub.later(lambda: self._record_end(session, call, reason, error, run_seconds, cost, wall))
        if call.detached:
            self._hub.endings.cell(session.record, call.id, reason, error, run_seconds, wall)
        self._hub.metrics.add("cellburst_calls_total", reason=reason.value)
        log.info(
            "call ended",
            extra={"call": call.id, "session": session.id, "reason": reason.value, "run_seconds": run_seconds},
        )

    def _record_end(
        self,
        session: Session,
        call: Call,
        reason: EndReason,
        why: ErrorInfo | None,
        run_seconds: float,
        cost: Decimal,
        now: float,
    ) -> None:
        # A session that already runs its next cell, or has ended, keeps its state.
        idle = SessionState.IDLE if session.call is None and session.state is SessionState.IDLE else None
        self._hub.store.end_call(
            call.id, reason, now=now, error=why, run_seconds=run_seconds, cost_usd=cost, session_state=idle
        )
        self._hub.inbox.drop(call.id)


def _first_state(session: Session) -> CallState:
    container = session.container
    if container is None or session.park is not None:
        return CallState.QUEUED
    return CallState.SENT if container.state is ContainerState.READY else CallState.STARTING


def _ended_why(session: Session) -> str:
    reason = session.record.reason
    return reason.value.replace("_", " ") if reason is not None else "for no known reason"


def describe(resources: Resources) -> str:
    """Resources in a person's words."""
    gpus = f"gpu={','.join(map(str, resources.gpus))}" if resources.gpus else "no GPU"
    return f"{gpus}, cpu={resources.cpu:g}, memory={resources.memory_mib}MiB, network={resources.network}"


def _not_handed_over() -> ErrorInfo:
    return ErrorInfo(
        code=ErrorCode.UNAVAILABLE, message="the gateway was stopped before it could hand the cell over; none of its code ran",
        next="run the cell again",
    )  # fmt: skip


def _reply(session: Session, message: CellAccepted | CellRefused) -> None:
    if session.subscriber is not None:
        session.subscriber.post(message)
