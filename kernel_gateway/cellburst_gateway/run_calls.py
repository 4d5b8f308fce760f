"""Calls of a run in its session: sent, waited for, kept within what the run may spend.

`RunCalls` is to the gateway what a kernel's stream is: the session's subscriber. A call that was sent by an earlier gateway is
not sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.framing import Buffer
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import CallEnded, CellRefused, Message, MirrorSpec, RunCell, SideReply
from cellburst_protocol.schedules import RunReason, ScheduleSpec
from cellburst_protocol.states import EndReason, SessionState

from .budget import plan
from .run_inside import cost_inside, rate_of, waits_inside
from .run_kept import KeptFiles
from .run_log import RunLog
from .run_rules import RunDetail, limits, reason_of, reason_of_refusal
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub

# A wake-up that was lost costs at most this; also how often the clock is looked at while a cell runs.
LOOK_SECONDS = 1.0
JOIN_SECONDS = 60.0  # after a gateway's start, within which its workers are back
CAPACITY_SECONDS = 600.0  # to wait for any worker, or a place in the queue
STUCK_SECONDS = (
    20.0  # a cell's own machine waits, and nobody but the run itself holds anything: longer than any park takes
)


class Ended(Exception):
    """The attempt is over."""

    def __init__(self, reason: RunReason, why: ErrorInfo | None = None) -> None:
        super().__init__(reason.value)
        self.reason, self.why = reason, why


def why_gone(hub: Hub, log: RunLog, session: str) -> RunReason:
    """Why an attempt's session is no more."""
    bad = [ended for call, ended in log.ended.items() if not log.went_well(call)]
    if bad:
        return reason_of(bad[0])
    try:
        reason = hub.store.get_session(session).reason
    except CellburstError:
        reason = None
    return RunReason.GATEWAY_STOPPED if reason is EndReason.SHUTDOWN else RunReason.CONTAINER_LOST


class RunCalls:
    """One attempt's. `machines`: its container is to have a link. `on_look` is awaited every LOOK_SECONDS of a call. `recipe` is
    the image that it runs in, None for the live mirror."""

    def __init__(
        self, hub: Hub, session: Session, spec: ScheduleSpec, attempt: str, log: RunLog, kept: KeptFiles, detail: RunDetail,
        on_look: Callable[[], Awaitable[None]], recipe: ImageRecipe | None = None,
    ) -> None:  # fmt: skip
        self._hub, self._spec, self._attempt, self._log, self._kept = hub, spec, attempt, log, kept
        self._detail, self._on_look, self._recipe = detail, on_look, recipe
        self.session = session
        self.machines = False
        self.cost_usd = Decimal(0)  # of this attempt
        self.cancelled: RunReason | None = None
        self._sent_any = False  # the session was told what it runs in
        self._wakeup = asyncio.Event()
        self._refused: ErrorInfo | None = None
        self._stuck_since: float | None = None
        session.subscriber = self
        session.kernel_left_at = None

    def leave(self) -> None:
        """The attempt is over."""
        if self.session.subscriber is self:
            self.session.subscriber = None

    async def run(self, call: str, code: str, number: int, image: MirrorSpec) -> CallEnded:
        """Send code as a call, if it was not sent before, and wait for its end. Raises Ended."""
        if call not in self._log.ended:
            await self._send(call, code, number, image)
            await self._wait_for(call)
        return self._log.ended[call]

    async def _send(self, call: str, code: str, number: int, image: MirrorSpec) -> None:
        session = self.session
        self._check_alive()
        first, self._sent_any = not self._sent_any and session.container is None, True
        if session.call is not None and session.call.id == call:
            return  # of before the gateway was started again
        resources, spent = limits(
            self._spec,
            ran_seconds=self._ran_seconds(),
            spent_usd=self.cost(),
            max_seconds=self._hub.config.max_timeout_seconds,
        )
        if spent is not None:
            raise Ended(spent)
        request = RunCell(
            call=call, code=code, resources=resources, image=image, recipe=self._recipe, keep_image=not first,
            header={"msg_id": call, "msg_type": "execute_request", "session": self._attempt, "username": "schedule",
                    "version": "5.3"},
            execution_count=number, allow_stdin=False, volumes=self._spec.volumes or None if first else None,
            secrets=self._spec.secrets or None if first else None, with_link=self.machines,
        )  # fmt: skip
        began = self._hub.clock.monotonic()
        while (refused := await self._ask(session, request)) is not None:
            waited = self._hub.clock.monotonic() - began
            if not self._may_wait(refused, waited):
                raise Ended(reason_of_refusal(refused), refused)
            await asyncio.sleep(LOOK_SECONDS)
            self._check_alive()

    async def _ask(self, session: Session, request: RunCell) -> ErrorInfo | None:
        """Send a cell; why it was not accepted, or None."""
        self._refused = None
        session.subscriber = self  # whoever looked at the session beside may have gone with it
        await self._hub.cells.run(session, request, [])
        return self._refused

    def _may_wait(self, refused: ErrorInfo, waited: float) -> bool:
        """Whether what was refused may be had later: workers come back one by one after a gateway was started, and at night
        nobody is there to press a button again."""
        up = self._hub.clock.monotonic() - self._hub.started_monotonic
        if refused.code is ErrorCode.NO_SUCH_HARDWARE:
            return up < JOIN_SECONDS
        return refused.code in (ErrorCode.NO_WORKER, ErrorCode.QUEUE_FULL) and waited < CAPACITY_SECONDS

    def _check_alive(self) -> None:
        session = self.session
        if self.cancelled is not None:
            raise Ended(self.cancelled)
        if session.state is SessionState.ENDED:
            raise Ended(why_gone(self._hub, self._log, session.id))
        if self._log.ended and (
            self._log.names_lost or (session.container is None and session.kept is None and session.park is None)
        ):
            raise Ended(RunReason.CONTAINER_LOST)

    async def _wait_for(self, call: str) -> None:
        session = self.session
        while call not in self._log.ended:
            self._wakeup.clear()
            self._log.read(session.id)
            if call in self._log.ended:
                return
            if self._log.names_lost:  # its code runs without the names of the cells before
                self._hub.sessions.end(session, EndReason.CONTAINER_LOST)
                raise Ended(RunReason.CONTAINER_LOST)
            if session.state is SessionState.ENDED and session.call is None:
                raise Ended(why_gone(self._hub, self._log, session.id))
            if session.call is None or session.call.id != call:
                self._ended_unseen(call)
                continue
            self._check_budget(session)
            self._check_stuck(session)
            await self._on_look()
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wakeup.wait()
            except TimeoutError:
                pass

    def _check_budget(self, session: Session) -> None:
        """The budget of a run with sessions inside it; the gateway itself looks after that of the cell that runs."""
        spent = self.cost()  # also where there is no budget: who stops the session takes the container's count away
        if self.machines and self._spec.budget_usd is not None:
            budget, rate = Decimal(self._spec.budget_usd), rate_of(self._hub, session)
            if plan(budget, rate, spent).refused is not None:
                self._hub.sessions.end(session, EndReason.BUDGET)
                raise Ended(RunReason.BUDGET)

    def _check_stuck(self, session: Session) -> None:
        """A cell whose own machine waits for what the run's own session holds would wait for ever, and be billed for it."""
        fleet, now = self._hub.fleet, self._hub.clock.monotonic()
        others = any(handle.session != session.id for handle in fleet.containers.values())
        if not self.machines or others or not waits_inside(self._hub, session.id) or session.container is None:
            self._stuck_since = None
            return
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        if now - self._stuck_since >= STUCK_SECONDS:
            self._hub.sessions.end(session, EndReason.NO_CAPACITY)
            why = "it waits for a machine of its own, and all that could be one is held by the run's own session"
            then = "schedule it without gpu= for the run, or with one session for all cells (--modal-cells same)"
            raise Ended(RunReason.START_FAILED, ErrorInfo(code=ErrorCode.NO_SUCH_HARDWARE, message=why, next=then))

    def _ended_unseen(self, call: str) -> None:
        """The call is over and its end is not in the log: the oldest of the log was dropped for want of room."""
        self._hub.write_now()
        record = self._hub.store.get_call(call)
        if record is None or record.reason is None:
            raise Ended(RunReason.CONTAINER_LOST)
        self._log.ended[call] = CallEnded(
            state=record.state, reason=record.reason, error=record.error, run_seconds=record.run_seconds
        )

    def _ran_seconds(self) -> float:
        began = self._detail.began_unix_seconds
        return max(0.0, self._hub.clock.wall() - began) if began else 0.0

    def cost(self) -> Decimal:
        """What the attempts cost so far."""
        container = self.session.container
        now = container.cost(self._hub.clock.monotonic()) if container is not None else Decimal(0)
        if self.machines:
            with contextlib.suppress(CellburstError):  # a record that cannot be read now: what was known stands
                now += cost_inside(self._hub, self.session)
        self.cost_usd = max(self.cost_usd, now)
        return Decimal(self._detail.spent_usd) + self.cost_usd

    # -- events ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """As the session's subscriber: there are new events in its log."""
        self._wakeup.set()

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """As the session's subscriber: what is said beside events."""
        if isinstance(message, CellRefused):
            self._refused = message.error
        elif isinstance(message, SideReply):
            self._kept.answered(message, buffers)

    def post_live(self, message: Message) -> None:
        """As the session's subscriber: live figures, which nobody looks at here."""

    def close(self, why: str) -> None:
        """As the session's subscriber: another stream took the session. The log is read on, once a second."""
