"""What ended that nobody may have watched, and who was told of which end. Runs of schedules have rows of their own.

Both are kept for as long as an end is told at all, and removed by whoever writes next.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from sqlalchemy import ColumnElement, delete, exists, insert, select

from cellburst_protocol.messages import EndedThing

from .store_base import StoreBase
from .store_prepared import row_of
from .store_rows import Owner
from .store_schedules import RunRecord
from .store_schedules import _run as run_of_row
from .store_schema import ends, runs, told


class EndVerbs(StoreBase):
    """Verbs on ends."""

    def add_end(self, owner: Owner, thing: EndedThing, *, forget_before: float) -> None:
        """Keep an end; the same id again changes nothing. Ends before `forget_before` (unix seconds) are removed."""
        with self._transaction() as c:
            c.execute(delete(ends).where(ends.c.ended < forget_before))
            if row_of(c, ends, thing.id) is None:
                c.execute(
                    insert(ends).values(
                        id=thing.id, workspace=owner.workspace, owner=owner.principal,
                        thing=msgspec.json.encode(thing).decode(), ended=thing.ended_unix_seconds,
                    )
                )  # fmt: skip

    def last_ends(self, workspace: str, *, limit: int) -> list[EndedThing]:
        """The last ones of a workspace, the oldest first."""
        query = (
            select(ends.c.thing)
            .where(ends.c.workspace == workspace)
            .order_by(ends.c.ended.desc(), ends.c.id)
            .limit(limit)
        )
        with self._transaction() as c:
            return [msgspec.json.decode(row.thing, type=EndedThing) for row in c.execute(query)][::-1]

    def untold_ends(self, owner: Owner, *, after: float, limit: int) -> list[EndedThing]:
        """Ends after a moment that this principal was not told of, the oldest first."""
        query = (
            select(ends.c.thing)
            .where(ends.c.workspace == owner.workspace, ends.c.ended > after)
            .where(~exists().where(*_told(owner), told.c.what == ends.c.id))
            .order_by(ends.c.ended, ends.c.id)
            .limit(limit)
        )
        with self._transaction() as c:
            return [msgspec.json.decode(row.thing, type=EndedThing) for row in c.execute(query)]

    def untold_runs(self, owner: Owner, *, after: float, limit: int, detail_has: str) -> list[RunRecord]:
        """Runs of schedules that ended after a moment, whose detail has a text, and that this principal was not told of, the
        oldest first."""
        query = (
            select(runs)
            .where(runs.c.workspace == owner.workspace, runs.c.ended > after)
            .where(runs.c.detail.contains(detail_has, autoescape=True))
            .where(~exists().where(*_told(owner), told.c.what == runs.c.id))
            .order_by(runs.c.ended, runs.c.id)
            .limit(limit)
        )
        with self._transaction() as c:
            return [run_of_row(row) for row in c.execute(query)]

    def note_told(self, owner: Owner, what: Iterable[str], *, now: float, forget_before: float) -> None:
        """This principal was told of these ends, at most some hundreds; said twice it is the same, and what is no end of the
        workspace is left out. What was told before `forget_before` is removed."""
        asked = list(dict.fromkeys(what))
        known = select(ends.c.id).where(ends.c.workspace == owner.workspace, ends.c.id.in_(asked))
        ended = select(runs.c.id).where(
            runs.c.workspace == owner.workspace, runs.c.id.in_(asked), runs.c.ended.isnot(None)
        )
        before = select(told.c.what).where(*_told(owner), told.c.what.in_(asked))
        with self._transaction() as c:
            c.execute(delete(told).where(told.c.at < forget_before))
            new = {row.id for row in c.execute(known.union(ended))} - {row.what for row in c.execute(before)}
            if new:
                same = {"workspace": owner.workspace, "owner": owner.principal, "at": now}
                c.execute(insert(told), [{"id": _key(owner, one), "what": one, **same} for one in sorted(new)])


def _key(owner: Owner, what: str) -> str:
    """Of one end and one principal; each of the three may have any character."""
    return msgspec.json.encode([owner.workspace, owner.principal, what]).decode()


def _told(owner: Owner) -> tuple[ColumnElement[bool], ...]:
    return told.c.workspace == owner.workspace, told.c.owner == owner.principal
