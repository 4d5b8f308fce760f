"""Modules that travelled by value: their sources are imported from memory, lazily, and again when they changed."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from typing import Any, Dict, Optional, Sequence, Tuple

Source = Tuple[str, str]  # (text, file name as the kernel had it)


class _Loader(importlib.abc.SourceLoader):
    """Loads one module from its source; tracebacks find the lines through `get_source`."""

    def __init__(self, text: str, filename: str) -> None:
        self._text = text
        self._filename = filename

    def get_filename(self, fullname: str) -> str:
        return self._filename

    def get_data(self, path: Any) -> bytes:
        if path != self._filename:
            raise OSError(f"{path} did not travel")
        return self._text.encode()


class _Finder(importlib.abc.MetaPathFinder):
    """First on `sys.meta_path`: what travelled goes before a file of that name."""

    def __init__(self) -> None:
        self.sources: Dict[str, Source] = {}

    def find_spec(
        self, fullname: str, path: Optional[Sequence[str]], target: Any = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        source = self.sources.get(fullname)
        if source is None:
            return None
        package = os.path.basename(source[1]) == "__init__.py"
        spec = importlib.util.spec_from_loader(fullname, _Loader(*source), origin=source[1], is_package=package)
        if spec is not None:
            spec.has_location = True
            if package:
                spec.submodule_search_locations = [os.path.dirname(source[1])]
        return spec


_finder = _Finder()


def sources() -> Dict[str, Source]:
    """All that travelled so far."""
    return dict(_finder.sources)


def is_ours(loader: Any) -> bool:
    """Whether a module with this loader travelled."""
    return isinstance(loader, _Loader)


def install(sources: Dict[str, Source]) -> None:
    """Make these importable. Those that are loaded with another text are reloaded in place, so that names that are bound
    to the module see the new one too; inner modules first. Raises what a reloaded module raises."""
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    changed = [n for n, s in sources.items() if n in sys.modules and _finder.sources.get(n) != s]
    _finder.sources.update({n: (s[0], s[1]) for n, s in sources.items()})
    for name in sorted(changed, key=lambda n: -n.count(".")):
        importlib.reload(sys.modules[name])
