"""What a schedule's runs will cost, told from its last ones. Pure: time is passed in."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

from cellburst_protocol.schedules import Forecast, When

from . import schedule_times as times

MEAN_OF = 5
MONTH_SECONDS = 30 * 86400
DAY_SECONDS = 86400
COUNTED_INSTANTS = 400  # of a cron line; a month of more is told from how long these take


def forecast(costs: Sequence[Decimal], when: When | None, now: float) -> Forecast:
    """From costs of runs that succeeded, newest first. `when` None: it has no instants (paused, done)."""
    last = costs[:MEAN_OF]
    count = month_instants(when, int(now)) if when is not None else 0
    if not last:
        return Forecast(month_instants_count=count)
    mean = sum(last, Decimal(0)) / len(last)
    return Forecast(
        runs_count=len(last), run_usd=_text(mean), month_instants_count=count, month_usd=_text(mean * count)
    )


def month_instants(when: When, now: int) -> int:
    """How many instants 30 days have, from the day of a moment on: counted, or told from the first ones."""
    if when.kind == "every":
        return MONTH_SECONDS // when.every_seconds
    return _counted(when, now - now % DAY_SECONDS)


@lru_cache(maxsize=1024)
def _counted(when: When, start: int) -> int:
    end = start + MONTH_SECONDS
    found = 0
    moment = times.following(when, start)
    while moment is not None and moment <= end:
        found += 1
        if found == COUNTED_INSTANTS:
            return max(found, round(found * MONTH_SECONDS / max(1, moment - start)))
        moment = times.following(when, moment)
    return found


def _text(amount: Decimal) -> str:
    return format(amount.quantize(Decimal("0.00000001")), "f")
