"""Calls: durable before they are acted on, moved by their table, and ended once.

A warm cell makes two commits: `record_call(state=SENT, session_state=BUSY)` before it goes to the worker and
`end_call(session_state=IDLE)` after. That user code started is recorded by `move_call`, off the critical path.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, select

from cellburst_protocol.errors import ErrorCode, ErrorInfo, error
from cellburst_protocol.states import (
    CALL_END_STATE,
    CALL_TRANSITIONS,
    CallState,
    EndReason,
    SessionState,
    TransitionError,
    advance,
    is_terminal,
)

from .store_base import StoreBase
from .store_prepared import insert_row, row_of, update_row
from .store_rows import CallRecord, Owner
from .store_schema import calls
from .store_sessions import change_session, locked_session

_NO_ERROR = ""


def _call(row: Row[Any]) -> CallRecord:
    return CallRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), session=row.session, container=row.container, kind=row.kind,
        state=CallState(row.state), attempt=row.attempt, reason=EndReason(row.reason) if row.reason else None,
        error=msgspec.json.decode(row.error, type=ErrorInfo) if row.error else None, created=row.created,
        started=row.started, ended=row.ended, run_seconds=row.run_seconds, cost_usd=Decimal(row.cost_usd), detail=row.detail,
    )  # fmt: skip


class CallVerbs(StoreBase):
    """Verbs on calls."""

    def record_call(
        self, call_id: str, owner: Owner, *, session: str, now: float, state: CallState = CallState.CREATED,
        container: str = "", kind: str = "cell", detail: str = "", session_state: SessionState | None = None,
    ) -> tuple[CallRecord, bool]:  # fmt: skip
        """Record a call, and its session's new state with it. The same id again gives its row, False, and changes nothing.

        After UNAVAILABLE the commit's result is unknown: repeat, and take an answer of False as one's own first try.
        Raises RequestError (CONFLICT: the id is another owner's or session's; NOT_FOUND: no such session),
        TransitionError (a state that a new call cannot have, or the session cannot take).
        """
        with self._transaction() as c:
            row = row_of(c, calls, call_id)
            if row is not None:
                found = _call(row)
                if (found.owner, found.session) != (owner, session):
                    raise error(ErrorCode.CONFLICT, f"call id {call_id!r} is already that of another call")
                return found, False
            if state is not CallState.CREATED:
                advance(CALL_TRANSITIONS, CallState.CREATED, state, f"call {call_id}")
            if session_state is None:
                locked_session(c, session)
            else:
                change_session(c, session, now=now, state=session_state)
            record = CallRecord(
                id=call_id, owner=owner, session=session, container=container, kind=kind, state=state, attempt=1, reason=None,
                error=None, created=now, started=None, ended=None, run_seconds=0.0, cost_usd=Decimal(0), detail=detail,
            )  # fmt: skip
            values = {
                "id": call_id, "workspace": owner.workspace, "owner": owner.principal, "session": session,
                "container": container, "kind": kind, "state": state.value, "attempt": 1, "reason": "", "error": _NO_ERROR,
                "created": now, "started": None, "ended": None, "run_seconds": 0.0, "cost_usd": "0", "detail": detail,
            }  # fmt: skip
            insert_row(c, calls, values)
            return record, True

    def move_call(
        self, call_id: str, to: CallState, *, now: float, container: str | None = None, detail: str | None = None
    ) -> CallRecord:
        """Move a call to a state that is no end. The state it already has is no move.

        From SENT back to QUEUED counts a new attempt. Raises RequestError (NOT_FOUND), TransitionError (also for an end:
        that is `end_call`).
        """
        if is_terminal(CALL_TRANSITIONS, to):
            raise TransitionError(f"call {call_id} can become {to.value} only by end_call, which says why")
        with self._transaction() as c:
            before = _locked(c, call_id)
            values: dict[str, Any] = {}
            if to is not before.state:
                advance(CALL_TRANSITIONS, before.state, to, f"call {call_id}")
                values["state"] = to.value
                if to is CallState.RUNNING and before.started is None:
                    values["started"] = now
                if (before.state, to) == (CallState.SENT, CallState.QUEUED):
                    values["attempt"] = before.attempt + 1
            if container is not None:
                values["container"] = container
            if detail is not None:
                values["detail"] = detail
            if not values:
                return before
            update_row(c, calls, call_id, values)
            return _locked(c, call_id)

    def end_call(
        self, call_id: str, reason: EndReason, *, now: float, error: ErrorInfo | None = None, run_seconds: float = 0.0,
        cost_usd: Decimal = Decimal(0), session_state: SessionState | None = None,
    ) -> CallRecord:  # fmt: skip
        """End a call for a reason, which says what final state that is, and move its session with it.

        The first end is final: the same reason again returns it unchanged, another raises TransitionError. A session that
        was superseded or ended meanwhile keeps that state. Raises RequestError (NOT_FOUND).
        """
        to = CALL_END_STATE[reason]
        with self._transaction() as c:
            before = _locked(c, call_id)
            if is_terminal(CALL_TRANSITIONS, before.state):
                if before.reason is not reason:
                    raise TransitionError(
                        f"call {call_id} has ended as {before.state.value} ({before.reason}) and cannot end as {reason.value}"
                    )
                return before
            advance(CALL_TRANSITIONS, before.state, to, f"call {call_id}")
            started = now - run_seconds if before.started is None and run_seconds > 0 else before.started
            values = {
                "state": to.value, "reason": reason.value, "error": msgspec.json.encode(error).decode() if error else _NO_ERROR,
                "started": started, "ended": now, "run_seconds": run_seconds, "cost_usd": format(cost_usd, "f"),
            }  # fmt: skip
            update_row(c, calls, call_id, values)
            if session_state is not None:
                gone = (SessionState.SUPERSEDED, SessionState.ENDED)
                change_session(c, before.session, now=now, state=session_state, unless=gone)
            return replace(
                before, state=to, reason=reason, error=error, started=started, ended=now, run_seconds=run_seconds,
                cost_usd=cost_usd,
            )  # fmt: skip

    def get_call(self, call_id: str) -> CallRecord | None:
        """One call, or None when it was never recorded."""
        with self._transaction() as c:
            row = c.execute(select(calls).where(calls.c.id == call_id)).first()
            return _call(row) if row is not None else None

    def running_calls(self, session: str | None = None) -> list[CallRecord]:
        """All calls without an end, of one session or of all, oldest first: what a started gateway has to take up."""
        query = select(calls).where(calls.c.ended.is_(None)).order_by(calls.c.created, calls.c.id)
        if session is not None:
            query = query.where(calls.c.session == session)
        with self._transaction() as c:
            return [_call(row) for row in c.execute(query)]

    def calls_of_session(self, session: str, *, limit: int = 100) -> list[CallRecord]:
        """The session's calls, newest first, at most `limit`."""
        query = (
            select(calls)
            .where(calls.c.session == session)
            .order_by(calls.c.created.desc(), calls.c.id.desc())
            .limit(limit)
        )
        with self._transaction() as c:
            return [_call(row) for row in c.execute(query)]


def _locked(c: Connection, call_id: str) -> CallRecord:
    row = row_of(c, calls, call_id)
    if row is None:
        raise error(ErrorCode.NOT_FOUND, f"no call {call_id!r}", next="`%modal status` lists what runs")
    return _call(row)
