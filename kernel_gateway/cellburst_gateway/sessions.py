"""All sessions that have not ended: found, made, superseded, attached to, and ended when nobody needs them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import SessionRow, SessionStream, StopSession, UsageReport
from cellburst_protocol.states import EndReason, SessionState

from .container_link import end_inner
from .containers import ContainerHandle
from .session import Session
from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub

MAX_NAME_CHARACTERS = 1024  # of a notebook's path or a session's name: a path fits, a megabyte does not

log = logging.getLogger(__name__)


class Sessions:
    """Live sessions by id."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._by_id: dict[str, Session] = {}
        hub.metrics.gauge("cellburst_sessions", "Sessions that have not ended, by state.", self._count)

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._by_id.values()))

    def get(self, session_id: str) -> Session | None:
        """A session, or None when it has ended or never was."""
        return self._by_id.get(session_id)

    def add(self, session: Session) -> None:
        """Take a session in (a new one, or one of the record at start)."""
        self._by_id[session.id] = session

    def owned(self, workspace: str, session_id: str) -> Session:
        """A session of this workspace. Raises RequestError (NOT_FOUND), also for another workspace's."""
        session = self._by_id.get(session_id)
        if session is None or session.record.owner.workspace != workspace:
            raise error(
                ErrorCode.NOT_FOUND,
                f"there is no live session {session_id[:80]!r}",
                next="`%modal status` lists the sessions there are",
            )
        return session

    def find(self, workspace: str, notebook: str, name: str = "") -> list[Session]:
        """Sessions of a notebook, of one name or all, newest generation first."""
        found = [
            s for s in self._by_id.values()
            if s.record.owner.workspace == workspace and s.record.notebook == notebook and name in ("", s.record.name)
        ]  # fmt: skip
        return sorted(found, key=lambda s: (s.record.live, s.record.generation), reverse=True)

    # -- opening ---------------------------------------------------------------------------------------------------

    def open(self, owner: Owner, asked: SessionStream) -> Session:
        """The session that a kernel's stream is for. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        for what, text in (("notebook", asked.notebook), ("name", asked.name), ("kernel_id", asked.kernel_id)):
            if len(text) > MAX_NAME_CHARACTERS:
                raise error(
                    ErrorCode.BAD_ARGUMENT,
                    f"{what} of {len(text)} characters",
                    allowed=f"at most {MAX_NAME_CHARACTERS}",
                )
        self._hub.write_now()
        if asked.session:
            return self._open_exactly(owner, asked)
        live = next((s for s in self.find(owner.workspace, asked.notebook, asked.name) if s.record.live), None)
        if live is not None and (asked.attach or live.record.kernel_id == asked.kernel_id):
            if live.record.kernel_id != asked.kernel_id:
                live.update(kernel_id=asked.kernel_id)
            return live
        return self._make(owner, asked)

    def _open_exactly(self, owner: Owner, asked: SessionStream) -> Session:
        session = self.owned(owner.workspace, asked.session)
        if session.is_superseded and asked.attach:
            record, loser = self._hub.store.take_name(session.id, kernel_id=asked.kernel_id, now=self._hub.clock.wall())
            session.record, session.superseded_at = record, None
            self._goes_on(session)
            if loser is not None and (other := self.get(loser.id)) is not None:
                self._became_superseded(other)
        elif asked.kernel_id and session.record.kernel_id != asked.kernel_id and asked.attach:
            session.update(kernel_id=asked.kernel_id)
        return session

    def _goes_on(self, session: Session) -> None:
        """It was superseded and has its name back: its state is again what it does."""
        if session.container is None:
            return  # parked or idle, as the record found
        if session.state is SessionState.PARKED:
            session.update(state=SessionState.STARTING)
        elif session.park is not None:
            session.update(state=SessionState.PARKING)
        elif session.call is not None:
            session.update(state=SessionState.BUSY)

    def _make(self, owner: Owner, asked: SessionStream) -> Session:
        record, _, loser = self._hub.store.create_session(
            f"s-{secrets.token_hex(8)}", owner, notebook=asked.notebook, name=asked.name, kernel_id=asked.kernel_id,
            now=self._hub.clock.wall(), supersede=True,
        )  # fmt: skip
        session = Session(self._hub, record, 0)
        self.add(session)
        if loser is not None and (old := self.get(loser.id)) is not None:
            self._became_superseded(old)
            session.superseded = old.record if self._is_worth_keeping(old) else None
        log.info("session made", extra={"session": session.id, "superseded": loser.id if loser else ""})
        return session

    def _became_superseded(self, session: Session) -> None:
        session.record = self._hub.store.get_session(session.id)
        session.superseded_at = self._hub.clock.monotonic()
        session.tell_info()
        if self._is_worth_keeping(session):
            self._hub.placer.kick()
        else:
            self.end(session, EndReason.SUPERSEDED)

    @staticmethod
    def _is_worth_keeping(session: Session) -> bool:
        return session.container is not None or session.call is not None or session.kept is not None

    # -- ending ----------------------------------------------------------------------------------------------------

    def stop(self, owner: Owner, asked: StopSession) -> None:
        """A person ends a session. Raises RequestError (NOT_FOUND)."""
        self.end(self.named(owner, asked.session, asked.notebook, asked.name), EndReason.STOPPED)

    def named(self, owner: Owner, session: str, notebook: str, name: str) -> Session:
        """The session that a person means, by its id or by notebook and name. Raises RequestError (NOT_FOUND)."""
        if session:
            return self.owned(owner.workspace, session)
        found = self.find(owner.workspace, notebook, name or "default")
        if not found:
            raise error(
                ErrorCode.NOT_FOUND, f"notebook {notebook[:200]!r} has no live session {name or 'default'!r}",
                next="`%modal status` lists the sessions there are",
            )  # fmt: skip
        return found[0]

    def end(self, session: Session, reason: EndReason) -> None:
        """End a session: its call, its container, its name, what is kept of it."""
        if session.state is SessionState.ENDED:
            return
        self._hub.parking.forget(session)
        self._end_what_runs(session, reason)
        session.update(state=SessionState.ENDED, reason=reason)
        session.tell_info()
        del self._by_id[session.id]
        self._hub.logs.release(session.id)
        end_inner(self._hub, session.id)
        log.info("session ended", extra={"session": session.id, "reason": reason.value})

    def shut_down(self, session: Session) -> None:
        """The gateway stops: end a session, unless a worker keeps it or is about to; then only what runs of it."""
        if session.kept is None and session.park is None:
            self.end(session, EndReason.SHUTDOWN)
        else:
            self._end_what_runs(session, EndReason.SHUTDOWN)

    def _end_what_runs(self, session: Session, reason: EndReason) -> None:
        call, container = session.call, session.container
        if call is not None:
            self._hub.placer.forget(call)
            if container is not None and not call.before_code:
                self._hub.cells.send_interrupt(container, call, 3)
            self._hub.cells.end(session, call, reason)
        self._hub.write_now()
        if container is not None:
            self._hub.events.release(container, reason)

    def set_state(self, session: Session, state: SessionState) -> None:
        """Move a session, unless it is superseded: then it stays so."""
        if session.state is not state and not session.is_superseded:
            session.update(state=state)

    # -- kernels and time ------------------------------------------------------------------------------------------

    def tell_usage(self, handle: ContainerHandle) -> None:
        """Live figures of a container go to its session's kernel."""
        session = self.get(handle.session)
        if session is None or session.subscriber is None or handle.usage is None or session.container is not handle:
            return
        now = self._hub.clock.monotonic()
        call = session.call
        mine = call is not None and not call.before_code
        session.subscriber.post_live(
            UsageReport(
                usage=handle.usage, cost_usd=format(handle.cost(now), "f"), usd_per_second=format(handle.usd_per_second, "f"),
                call_cost_usd=format(handle.cost(now, call.billed_from_uptime), "f") if call is not None and mine else "0",
            )
        )  # fmt: skip

    def tick(self) -> None:
        """Park or end what nobody needs: idle, superseded and expired sessions, and those whose kernel is gone."""
        now = self._hub.clock.monotonic()
        for session in self:
            try:
                self._hub.cells.tick(session)
                self._hub.parking.tick(session, now)
            except CellburstError as why:
                log.error("a session could not be looked after: %s", why.info.message, extra={"session": session.id})

    # -- how they are shown ----------------------------------------------------------------------------------------

    def cost_text(self, session: Session) -> str:
        """What the session's present container cost so far; `GetCost` sums over earlier ones."""
        if session.container is None:
            return "0"
        return format(session.container.cost(self._hub.clock.monotonic()), "f")

    def rows(self, workspace: str) -> list[SessionRow]:
        """Sessions of a workspace as lists show them."""
        return [s.row() for s in self._by_id.values() if s.record.owner.workspace == workspace]

    def _count(self) -> Iterator[tuple[tuple[tuple[str, str], ...], float]]:
        for state in SessionState:
            if state is not SessionState.ENDED:
                yield (("state", state.value),), sum(s.state is state for s in self._by_id.values())
