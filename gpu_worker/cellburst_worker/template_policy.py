"""When a template is taken, and with which imports. Pure: facts and time are passed in.

A template is taken for a key that has none, once a session of that key is quiet; again when that session's notebook is
known to import what the template lacks. Not twice within an hour for a key, also after a failure; but one that is gone
(a file under it changed, or the disk was needed) may be taken again at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

QUIET_SECONDS = 3.0  # a person who runs cells one after the other is not slowed down by it
PATIENCE_SECONDS = 30.0  # after its first cell, a session that is never quiet waits no longer than that
AGAIN_SECONDS = 3600.0
NEED_BYTES = 1024**3  # a runner with torch and pandas imported, while it is frozen
SPARE_FACTOR = 2  # so much more must be free: a template must never be what makes the machine swap
MAX_PRELOAD = 500


@dataclass(frozen=True)
class Facts:
    """One ready container. Seconds are counted from now back; `imports` are those remembered of its notebook."""

    container: str
    key: str
    busy: bool
    quiet_seconds: float
    ready_seconds: float
    cells_done: int
    imports: Sequence[str] = ()


@dataclass(frozen=True)
class Want:
    """Take a template of the container's key, with these imports, in order."""

    container: str
    key: str
    preload: tuple[str, ...]


@dataclass
class TemplatePolicy:
    """What was tried, by key."""

    _tried_seconds: dict[str, float] = field(default_factory=dict)
    _asked: dict[str, set[str]] = field(default_factory=dict)
    _had: set[str] = field(default_factory=set)

    def due(
        self, now_seconds: float, facts: Sequence[Facts], have: Mapping[str, Sequence[str]], free_bytes: int
    ) -> Want | None:
        """What to take now, or None. `have`: key -> what its template has imported, only keys that have one; all
        keys of `facts` are looked up."""
        for key in self._had - have.keys():
            self._tried_seconds.pop(key, None)
            self._asked.pop(key, None)
        self._had = set(have)
        if free_bytes < SPARE_FACTOR * NEED_BYTES:
            return None
        for fact in facts:
            if not fact.key or not _quiet(fact) or self._too_soon(fact.key, now_seconds):
                continue
            preloaded = have.get(fact.key)
            known = {*(preloaded or ()), *self._asked.get(fact.key, ())}
            lacking = [name for name in fact.imports if name not in known]
            if preloaded is None or lacking:
                wanted = fact.imports if preloaded is None else [*preloaded, *lacking]
                return Want(fact.container, fact.key, tuple(dict.fromkeys(wanted))[:MAX_PRELOAD])
        return None

    def tried(self, want: Want, now_seconds: float) -> None:
        """A template was begun, whatever became of it. A name that could not be imported is not asked for again."""
        self._tried_seconds[want.key] = now_seconds
        self._asked.setdefault(want.key, set()).update(want.preload)

    def _too_soon(self, key: str, now_seconds: float) -> bool:
        return key in self._tried_seconds and now_seconds - self._tried_seconds[key] < AGAIN_SECONDS


def _quiet(fact: Facts) -> bool:
    if fact.cells_done and fact.ready_seconds >= PATIENCE_SECONDS:
        return True
    return not fact.busy and fact.quiet_seconds >= QUIET_SECONDS
