"""Which files this process's modules were read from: what must be the same where a template made of it starts a session.

A module's code is in memory, its file neither mapped nor open. A session that starts from a template would go on with code
that was edited since, and nobody would say so.
"""

from __future__ import annotations

import os
import sys
from typing import Any, Optional

_OURS = "cellburst_runner"  # in the key of a snapshot


def sources() -> list[str]:
    """Paths, sorted; of a module in an archive the archive's. What is not there (a name made up by who made the module) is
    left out."""
    found: set[str] = set()
    looked_at: set[str] = set()
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in (_OURS, "__main__"):
            continue
        path = file_of(module)
        if not os.path.isabs(path) or path in looked_at:
            continue
        looked_at.add(path)
        there = _file(path)
        if there is not None:
            found.add(there)
    return sorted(found)


def attribute(module: Any, name: str) -> Any:
    """What is written in a module of `sys.modules`, or None. It is not asked but looked into: what stands there for a module (a
    lazy import, a proxy) may import it when it is asked, or raise anything."""
    try:
        return object.__getattribute__(module, "__dict__").get(name)
    except Exception:  # it has nothing of the kind, or a class of its own that says what that is
        return None


def file_of(module: Any) -> str:
    """What a module was read from, as it says; "" for nothing."""
    found = attribute(module, "__file__")
    return str.__str__(found) if issubclass(type(found), str) else ""


def _file(path: str) -> Optional[str]:
    """The path, or the file above it that it names a part of (`a.zip/b.py`)."""
    while not os.path.isfile(path):
        above = os.path.dirname(path)
        if above == path or os.path.isdir(path):
            return None
        path = above
    return path
