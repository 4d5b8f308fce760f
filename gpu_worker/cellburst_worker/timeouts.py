"""When a call has run long enough: interrupt it, and kill its executor if that does not help. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass

KILL_AFTER_SECONDS = 5.0  # between SIGINT and SIGKILL: time for the code's own `finally`


@dataclass
class CallLimit:
    """The time limit of one call, counted from `cell_started`. `started_seconds` is monotonic, None before that."""

    timeout_seconds: float | None
    started_seconds: float | None = None
    level_sent: int = 0

    @property
    def timed_out(self) -> bool:
        """Whether the limit was reached and the call was told so."""
        return self.level_sent > 0

    def due(self, now_seconds: float) -> int:
        """The interrupt level to send now (1, then 3), or 0. Each level is told once."""
        if self.timeout_seconds is None or self.started_seconds is None:
            return 0
        run = now_seconds - self.started_seconds
        if self.level_sent == 0 and run >= self.timeout_seconds:
            self.level_sent = 1
            return 1
        if self.level_sent == 1 and run >= self.timeout_seconds + KILL_AFTER_SECONDS:
            self.level_sent = 3
            return 3
        return 0

    def next_due_seconds(self) -> float | None:
        """Monotonic time of the next level, or None when nothing more will come."""
        if self.timeout_seconds is None or self.started_seconds is None or self.level_sent == 3:
            return None
        return self.started_seconds + self.timeout_seconds + (KILL_AFTER_SECONDS if self.level_sent else 0.0)
