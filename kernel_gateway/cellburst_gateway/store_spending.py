"""Leases of a span of time with the notebook and hardware they were for: what charts of cost are made from."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import or_, select

from .store_base import StoreBase
from .store_schema import containers, leases, sessions


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


class SpendingVerbs(StoreBase):
    """Verbs on what was spent when."""

    def leases_since(self, workspace: str, since: float, *, limit: int) -> list[SpentLease]:
        """Leases of a workspace that were open after `since` (unix seconds), newest first, at most `limit`."""
        query = (
            select(leases, sessions.c.notebook, containers.c.detail)
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
                    closed=row.closed, billed_seconds=row.billed_seconds,
                )
                for row in c.execute(query)
            ]  # fmt: skip
