"""When a session is put away, given up or left alone: what time alone decides. Pure; who is parked for somebody who waits
is decided in `placement.py`.

Rules, in the order they bind, for a session without a call and without a park under way:

1. One that is put away ends when its kept time is over.
2. One that lost its name, or whose kernel is gone, for as long as the grace: put away where it can be, else ended.
3. One that is idle as long as its scaledown window is put away; after a failure not again for a while.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from cellburst_protocol.states import EndReason

RETRY_SECONDS = 600.0  # a full disk is seldom free again sooner, and each try stops the session's process for a while
WANTED_IDLE_SECONDS = 30.0  # a session whose cell has just ended is being used: who waits gets those idle longer


class Cause(enum.StrEnum):
    """Why a session is put away."""

    USER = "user"
    IDLE = "idle"
    WANTED = "wanted"  # somebody waits for what it holds
    MOVE = "move"  # its next cell asks for other hardware
    KERNEL_GONE = "kernel_gone"
    SUPERSEDED = "superseded"


# What becomes of a session that nobody can be told about when it cannot be put away.
ENDS_WITH = {Cause.KERNEL_GONE: EndReason.KERNEL_GONE, Cause.SUPERSEDED: EndReason.SUPERSEDED}


@dataclass(frozen=True, slots=True)
class Standing:
    """A session as time sees it; all durations in seconds, None where it does not apply.

    `container` is "ready" (it could be parked now), "other" (it starts, or its worker is not heard) or "" (none).
    `expires_in` is of a parked one.
    """

    container: str
    idle_for: float
    scaledown: float
    grace: float
    superseded_for: float | None = None
    kernel_gone_for: float | None = None
    failed_ago: float | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class Park:
    """Put it away."""

    cause: Cause


@dataclass(frozen=True, slots=True)
class End:
    """End it."""

    reason: EndReason


def due(now: Standing) -> Park | End | None:
    """What is due for a session that has no call and is not being parked."""
    if now.expires_in is not None and not now.container:
        return End(EndReason.EXPIRED) if now.expires_in <= 0 else None
    for cause, since in ((Cause.SUPERSEDED, now.superseded_for), (Cause.KERNEL_GONE, now.kernel_gone_for)):
        if since is not None and since >= now.grace:
            return Park(cause) if now.container == "ready" else None if now.container else End(ENDS_WITH[cause])
    if now.container == "ready" and now.idle_for >= now.scaledown and may_try(now.failed_ago):
        return Park(Cause.IDLE)
    return None


def may_try(failed_ago: float | None) -> bool:
    """Whether a session that could not be parked so long ago may be tried again without being asked to."""
    return failed_ago is None or failed_ago >= RETRY_SECONDS


def wanted_after(idle_for: float, superseded: bool, failed_ago: float | None) -> float | None:
    """How long an idle session counts as idle to somebody who waits for what it holds; None: it is not to be taken.

    One that lost its name is nobody's at work: it goes at once, and first.
    """
    if not may_try(failed_ago):
        return None
    if superseded:
        return float("inf")
    return idle_for if idle_for >= WANTED_IDLE_SECONDS else None


class Pending(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the record keeps of a park under way: the id that its worker was or will be given."""

    id: str
    cause: Cause
