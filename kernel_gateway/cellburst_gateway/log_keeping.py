"""Which logs of ended sessions go: those that ended long ago, and the oldest when all logs together pass their bound.

The log of a session that has not ended is never dropped here, and neither is, before its age, one with output that no
kernel has acknowledged. (What `LogStore` itself cuts when the bound cannot be held otherwise is told there.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from cellburst_protocol.errors import CellburstError, ErrorCode

from .logstore import LogStore
from .store import Store

DAY_SECONDS = 86400.0
MOST_AT_ONCE = 100  # sessions dropped in one look: their files are deleted on the gateway's only thread

log = logging.getLogger(__name__)


class LogKeeper:
    """Drops logs. `is_live(session)` says whether a session has not ended; it must know all of the record's."""

    def __init__(self, logs: LogStore, store: Store, is_live: Callable[[str], bool], keep_days: float) -> None:
        self._logs = logs
        self._store = store
        self._is_live = is_live
        self._keep_seconds = keep_days * DAY_SECONDS
        self._unacknowledged: set[str] = set()  # ended ones that were looked into and must stay

    def unwritten(self, now: float) -> list[str]:
        """Sessions whose log nobody has written to for the kept time, `now` in Unix seconds: all that `drop_old` need
        look at. Only reads folders, and may be called in a thread."""
        return self._logs.on_disk(before=now - self._keep_seconds)

    def drop_old(self, sessions: list[str], now: float) -> int:
        """Drop those of `sessions` that ended before the kept time; how many were. One that the record does not know
        stays (another record may). Raises PlatformError when the record cannot be read."""
        dropped = 0
        for session in sessions:
            if dropped >= MOST_AT_ONCE:
                break
            if not self._is_live(session) and self._ended_before(session, now - self._keep_seconds):
                self._logs.drop(session)
                self._unacknowledged.discard(session)
                dropped += 1
        if dropped:
            log.info("old logs were dropped", extra={"sessions": dropped})
        return dropped

    def make_room(self, writing: str) -> None:
        """`LogStore.make_room`: drop other ended sessions of which all is acknowledged, longest unwritten first."""
        for session in self._logs.on_disk():
            if self._logs.size_bytes <= self._logs.total_bytes:
                return
            if session == writing or self._is_live(session) or session in self._unacknowledged:
                continue
            if self._is_acknowledged(session):
                self._logs.drop(session)
            else:
                self._unacknowledged.add(session)
                self._logs.release(session)

    def _ended_before(self, session: str, moment: float) -> bool:
        try:
            record = self._store.get_session(session)
        except CellburstError as why:
            if why.code is ErrorCode.NOT_FOUND:
                return False
            raise
        return record.ended is not None and record.ended < moment

    def _is_acknowledged(self, session: str) -> bool:
        try:
            return self._logs.acknowledged(session) >= self._logs.last_sequence(session)
        except CellburstError:  # a segment that cannot be read: for a person to look at
            return False
