"""The instants of a schedule, of whatever kind its times are. Pure: moments are passed in."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.schedules import When, check_times

from . import cron, cron_words


def checked_when(when: When, now: float) -> When:
    """Times that can be kept. `now` 0: they were checked before, and may have passed. Raises RequestError (BAD_ARGUMENT)."""
    check_times(when)
    zone = cron.zone(when.timezone)
    if when.kind == "cron":
        cron.parse(when.cron)
    if when.kind == "every" and when.at_unix_seconds == 0:
        when = msgspec.structs.replace(when, at_unix_seconds=int(now) + when.every_seconds)
    if when.kind == "once" and now and when.at_unix_seconds <= now:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{cron_words.local(when.at_unix_seconds, zone)} has passed",
            allowed=f"a time after {cron_words.local(now, zone)}", next="`cellburst schedule run` runs a schedule at once",
        )  # fmt: skip
    return when


def following(when: When, moment: int) -> int | None:
    """The first instant after a moment."""
    if when.kind == "once":
        return when.at_unix_seconds if when.at_unix_seconds > moment else None
    if when.kind == "every":
        first, step = when.at_unix_seconds, when.every_seconds
        return first if moment < first else first + ((moment - first) // step + 1) * step
    return cron.next_after(_parsed(when.cron), cron.zone(when.timezone), moment)


def instants(when: When, after: int, count: int) -> list[int]:
    """The first instants after a moment, at most `count`."""
    found: list[int] = []
    moment = following(when, after)
    while moment is not None and len(found) < count:
        found.append(moment)
        moment = following(when, moment)
    return found


@lru_cache(maxsize=1024)
def _parsed(line: str) -> cron.Cron:
    return cron.parse(line)
