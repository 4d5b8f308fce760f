"""Sessions, and who holds a name: at most one live session for each (workspace, notebook, name), by a unique index."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, func, select

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.states import SESSION_TRANSITIONS, EndReason, SessionState, advance, is_terminal

from .store_base import StoreBase
from .store_prepared import insert_row, row_of, update_row
from .store_rows import Owner, SessionRecord
from .store_schema import sessions


def session_record(row: Row[Any]) -> SessionRecord:
    """A row of `sessions` as what verbs return."""
    return SessionRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), notebook=row.notebook, name=row.name, generation=row.generation,
        kernel_id=row.kernel_id, state=SessionState(row.state), live=bool(row.live), container=row.container,
        reason=EndReason(row.reason) if row.reason else None, created=row.created, last_used=row.last_used, ended=row.ended,
        detail=row.detail, parking=row.parking, parked=row.parked,
    )  # fmt: skip


class SessionVerbs(StoreBase):
    """Verbs on sessions."""

    def create_session(
        self, session_id: str, owner: Owner, *, notebook: str, name: str, kernel_id: str, now: float, supersede: bool = False,
        detail: str = "",
    ) -> tuple[SessionRecord, bool, SessionRecord | None]:  # fmt: skip
        """Make a session (STARTING) that holds its name. The same id again gives its row and False.

        The third value is the session it took the name from, SUPERSEDED now. Without `supersede` a held name is refused.
        Raises RequestError (CONFLICT): name held, or the id used for something else.
        """
        with self._transaction() as c:
            row = row_of(c, sessions, session_id)
            if row is not None:
                found = session_record(row)
                if (found.owner.workspace, found.notebook, found.name) != (owner.workspace, notebook, name):
                    raise error(
                        ErrorCode.CONFLICT, f"session id {session_id!r} is that of {found.name!r} of {found.notebook!r}"
                    )
                return found, False, None
            holder = _holder(c, owner.workspace, notebook, name)
            if holder is not None and not supersede:
                raise error(
                    ErrorCode.CONFLICT, f"{name!r} of {notebook!r} is held by session {holder.id}",
                    next="attach to it, stop it, or use session=NAME with another name",
                )  # fmt: skip
            loser = _supersede(c, holder, now) if holder is not None else None
            same_name = (
                (sessions.c.workspace == owner.workspace)
                & (sessions.c.notebook == notebook)
                & (sessions.c.name == name)
            )
            generation = (c.execute(select(func.max(sessions.c.generation)).where(same_name)).scalar() or 0) + 1
            values = {
                "id": session_id, "workspace": owner.workspace, "owner": owner.principal, "notebook": notebook, "name": name,
                "generation": generation, "kernel_id": kernel_id, "state": SessionState.STARTING.value, "live": 1,
                "container": "", "reason": "", "created": now, "last_used": now, "ended": None, "detail": detail,
                "parking": "", "parked": "",
            }  # fmt: skip
            insert_row(c, sessions, values)
            return locked_session(c, session_id), True, loser

    def find_live_sessions(self, workspace: str, notebook: str, name: str) -> list[SessionRecord]:
        """All sessions of the name that have not ended, newest generation first; the one with `live` holds the name."""
        with self._transaction() as c:
            here = (sessions.c.workspace == workspace) & (sessions.c.notebook == notebook) & (sessions.c.name == name)
            query = select(sessions).where(here, sessions.c.ended.is_(None)).order_by(sessions.c.generation.desc())
            return [session_record(row) for row in c.execute(query)]

    def get_session(self, session_id: str) -> SessionRecord:
        """One session, ended or not. Raises RequestError (NOT_FOUND)."""
        with self._transaction() as c:
            return locked_session(c, session_id)

    def list_sessions(self, workspace: str | None = None, *, ended: bool = False) -> list[SessionRecord]:
        """Sessions of one workspace or of all, those still there or all, oldest first."""
        query = select(sessions).order_by(sessions.c.created, sessions.c.generation)
        if workspace is not None:
            query = query.where(sessions.c.workspace == workspace)
        if not ended:
            query = query.where(sessions.c.ended.is_(None))
        with self._transaction() as c:
            return [session_record(row) for row in c.execute(query)]

    def update_session(
        self, session_id: str, *, now: float, state: SessionState | None = None, container: str | None = None,
        kernel_id: str | None = None, reason: EndReason | None = None, detail: str | None = None,
        parking: str | None = None, parked: str | None = None,
    ) -> SessionRecord:  # fmt: skip
        """Change what is given. The state it already has is no move; ENDED gives the name free.

        A superseded session that becomes IDLE or BUSY stays without its name: `take_name` gives it back. Raises
        RequestError (NOT_FOUND), TransitionError.
        """
        with self._transaction() as c:
            return change_session(
                c,
                session_id,
                now=now,
                state=state,
                container=container,
                kernel_id=kernel_id,
                reason=reason,
                detail=detail,
                parking=parking,
                parked=parked,
            )

    def supersede_session(self, session_id: str, *, now: float) -> SessionRecord:
        """Take the session's name from it without making another. Raises RequestError (NOT_FOUND), TransitionError."""
        with self._transaction() as c:
            return _supersede(c, locked_session(c, session_id), now)

    def take_name(self, session_id: str, *, kernel_id: str, now: float) -> tuple[SessionRecord, SessionRecord | None]:
        """Give a session (a superseded one, on attach) its name back for this kernel; whoever held it is superseded.

        A superseded one becomes PARKED if it is, else IDLE; the caller moves it on from there if it runs a cell or is
        being parked. Again: no change. Raises RequestError
        (NOT_FOUND; CONFLICT when it has ended).
        """
        with self._transaction() as c:
            session = locked_session(c, session_id)
            if is_terminal(SESSION_TRANSITIONS, session.state):
                raise error(
                    ErrorCode.CONFLICT, f"session {session_id} has ended", next="run a cell: it makes a new session"
                )
            holder = _holder(c, session.owner.workspace, session.notebook, session.name)
            loser = _supersede(c, holder, now) if holder is not None and holder.id != session_id else None
            state = session.state
            if state is SessionState.SUPERSEDED:
                state = at_rest(session)
            values = {"live": 1, "kernel_id": kernel_id, "state": state.value, "last_used": now}
            update_row(c, sessions, session_id, values)
            return locked_session(c, session_id), loser


def locked_session(c: Connection, session_id: str) -> SessionRecord:
    """The session's row, locked until the transaction ends. Raises RequestError (NOT_FOUND)."""
    row = row_of(c, sessions, session_id)
    if row is None:
        raise error(
            ErrorCode.NOT_FOUND, f"no session {session_id!r}", next="`%modal status` lists the sessions there are"
        )
    return session_record(row)


def change_session(
    c: Connection, session_id: str, *, now: float, state: SessionState | None = None, container: str | None = None,
    kernel_id: str | None = None, reason: EndReason | None = None, detail: str | None = None,
    parking: str | None = None, parked: str | None = None, unless: Collection[SessionState] = (),
) -> SessionRecord:  # fmt: skip
    """`update_session` inside another verb's transaction; a session in a state of `unless` is left as it is."""
    before = locked_session(c, session_id)
    if before.state in unless:
        return before
    given = {
        "container": container,
        "kernel_id": kernel_id,
        "detail": detail,
        "parking": parking,
        "parked": parked,
    }
    values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    after = replace(before, **values)
    if state is not None and state is not before.state:
        advance(SESSION_TRANSITIONS, before.state, state, f"session {session_id}")
        values |= {"state": state.value, "last_used": now}
        after = replace(after, state=state, last_used=now)
        if state is SessionState.SUPERSEDED:
            values["live"] = 0
            after = replace(after, live=False)
        if is_terminal(SESSION_TRANSITIONS, state):
            values |= {"live": 0, "ended": now, "reason": reason.value if reason else ""}
            after = replace(after, live=False, ended=now, reason=reason)
    if values:
        update_row(c, sessions, session_id, values)
    return after


def at_rest(session: SessionRecord) -> SessionState:
    """What a session without call and container is: PARKED while a worker keeps it, else IDLE."""
    return SessionState.PARKED if session.parked else SessionState.IDLE


def _holder(c: Connection, workspace: str, notebook: str, name: str) -> SessionRecord | None:
    here = (sessions.c.workspace == workspace) & (sessions.c.notebook == notebook) & (sessions.c.name == name)
    row = c.execute(select(sessions).where(here, sessions.c.live == 1).with_for_update()).first()
    return session_record(row) if row is not None else None


def _supersede(c: Connection, session: SessionRecord, now: float) -> SessionRecord:
    return change_session(c, session.id, now=now, state=SessionState.SUPERSEDED)
