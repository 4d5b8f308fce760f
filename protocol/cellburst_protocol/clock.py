"""The one interface by which every process is told the time. What reads the machine's clock is in gateway and worker."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Where shells get the time that they pass to cores. Tests give one that stands still until they move it."""

    def wall(self) -> float:
        """Unix seconds. May step when the machine's clock is set: only shown and recorded, never subtracted."""

    def monotonic(self) -> float:
        """Seconds that never go back, of this process only: for every duration and deadline."""
