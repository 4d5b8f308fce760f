"""The one clock of a gateway: nothing else here reads the time."""

from __future__ import annotations

import time


class SystemClock:
    """`cellburst_protocol.clock.Clock` by the machine's own clock."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment of this machine's own."""
        return time.monotonic()
