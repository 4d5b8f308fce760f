"""What was spent, in time: for a chart by day, by notebook and by GPU.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

import msgspec

from .messages_base import Base


class GetSpending(Base, kw_only=True, tag="get_spending"):
    """Ask for Spending: what was billed since then, by leases that were open after it, at most `count` of them (the newest)."""

    since_unix_seconds: float = 0.0
    count: int = 5000


class SpendingRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one notebook spent on one kind of hardware in one hour of the clock (UTC), at reference prices. `gpu` is its type and,
    where there are several, their number ("A100-40GB", "H100:2"), "" for none. `idle_seconds` and `idle_usd` are the part of it
    in which a container was ready and no cell ran in it."""

    hour_unix_seconds: int
    notebook: str
    gpu: str = ""
    simulated: bool = False
    seconds: float = 0.0
    usd: str = "0"
    idle_seconds: float = 0.0
    idle_usd: str = "0"


class ReservedPrice(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a machine with one GPU of a type costs that is kept all the time: a list price with its date, or the operator's."""

    gpu: str
    usd_per_hour: str
    as_of: str = ""
    source: str = ""


class Spending(Base, kw_only=True, tag="spending"):
    """Rows by hour. `truncated`: there were more leases than were asked for, and the oldest are left out. `reserved` is of the
    GPU types in the rows, as far as a price is known. `budget_usd_per_month` is what the workspace means to spend, "" where it
    says nothing of it; when it is spent, runs of schedules are skipped."""

    since_unix_seconds: float
    rows: list[SpendingRow] = []
    usd_per_second: str = "0"  # of all that runs now
    price_note: str = ""
    truncated: bool = False
    reserved: list[ReservedPrice] = []
    budget_usd_per_month: str = ""


class SetBudget(Base, kw_only=True, tag="set_budget"):
    """Say what the workspace means to spend in a month of the calendar, "" for nothing. Shown beside what is spent."""

    usd_per_month: str = ""
