"""Keeps moves between control groups quick while a container starts.

The first move after a pause waits in the kernel for a whole RCU grace period, about 12 ms here; one that follows within the
next such period takes 0.1 ms (measured: `kernel/rcu/sync.c` leaves its slow state only then). `runsc` makes two while it starts
a sandbox, one to go into the container's group and one to come back, and both are waited for. So a thread moves this
process to where it is, again and again, from the beginning of a start on: the one long wait is over before runsc comes to it.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

EXPECT_SECONDS = 0.3  # from the beginning of a start to runsc's last move, with room
EVERY_SECONDS = 0.005  # below a grace period of any kernel


class QuickMoves:
    """`procs` is the `cgroup.procs` of the group that this process is in, None where it has none it may write."""

    def __init__(self, procs: Path | None) -> None:
        self._procs = procs
        self._until = 0.0
        self._lock = threading.Lock()
        self._running = False

    def expect(self, seconds: float = EXPECT_SECONDS) -> None:
        """Moves within the next so many seconds are quick, but for the first few milliseconds. Returns at once."""
        with self._lock:
            self._until = max(self._until, time.monotonic() + seconds)
            if self._running or self._procs is None:
                return
            self._running = True
        threading.Thread(target=self._keep, name="quick group moves", daemon=True).start()

    def _keep(self) -> None:
        while True:
            with self._lock:
                if time.monotonic() >= self._until or self._procs is None:
                    self._running = False
                    return
            try:
                self._procs.write_text(str(os.getpid()))
            except OSError:  # it may not, or its group is gone: then moves take as long as they take
                self._procs = None
            time.sleep(EVERY_SECONDS)


def own_procs(root: Path, version: int, text: str) -> Path | None:
    """`cgroup.procs` of the group that a process is in; `text` is its `/proc/PID/cgroup`. None where there is none.

    For v1 in the hierarchy of "pids": a move in one makes those in the others quick too.
    """
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        if (version == 2 and not controllers) or (version == 1 and "pids" in controllers.split(",")):
            file = root / ("" if version == 2 else "pids") / path.lstrip("/") / "cgroup.procs"
            return file if file.is_file() else None
    return None
