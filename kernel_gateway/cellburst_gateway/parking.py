"""Putting sessions away and knowing where they are kept. The walk, and who moves a session when:

    idle ──begin──▶ parking ──ContainerParked──▶ (kept) ──container's end──▶ parked ──placed──▶ starting ──Ready──▶ busy
                       │                                                        ▲                  │
                       └──ParkFailed──▶ idle                                    └──start failed────┘

begin            `Parking.begin`: by time (`park_rules.due`), by a person (`ask`), for who waits (`placer.py`), for a move
ContainerParked  `Parking.parked`: from here on the session survives its container, whatever happens to that
container's end  `WorkerEvents._take_away`, which asks `leaves` what the session is then
placed           `placer.py`, on the worker that keeps it; Ready: `WorkerEvents._ready`, which gives the bytes up

`session.park` is a park under way, `session.kept` what a worker keeps; the state follows them, but a superseded session stays
superseded while both come and go. What can come between:

- A cell while it parks is accepted, QUEUED and waits; `left` places it, `failed` hands it to the container that lives on.
- A cell with other resources or another image than its container's is the same, with a park that it began itself; if that
  fails, it ends.
- Interrupting a cell that waits cancels it; the park goes on.
- Stop ends the session at once, and the worker is told to stop the container. If it had committed the bytes meanwhile, its
  ContainerParked finds no session and is answered by ForgetParked, as is its next join.
- A worker that is gone while it parks may have committed: the session is PARKED for now, and the next join's list
  decides. A worker that joins without the bytes has lost them (`kept_missing`): said at the next cell.
- The gateway started again: the record has the id; the log has what was said of it. If neither has an answer when
  the worker has sent all it had, the same id is asked for again.
- The kernel restarted: the new one supersedes the parked session, which stays until it expires; attach takes it back.
- Two requests that want the same idle session: the first claims it in its pass; while it is on its way out
  (`Holding.leaving`) no other session has to go for the same request.
- `cellburst down` ends what runs and leaves parked what is parked, or is being parked: workers finish that.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import (
    ContainerParked,
    ForgetParked,
    ParkContainer,
    ParkedInfo,
    ParkFailed,
    ParkSession,
    Queued,
    SessionParked,
)
from cellburst_protocol.peer import LinkClosed
from cellburst_protocol.states import CallState, ContainerState, EndReason, SessionState

from .calls import Call
from .containers import ContainerHandle, same_image
from .park_rules import ENDS_WITH, RETRY_SECONDS, Cause, End, Park, Pending, Standing, due
from .session import ParkUnderWay, Session
from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub

DAY_SECONDS = 86400.0
# Ends of a container that say nothing of its park: a killed worker may have committed it, a stopped one still does.
COMES_BACK = frozenset({EndReason.WORKER_LOST, EndReason.SHUTDOWN})

log = logging.getLogger(__name__)


class Parking:
    """All parks under way, and what follows from each report on them."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        hub.metrics.counter("cellburst_parks_total", "Parks that ended, by cause and outcome.")

    # -- beginning -------------------------------------------------------------------------------------------------

    async def ask(self, owner: Owner, asked: ParkSession) -> SessionParked:
        """A person parks a session; the answer when it is safe.

        Raises RequestError (NOT_FOUND, BUSY), PlatformError (UNAVAILABLE, or the worker's reason: it lives on then).
        """
        session = self._hub.sessions.named(owner, asked.session, asked.notebook, asked.name)
        if session.call is not None:
            raise error(
                ErrorCode.BUSY, f"session {session.record.name!r} runs a cell",
                next="wait for it, or interrupt it; `%modal stop` ends the session", running=session.call.id,
            )  # fmt: skip
        if session.park is None and session.kept is not None and session.container is None:
            return SessionParked(parked=session.kept)
        park = session.park or self.begin(session, Cause.USER)
        waiter: asyncio.Future[SessionParked] = asyncio.get_running_loop().create_future()
        park.waiters.append(waiter)
        return await waiter

    def tick(self, session: Session, now: float) -> None:
        """Do what time brings to a session: park it, give it up. Raises CellburstError when the record cannot be written."""
        if session.call is not None or session.park is not None:
            return
        match due(self._standing(session, now)):
            case Park(cause=cause):
                self.begin(session, cause)
            case End(reason=reason):
                self._hub.sessions.end(session, reason)

    def _standing(self, session: Session, now: float) -> Standing:
        handle, left, failed = session.container, session.kernel_left_at, session.park_failed_at
        ready = handle is not None and self.obstacle(session) is None
        if handle is not None and handle.state is not ContainerState.READY and session.kept is None:
            handle = None  # it starts for nobody any more: ended as if there were none
        return Standing(
            container="ready" if ready else "other" if handle is not None else "",
            idle_for=now - session.idle_since,
            scaledown=handle.detail.resources.scaledown_seconds if handle is not None else 0.0,
            grace=self._hub.config.disconnect_grace_seconds,
            superseded_for=now - session.superseded_at if session.superseded_at is not None else None,
            kernel_gone_for=now - max(left, session.idle_since) if left is not None else None,
            failed_ago=now - failed if failed is not None else None,
            expires_in=session.kept.expires_unix_seconds - self._hub.clock.wall()
            if session.kept is not None and session.container is None
            else None,
        )

    def obstacle(self, session: Session) -> CellburstError | None:
        """Why a session without a call cannot be parked now, or None."""
        name, handle = session.record.name, session.container
        if handle is None:
            return error(
                ErrorCode.NOT_FOUND, f"session {name!r} has no container now: there is nothing to park",
                next="a %%modal cell starts one",
            )  # fmt: skip
        if handle.state is not ContainerState.READY:
            return error(ErrorCode.BUSY, f"session {name!r} is {handle.state.value}", next="try again in a moment")
        if handle.detail.link_image is not None:
            return error(
                ErrorCode.CONFLICT, f"session {name!r} has a link to the gateway of its own: such a link cannot be put away",
                next="`%modal stop` ends the session",
            )  # fmt: skip
        worker = self._hub.fleet.workers.get(handle.worker)
        if worker is None or not worker.reachable:
            return error(
                ErrorCode.UNAVAILABLE, f"the worker of session {name!r} cannot be reached now",
                next="try again when it is back: `cellburst status` shows it",
            )  # fmt: skip
        return None

    def begin(self, session: Session, cause: Cause) -> ParkUnderWay:
        """Put a session away. Raises `obstacle`'s reason, or what keeps the record from being written."""
        obstacle, handle = self.obstacle(session), session.container
        if obstacle is not None or handle is None:
            raise obstacle or error(ErrorCode.INTERNAL, "a session without a container cannot be parked")
        pending = Pending(id=f"p-{secrets.token_hex(8)}", cause=cause)
        session.update(state=SessionState.PARKING, parking=msgspec.json.encode(pending).decode())
        park = session.park = ParkUnderWay(pending.id, cause)
        session.tell_info()
        log.info("parking", extra={"session": session.id, "parked": park.id, "cause": cause.value})
        self.ask_worker(session, handle)
        return park

    def ask_worker(self, session: Session, handle: ContainerHandle) -> None:
        """Ask for the park under way: at first, and again when the worker is back and has said nothing of it."""
        if session.park is not None:
            self._hub.spawn(self._ask_worker(session, handle, session.park))

    async def _ask_worker(self, session: Session, handle: ContainerHandle, park: ParkUnderWay) -> None:
        while session.park is park and session.kept is None:
            worker = self._hub.fleet.workers.get(handle.worker)
            if worker is None or worker.peer is None:
                return  # its next join or its end decides
            try:
                key = self._hub.secret_desk.park_key(session, park.id)
                await worker.peer.request(ParkContainer(container=handle.id, parked=park.id, park_key=key))
                return
            except TimeoutError:
                continue  # the same id again is the same request
            except LinkClosed:
                return
            except CellburstError as why:
                if session.park is park and session.kept is None:
                    self.failed(session, ParkFailed(parked=park.id, error=why.info), None)
                return

    # -- what the worker says --------------------------------------------------------------------------------------

    def parked(
        self, session: Session, handle: ContainerHandle, event: ContainerParked, source: tuple[str, int] | None
    ) -> None:
        """The session is safe on its worker's disk. Raises CellburstError when that could not be written: sent again then."""
        park, kept = session.park, session.kept
        if event.parked.id not in (park.id if park else "", kept.id if kept else ""):
            self._tell_forget(handle.worker, [event.parked.id])
            return
        kept = self._kept(session, handle, event.parked)
        session.emit(ContainerParked(parked=kept, seconds=event.seconds, notes=event.notes), source=source)
        self._keep(session, kept, handle.detail.recipe)
        if park is not None:
            park.seconds, park.notes = event.seconds, event.notes

    def failed(self, session: Session, event: ParkFailed, source: tuple[str, int] | None) -> None:
        """It could not be put away and lives on. Raises CellburstError as `parked`."""
        park = session.park
        if park is None or park.id != event.parked or session.kept is not None:
            return
        session.emit(event, source=source)
        session.update(state=None if session.is_superseded else SessionState.IDLE, parking="")
        session.park, session.park_failed_at = None, self._hub.clock.monotonic()
        self._hub.metrics.add("cellburst_parks_total", cause=park.cause.value, outcome="failed")
        log.warning("not parked: %s", event.error.message, extra={"session": session.id, "cause": park.cause.value})
        park.fail(from_info(event.error))
        call, ends = session.call, ENDS_WITH.get(park.cause)
        if park.cause is Cause.WANTED and session.is_superseded:
            ends = EndReason.EVICTED
        session.tell_info()
        if call is not None and call.state is CallState.QUEUED:
            self._go_on(session, call, event.error)
        elif call is None and ends is not None:
            self._hub.sessions.end(session, ends)
        elif park.cause in (Cause.IDLE, Cause.WANTED) and not session.park_failure_told:
            session.park_failure_told = True
            session.notice(
                f"The idle session {session.record.name!r} could not be parked and keeps what it holds: "
                f"{event.error.message}. It is tried again after {RETRY_SECONDS / 60:.0f} min; `%modal stop` ends it."
            )
        self._hub.placer.kick()

    def _go_on(self, session: Session, call: Call, why: ErrorInfo) -> None:
        """A cell waited for the end of a park that failed: its container lives on."""
        handle = session.container
        if handle is None or not handle.detail.serves(call.resources, call.recipe):
            info = msgspec.structs.replace(
                why,
                message=f"the session could not be moved: {why.message}",
                next="it goes on with what it has; `%modal restart` gives it a new container (its names are lost)",
            )
            self._hub.cells.end(session, call, EndReason.START_FAILED, error=info)
            return
        with self._hub.store.together():
            wall = self._hub.clock.wall()
            self._hub.store.move_call(call.id, CallState.SENT, now=wall, container=handle.id)
            if not session.is_superseded:
                session.update(state=SessionState.BUSY)
        call.move(CallState.SENT)
        call.container = handle.id
        self._hub.spawn(self._hub.cells.hand_over(session, call))

    def _kept(self, session: Session, handle: ContainerHandle, info: ParkedInfo) -> ParkedInfo:
        wall = self._hub.clock.wall()
        return msgspec.structs.replace(
            info, session=session.id, worker=handle.worker, resources=handle.detail.resources,
            expires_unix_seconds=wall + self._hub.config.parked_keep_days * DAY_SECONDS,
        )  # fmt: skip

    def _keep(self, session: Session, kept: ParkedInfo, recipe: ImageRecipe | None) -> None:
        before = session.kept, session.kept_recipe
        session.kept, session.kept_recipe = kept, recipe
        try:
            session.update(parked=session.kept_text())
        except CellburstError:
            session.kept, session.kept_recipe = before
            raise
        session.kept_missing = False
        if session.park is not None:
            session.park.safe = True

    # -- its container is gone -------------------------------------------------------------------------------------

    def leaves(self, session: Session, handle: ContainerHandle, reason: EndReason) -> SessionState:
        """What the session is once this container, its present one, is taken from it."""
        park = session.park
        if park is not None and session.kept is None and reason in COMES_BACK and not park.lost:
            # It may be committed all the same: for now it counts as kept, and the worker's next join decides.
            session.kept = self._kept(session, handle, ParkedInfo(id=park.id, session=session.id))
            session.kept_recipe = handle.detail.recipe
        if session.is_superseded:
            return session.state
        if session.kept is not None:
            return SessionState.PARKED
        return SessionState.IDLE if session.call is None or park is not None else session.state

    def left(self, session: Session, park: ParkUnderWay | None) -> None:
        """The container that was being parked is gone: tell who waits, and place the cell that waits."""
        if park is None:
            return
        kept, name = session.kept, session.record.name
        outcome = "parked" if park.safe else "lost" if kept is None else "unknown"
        self._hub.metrics.add("cellburst_parks_total", cause=park.cause.value, outcome=outcome)
        if kept is not None and park.safe:
            park.done(SessionParked(parked=kept, seconds=park.seconds, notes=park.notes))
        elif kept is not None:
            park.fail(
                error(
                    ErrorCode.WORKER_LOST, f"the worker of session {name!r} was lost while it parked it; whether it is safe is "
                    "known when that worker is back", next="`%modal status` shows it then",
                )
            )  # fmt: skip
        else:
            park.fail(
                error(
                    ErrorCode.CONTAINER_LOST, f"session {name!r} ended before it was parked",
                    next="`%modal status` shows what there is",
                )
            )  # fmt: skip
        call = session.call
        if call is not None and call.state is CallState.QUEUED:
            self._hub.placer.enqueue(session, call)

    # -- cells -----------------------------------------------------------------------------------------------------

    def waits(self, session: Session, call: Call) -> None:
        """A cell came while its session parks: it is told what it waits for."""
        call.queued_at = self._hub.clock.monotonic()
        words = "its session, which is being parked"
        if session.park is not None and session.park.cause is Cause.MOVE:
            where = "other hardware" if same_image(session.recipe, call.recipe) else "another image"
            words = f"its session, which is moved to {where}"
        session.emit(Queued(position=1, waiting_for=words), call=call.id)

    def give_up(self, session: Session, used: str) -> None:
        """The session has a container again and needs its bytes no more; `used` is the id that the worker resumed from,
        which it removes by itself. The record has been written."""
        kept, session.kept, session.kept_missing = session.kept, None, False
        session.kept_recipe = None
        if kept is not None and kept.id != used:
            self._tell_forget(kept.worker, [kept.id])

    # -- workers ---------------------------------------------------------------------------------------------------

    def joined(self, worker: str, listed: list[ParkedInfo], containers: Collection[str]) -> list[str]:
        """A worker joined with these parked sessions and containers; returns the ids that it shall forget."""
        ids = {info.id: info for info in listed}
        needed: set[str] = set()
        for session in self._hub.sessions:
            if session.kept is not None and session.kept.worker == worker:
                needed.add(session.kept.id)
                self._found(session, session.kept, ids.get(session.kept.id))
            elif session.park is not None and session.container is not None and session.container.worker == worker:
                needed.add(session.park.id)
                if session.container.id not in containers:  # else the container's events say what became of it
                    self._settle(session, session.container, ids.get(session.park.id))
        return [info for info in ids if info not in needed]

    def _found(self, session: Session, kept: ParkedInfo, info: ParkedInfo | None) -> None:
        session.kept_missing = info is None
        if info is None:
            log.warning("a parked session is gone from its worker", extra={"session": session.id})
        elif info.parked_unix_seconds != kept.parked_unix_seconds:  # what is known of it comes from this list
            shown = msgspec.structs.replace(
                info, session=session.id, worker=kept.worker, expires_unix_seconds=kept.expires_unix_seconds,
                resources=kept.resources,
            )  # fmt: skip
            self._keep(session, shown, session.kept_recipe)

    def _settle(self, session: Session, handle: ContainerHandle, info: ParkedInfo | None) -> None:
        """The container is gone with its events; the list says whether the session was safe before."""
        if info is not None:
            self._keep(session, self._kept(session, handle, info), handle.detail.recipe)
        elif session.park is not None:
            session.park.lost = True

    def forget(self, session: Session) -> None:
        """The session ends: its bytes are removed where they are kept, now or when that worker joins."""
        if session.kept is not None:
            self._tell_forget(session.kept.worker, [session.kept.id])

    def orphan(self, worker: str, event: ContainerParked) -> None:
        """A session was parked that has ended meanwhile."""
        self._tell_forget(worker, [event.parked.id])

    def _tell_forget(self, worker: str, parked: list[str]) -> None:
        self._hub.fleet.notify(worker, ForgetParked(parked=parked))
