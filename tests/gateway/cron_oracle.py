"""Instants of a cron line by brute force: the wall's clock, looked at every minute. Slow, simple and unlike the real thing.

Since 1972 every zone's offset and every change of it falls on a whole minute, so that a minute is as good as a second.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

ZONES = (
    "Europe/Berlin", "America/New_York", "America/Sao_Paulo", "America/Havana", "America/St_Johns", "Australia/Lord_Howe",
    "Asia/Tehran", "Asia/Gaza", "Africa/Casablanca", "Africa/Cairo", "Pacific/Apia", "Pacific/Chatham", "Antarctica/Troll",
    "Antarctica/Casey", "Atlantic/Azores", "Asia/Kathmandu",
)  # fmt: skip
LINES = (
    "30 2 * * *", "0 0 * * *", "0,15,30,59 1,2,3 * * *", "0 1 * * sun", "*/15 * * * *", "30 * * * *", "0 */2 * * *", "* 2 * * *",
    "45 23 * * *", "0 12 30,31 * *", "0 2 1-15 3,10,11 fri", "15 0 * * 0-3",
)  # fmt: skip


def changes(zone: ZoneInfo, first_year: int = 2000, last_year: int = 2037) -> list[int]:
    """The instants at which the zone's offset changes."""
    at = int(datetime(first_year, 1, 1, tzinfo=UTC).timestamp())
    end = int(datetime(last_year, 12, 31, tzinfo=UTC).timestamp())
    found: list[int] = []
    while at < end:
        if offset(zone, at) != offset(zone, at + 86400):
            low, high = at, at + 86400
            while high - low > 60:
                middle = (low + high) // 2 // 60 * 60
                low, high = (middle, high) if offset(zone, middle) == offset(zone, low) else (low, middle)
            found.append(high)
        at += 86400
    return found


def offset(zone: ZoneInfo, at: int) -> int:
    delta = datetime.fromtimestamp(at, zone).utcoffset()
    assert delta is not None
    return int(delta.total_seconds())


@functools.lru_cache(maxsize=4)
def wall(zone: ZoneInfo, start: int, end: int) -> list[tuple[int, datetime]]:
    """(instant, what the wall's clock shows) for every minute."""
    return [(at, datetime.fromtimestamp(at, zone).replace(tzinfo=None, fold=0)) for at in range(start, end, 60)]


def instants(line: str, shown: Sequence[tuple[int, datetime]]) -> Iterator[int]:
    """The instants of the line within the stretch, which must begin before what matters."""
    minute, hour, *_ = line.split()
    if minute.startswith("*") or hour.startswith("*"):
        yield from (at for at, now in shown if matches(line, now))
        return
    highest = shown[0][1]
    for at, now in shown:
        due = False
        while highest < now:
            highest += timedelta(minutes=1)
            due = due or matches(line, highest)
        if due:
            yield at


def matches(line: str, now: datetime) -> bool:
    """Whether the line's fields have this minute; days as Vixie's cron has them."""
    minute, hour, day, month, week = line.split()
    if not (_in(minute, now.minute) and _in(hour, now.hour) and _in(month, now.month)):
        return False
    in_day, in_week = _in(day, now.day, 1), _in(week, now.isoweekday() % 7)
    return in_day or in_week if not day.startswith("*") and not week.startswith("*") else in_day and in_week


@functools.cache
def _in(field: str, value: int, least: int = 0) -> bool:
    for name, number in (("sun", "0"), ("fri", "5")):
        field = field.replace(name, number)
    for part in field.split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        first, last = (least, 99) if span == "*" else (int(low), int(high or low))
        if first <= value <= last and (value - first) % int(step or 1) == 0:
            return True
    return False
