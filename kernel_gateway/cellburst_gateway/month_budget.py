"""The month's budget of a workspace against what the month cost. When it is spent, no further run of a schedule begins by itself.

The month is the calendar month of this machine's clock, as the panel shows it. What a person asks for runs on: a cell, a run by
hand, and a run that has begun.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import ErrorCode, ErrorInfo

from .ledger import shown

if TYPE_CHECKING:
    from .hub import Hub

SUM_SECONDS = 5.0  # how old the sum may be: a hundred that are due in one second ask once
TOLD = "month_budget_told"


class Told(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Who was told that a budget is spent: once of each budget of each month."""

    what: str = ""
    targets: list[str] = []


@dataclass(frozen=True, slots=True)
class Over:
    """A budget that is spent. `month` is its first moment, `until` the next month's, on this machine's clock."""

    budget_usd: Decimal
    spent_usd: Decimal
    month: datetime
    until: datetime

    @property
    def what(self) -> str:
        """The same for the same budget of the same month."""
        return f"{self.month:%Y-%m} {self.budget_usd}"

    def why(self, schedule: str) -> ErrorInfo:
        """What the record of a run that was skipped says."""
        return ErrorInfo(
            code=ErrorCode.BUDGET,
            message=f"the budget of {shown(self.budget_usd)} for {self.month:%B %Y} is spent ({shown(self.spent_usd)})",
            allowed=f"it runs again from {self.until:%-d %B} on, or when the budget is raised",
            next="raise it in JupyterLab's panel, section Cost; or run this one all the same: "
            f"`cellburst schedule run {schedule}`",
            detail={"budget_usd": str(self.budget_usd), "spent_usd": format(self.spent_usd, "f")},
        )  # fmt: skip


class MonthBudget:
    """All workspaces'."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._sums: dict[
            str, tuple[float, datetime, Decimal]
        ] = {}  # (when it was made, its month, the sum) by workspace

    def over(self, workspace: str) -> Over | None:
        """The budget, if it is spent. Raises CellburstError when the record cannot be read."""
        text = self._hub.store.budget(workspace)
        if not text:
            return None
        month, until = month_of(self._hub.clock.wall())
        spent = self._spent(workspace, month)
        budget = Decimal(text)
        return Over(budget, spent, month, until) if spent >= budget else None

    def _spent(self, workspace: str, month: datetime) -> Decimal:
        now = self._hub.clock.monotonic()
        known = self._sums.get(workspace)
        if known is None or known[1] != month or now - known[0] >= SUM_SECONDS:
            self._hub.write_now()
            uptimes = {handle.lease: handle.uptime(now) for handle in self._hub.fleet.containers.values()}
            known = now, month, self._hub.store.spent_since(workspace, month.timestamp(), uptimes)
            self._sums[workspace] = known
        return known[2]

    def told(self, workspace: str, over: Over) -> frozenset[str]:
        """Who was told of it already."""
        text = self._hub.store.setting(workspace, TOLD)
        known = msgspec.json.decode(text, type=Told) if text else Told()
        return frozenset(known.targets) if known.what == over.what else frozenset()


def told_text(over: Over, targets: frozenset[str]) -> str:
    """That these were told, as the record has it."""
    return msgspec.json.encode(Told(what=over.what, targets=sorted(targets))).decode()


def month_of(wall: float) -> tuple[datetime, datetime]:
    """The first moments of a moment's month and of the next one, on this machine's clock (without a zone: that may differ between
    the two)."""
    day = datetime.fromtimestamp(wall)  # noqa: DTZ006 - this machine's own, as people there read their calendar
    first = datetime(day.year, day.month, 1)  # noqa: DTZ001 - the same
    return first, datetime(day.year + day.month // 12, day.month % 12 + 1, 1)  # noqa: DTZ001 - the same
