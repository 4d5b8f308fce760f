"""When a run has to stop for its budget. Pure; money is Decimal, times are seconds of the run.

A run is stopped two seconds of its rate before its budget, because between the decision and the end of billing lie the
interrupt, its grace and the worker's last report.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal

from cellburst_protocol.errors import ErrorCode, ErrorInfo

from .ledger import shown

RESERVE_SECONDS = Decimal(2)
MILLISECOND = Decimal("0.001")


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """What a budget means for a run: `stop_at_seconds` after its start (None: it costs nothing, so never), or `refused`
    when not even its first second fits. `says` is a line for the run card."""

    stop_at_seconds: float | None
    refused: ErrorInfo | None
    says: str


def plan(budget_usd: Decimal, usd_per_second: Decimal, spent_usd: Decimal = Decimal(0)) -> BudgetPlan:
    """When a run with this rate must stop, `spent_usd` of the budget being gone before it starts.

    The budget less two seconds of the rate is what the run may use.
    """
    if usd_per_second <= 0:
        return BudgetPlan(None, None, f"budget {shown(budget_usd)}: this run costs nothing")
    left = budget_usd - spent_usd
    seconds = (left / usd_per_second - RESERVE_SECONDS).quantize(MILLISECOND, ROUND_FLOOR)
    if seconds <= 0:
        return BudgetPlan(
            None, _too_small(budget_usd, usd_per_second, spent_usd), f"budget {shown(budget_usd)} is too small"
        )
    return BudgetPlan(float(seconds), None, f"budget {shown(budget_usd)}: stops after {_duration(seconds)}")


def exhausted(budget_usd: Decimal, usd_per_second: Decimal, ran_seconds: float) -> ErrorInfo:
    """What the user is told when the run was stopped."""
    return ErrorInfo(
        code=ErrorCode.BUDGET,
        message=f"budget={shown(budget_usd)}: stopped after {_duration(Decimal(str(ran_seconds)))} at {shown(usd_per_second)}/s",
        allowed="a run stops at its budget less two seconds of its rate",
        next="give a higher budget=, or a cheaper gpu=; what the cell bound so far stays there",
        detail={"budget_usd": str(budget_usd), "usd_per_second": str(usd_per_second)},
    )


def _too_small(budget_usd: Decimal, usd_per_second: Decimal, spent_usd: Decimal) -> ErrorInfo:
    spent = f", of which {shown(spent_usd)} is spent" if spent_usd else ""
    return ErrorInfo(
        code=ErrorCode.BUDGET,
        message=f"budget={shown(budget_usd)}{spent}: at {shown(usd_per_second)} a second nothing could run",
        allowed=f"more than {shown(spent_usd + RESERVE_SECONDS * usd_per_second)}: two seconds are kept back to stop in time",
        next="give a higher budget=, or a cheaper gpu=",
        detail={"budget_usd": str(budget_usd), "usd_per_second": str(usd_per_second)},
    )


def _duration(seconds: Decimal) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"
