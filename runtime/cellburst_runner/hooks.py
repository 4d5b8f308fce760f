"""What user code wants done around a snapshot: `cellburst.before_snapshot` and `cellburst.on_restore`.

The registries live here, in the executor; the installed package `cellburst` finds this module in `sys.modules`. An image that
has no such package gets a small module of that name (`StandIn`), last on `sys.meta_path`, so that a real one goes before it.
Phases beside these two are one more registry each: functions and classes will add `enter` and `exit`.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import inspect
import sys
import types
from collections.abc import Sequence
from typing import Any, Callable, Optional, TypeVar

BEFORE, AFTER = "before_snapshot", "on_restore"
Hook = Callable[[], Any]
_F = TypeVar("_F", bound=Hook)
_hooks: dict[str, list[Hook]] = {BEFORE: [], AFTER: []}


def before_snapshot(function: _F) -> _F:
    """Call `function()` before each snapshot of this session: close what cannot be saved. Raises TypeError for an async one."""
    return _add(BEFORE, function)


def on_restore(function: _F) -> _F:
    """Call `function()` each time after a snapshot was taken and this process goes on: connect again. Also when the snapshot
    could not be taken, as the hooks of before ran. Raises TypeError for an async one."""
    return _add(AFTER, function)


def _add(phase: str, function: _F) -> _F:
    if not callable(function) or inspect.iscoroutinefunction(function):
        raise TypeError(f"cellburst.{phase} takes a plain function without arguments, not {function!r}")
    name = _name(function)
    for index, other in enumerate(_hooks[phase]):
        if other is function or (name is not None and _name(other) == name):
            _hooks[phase][index] = function  # its cell ran again
            return function
    _hooks[phase].append(function)
    return function


def _name(function: Any) -> Optional[tuple[str, str]]:
    """What a function is called if that tells it from others: module and qualified name."""
    name = getattr(function, "__qualname__", "")
    return (str(getattr(function, "__module__", "")), name) if name and "<" not in name else None


def run(phase: str) -> list[str]:
    """Call the hooks of a phase in the order of their registration. Returns a line for each that raised, and goes on behind it.

    Raises KeyboardInterrupt when the user interrupts one.
    """
    notes = []
    for function in list(_hooks[phase]):
        try:
            result = function()
            if inspect.iscoroutine(result):
                result.close()
                raise TypeError("it returned a coroutine, which nobody awaits")
        except (Exception, SystemExit) as why:
            name = getattr(function, "__qualname__", repr(function))
            notes.append(f"hook {name} ({phase}) raised {type(why).__name__}: {why}"[:500])
    return notes


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `import cellburst` work in an image that lacks it, with the two decorators and nothing else."""

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Any = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        return importlib.machinery.ModuleSpec("cellburst", self, origin=__file__) if fullname == "cellburst" else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> Optional[types.ModuleType]:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__doc__ = "The two hooks; this image has no cellburst of its own."
        vars(module).update(before_snapshot=before_snapshot, on_restore=on_restore)
        vars(module)["__getattr__"] = self._lacking

    @staticmethod
    def _lacking(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"cellburst.{name} is not there: this image has before_snapshot and on_restore only; install cellburst in it"
        )


def install_stand_in() -> None:
    """Put the stand-in last on `sys.meta_path`, once."""
    if not any(isinstance(finder, StandIn) for finder in sys.meta_path):
        sys.meta_path.append(StandIn())
