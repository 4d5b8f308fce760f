"""Leases of a span of time with the notebook and hardware they were for, when code ran in them, and the workspace's budget: what
charts of cost are made from."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import delete, insert, or_, select, update

from .store_base import StoreBase
from .store_rows import Owner
from .store_schema import calls, containers, leases, sessions, settings

BUDGET = "spending_budget"


@dataclass(frozen=True)
class SpentLease:
    """One lease: `detail` is its container's JSON, which has the GPUs as they were."""

    lease: str
    session: str
    notebook: str
    detail: str
    usd_per_second: Decimal
    price_note: str
    opened: float
    closed: float | None
    billed_seconds: float
    container: str = ""
    ready: float | None = None  # when its container was; None: it never was, or is not yet


class SpendingVerbs(StoreBase):
    """Verbs on what was spent when."""

    def leases_since(self, workspace: str, since: float, *, limit: int) -> list[SpentLease]:
        """Leases of a workspace that were open after `since` (unix seconds), newest first, at most `limit`."""
        query = (
            select(leases, sessions.c.notebook, containers.c.detail, containers.c.ready)
            .join(sessions, sessions.c.id == leases.c.session)
            .join(containers, containers.c.id == leases.c.container, isouter=True)
            .where(leases.c.workspace == workspace, or_(leases.c.closed.is_(None), leases.c.closed > since))
            .order_by(leases.c.opened.desc(), leases.c.id)
            .limit(limit)
        )
        with self._transaction() as c:
            return [
                SpentLease(
                    lease=row.id, session=row.session, notebook=row.notebook, detail=row.detail or "",
                    usd_per_second=Decimal(row.usd_per_second), price_note=row.price_note, opened=row.opened,
                    closed=row.closed, billed_seconds=row.billed_seconds, container=row.container, ready=row.ready,
                )
                for row in c.execute(query)
            ]  # fmt: skip

    def code_since(self, workspace: str, since: float, *, limit: int) -> list[tuple[str, float, float | None]]:
        """When code ran in containers after `since`, as (container, start, end or None), newest first, at most `limit`."""
        query = (
            select(calls.c.container, calls.c.started, calls.c.ended)
            .where(calls.c.workspace == workspace, calls.c.started.is_not(None))
            .where(or_(calls.c.ended.is_(None), calls.c.ended > since))
            .order_by(calls.c.started.desc())
            .limit(limit)
        )  # fmt: skip
        with self._transaction() as c:
            return [(row.container, row.started, row.ended) for row in c.execute(query)]

    def budget(self, workspace: str) -> str:
        """What the workspace means to spend in a month, as decimal text; "" for nothing said."""
        query = select(settings.c.value).where(settings.c.workspace == workspace, settings.c.name == BUDGET)
        with self._transaction() as c:
            return c.execute(query).scalar() or ""

    def set_budget(self, owner: Owner, usd_per_month: str, *, now: float) -> None:
        """Keep it; "" takes it away. Said twice it is the same."""
        mine = (settings.c.workspace == owner.workspace) & (settings.c.name == BUDGET)
        with self._transaction() as c:
            if not usd_per_month:
                c.execute(delete(settings).where(mine))
            elif not c.execute(update(settings).where(mine).values(value=usd_per_month, changed=now)).rowcount:
                c.execute(
                    insert(settings).values(
                        id=f"{owner.workspace}/{BUDGET}", workspace=owner.workspace, owner=owner.principal, name=BUDGET,
                        value=usd_per_month, changed=now,
                    )
                )  # fmt: skip
