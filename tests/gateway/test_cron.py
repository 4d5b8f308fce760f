"""Cron lines: what is refused and how, days, leap years, and every instant around clock changes against brute force."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst_gateway import cron
from cellburst_gateway.cron_words import cron_words, duration, local, words
from cellburst_protocol.errors import RequestError
from cellburst_protocol.schedules import When
from tests.gateway import cron_oracle

HOUR = 3600


def at(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp())


def nexts(line: str, zone: str, after: int, count: int) -> list[str]:
    found, parsed, where = [], cron.parse(line), cron.zone(zone)
    for _ in range(count):
        moment = cron.next_after(parsed, where, after)
        assert moment is not None and moment > after
        found.append(f"{datetime.fromtimestamp(moment, where):%Y-%m-%d %H:%M}")
        after = moment
    return found


@cache
def stretches(zone: str) -> list[int]:
    return cron_oracle.changes(ZoneInfo(zone))


def check_around(zone: str, line: str, change: int) -> None:
    where = ZoneInfo(zone)
    shown = cron_oracle.wall(where, change - 56 * HOUR, change + 14 * HOUR)
    expected = [moment for moment in cron_oracle.instants(line, shown) if moment > change - 30 * HOUR]
    parsed, found, after = cron.parse(line), [], change - 30 * HOUR
    while (moment := cron.next_after(parsed, where, after)) is not None and moment < change + 14 * HOUR:
        assert moment > after
        found.append(moment)
        after = moment
    assert found == expected, (zone, line, datetime.fromtimestamp(change, UTC))


@pytest.mark.parametrize("zone", cron_oracle.ZONES)
def test_instants_around_a_change_of_the_clock_are_those_of_brute_force(zone: str) -> None:
    changes = stretches(zone)
    assert changes or zone == "Asia/Kathmandu"
    sample = changes[-2:] + changes[:: max(1, len(changes) // 3)][:3] or [at("2026-03-29T00:00")]
    for number, change in enumerate(sample):
        for line in cron_oracle.LINES[number % 2 :: 2]:
            check_around(zone, line, change)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_line_at_any_change_of_the_clock(data: st.DataObject) -> None:
    zone = data.draw(st.sampled_from([name for name in cron_oracle.ZONES if stretches(name)]))
    minute = data.draw(st.sampled_from(["*", "*/7", "0", "30", "59", "10-40/10", "0,1"]))
    hour = data.draw(st.sampled_from(["*", "*/3", "0", "1", "2", "3", "23", "0-4", "1,2"]))
    day = data.draw(st.sampled_from(["*", "*/2", "1-7", "28,29,30,31"]))
    week = data.draw(st.sampled_from(["*", "0", "5-6", "*/2"]))
    check_around(zone, f"{minute} {hour} {day} * {week}", data.draw(st.sampled_from(stretches(zone))))


def test_a_fixed_time_in_a_gap_comes_once_right_after_it_and_in_an_overlap_once() -> None:
    assert nexts("30 2 * * *", "Europe/Berlin", at("2026-03-28T12:00"), 2) == ["2026-03-29 03:00", "2026-03-30 02:30"]
    assert nexts("0,30 2 * * *", "Europe/Berlin", at("2026-03-28T12:00"), 2) == ["2026-03-29 03:00", "2026-03-30 02:00"]
    first, second = cron.parse("30 2 * * *"), cron.zone("Europe/Berlin")
    once = cron.next_after(first, second, at("2026-10-24T12:00"))
    assert once == at("2026-10-25T00:30") and cron.next_after(first, second, once) == at("2026-10-26T01:30")


def test_an_interval_follows_the_clock_on_the_wall() -> None:
    assert nexts("*/30 * * * *", "Europe/Berlin", at("2026-03-29T00:00"), 4) == [
        "2026-03-29 01:30", "2026-03-29 03:00", "2026-03-29 03:30", "2026-03-29 04:00",
    ]  # fmt: skip
    assert nexts("30 * * * *", "Europe/Berlin", at("2026-10-25T00:00"), 3) == [
        "2026-10-25 02:30", "2026-10-25 02:30", "2026-10-25 03:30",
    ]  # fmt: skip


def test_a_day_that_a_zone_left_out() -> None:
    """Samoa had no 30 December 2011."""
    assert nexts("0 12 * * *", "Pacific/Apia", at("2011-12-29T23:00"), 2) == ["2011-12-31 00:00", "2011-12-31 12:00"]


def test_leap_days_and_days_that_not_every_month_has() -> None:
    assert nexts("0 0 29 2 *", "UTC", at("2026-01-01T00:00"), 3) == [
        "2028-02-29 00:00",
        "2032-02-29 00:00",
        "2036-02-29 00:00",
    ]
    assert nexts("0 0 29 2 *", "UTC", at("2097-01-01T00:00"), 1) == ["2104-02-29 00:00"]
    assert nexts("0 0 31 * *", "UTC", at("2026-01-31T01:00"), 2) == ["2026-03-31 00:00", "2026-05-31 00:00"]
    assert nexts("0 0 13 * fri", "UTC", at("2026-11-01T00:00"), 3) == [
        "2026-11-06 00:00",
        "2026-11-13 00:00",
        "2026-11-20 00:00",
    ]
    assert nexts("0 0 */12 * mon", "UTC", at("2026-11-01T00:00"), 2) == ["2027-01-25 00:00", "2027-02-01 00:00"]
    assert nexts("0 0 */30 2 mon", "UTC", at("2027-02-02T00:00"), 1) == ["2038-02-01 00:00"]


def test_there_is_an_end_of_time() -> None:
    assert cron.next_after(cron.parse("* * * * *"), cron.zone("UTC"), cron.LAST_SECOND) is None
    assert (
        cron.next_after(cron.parse("0 0 1 1 *"), cron.zone("Pacific/Kiritimati"), cron.LAST_SECOND - 5 * cron.DAY)
        is None
    )


def test_names_nicknames_and_sunday_twice() -> None:
    assert cron.parse("0 0 * jan-mar SUN").days_of_week == {0} == cron.parse("0 0 * * 7").days_of_week
    assert cron.parse("0 0 * * fri-sun").days_of_week == {5, 6, 0} == cron.parse("0 0 * * 5-7").days_of_week
    assert cron.parse("@daily").hours == (0,)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("61 * * * *", "minute 61 is out of range"), ("* 24 * * *", "hour 24"), ("* * 0 * *", "day of month 0"),
        ("* * * 13 *", "month 13"), ("* * * * 8", "day of week 8"), ("* * * * * *", "6 fields"), ("* * * *", "4 fields"),
        ("", "0 fields"), ("0 0 31 2 *", "Feb has no day 31"), ("0 0 31 4,6 *", "never comes|no such day"), ("@reboot", "nickname"),
        ("*/0 * * * *", "step '0'"), ("5/10 * * * *", "steps from one value"), ("30-10 * * * *", "runs backwards"),
        ("0 0 L * *", "last day"), ("0 0 * * 1#2", "n-th weekday"), ("0 0 ? * *", "a `\\?`"), ("1,,2 * * * *", "empty place"),
        ("x * * * *", "'x' is not known"), ("-1 * * * *", "not known"), ("1.5 * * * *", "not known"), ("٣ * * * *", "not known"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_refused_by_field_before_anything_is_saved(line: str, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        cron.parse(line)


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_line_or_refused(text: str) -> None:
    try:
        parsed = cron.parse(text)
    except RequestError:
        return
    assert cron_words(parsed) and cron.next_after(parsed, cron.zone("UTC"), 1.8e9) is not None


@pytest.mark.parametrize(
    ("asked", "near"),
    [("Europe/Berln", "Europe/Berlin"), ("berlin", "Europe/Berlin"), ("New York", "America/New_York"), ("zzz", "city")],
)
def test_an_unknown_timezone_is_told_the_nearest_names(asked: str, near: str) -> None:
    with pytest.raises(RequestError, match=near):
        cron.zone(asked)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 7 * * 1-5", "at 07:00 on Monday to Friday"), ("*/15 * * * *", "every 15 minutes"), ("0 * * * *", "every hour, on the hour"),
        ("0 0 1,15 * fri", "at 00:00 on day 1 and 15 of the month or on Friday"), ("30 2 * * *", "at 02:30 every day"),
        ("15 10 * 1-3,12 sun", "at 10:15 on Sunday in January to March and December"), ("* * * * *", "every minute"),
        ("*/10 9-17 * * 1-5", "every 10 minutes of the hours 09 to 17 on Monday to Friday"),
        ("0 0 */2 * 1", "if that is a Monday"), ("5 */4 * * *", "05"),
    ],
)  # fmt: skip
def test_a_line_in_words(line: str, said: str) -> None:
    assert said in cron_words(cron.parse(line))


def test_other_times_in_words() -> None:
    assert words(When(kind="every", every_seconds=5400)) == "every 1 hour 30 minutes" and duration(3600) == "hour"
    assert words(When(kind="once", at_unix_seconds=at("2026-12-24T18:00"), timezone="Europe/Berlin")) == (
        "once, on Thu 2026-12-24 19:00 CET"
    )
    assert local(at("2026-07-01T10:00:30"), cron.zone("UTC")) == "Wed 2026-07-01 10:00:30 UTC"
    assert words(When(kind="cron", cron="0 7 * * *", timezone="Asia/Tokyo")) == "at 07:00 every day, Asia/Tokyo time"
