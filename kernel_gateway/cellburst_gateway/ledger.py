"""What is billed: seconds of leases and calls times a rate. Pure; money is Decimal, seconds are whole milliseconds.

A lease is billed by the uptime that its worker counts on its own monotonic clock. Wall time steps when a machine's clock
is set, so it bills nothing: it is only the upper bound that no bill may pass, and only while it is itself sane.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

MILLISECOND = Decimal("0.001")
SHOWN_USD = Decimal("0.0001")  # a hundredth of a cent: four GPU-seconds of the cheapest card are still seen


def whole_milliseconds(seconds: float) -> float:
    """Seconds rounded to milliseconds and never negative; what is not a number is 0. As stored, so as billed."""
    return round(seconds, 3) if math.isfinite(seconds) and seconds > 0 else 0.0


def cost_usd(seconds: float, usd_per_second: Decimal) -> Decimal:
    """What so many seconds cost, exactly: never rounded here, so that sums over any grouping agree."""
    return Decimal(str(whole_milliseconds(seconds))) * usd_per_second


def billed_seconds(recorded: float, uptime_seconds: float | None) -> float:
    """A lease's seconds after a report: the worker's uptime, but never less than is recorded already.

    An uptime below the record is of a report that arrived late, or of a worker that lost its count: what was shown as
    spent is not taken back.
    """
    return max(whole_milliseconds(recorded), whole_milliseconds(uptime_seconds or 0.0))


@dataclass(frozen=True, slots=True)
class Meter:
    """A lease between two reports: `recorded_seconds` at the monotonic time (of the gateway) `at_seconds`.

    `ended` says that the record is the lease's last word. Make the next one with `report` and `end`.
    """

    usd_per_second: Decimal
    recorded_seconds: float = 0.0
    at_seconds: float = 0.0
    ended: bool = False

    def report(self, uptime_seconds: float, now_seconds: float) -> Meter:
        """After a heartbeat with the worker's uptime; one after the end changes nothing."""
        if self.ended:
            return self
        return Meter(self.usd_per_second, billed_seconds(self.recorded_seconds, uptime_seconds), now_seconds)

    def end(self, uptime_seconds: float | None, now_seconds: float) -> Meter:
        """After the lease's end, with the worker's last uptime or without one (what was recorded stands)."""
        if self.ended:
            return self
        return Meter(self.usd_per_second, billed_seconds(self.recorded_seconds, uptime_seconds), now_seconds, True)

    def shown_seconds(self, now_seconds: float) -> float:
        """Seconds to show now: between reports it runs on by the gateway's monotonic clock; after the end it stands."""
        since = 0.0 if self.ended else max(0.0, now_seconds - self.at_seconds)
        return whole_milliseconds(self.recorded_seconds + since)

    def shown_usd(self, now_seconds: float) -> Decimal:
        """Cost to show now, exactly."""
        return cost_usd(self.shown_seconds(now_seconds), self.usd_per_second)


def total_usd(costs: Iterable[Decimal]) -> Decimal:
    """The sum of costs, 0 for none."""
    return sum(costs, Decimal(0))


def call_cost_usd(run_seconds: float, usd_per_second: Decimal, lease_seconds: float | None = None) -> Decimal:
    """What one call cost: its run time at its container's rate, at most its lease's own time where that is known."""
    if lease_seconds is not None:
        run_seconds = min(run_seconds, max(0.0, lease_seconds))
    return cost_usd(run_seconds, usd_per_second)


def shown(usd: Decimal) -> str:
    """Money for a person: cents from a dollar on, else four decimals, else the first two digits that are not 0.

    >>> shown(Decimal("12.345")), shown(Decimal("0.01666")), shown(Decimal("0.0000131")), shown(Decimal(0))
    ('$12.35', '$0.0167', '$0.000013', '$0')
    """
    if usd == 0:
        return "$0"
    if abs(usd) >= 1:
        step = Decimal("0.01")
    elif abs(usd) >= SHOWN_USD * 10:
        step = SHOWN_USD
    else:
        step = Decimal(1).scaleb(usd.adjusted() - 1)
    return f"${usd.quantize(step, ROUND_HALF_UP):f}"
