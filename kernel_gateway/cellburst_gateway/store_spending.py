"""Leases of a span of time with the notebook and hardware they were for, when code ran in them, and the workspace's budget: what
charts of cost are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from sqlalchemy import delete, insert, or_, select, update

from .ledger import cost_usd
from .store_base import StoreBase
from .store_rows import BUILDS, Owner
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
            .join(sessions, sessions.c.id == leases.c.session, isouter=True)
            .join(containers, containers.c.id == leases.c.container, isouter=True)
            .where(leases.c.workspace == workspace, or_(leases.c.closed.is_(None), leases.c.closed > since))
            .order_by(leases.c.opened.desc(), leases.c.id)
            .limit(limit)
        )
        with self._transaction() as c:
            return [
                SpentLease(
                    lease=row.id, session=row.session, notebook=row.notebook or BUILDS, detail=row.detail or "",
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

    def spent_since(self, workspace: str, since: float, uptimes: Mapping[str, float]) -> Decimal:
        """What a workspace's leases cost from `since` (unix seconds) on, in US dollars; `uptimes` are the seconds of those that
        are open now, by lease, where they are known better than the record has them."""
        query = select(
            leases.c.id, leases.c.opened, leases.c.closed, leases.c.billed_seconds, leases.c.usd_per_second
        ).where(leases.c.workspace == workspace, or_(leases.c.closed.is_(None), leases.c.closed > since))
        total = Decimal(0)
        with self._transaction() as c:
            for row in c.execute(query):
                billed = max(row.billed_seconds, uptimes.get(row.id, 0.0) if row.closed is None else 0.0)
                seconds = row.opened + billed - max(row.opened, since)
                total += cost_usd(seconds, Decimal(row.usd_per_second))
        return total

    def budget(self, workspace: str) -> str:
        """What the workspace means to spend in a month, as decimal text; "" for nothing said."""
        return self.setting(workspace, BUDGET)

    def set_budget(self, owner: Owner, usd_per_month: str, *, now: float) -> None:
        """Keep it; "" takes it away. Said twice it is the same."""
        self.set_setting(owner, BUDGET, usd_per_month, now=now)

    def setting(self, workspace: str, name: str) -> str:
        """A text that the workspace keeps under a name; "" for none."""
        query = select(settings.c.value).where(settings.c.workspace == workspace, settings.c.name == name)
        with self._transaction() as c:
            return c.execute(query).scalar() or ""

    def set_setting(self, owner: Owner, name: str, value: str, *, now: float) -> None:
        """Keep it; "" takes it away. Said twice it is the same."""
        mine = (settings.c.workspace == owner.workspace) & (settings.c.name == name)
        with self._transaction() as c:
            if not value:
                c.execute(delete(settings).where(mine))
            elif not c.execute(update(settings).where(mine).values(value=value, changed=now)).rowcount:
                c.execute(
                    insert(settings).values(
                        id=f"{owner.workspace}/{name}", workspace=owner.workspace, owner=owner.principal, name=name,
                        value=value, changed=now,
                    )
                )  # fmt: skip
