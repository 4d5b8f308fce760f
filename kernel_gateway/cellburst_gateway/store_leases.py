"""Leases: what is held and billed, from the record of the right to its close; and what was spent.

A container is placed and ended in one transaction with its lease and its session (`place_container`, `end_container`),
so that no crash leaves one without the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, and_, func, select

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.states import ContainerState, EndReason, SessionState

from .ledger import cost_usd, whole_milliseconds
from .store_base import StoreBase
from .store_containers import BUILD_PREFIX, add_container, change_container
from .store_prepared import insert_row, row_of, update_row
from .store_rows import BUILDS, ContainerRecord, LeaseRecord, Owner, SessionCost
from .store_schema import containers, leases, sessions
from .store_sessions import at_rest, change_session, locked_session


def _lease(row: Row[Any]) -> LeaseRecord:
    return LeaseRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), session=row.session, container=row.container, worker=row.worker,
        epoch=row.epoch, gpus=msgspec.json.decode(row.gpus, type=tuple[str, ...]), cpu=row.cpu, memory_mib=row.memory_mib,
        usd_per_second=Decimal(row.usd_per_second), price_note=row.price_note, opened=row.opened, closed=row.closed,
        billed_seconds=row.billed_seconds, reason=EndReason(row.reason) if row.reason else None,
    )  # fmt: skip


class LeaseVerbs(StoreBase):
    """Verbs on leases and cost."""

    def open_lease(
        self, lease_id: str, owner: Owner, *, session: str, container: str, worker: str, epoch: int, gpus: Iterable[str],
        cpu: float, memory_mib: int, usd_per_second: Decimal, now: float, price_note: str = "",
    ) -> tuple[LeaseRecord, bool]:  # fmt: skip
        """Record a lease before its worker is told. The same id again gives its row and False.

        `gpus` are uuids. Raises RequestError (CONFLICT) when the id is another container's, or a GPU of the worker is held.
        """
        with self._transaction() as c:
            return _open(
                c, lease_id, owner, session=session, container=container, worker=worker, epoch=epoch, gpus=tuple(gpus), cpu=cpu,
                memory_mib=memory_mib, usd_per_second=usd_per_second, now=now, price_note=price_note,
            )  # fmt: skip

    def place_container(
        self, container_id: str, owner: Owner, *, session: str, worker: str, lease: str, epoch: int, gpus: Iterable[str],
        cpu: float, memory_mib: int, usd_per_second: Decimal, now: float, price_note: str = "", detail: str = "",
    ) -> tuple[ContainerRecord, LeaseRecord, bool]:  # fmt: skip
        """Lease, container and the session's `container` in one commit. The same ids again give the rows and False.

        Raises RequestError (CONFLICT as for its parts, NOT_FOUND for the session).
        """
        with self._transaction() as c:
            opened, _ = _open(
                c, lease, owner, session=session, container=container_id, worker=worker, epoch=epoch, gpus=tuple(gpus), cpu=cpu,
                memory_mib=memory_mib, usd_per_second=usd_per_second, now=now, price_note=price_note,
            )  # fmt: skip
            placed, created = add_container(
                c, container_id, owner, session=session, worker=worker, lease=lease, epoch=epoch, now=now, detail=detail
            )
            if created:
                change_session(c, session, now=now, container=container_id)
            return placed, opened, created

    def end_container(
        self, container_id: str, reason: EndReason, *, now: float, seconds: float | None = None
    ) -> tuple[ContainerRecord, LeaseRecord]:
        """End a container, close its lease and take it from its session, in one commit. Again: no change.

        `seconds` is the worker's uptime; None leaves what was last touched. A session that waited for this container, or was
        being parked in it, is left PARKED where it is, else IDLE. Raises RequestError (NOT_FOUND).
        """
        with self._transaction() as c:
            ended = change_container(c, container_id, ContainerState.ENDED, now=now, reason=reason, detail=None)
            closed = _close(c, ended.lease, seconds=seconds, reason=reason, now=now)
            session = locked_session(c, ended.session) if ended.session else None  # a build without a cell has none
            if session is not None and session.container == container_id:
                moves = session.state in (SessionState.STARTING, SessionState.PARKING)
                change_session(
                    c, session.id, now=now, state=at_rest(session) if moves else None, container="", parking=""
                )
            return ended, closed

    def touch_lease(self, lease_id: str, *, seconds: float) -> LeaseRecord:
        """Note the uptime that the worker counted, so that a crash bills what is known. It never goes down, and a closed
        lease does not change. Raises RequestError (NOT_FOUND)."""
        return self.touch_leases({lease_id: seconds})[0]

    def touch_leases(self, seconds_of: dict[str, float]) -> list[LeaseRecord]:
        """`touch_lease` for many in one commit."""
        with self._transaction() as c:
            query = select(leases).where(leases.c.id.in_(sorted(seconds_of))).with_for_update()
            found = {row.id: _lease(row) for row in c.execute(query)}
            return [
                _touch(c, lease_id, seconds, found.get(lease_id)) for lease_id, seconds in sorted(seconds_of.items())
            ]

    def close_lease(self, lease_id: str, *, seconds: float | None, reason: EndReason, now: float) -> LeaseRecord:
        """End a lease with the worker's uptime, or (None) with what was last touched. The first close is final.

        Raises RequestError (NOT_FOUND).
        """
        with self._transaction() as c:
            return _close(c, lease_id, seconds=seconds, reason=reason, now=now)

    def get_lease(self, lease_id: str) -> LeaseRecord | None:
        """One lease, or None when it was never recorded."""
        with self._transaction() as c:
            row = c.execute(select(leases).where(leases.c.id == lease_id)).first()
            return _lease(row) if row is not None else None

    def leases_open(self, worker: str | None = None) -> list[LeaseRecord]:
        """Leases that still hold hardware, of one worker or of all, oldest first."""
        query = select(leases).where(leases.c.closed.is_(None)).order_by(leases.c.opened, leases.c.id)
        if worker is not None:
            query = query.where(leases.c.worker == worker)
        with self._transaction() as c:
            return [_lease(row) for row in c.execute(query)]

    def cost_by_session(
        self, workspace: str, notebook: str | None = None, session: str | None = None
    ) -> list[SessionCost]:
        """What each session of a workspace cost so far, those with a lease, oldest first; of one notebook or session. What builds
        without a cell cost is that of the session "", `BUILDS`, and comes first."""
        columns = (*leases.c, sessions.c.notebook, sessions.c.name, containers.c.detail)
        # Details are some KB each, and only the newest is looked at.
        newest = (
            select(leases.c.session, func.max(leases.c.opened).label("opened"))
            .where(leases.c.workspace == workspace, leases.c.container.not_like(f"{BUILD_PREFIX}%"))
            .group_by(leases.c.session).subquery()
        )  # fmt: skip
        of_newest = and_(newest.c.session == leases.c.session, newest.c.opened == leases.c.opened)
        query = (
            select(*columns).join(sessions, sessions.c.id == leases.c.session, isouter=True)
            .join(newest, of_newest, isouter=True)
            .join(containers, and_(containers.c.id == leases.c.container, newest.c.session.is_not(None)), isouter=True)
            .where(leases.c.workspace == workspace)
            .order_by(func.coalesce(sessions.c.created, 0.0), leases.c.session, leases.c.opened, leases.c.id)
        )  # fmt: skip
        if notebook is not None:
            query = query.where(sessions.c.notebook == notebook)
        if session is not None:
            query = query.where(sessions.c.id == session)
        costs: dict[str, SessionCost] = {}
        with self._transaction() as c:
            for row in c.execute(query):
                lease = _lease(row)
                costs[lease.session] = _add(costs.get(lease.session), lease, row)
        return list(costs.values())

    def cost_inside(self, workspace: str, notebook_start: str) -> Decimal:
        """What all sessions cost so far whose notebook's name begins so."""
        query = (
            select(leases.c.billed_seconds, leases.c.usd_per_second)
            .join(sessions, sessions.c.id == leases.c.session)
            .where(leases.c.workspace == workspace, sessions.c.notebook.startswith(notebook_start, autoescape=True))
        )
        with self._transaction() as c:
            return sum(
                (cost_usd(row.billed_seconds, Decimal(row.usd_per_second)) for row in c.execute(query)), Decimal(0)
            )

    def cost_total(self, workspace: str) -> Decimal:
        """What all leases of a workspace cost so far: the sum of `cost_by_session`, to the last digit."""
        query = select(leases.c.billed_seconds, leases.c.usd_per_second).where(leases.c.workspace == workspace)
        with self._transaction() as c:
            return sum(
                (cost_usd(row.billed_seconds, Decimal(row.usd_per_second)) for row in c.execute(query)), Decimal(0)
            )


def _add(so_far: SessionCost | None, lease: LeaseRecord, row: Row[Any]) -> SessionCost:
    rate = lease.usd_per_second if lease.open else Decimal(0)
    spent = cost_usd(lease.billed_seconds, lease.usd_per_second)
    if so_far is None:
        notebook, name = (row.notebook, row.name) if lease.session else (BUILDS, "")
        so_far = SessionCost(lease.session, lease.owner, notebook, name, 0.0, Decimal(0), False, Decimal(0), "")
    return SessionCost(
        session=lease.session, owner=so_far.owner, notebook=so_far.notebook, name=so_far.name,
        seconds=so_far.seconds + lease.billed_seconds,
        usd=so_far.usd + spent, running=so_far.running or lease.open, usd_per_second=so_far.usd_per_second + rate,
        price_note=lease.price_note or so_far.price_note, detail=row.detail or so_far.detail,
    )  # fmt: skip


def _locked(c: Connection, lease_id: str) -> LeaseRecord:
    row = row_of(c, leases, lease_id)
    if row is None:
        raise error(
            ErrorCode.NOT_FOUND, f"no lease {lease_id!r}", next="`cellburst ps` lists the containers and their leases"
        )
    return _lease(row)


def _open(
    c: Connection, lease_id: str, owner: Owner, *, session: str, container: str, worker: str, epoch: int, gpus: tuple[str, ...],
    cpu: float, memory_mib: int, usd_per_second: Decimal, now: float, price_note: str,
) -> tuple[LeaseRecord, bool]:  # fmt: skip
    row = row_of(c, leases, lease_id)
    if row is not None:
        found = _lease(row)
        if (found.owner, found.container) != (owner, container):
            raise error(ErrorCode.CONFLICT, f"lease id {lease_id!r} is already that of container {found.container}")
        return found, False
    # Placement decides who gets a GPU; this only makes a double lease impossible to record.
    for held in c.execute(select(leases).where(leases.c.worker == worker, leases.c.closed.is_(None))):
        twice = set(gpus) & set(_lease(held).gpus)
        if twice:
            raise error(ErrorCode.CONFLICT, f"{', '.join(sorted(twice))} of worker {worker} is held by lease {held.id}")
    values = {
        "id": lease_id, "workspace": owner.workspace, "owner": owner.principal, "session": session, "container": container,
        "worker": worker, "epoch": epoch, "gpus": msgspec.json.encode(gpus).decode(), "cpu": cpu, "memory_mib": memory_mib,
        "usd_per_second": format(usd_per_second, "f"), "price_note": price_note, "opened": now, "closed": None,
        "billed_seconds": 0.0, "reason": "",
    }  # fmt: skip
    insert_row(c, leases, values)
    return _locked(c, lease_id), True


def _touch(c: Connection, lease_id: str, seconds: float, lease: LeaseRecord | None = None) -> LeaseRecord:
    lease = lease or _locked(c, lease_id)
    seconds = whole_milliseconds(seconds)
    if not lease.open or seconds <= lease.billed_seconds:
        return lease
    update_row(c, leases, lease_id, {"billed_seconds": seconds})
    return replace(lease, billed_seconds=seconds)


def _close(c: Connection, lease_id: str, *, seconds: float | None, reason: EndReason, now: float) -> LeaseRecord:
    lease = _locked(c, lease_id) if seconds is None else _touch(c, lease_id, seconds)
    if not lease.open:
        return lease
    update_row(c, leases, lease_id, {"closed": now, "reason": reason.value})
    return replace(lease, closed=now, reason=reason)
