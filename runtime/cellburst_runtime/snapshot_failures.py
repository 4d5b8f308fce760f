"""Which snapshots are not restored any more because that failed too often: a template by its key, a session by its own id.

Apart, because their faults are: a session can be one that no engine brings back (its memory, its threads), while every other
start from the template of the same key works. A failure is forgotten after a day: what made it (a disk that hung, a machine
under load) is mostly over by then, and one try costs seconds.

    failures.json    {"template KEY" or "session ID": [how often in a row, when the last time]}
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from .snapshot_manifest import SnapshotKind

MOST_FAILURES = 3  # in a row: the next start would most likely only lose time
FORGET_SECONDS = 24 * 3600.0
_Counts = dict[str, tuple[int, float]]


class Failures:
    """Those of one store, in a small file. All calls block for a moment; they may come from several threads. `wall` gives Unix
    seconds."""

    def __init__(self, path: Path, wall: Callable[[], float] = time.time) -> None:
        self._path = path
        self.wall = wall
        self._lock = threading.Lock()

    def too_many(self, kind: SnapshotKind, id: str) -> bool:
        """Whether restoring it failed 3 times in a row, the last time less than a day ago."""
        return self._load().get(f"{kind} {id}", (0, 0.0))[0] >= MOST_FAILURES

    def failed(self, kind: SnapshotKind, id: str) -> None:
        """Restoring it failed."""
        with self._lock:
            counts, name = self._load(), f"{kind} {id}"
            counts[name] = (counts.get(name, (0, 0.0))[0] + 1, self.wall())
            self._save(counts)

    def succeeded(self, kind: SnapshotKind, id: str) -> None:
        """It was restored: its failures are forgotten."""
        with self._lock:
            counts = self._load()
            if counts.pop(f"{kind} {id}", None) is not None:
                self._save(counts)

    def _load(self) -> _Counts:
        """Those of the last day. A clock that was set back makes none older than they are."""
        try:
            counts = msgspec.json.decode(self._path.read_bytes(), type=_Counts)
        except (OSError, msgspec.MsgspecError):  # none yet; or of an earlier version, which counted keys only
            return {}
        now = self.wall()
        return {name: count for name, count in counts.items() if now - count[1] < FORGET_SECONDS}

    def _save(self, counts: _Counts) -> None:
        draft = self._path.with_suffix(".new")
        with contextlib.suppress(OSError):  # on a full disk the count is lost, not the start
            draft.write_bytes(msgspec.json.encode(counts))
            draft.replace(self._path)
