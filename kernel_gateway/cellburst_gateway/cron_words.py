"""Times of a schedule in words for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from cellburst_protocol.schedules import When

from . import cron as crons
from .cron import Cron

MONTH_NAMES = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
               "December")  # fmt: skip
DAY_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
SHOWN_TIMES = 6
_UNITS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def words(when: When) -> str:
    """The times in one sentence. The schedule was checked before."""
    if when.kind == "once":
        return f"once, on {local(when.at_unix_seconds, crons.zone(when.timezone))}"
    if when.kind == "every":
        return f"every {duration(when.every_seconds)}"
    line = crons.parse(when.cron)
    return f"{cron_words(line)}, {when.timezone} time"


def local(moment: float, where: ZoneInfo) -> str:
    """An instant on the wall there: "Sat 2026-11-21 07:00 CET"."""
    return f"{datetime.fromtimestamp(moment, where):%a %Y-%m-%d %H:%M:%S %Z}".replace(":00 ", " ", 1)


def duration(seconds: int) -> str:
    """A whole number of the largest unit that fits, else of several: "15 minutes", "1 hour 30 minutes"."""
    parts: list[str] = []
    for size, name in _UNITS:
        count, seconds = divmod(seconds, size)
        if count:
            parts.append(
                name if count == 1 and not parts and not seconds else f"{count} {name}{'s' if count > 1 else ''}"
            )
    return " ".join(parts) or "0 seconds"


def cron_words(line: Cron) -> str:
    """A cron line in words: "at 07:00 on Monday to Friday"."""
    return " ".join(part for part in (_time_words(line), _day_words(line), _month_words(line)) if part)


def _time_words(line: Cron) -> str:
    every_minute, every_hour = len(line.minutes) == 60, len(line.hours) == 24
    step = _step(line.minutes, 60)
    if every_minute:
        spell = "every minute"
    elif step:
        spell = f"every {step} minutes"
    elif not every_hour and len(line.minutes) * len(line.hours) <= SHOWN_TIMES:
        return "at " + _listed([f"{hour:02}:{minute:02}" for hour in line.hours for minute in line.minutes])
    else:
        minutes = _listed([f"{minute:02}" for minute in line.minutes])
        hours = _step(line.hours, 24)
        if every_hour:
            return "every hour, on the hour" if line.minutes == (0,) else f"every hour at {minutes} past"
        if hours:
            return f"every {hours} hours at {minutes} past"
        spell = f"at {minutes} past the hour"
    if every_hour:
        return spell
    return f"{spell} of the hours {_ranges(line.hours, lambda hour: f'{hour:02}')}"


def _day_words(line: Cron) -> str:
    in_month = "" if len(line.days) == 31 else f"on day {_ranges(sorted(line.days), str)} of the month"
    in_week = "" if len(line.days_of_week) == 7 else f"on {_week(line)}"
    if in_month and in_week:
        return f"{in_month} {'or' if line.days_by_either else 'if that is'} {in_week}".replace(
            "if that is on", "if that is a"
        )
    return in_month or in_week or ("every day" if not line.is_interval else "")


def _week(line: Cron) -> str:
    monday_first = sorted(line.days_of_week, key=lambda day: (day - 1) % 7)
    runs: list[list[int]] = []
    for day in monday_first:
        if runs and (day - 1) % 7 == (runs[-1][-1] - 1) % 7 + 1:
            runs[-1].append(day)
        else:
            runs.append([day])
    shown: list[str] = []
    for run in runs:
        names = [DAY_NAMES[day] for day in run]
        shown.append(f"{names[0]} to {names[-1]}" if len(names) > 2 else _listed(names))
    return _listed(shown)


def _month_words(line: Cron) -> str:
    if len(line.months) == 12:
        return ""
    return f"in {_ranges(sorted(line.months), lambda month: MONTH_NAMES[month - 1])}"


def _step(values: Sequence[int], most: int) -> int:
    """n, if the values are every n-th from 0 on and nothing else; 0 if not."""
    step = values[1] - values[0] if len(values) > 1 else 0
    return step if step > 1 and most % step == 0 and list(values) == list(range(0, most, step)) else 0


def _ranges(values: Sequence[int], name: object) -> str:
    assert callable(name)
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    shown: list[str] = []
    for run in runs:
        shown += [f"{name(run[0])} to {name(run[-1])}"] if len(run) > 2 else [name(value) for value in run]
    return _listed(shown)


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
