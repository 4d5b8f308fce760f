"""What time alone decides for a session, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from cellburst_gateway.park_rules import (
    ENDS_WITH,
    RETRY_SECONDS,
    Cause,
    End,
    Park,
    Standing,
    due,
    may_try,
    wanted_after,
)
from cellburst_protocol.states import EndReason

LONG = 10_000.0


def standing(container: str = "ready", **given: Any) -> Standing:
    return Standing(**({"container": container, "idle_for": 0.0, "scaledown": 300.0, "grace": 600.0} | given))


@pytest.mark.parametrize(
    ("now", "step"),
    [
        # idle
        (standing(idle_for=299.0), None),
        (standing(idle_for=300.0), Park(Cause.IDLE)),
        (standing("other", idle_for=LONG), None),
        (standing("", idle_for=LONG), None),
        (standing(idle_for=LONG, failed_ago=RETRY_SECONDS - 1), None),
        (standing(idle_for=LONG, failed_ago=RETRY_SECONDS), Park(Cause.IDLE)),
        # its kernel is gone, or its name
        (standing(kernel_gone_for=599.0), None),
        (standing(kernel_gone_for=600.0), Park(Cause.KERNEL_GONE)),
        (standing(superseded_for=600.0, kernel_gone_for=600.0), Park(Cause.SUPERSEDED)),
        (standing(kernel_gone_for=600.0, failed_ago=1.0), Park(Cause.KERNEL_GONE)),
        (standing("other", kernel_gone_for=LONG), None),
        (standing("", kernel_gone_for=600.0), End(EndReason.KERNEL_GONE)),
        (standing("", superseded_for=600.0), End(EndReason.SUPERSEDED)),
        (standing("", superseded_for=599.0), None),
        # put away: neither a gone kernel nor a lost name ends it before its time
        (standing("", kernel_gone_for=LONG, superseded_for=LONG, expires_in=1.0), None),
        (standing("", expires_in=0.0), End(EndReason.EXPIRED)),
        (standing("other", expires_in=-1.0), None),  # it is being resumed
    ],
)
def test_what_is_due(now: Standing, step: Park | End | None) -> None:
    assert due(now) == step


@pytest.mark.parametrize(
    ("idle_for", "superseded", "failed_ago", "counts"),
    [
        (29.0, False, None, None),
        (30.0, False, None, 30.0),
        (LONG, False, RETRY_SECONDS - 1, None),
        (LONG, False, RETRY_SECONDS, LONG),
        (0.0, True, None, float("inf")),
        (0.0, True, 1.0, None),
    ],
)
def test_who_may_be_parked_for_somebody_who_waits(
    idle_for: float, superseded: bool, failed_ago: float | None, counts: float | None
) -> None:
    assert wanted_after(idle_for, superseded, failed_ago) == counts


def test_a_cause_that_ends_a_session_has_its_reason() -> None:
    assert set(ENDS_WITH) == {Cause.KERNEL_GONE, Cause.SUPERSEDED}
    assert may_try(None)
