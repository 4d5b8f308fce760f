"""What a program wants done around snapshots of the container it runs in.

    @cellburst.before_snapshot
    def close(): connection.close()

    @cellburst.on_restore
    def reconnect(): connection.open()

In a container the runner calls them; anywhere else nothing ever does, so that the same notebook runs locally too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

_RUNNER = "cellburst_runner.hooks"  # in `sys.modules` of an executor, which may be of another version than this package
_F = TypeVar("_F", bound=Callable[[], Any])


def before_snapshot(function: _F) -> _F:
    """Call `function()` before each snapshot of the session. Returns it. Raises TypeError if it is async."""
    return _register("before_snapshot", function)


def on_restore(function: _F) -> _F:
    """Call `function()` each time after a snapshot, in the process that goes on. Returns it. Raises TypeError if it is async."""
    return _register("on_restore", function)


def _register(phase: str, function: _F) -> _F:
    add = getattr(sys.modules.get(_RUNNER), phase, None)
    if add is not None:
        add(function)
    return function
