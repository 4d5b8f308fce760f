"""What a block of code asks to be imported, whether it was imported before or not: for `Image.imports`.

While any block is open `builtins.__import__` and `importlib.import_module` go through here. Counted is what the block's own
thread asks for itself, not what the modules that it imports ask for in turn.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

Ask = Callable[[str], None]


class _Watch:
    """The two functions in their places, while there are blocks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks: list[tuple[int, Ask]] = []  # thread, whom to tell
        self._mine = threading.local()
        self._import, self._import_module = builtins.__import__, importlib.import_module

    def open(self, block: tuple[int, Ask]) -> None:
        with self._lock:
            if builtins.__import__ != self.import_:
                self._import = builtins.__import__
                builtins.__import__ = self.import_
            if importlib.import_module != self.import_module:
                self._import_module = importlib.import_module
                importlib.import_module = self.import_module
            self._blocks.append(block)

    def close(self, block: tuple[int, Ask]) -> None:
        with self._lock:
            self._blocks.remove(block)
            if self._blocks:
                return
            # Where somebody put another function over these meanwhile, they stay below it and do nothing.
            if builtins.__import__ == self.import_:
                builtins.__import__ = self._import
            if importlib.import_module == self.import_module:
                importlib.import_module = self._import_module

    def import_(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        with self._asked(name, level, globals, tuple(fromlist or ())):
            return self._import(name, globals, locals, fromlist or (), level)

    def import_module(self, name: str, package: str | None = None) -> ModuleType:
        level = len(name) - len(name.lstrip("."))
        with self._asked(name[level:], level, {"__package__": package}, ()):
            return self._import_module(name, package)

    @contextmanager
    def _asked(
        self, name: str, level: int, globals: Mapping[str, object] | None, members: tuple[str, ...]
    ) -> Iterator[None]:
        depth: int = getattr(self._mine, "depth", 0)
        tell = [ask for thread, ask in self._blocks if thread == threading.get_ident()] if depth == 0 else []
        full = _absolute(name, level, globals) if tell else ""
        for ask in tell:
            if full:
                ask(full)
        self._mine.depth = depth + 1
        try:
            yield
        finally:
            self._mine.depth = depth
        for member in members:
            if full and f"{full}.{member}" in sys.modules:
                for ask in tell:
                    ask(f"{full}.{member}")


def _absolute(name: str, level: int, globals: Mapping[str, object] | None) -> str:
    """The full name of what is asked for; "" where the real import will say what is wrong with it."""
    if not level:
        return name
    package: Any = (globals or {}).get("__package__")
    try:
        return importlib.util.resolve_name("." * level + name, package)
    except (ImportError, TypeError, ValueError):
        return ""


_watch = _Watch()


@contextmanager
def asked_imports(ask: Ask) -> Iterator[None]:
    """`ask` gets the full name of each module that the block asks for, before it is imported; whatever becomes of the block,
    nothing of this stays in place."""
    block = (threading.get_ident(), ask)
    _watch.open(block)
    try:
        yield
    finally:
        _watch.close(block)
