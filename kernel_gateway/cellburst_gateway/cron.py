"""Cron lines: read, and the next instant after a moment, in any zone. Pure: the moment is passed in.

Five fields (minute, hour, day of month, month, day of week) with `*`, lists, ranges, steps and names, or one of `@hourly @daily
@midnight @weekly @monthly @yearly @annually`. When both day fields are restricted (neither begins with `*`) a day matches
by either of them, as in Vixie's cron; else by both.

Where a zone's clock is set forward or back:

- A line whose minute and hour both name fixed times ("30 2 * * *") runs once for each of its local times: at one that does not
  exist, at the first instant after the gap; at one that comes twice, the first time.
- A line whose minute or hour begins with `*` ("*/15 * * * *") is an interval: it runs whenever the clock on the wall shows a
  matching time, so twice in an hour that comes twice, and not in one that does not come.

How it is computed: local times are whole seconds counted as if there were no zone ("naive"), so that matching is arithmetic. Of
fixed times the next is the first one above the highest that the wall's clock ever showed.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from cellburst_protocol.errors import ErrorCode, error, from_info
from cellburst_protocol.schedules import near_timezone

DAY = 86400
HORIZON_DAYS = 13 * 366  # 29 February comes after 8 years at most (1896, 2096), 1 January on a Monday after 12
LAST_SECOND = 253402214400  # a day before the year 10000, where datetime ends
_LOOK_BACK_SECONDS = 26 * 3600  # no zone's clock was ever set back by more than a day
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
NICKNAMES = {
    "@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0", "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *",
}  # fmt: skip
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of week", 0, 7, DAYS),
)
_EXAMPLE = "for example `0 7 * * 1-5` (weekdays at 07:00) or `*/15 * * * *`"
_MONTH_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
# Signs of other schedulers' lines.
_SPECIAL = {"L": "the last day", "W": "the nearest weekday", "#": "the n-th weekday", "?": "a `?`"}
_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True)
class Cron:
    """A cron line. `minutes`, `hours`: sorted; the rest sets. `days_of_week` counts Sunday as 0. `stars` are the fields (0 to 4)
    that begin with `*`."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    days_of_week: frozenset[int]
    stars: frozenset[int]

    @property
    def is_interval(self) -> bool:
        """Whether it follows the clock on the wall instead of naming times."""
        return bool(self.stars & {0, 1})

    @property
    def days_by_either(self) -> bool:
        """Whether a day matches by its day of month or by its day of week."""
        return not self.stars & {2, 4}

    def on_day(self, day: date) -> bool:
        """Whether it runs on that local day."""
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.days_of_week
        return in_month or in_week if self.days_by_either else in_month and in_week


def parse(text: str) -> Cron:
    """Read a line. Raises RequestError (BAD_ARGUMENT) that names the field, also for one that never comes."""
    line = " ".join(text.split())
    words = NICKNAMES.get(line.lower(), line).split(" ") if line else []
    if line.startswith("@") and line.lower() not in NICKNAMES:
        raise _bad(text, f"{line[:40]!r} is no nickname", ", ".join(NICKNAMES), _EXAMPLE)
    if len(words) != 5:
        then = "leave the seconds out: the smallest step is a minute" if len(words) == 6 else _EXAMPLE
        what = f"it has {len(words)} field{'s' if len(words) != 1 else ''}"
        raise _bad(text, what, "five: minute, hour, day of month, month, day of week", then)
    parsed = [_field(text, number, word) for number, word in enumerate(words)]
    cron = Cron(
        line, tuple(sorted(parsed[0])), tuple(sorted(parsed[1])), frozenset(parsed[2]), frozenset(parsed[3]),
        frozenset(day % 7 for day in parsed[4]), frozenset(n for n, word in enumerate(words) if word.startswith("*")),
    )  # fmt: skip
    if not (cron.days_by_either and cron.days_of_week) and not any(
        min(cron.days) <= _MONTH_DAYS[month - 1] for month in cron.months
    ):
        month = MONTHS[min(cron.months) - 1].capitalize()
        raise _bad(
            text, f"it never comes: {month} has no day {min(cron.days)}" if len(cron.months) == 1 else "no such day ever comes",
            "", "choose another day or month",
        )  # fmt: skip
    return cron


def zone(name: str) -> ZoneInfo:
    """The timezone of this name. Raises RequestError (BAD_ARGUMENT) with the nearest names."""
    if name not in known_timezones():
        raise from_info(near_timezone(name, known_timezones()))
    return ZoneInfo(name)


@lru_cache(maxsize=1)
def known_timezones() -> tuple[str, ...]:
    """All names, sorted."""
    return tuple(sorted(available_timezones()))


def next_after(cron: Cron, where: ZoneInfo, moment: float) -> int | None:
    """The first instant after `moment` (both unix seconds); None when there is none before the year 10000 or for 13 years."""
    start = int(moment // 1)
    if start >= LAST_SECOND:
        return None
    return _next_interval(cron, where, start) if cron.is_interval else _next_fixed(cron, where, start)


def _next_fixed(cron: Cron, where: ZoneInfo, start: int) -> int | None:
    naive = next_naive(cron, _highest_shown(where, start))
    return None if naive is None or naive >= LAST_SECOND else first_shown(where, naive)


def _next_interval(cron: Cron, where: ZoneInfo, start: int) -> int | None:
    """Walk through stretches in which the zone's offset stands, a day at most at a time: offsets hold longer than that."""
    now, end = start, start + HORIZON_DAYS * DAY
    while now < end and now < LAST_SECOND:
        offset = offset_at(where, now)
        naive = next_naive(cron, now + offset)
        if naive is None:
            return None
        wanted = naive - offset
        step = min(wanted, now + DAY)
        if offset_at(where, step) == offset:
            if step == wanted:
                return wanted
            now = step
            continue
        change = _change(where, now, step)  # the first second of the new offset
        if wanted < change:
            return wanted
        now = change - 1
        # The next look is from the second before it, with the new offset: a time shown right at the change counts.
        naive = change + offset_at(where, change)
        if _matches(cron, naive):
            return change
        now = change
    return None


def _highest_shown(where: ZoneInfo, moment: int) -> int:
    """The highest local time that was shown up to the moment: that of the moment, unless the clock was set back lately."""
    shown = moment + offset_at(where, moment)
    before = moment - _LOOK_BACK_SECONDS
    if offset_at(where, before) > offset_at(where, moment):
        change = _change(where, before, moment)
        return max(shown, change - 1 + offset_at(where, change - 1))
    return shown


def first_shown(where: ZoneInfo, naive: int) -> int:
    """The first instant at which the local time is `naive` or later."""
    moment = datetime.fromtimestamp(naive, UTC).replace(tzinfo=None)
    ahead = [naive - _seconds(where.utcoffset(moment.replace(fold=fold))) for fold in (0, 1)]
    first, last = min(ahead), max(ahead)
    if first + offset_at(where, first) == naive:
        return first
    if last + offset_at(where, last) == naive:
        return last
    return _change(where, first, last)  # it is in a gap, which lies between the two readings


def offset_at(where: ZoneInfo, moment: int) -> int:
    """Seconds that the zone is ahead of UTC at a moment."""
    return _seconds(datetime.fromtimestamp(moment, where).utcoffset())


def _change(where: ZoneInfo, before: int, after: int) -> int:
    """The first second with another offset than `before` has; `after` has another."""
    offset = offset_at(where, before)
    while after - before > 1:
        middle = (before + after) // 2
        if offset_at(where, middle) == offset:
            before = middle
        else:
            after = middle
    return after


def next_naive(cron: Cron, after: int) -> int | None:
    """The first matching local time above `after`, both as seconds without a zone."""
    day, rest = divmod(after, DAY)
    minute = rest // 60 + 1  # the first whole minute above
    for number in range(HORIZON_DAYS):
        if cron.on_day(date.fromordinal(_EPOCH + day + number)):
            found = _minute_of_day(cron, minute if number == 0 else 0)
            if found is not None:
                return (day + number) * DAY + found * 60
        if day + number >= LAST_SECOND // DAY:
            return None
    return None


def _minute_of_day(cron: Cron, least: int) -> int | None:
    for hour in cron.hours[bisect.bisect_left(cron.hours, least // 60) :]:
        at = bisect.bisect_left(cron.minutes, least - hour * 60)
        if at < len(cron.minutes):
            return hour * 60 + cron.minutes[at]
    return None


def _matches(cron: Cron, naive: int) -> bool:
    day, rest = divmod(naive, DAY)
    hour, second = divmod(rest, 3600)
    minute, second = divmod(second, 60)
    return second == 0 and minute in cron.minutes and hour in cron.hours and cron.on_day(date.fromordinal(_EPOCH + day))


def _seconds(delta: timedelta | None) -> int:
    return int(delta.total_seconds()) if delta is not None else 0


def _field(text: str, number: int, word: str) -> set[int]:
    name, least, most, names = _FIELDS[number]
    found: set[int] = set()
    for part in word.split(","):
        found |= _part(text, part, name, least, most, names)
    return found


def _part(text: str, part: str, name: str, least: int, most: int, names: Sequence[str]) -> set[int]:
    allowed = (
        f"{least} to {most}{f' or {names[0]} to {names[-1]}' if names else ''}, `*`, lists, ranges `a-b`, steps `*/n`"
    )
    if not part:
        raise _bad(text, f"its {name} has an empty place in a list", allowed)
    spelled, slash, step_text = part.partition("/")
    step = 1
    if slash:
        if not re.fullmatch(r"[0-9]{1,3}", step_text) or not 1 <= int(step_text) <= most:
            raise _bad(text, f"its {name} has the step {step_text[:20]!r}", f"1 to {most}")
        if spelled != "*" and "-" not in spelled:
            raise _bad(text, f"its {name} {part[:20]!r} steps from one value", allowed, f"{spelled}-{most}/{step_text}")
        step = int(step_text)
    if spelled == "*":
        return set(range(least, (6 if most == 7 else most) + 1, step))
    low_text, dash, high_text = spelled.partition("-")
    low = _value(text, low_text, name, least, most, names, allowed)
    high = _value(text, high_text, name, least, most, names, allowed) if dash else low
    if high < low and names == DAYS and high == 0:
        high = 7  # fri-sun
    if high < low:
        then = f"{low_text}-{most},{least}-{high_text}"
        raise _bad(text, f"its {name} {spelled[:20]!r} runs backwards", "ranges from low to high", f"write {then}")
    return set(range(low, high + 1, step))


def _value(text: str, word: str, name: str, least: int, most: int, names: Sequence[str], allowed: str) -> int:
    if word.lower() in names:
        return names.index(word.lower()) + (1 if names == MONTHS else 0)
    if not re.fullmatch(r"[0-9]{1,4}", word):
        found = [
            what for sign, what in _SPECIAL.items() if re.fullmatch(rf"[0-9A-Z]*{re.escape(sign)}[0-9]*", word.upper())
        ]
        known = found[0] if found else ""
        said = f": {known} cannot be said in cron" if known else ""
        raise _bad(text, f"its {name} {word[:20]!r} is not known{said}", allowed)
    value = int(word)
    if not least <= value <= most:
        raise _bad(text, f"its {name} {value} is out of range", allowed)
    return value


def _bad(text: str, what: str, allowed: str, then: str = "") -> Exception:
    return error(
        ErrorCode.BAD_ARGUMENT, f"the cron line {text[:100]!r} cannot be used: {what}", allowed=allowed, next=then
    )
