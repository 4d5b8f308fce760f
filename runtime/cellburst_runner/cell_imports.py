"""Which modules cells import: what a template of this image should have imported already."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from . import generators, values_modules
from .freeze_sources import attribute

MOST_NAMES = 500  # for each cell; one import of a large library brings thousands of inner modules


class ImportLog:
    """Says after each cell what is new in `sys.modules`. `folder` is the notebook's: what lies there is no library."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._known = set(sys.modules)
        self._seen = len(sys.modules)

    def news(self) -> list[str]:
        """Libraries' modules that were imported since the last call, in their order; above MOST_NAMES the outer ones."""
        if len(sys.modules) == self._seen:
            return []
        fresh = [name for name in list(sys.modules) if name not in self._known]
        self._known.update(fresh)
        self._seen = len(sys.modules)
        found = [name for name in fresh if self._counts(name)]
        if len(found) > MOST_NAMES:
            kept = set(sorted(found, key=lambda name: name.count("."))[:MOST_NAMES])
            found = [name for name in found if name in kept]
        return found

    def preload(self, names: Sequence[str]) -> list[str]:
        """Import modules in this order; returns those that could be. They are no news of a cell. Raises `generators.Seeds`."""
        if not names:  # a session's
            return []
        done = []
        with generators.watching():
            for name in names:
                try:
                    importlib.import_module(name)
                except (Exception, SystemExit):  # the module's own code: it is gone, or not for this machine
                    generators.look(name)
                    continue
                generators.look(name)
                done.append(name)
        self.news()
        return done

    def _counts(self, name: str) -> bool:
        spec = attribute(sys.modules.get(name), "__spec__")
        origin = getattr(spec, "origin", None)
        if not isinstance(origin, str) or name.partition(".")[0] in ("cellburst_runner", "__main__"):
            return False
        if values_modules.is_ours(getattr(spec, "loader", None)):
            return False
        if origin in ("built-in", "frozen"):
            return True
        folder = os.path.join(self.folder, "")
        return os.path.isabs(origin) and not (self.folder and origin.startswith(folder))
