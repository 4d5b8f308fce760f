"""Money as people read it."""

from __future__ import annotations

import pytest

from cellburst.money import usd_text


@pytest.mark.parametrize(
    ("amount", "shown"),
    [("0", "$0.00"), ("", "$0.00"), ("1.23456", "$1.23"), ("0.0999", "$0.0999"), ("0.0001234567", "$0.0001"),
     ("0.00009", "<$0.0001"), ("0.1", "$0.10"), ("many", "$?")],
)  # fmt: skip
def test_amounts(amount: str, shown: str) -> None:
    assert usd_text(amount) == shown


def test_a_rate_is_shown_by_the_hour() -> None:
    assert usd_text("0.000583", per_hour=True) == "$2.10"
