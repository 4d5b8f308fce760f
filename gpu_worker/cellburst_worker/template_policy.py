"""When a template is taken, and with which imports. Pure: facts and time are passed in.

A template is taken for a key that has none, once a session of that key is quiet; again when that session's notebook is
known to import what the template lacks. Not twice within an hour for a key, also after a failure; but one that is gone
(a file under it changed, or the disk was needed) may be taken again at once, and for three times one that failed because
what it imported was written meanwhile. A module that must not be in one is left out from then on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

QUIET_SECONDS = 3.0  # a person who runs cells one after the other is not slowed down by it
PATIENCE_SECONDS = 30.0  # after its first cell, a session that is never quiet waits no longer than that
AGAIN_SECONDS = 3600.0
NEED_BYTES = 1024**3  # a runner with torch and pandas imported, while it is frozen
SPARE_FACTOR = 2  # so much more must be free: a template must never be what makes the machine swap
MAX_PRELOAD = 500
MOST_UNFIT = 8  # modules that a key's list may lose, before its template imports nothing
MOST_WRITTEN = 3  # a file that somebody writes for ever is no reason to boot for ever


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
    _written: dict[str, int] = field(default_factory=dict)
    _unfit: dict[str, set[str]] = field(default_factory=dict)

    def due(
        self, now_seconds: float, facts: Sequence[Facts], have: Mapping[str, Sequence[str]], free_bytes: int
    ) -> Want | None:
        """What to take now, or None. `have`: key -> what its template has imported, only keys that have one; all
        keys of `facts` are looked up."""
        for key in self._had - have.keys():
            self._forget(key)
        for key in have.keys() - self._had:
            self._written.pop(key, None)
        self._had = set(have)
        if free_bytes < SPARE_FACTOR * NEED_BYTES:
            return None
        for fact in facts:
            if not fact.key or not _due(fact) or self._too_soon(fact.key, now_seconds):
                continue
            preloaded = have.get(fact.key)
            known = {*(preloaded or ()), *self._asked.get(fact.key, ())}
            fit = self._fit(fact)
            lacking = [name for name in fit if name not in known]
            if preloaded is None or lacking:
                wanted = tuple(dict.fromkeys(fit if preloaded is None else [*preloaded, *lacking]))[:MAX_PRELOAD]
                if preloaded is None or not known.issuperset(wanted):  # else it is full
                    return Want(fact.container, fact.key, wanted)
        return None

    def tried(self, want: Want, now_seconds: float) -> None:
        """A template was begun, whatever became of it. A name that could not be imported is not asked for again."""
        self._tried_seconds[want.key] = now_seconds
        self.asked(want)

    def asked(self, want: Want) -> None:
        """Somebody else was told to import these. Whatever it leaves out is not asked for again."""
        self._asked.setdefault(want.key, set()).update(want.preload)

    def written(self, want: Want) -> None:
        """It was begun and given up, because what it imported was written meanwhile."""
        self._written[want.key] = self._written.get(want.key, 0) + 1
        if self._written[want.key] < MOST_WRITTEN:
            self._forget(want.key)

    def unfit(self, want: Want, module: str) -> None:
        """It was begun and given up, because this module must not be in it: it is taken without."""
        self._unfit.setdefault(want.key, set()).add(module)
        self._forget(want.key)

    def _fit(self, fact: Facts) -> list[str]:
        unfit = self._unfit.get(fact.key, set())
        return without(fact.imports, unfit) if len(unfit) < MOST_UNFIT else []

    def _forget(self, key: str) -> None:
        self._tried_seconds.pop(key, None)
        self._asked.pop(key, None)

    def _too_soon(self, key: str, now_seconds: float) -> bool:
        return key in self._tried_seconds and now_seconds - self._tried_seconds[key] < AGAIN_SECONDS


def without(names: Sequence[str], unfit: Collection[str]) -> list[str]:
    """Modules without these, and without what lies in them."""
    return [name for name in names if not any(name == one or name.startswith(f"{one}.") for one in unfit)]


def is_quiet(fact: Facts) -> bool:
    """Whether no cell runs in the container, nor did a moment ago."""
    return not fact.busy and fact.quiet_seconds >= QUIET_SECONDS


def _due(fact: Facts) -> bool:
    return is_quiet(fact) or (fact.cells_done > 0 and fact.ready_seconds >= PATIENCE_SECONDS)
