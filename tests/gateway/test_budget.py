"""A budget stops a run two seconds of its rate early, whatever the numbers."""

from __future__ import annotations

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from cellburst_gateway.budget import exhausted, plan
from cellburst_gateway.ledger import cost_usd
from cellburst_protocol.errors import ErrorCode

RATE = Decimal("0.01")
money = st.decimals(min_value=Decimal("0.0001"), max_value=10_000, places=6)


def test_it_stops_at_the_budget_less_two_seconds() -> None:
    found = plan(Decimal(3), RATE)
    assert (found.stop_at_seconds, found.refused) == (298.0, None)
    assert found.says == "budget $3.00: stops after 5.0 min"
    assert plan(Decimal(3), RATE, spent_usd=Decimal(1)).stop_at_seconds == 198.0


def test_too_small_a_budget_is_refused_before_anything_runs() -> None:
    found = plan(Decimal("0.02"), RATE)
    assert found.stop_at_seconds is None
    assert found.refused is not None and found.refused.code is ErrorCode.BUDGET
    assert "$0.0200" in found.refused.text() and "two seconds are kept back" in found.refused.text()
    spent = plan(Decimal(1), RATE, spent_usd=Decimal(1)).refused
    assert spent is not None and "of which $1.00 is spent" in spent.message


def test_what_costs_nothing_never_stops() -> None:
    found = plan(Decimal(1), Decimal(0))
    assert (found.stop_at_seconds, found.refused) == (None, None)


def test_the_end_says_when_and_what_to_do() -> None:
    said = exhausted(Decimal(3), RATE, 298.0)
    assert said.code is ErrorCode.BUDGET
    assert said.message == "budget=$3.00: stopped after 5.0 min at $0.0100/s"


@given(money, money, money)
def test_a_run_that_is_stopped_then_stays_within_its_budget(budget: Decimal, rate: Decimal, spent: Decimal) -> None:
    found = plan(budget, rate, spent)
    if found.stop_at_seconds is None:
        assert budget - spent <= 2 * rate + rate / 1000
    else:
        used = spent + cost_usd(found.stop_at_seconds, rate)
        assert budget - 2 * rate - rate / 1000 <= used <= budget - 2 * rate
