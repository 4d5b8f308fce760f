"""CPU cores used over the last second, from counters that only grow. Pure: time is passed in."""

from __future__ import annotations


class CpuMeter:
    """One container's CPU counter."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None  # (CPU seconds, monotonic seconds)

    def cores(self, cpu_seconds: float | None, now_seconds: float) -> float | None:
        """Cores used since the last call; None at the first one, or where the machine does not tell."""
        last, self._last = self._last, (None if cpu_seconds is None else (cpu_seconds, now_seconds))
        if last is None or cpu_seconds is None or now_seconds <= last[1]:
            return None
        return max(0.0, (cpu_seconds - last[0]) / (now_seconds - last[1]))
