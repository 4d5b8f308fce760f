"""Schedules, their runs, and who is to be told of them.

`note_instants` is what makes each instant's record the only one: it moves `seen` up from where its caller read it, in one
commit with the rows. A caller that read something older gets None and decides again.
Over 400 lines: the verbs of one part of the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, select

from cellburst_protocol.errors import ErrorCode, ErrorInfo, error
from cellburst_protocol.schedules import ACTIVE, RUN_END_STATE, RunReason, RunState, advance
from cellburst_protocol.states import TransitionError

from .scheduler import Planned
from .store_base import StoreBase
from .store_prepared import insert_row, row_of, update_row
from .store_rows import Owner
from .store_schema import deliveries, runs, schedules


@dataclass(frozen=True, slots=True)
class ScheduleRecord:
    """A schedule. `state` is "active", "paused" or "done"; `spec` JSON; `seen`: instants up to it have their record."""

    id: str
    owner: Owner
    name: str
    notebook: str
    state: str
    revision: int
    seen: int
    spec: str
    created: float
    changed: float


Told = tuple[str, str, str, str]
"""Whom to tell: a delivery's id, channel, target and body."""


@dataclass(frozen=True, slots=True)
class Telling:
    """Of an instant at which nothing ran: what its row says, and who is told."""

    run: str
    error: ErrorInfo
    detail: str
    tell: Sequence[Told]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run, or an instant that was none. `spec` is what it was begun with, "" before and after; `detail` JSON of the gateway's
    own."""

    id: str
    owner: Owner
    schedule: str
    instant: int
    until: int
    instants: int
    by_hand: bool
    state: RunState
    reason: RunReason | None
    error: ErrorInfo | None
    attempt: int
    session: str
    created: float
    started: float | None
    ended: float | None
    cost_usd: Decimal
    spec: str
    detail: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """Somebody who is told how a run ended. `state` is "due", "sent" or "failed"."""

    id: str
    owner: Owner
    run: str
    channel: str
    target: str
    state: str
    attempts: int
    due: float
    error: str
    body: str


def _schedule(row: Row[Any]) -> ScheduleRecord:
    return ScheduleRecord(
        row.id, Owner(row.workspace, row.owner), row.name, row.notebook, row.state, row.revision, row.seen, row.spec, row.created,
        row.changed,
    )  # fmt: skip


def _run(row: Row[Any]) -> RunRecord:
    return RunRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), schedule=row.schedule, instant=row.instant, until=row.until,
        instants=row.instants, by_hand=bool(row.by_hand), state=RunState(row.state),
        reason=RunReason(row.reason) if row.reason else None,
        error=msgspec.json.decode(row.error, type=ErrorInfo) if row.error else None, attempt=row.attempt, session=row.session,
        created=row.created, started=row.started, ended=row.ended,
        cost_usd=Decimal(row.cost_usd), spec=row.spec, detail=row.detail,
    )  # fmt: skip


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        row.id,
        Owner(row.workspace, row.owner),
        row.run,
        row.channel,
        row.target,
        row.state,
        row.attempts,
        row.due,
        row.error,
        row.body,
    )


class ScheduleVerbs(StoreBase):
    """Verbs on schedules, runs and deliveries."""

    # -- schedules -------------------------------------------------------------------------------------------------

    def put_schedule(
        self, schedule_id: str, owner: Owner, *, name: str, notebook: str, spec: str, now: float, revision: int = 0,
        seen: int | None = None, state: str | None = None,
    ) -> ScheduleRecord:  # fmt: skip
        """Make a schedule (`revision` 0), or change the one that has this revision. `seen` None leaves it where it is.

        Raises RequestError: CONFLICT for a name that is taken, or a revision that is not the newest; NOT_FOUND.
        """
        with self._transaction() as c:
            taken = c.execute(
                select(schedules.c.id).where(schedules.c.workspace == owner.workspace, schedules.c.name == name)
            ).first()
            if taken is not None and taken.id != schedule_id:
                raise error(
                    ErrorCode.CONFLICT, f"there is a schedule named {name!r} already",
                    next="choose another name, or edit that one", schedule=str(taken.id),
                )  # fmt: skip
            values = {"name": name, "notebook": notebook, "spec": spec, "changed": now}
            row = row_of(c, schedules, schedule_id)
            if row is None:
                if revision:
                    raise _no_schedule(schedule_id)
                insert_row(
                    c, schedules,
                    {"id": schedule_id, "workspace": owner.workspace, "owner": owner.principal, "state": state or "active",
                     "revision": 1, "seen": seen or 0, "created": now, **values},
                )  # fmt: skip
                return _locked(c, schedule_id)
            if row.workspace != owner.workspace:
                raise _no_schedule(schedule_id)
            if row.revision != revision:
                raise error(
                    ErrorCode.CONFLICT, f"schedule {row.name!r} was changed meanwhile (revision {row.revision}, not {revision})",
                    next="look at what it is now, and change that", revision=str(row.revision),
                )  # fmt: skip
            changed: dict[str, Any] = {**values, "revision": revision + 1}
            changed |= {"seen": seen} if seen is not None else {}
            changed |= {"state": state} if state is not None else {}
            update_row(c, schedules, schedule_id, changed)
            return _locked(c, schedule_id)

    def set_schedule_state(
        self, schedule_id: str, state: str, *, now: float, seen: int | None = None
    ) -> ScheduleRecord:
        """Pause a schedule, let it go on, or note that it has no further instant. Raises RequestError (NOT_FOUND)."""
        with self._transaction() as c:
            before = _locked(c, schedule_id)
            values: dict[str, Any] = {"state": state, "changed": now, "revision": before.revision + 1}
            if seen is not None:
                values["seen"] = seen
            update_row(c, schedules, schedule_id, values)
            return _locked(c, schedule_id)

    def get_schedule(self, schedule_id: str) -> ScheduleRecord | None:
        """One schedule, or None."""
        with self._transaction() as c:
            row = row_of(c, schedules, schedule_id)
            return _schedule(row) if row is not None else None

    def list_schedules(self, workspace: str | None = None) -> list[ScheduleRecord]:
        """Schedules of a workspace, or of all, by name."""
        query = select(schedules).order_by(schedules.c.name, schedules.c.id)
        if workspace is not None:
            query = query.where(schedules.c.workspace == workspace)
        with self._transaction() as c:
            return [_schedule(row) for row in c.execute(query)]

    def delete_schedule(self, schedule_id: str) -> list[str]:
        """Delete a schedule with its runs and deliveries; the runs' ids. Nothing happens if it is gone."""
        with self._transaction() as c:
            found = [row.id for row in c.execute(select(runs.c.id).where(runs.c.schedule == schedule_id))]
            _delete_runs(c, found)
            c.execute(delete(schedules).where(schedules.c.id == schedule_id))
            return found

    # -- runs ------------------------------------------------------------------------------------------------------

    def note_instants(
        self, schedule_id: str, *, seen_before: int, seen: int, planned: Sequence[tuple[str, Planned]], now: float,
        telling: Telling | None = None,
    ) -> list[RunRecord] | None:  # fmt: skip
        """Record instants, each with the id that its run gets, and move `seen`. An instant that has a record keeps it.
        `telling` is of one of them, or of one that an earlier call recorded.

        None, and nothing changed, when the schedule is gone, is not active, or its `seen` is not `seen_before`.
        """
        with self._transaction() as c:
            row = row_of(c, schedules, schedule_id)
            if row is None or row.seen != seen_before or row.state != "active":
                return None
            owner = Owner(row.workspace, row.owner)
            made = [_add(c, run_id, owner, schedule_id, one, now) for run_id, one in planned]
            update_row(c, schedules, schedule_id, {"seen": seen})
            if telling is not None and row_of(c, runs, telling.run) is not None:
                error = msgspec.json.encode(telling.error).decode()
                update_row(c, runs, telling.run, {"error": error, "detail": telling.detail})
                _tell(c, owner, telling.run, telling.tell, now)
            return [one if telling is None or one.id != telling.run else _locked_run(c, one.id) for one in made if one]

    def add_run(self, run_id: str, schedule_id: str, *, now: float) -> RunRecord:
        """A run that somebody asked for. Again: the same. Raises RequestError (NOT_FOUND)."""
        with self._transaction() as c:
            schedule = _locked(c, schedule_id)
            planned = Planned(int(now), RunState.QUEUED)
            made = _add(c, run_id, schedule.owner, schedule_id, planned, now, by_hand=True)
            return made or _locked_run(c, run_id)

    def move_run(
        self, run_id: str, to: RunState, *, now: float, session: str | None = None, spec: str | None = None,
        detail: str | None = None, attempt: int | None = None,
    ) -> RunRecord:  # fmt: skip
        """Move a run to a state that is no end, or change what else is given.

        Raises RequestError (NOT_FOUND), TransitionError."""
        if to not in ACTIVE:
            raise TransitionError(f"run {run_id} can become {to.value} only by end_run, which says why")
        with self._transaction() as c:
            before = _locked_run(c, run_id)
            values: dict[str, Any] = {}
            if to is not before.state:
                values["state"] = advance(before.state, to, run_id).value
                if to is RunState.RUNNING and before.started is None:
                    values["started"] = now
            given = {"session": session, "spec": spec, "detail": detail, "attempt": attempt}
            values |= {name: value for name, value in given.items() if value is not None}
            if values:
                update_row(c, runs, run_id, values)
            return _locked_run(c, run_id)

    def end_run(
        self, run_id: str, reason: RunReason, *, now: float, error: ErrorInfo | None = None, cost_usd: Decimal = Decimal(0),
        detail: str | None = None, tell: Sequence[Told] = (),
    ) -> tuple[RunRecord, bool]:  # fmt: skip
        """End a run, and record whom to tell. The first end is final: a later one changes
        nothing and gives False. Raises RequestError (NOT_FOUND), TransitionError."""
        with self._transaction() as c:
            before = _locked_run(c, run_id)
            if before.state not in ACTIVE:
                return before, False
            to = advance(before.state, RUN_END_STATE[reason], run_id)
            values: dict[str, Any] = {
                "state": to.value, "reason": reason.value, "ended": now, "cost_usd": format(cost_usd, "f"),
                "error": msgspec.json.encode(error).decode() if error is not None else "", "spec": "",
            }  # fmt: skip
            if detail is not None:
                values["detail"] = detail
            update_row(c, runs, run_id, values)
            _tell(c, before.owner, run_id, tell, now)
            return _locked_run(c, run_id), True

    def get_run(self, run_id: str) -> RunRecord | None:
        """One run, or None."""
        with self._transaction() as c:
            row = row_of(c, runs, run_id)
            return _run(row) if row is not None else None

    def find_runs(self, workspace: str, start: str) -> list[RunRecord]:
        """At most two runs whose id begins so: enough to know whether it is one."""
        query = select(runs).where(runs.c.workspace == workspace, runs.c.id.startswith(start, autoescape=True)).limit(2)
        with self._transaction() as c:
            return [_run(row) for row in c.execute(query)]

    def list_runs(
        self, workspace: str, *, schedule: str | None = None, ended_after: float | None = None, limit: int = 50
    ) -> list[RunRecord]:
        """Runs, newest first; with `ended_after` those that ended later, or have not."""
        query = select(runs).where(runs.c.workspace == workspace)
        if schedule is not None:
            query = query.where(runs.c.schedule == schedule)
        if ended_after is not None:
            query = query.where((runs.c.ended > ended_after) | runs.c.ended.is_(None))
        query = query.order_by(runs.c.created.desc(), runs.c.instant.desc(), runs.c.id).limit(limit)
        with self._transaction() as c:
            return [_run(row) for row in c.execute(query)]

    def run_costs(self, schedule_id: str, *, succeeded: int) -> tuple[Decimal, list[Decimal]]:
        """What all runs of a schedule that are kept cost together, in US dollars, and what each of the newest so many that
        succeeded did, newest first."""
        of_it = select(runs.c.cost_usd).where(runs.c.schedule == schedule_id)
        newest = of_it.where(runs.c.state == RunState.SUCCEEDED.value).order_by(
            runs.c.created.desc(), runs.c.instant.desc(), runs.c.id
        )
        with self._transaction() as c:
            total = sum((Decimal(row.cost_usd) for row in c.execute(of_it.where(runs.c.cost_usd != "0"))), Decimal(0))
            return total, [Decimal(row.cost_usd) for row in c.execute(newest.limit(succeeded))]

    def active_runs(self) -> list[RunRecord]:
        """All runs without an end, in the order in which they were due."""
        query = select(runs).where(runs.c.ended.is_(None)).order_by(runs.c.created, runs.c.instant, runs.c.id)
        with self._transaction() as c:
            return [_run(row) for row in c.execute(query)]

    def missed_untold(self, schedule_id: str) -> list[RunRecord]:
        """Instants at which nothing ran that are newer than the newest one with a notice (its row has an error), in order."""
        missed = (runs.c.schedule == schedule_id) & (runs.c.state == RunState.MISSED.value)
        told = select(func.max(runs.c.instant)).where(missed, runs.c.error != "").correlate(None).scalar_subquery()
        query = select(runs).where(missed, runs.c.instant > func.coalesce(told, -1)).order_by(runs.c.instant)
        with self._transaction() as c:
            return [_run(row) for row in c.execute(query)]

    def runs_to_forget(self, schedule_id: str, *, keep: int, ended_before: float | None) -> list[str]:
        """Ended runs beyond the newest `keep` that ran (0: no bound), and those that ended before a moment. Of instants at which
        nothing ran as many again are kept."""
        query = select(runs.c.id, runs.c.state, runs.c.ended).where(
            runs.c.schedule == schedule_id, runs.c.ended.isnot(None)
        )
        query = query.order_by(runs.c.created.desc(), runs.c.instant.desc(), runs.c.id)
        ran = idle = 0
        found: list[str] = []
        with self._transaction() as c:
            for row in c.execute(query):
                nothing = row.state in (RunState.SKIPPED.value, RunState.MISSED.value)
                ran, idle = ran + (not nothing), idle + nothing
                if (ended_before is not None and row.ended < ended_before) or (
                    keep and (idle if nothing else ran) > keep
                ):
                    found.append(row.id)
        return found

    def delete_runs(self, run_ids: Sequence[str]) -> None:
        """Delete runs with their deliveries."""
        with self._transaction() as c:
            _delete_runs(c, run_ids)

    # -- deliveries ------------------------------------------------------------------------------------------------

    def due_deliveries(self, now: float, *, limit: int = 20) -> list[Delivery]:
        """Those to be made now, longest due first."""
        query = (
            select(deliveries)
            .where(deliveries.c.ended.is_(None), deliveries.c.due <= now)
            .order_by(deliveries.c.due)
            .limit(limit)
        )
        with self._transaction() as c:
            return [_delivery(row) for row in c.execute(query)]

    def deliveries_of(self, run_id: str) -> list[Delivery]:
        """Who was or is to be told of a run."""
        with self._transaction() as c:
            return [
                _delivery(row)
                for row in c.execute(select(deliveries).where(deliveries.c.run == run_id).order_by(deliveries.c.id))
            ]

    def note_delivery(
        self, delivery_id: str, *, now: float, sent: bool, error: str = "", again_at: float | None = None
    ) -> None:
        """After a try: it was sent, is to be tried again, or (neither) is given up."""
        with self._transaction() as c:
            row = row_of(c, deliveries, delivery_id)
            if row is None or row.ended is not None:
                return
            over = sent or again_at is None
            values = {
                "state": "sent" if sent else "failed" if over else "due", "attempts": row.attempts + 1, "error": error,
                "ended": now if over else None, "due": row.due if again_at is None else again_at,
            }  # fmt: skip
            update_row(c, deliveries, delivery_id, values)


def _add(
    c: Connection, run_id: str, owner: Owner, schedule_id: str, planned: Planned, now: float, *, by_hand: bool = False
) -> RunRecord | None:
    """A new run's row; None when its occasion has one."""
    occasion = f"hand:{run_id}" if by_hand else f"time:{planned.instant}"
    known = select(runs.c.id).where(runs.c.schedule == schedule_id, runs.c.occasion == occasion)
    if c.execute(known).first() is not None:
        return None
    none = planned.state not in ACTIVE
    insert_row(
        c, runs,
        {"id": run_id, "workspace": owner.workspace, "owner": owner.principal, "schedule": schedule_id, "occasion": occasion,
         "instant": planned.instant, "until": planned.until or planned.instant, "instants": planned.count,
         "by_hand": int(by_hand),
         "state": planned.state.value, "reason": planned.reason.value if planned.reason is not None else "", "error": "",
         "attempt": 1, "session": "", "created": now, "started": None, "ended": now if none else None, "cost_usd": "0",
         "spec": "", "detail": ""},
    )  # fmt: skip
    return _locked_run(c, run_id)


def _tell(c: Connection, owner: Owner, run_id: str, tell: Sequence[Told], now: float) -> None:
    for delivery, channel, target, body in tell:
        insert_row(
            c, deliveries,
            {"id": delivery, "workspace": owner.workspace, "owner": owner.principal, "run": run_id,
             "channel": channel, "target": target, "state": "due", "attempts": 0, "due": now, "error": "",
             "created": now, "ended": None, "body": body},
        )  # fmt: skip


def _delete_runs(c: Connection, run_ids: Sequence[str]) -> None:
    for start in range(0, len(run_ids), 500):  # SQLite takes a bounded number of values in one statement
        some = run_ids[start : start + 500]
        c.execute(delete(deliveries).where(deliveries.c.run.in_(some)))
        c.execute(delete(runs).where(runs.c.id.in_(some)))


def _locked(c: Connection, schedule_id: str) -> ScheduleRecord:
    row = row_of(c, schedules, schedule_id)
    if row is None:
        raise _no_schedule(schedule_id)
    return _schedule(row)


def _locked_run(c: Connection, run_id: str) -> RunRecord:
    row = row_of(c, runs, run_id)
    if row is None:
        raise error(
            ErrorCode.NOT_FOUND, f"there is no run {run_id[:80]!r}", next="`cellburst schedule history` lists them"
        )
    return _run(row)


def _no_schedule(schedule_id: str) -> Exception:
    what = f"there is no schedule {schedule_id[:80]!r}"
    return error(ErrorCode.NOT_FOUND, what, next="`cellburst schedule list` shows those there are")
