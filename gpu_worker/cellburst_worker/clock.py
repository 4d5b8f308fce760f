"""The one source of time of a worker: wall and monotonic seconds, handed in where they are needed."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time. Tests hand in one that stands still until it is moved."""

    def wall(self) -> float:
        """Unix seconds, for people and logs only."""

    def monotonic(self) -> float:
        """Seconds that never go back: what leases, limits and usage are counted with."""


class SystemClock:
    """The machine's clock."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment of this machine's own."""
        return time.monotonic()
