"""Billing: never negative, never beyond the end, exact over any grouping."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellburst_gateway.ledger import (
    Meter,
    billed_seconds,
    call_cost_usd,
    cost_usd,
    shown,
    total_usd,
    whole_milliseconds,
)

RATE = Decimal("0.000583")
seconds = st.floats(allow_nan=True, allow_infinity=True)
sane = st.floats(min_value=0, max_value=1e8)
rates = st.decimals(min_value=0, max_value=1, places=9)


def test_a_lease_costs_its_seconds_at_its_rate() -> None:
    assert cost_usd(3600, RATE) == Decimal("2.0988")
    assert cost_usd(0.001, RATE) == Decimal("0.000000583")
    assert cost_usd(0.0004, RATE) == 0


@given(seconds, rates)
def test_no_seconds_however_wild_cost_less_than_nothing(value: float, rate: Decimal) -> None:
    assert cost_usd(value, rate) >= 0
    assert whole_milliseconds(value) >= 0


@given(st.lists(sane, max_size=20), rates, st.randoms())
def test_sums_over_any_grouping_agree(parts: list[float], rate: Decimal, random: object) -> None:
    costs = [cost_usd(part, rate) for part in parts]
    shuffled = list(costs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    half = len(shuffled) // 2
    assert total_usd(costs) == total_usd(shuffled[:half]) + total_usd(shuffled[half:])
    milliseconds = sum(round(whole_milliseconds(part) * 1000) for part in parts)
    assert total_usd(costs) == Decimal(milliseconds) / 1000 * rate


@given(st.lists(st.tuples(st.booleans(), sane, sane), max_size=20))
def test_a_meter_never_goes_down_and_stands_after_its_end(reports: list[tuple[bool, float, float]]) -> None:
    meter, ended, now = Meter(RATE), None, 0.0
    for end, uptime, step in reports:
        now += step
        before = meter.recorded_seconds
        meter = meter.end(uptime, now) if end else meter.report(uptime, now)
        assert meter.recorded_seconds >= before
        if ended is not None:
            assert meter == ended
        if end and ended is None:
            ended = meter
        if ended is not None:
            assert meter.shown_seconds(now + 1e6) == ended.recorded_seconds


def test_between_reports_it_runs_on_by_monotonic_time_only() -> None:
    meter = Meter(RATE).report(10.0, now_seconds=100.0)
    assert meter.shown_seconds(102.5) == 12.5
    assert meter.shown_seconds(90.0) == 10.0
    assert meter.shown_usd(102.5) == Decimal("12.5") * RATE


def test_the_workers_count_is_what_is_billed() -> None:
    shown_ahead = Meter(RATE).report(10.0, 100.0)
    assert shown_ahead.shown_seconds(200.0) == 110.0
    assert shown_ahead.end(12.0, 200.0).recorded_seconds == 12.0
    assert shown_ahead.end(None, 200.0).recorded_seconds == 10.0
    assert shown_ahead.report(4.0, 101.0).recorded_seconds == 10.0  # a late report
    assert billed_seconds(10.0, None) == 10.0


def test_a_call_costs_its_run_time_and_no_more_than_its_lease() -> None:
    assert call_cost_usd(2.0, RATE) == 2 * RATE
    assert call_cost_usd(9.0, RATE, lease_seconds=5.0) == 5 * RATE
    assert call_cost_usd(-1.0, RATE, lease_seconds=-5.0) == 0


@pytest.mark.parametrize(
    ("usd", "text"),
    [("0", "$0"), ("0.0000131", "$0.000013"), ("0.000583", "$0.00058"), ("0.01666", "$0.0167"), ("1.005", "$1.01"),
     ("1234.5", "$1234.50")],
)  # fmt: skip
def test_money_is_shown_with_the_digits_that_matter(usd: str, text: str) -> None:
    assert shown(Decimal(usd)) == text
