"""The one clock of the gateway: wall time for people, monotonic time for durations. Nothing else reads the time."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where shells get the time that they pass to cores. Tests give one that they move by hand."""

    def wall(self) -> float:
        """Unix seconds. May step when the machine's clock is set: only shown and recorded, never subtracted."""

    def monotonic(self) -> float:
        """Seconds that never go back, of this process only: for every duration and deadline."""


class SystemClock:
    """The machine's own clock."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some start."""
        return time.monotonic()
