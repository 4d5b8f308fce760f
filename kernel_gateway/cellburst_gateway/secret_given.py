"""Values that sessions were given, also those that were replaced or deleted since: their output must not show them.

In this process's memory and in none of its files, for as long as the session lives. A gateway that starts again does not know
those of before; a worker keeps what it hides for its containers, parked ones too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping

from .secret_store import Opened
from .session import Session

MAX_BYTES = 512 * 1024  # of one session: what is hidden travels in one message. The oldest are let go first

Version = tuple[str, str, int]
"""A store, a secret's name and its version there."""


class Given:
    """By session. `repr` shows no value."""

    def __init__(self) -> None:
        self._of: weakref.WeakKeyDictionary[Session, dict[Version, dict[str, str]]] = weakref.WeakKeyDictionary()

    def add(self, session: Session, found: Opened, keys: Iterable[str]) -> None:
        """The session is given these keys' values."""
        of = self._of.setdefault(session, {})
        version = (found.store, found.name, found.version)
        of[version] = {**of.pop(version, {}), **{key: found.values[key] for key in keys}}  # the newest at the end
        while len(of) > 1 and sum(len(value) for values in of.values() for value in values.values()) > MAX_BYTES:
            del of[next(iter(of))]

    def versions(self, sessions: Iterable[Session]) -> frozenset[Version]:
        """What the sessions were given."""
        return frozenset(version for session in sessions for version in self._of.get(session, ()))

    def others(self, sessions: Iterable[Session], known: Mapping[str, str]) -> dict[str, str]:
        """Values that the sessions were given and that are not among `known`, whose labels are taken; by label."""
        found: dict[str, str] = {}
        there = set(known.values())
        for session in sessions:
            for (store, name, version), values in self._of.get(session, {}).items():
                for key, value in values.items():
                    if value in there:
                        continue
                    there.add(value)
                    labels = (f"{name}.{key}", f"{name}.{key} of version {version}")
                    free = (label for label in labels if label not in known and label not in found)
                    found[next(free, f"{name}.{key} of version {version} of {store}")] = value
        return found
