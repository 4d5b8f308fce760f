"""Which modules travel by value: those of the notebook's own folder and other loose files, not those that are installed."""

from __future__ import annotations

import ast
import functools
import site
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

_MOST_FILES = (
    2000  # a folder with more is no helper package; it is found through the mirror's paths or must be installed
)
_MOST_BYTES = 10_000_000

Sources = dict[str, tuple[str, str]]  # dotted name -> (text, file name)


@functools.cache
def _installed_roots() -> tuple[Path, ...]:
    """Folders whose modules the container has: standard library, site-packages, and what `.pth` files add."""
    paths = sysconfig.get_paths()
    roots = {Path(paths[k]) for k in ("stdlib", "platstdlib", "purelib", "platlib")}
    roots |= {Path(p) for p in [*site.getsitepackages(), site.getusersitepackages()]}
    for folder in [r for r in roots if r.is_dir()]:
        for pth in folder.glob("*.pth"):
            lines = pth.read_text(errors="replace").splitlines()
            roots |= {folder / line.strip() for line in lines if line.strip() and not line.startswith(("import", "#"))}
    return tuple(r.resolve() for r in roots)


@functools.lru_cache(maxsize=10_000)
def _is_installed(path: str) -> bool:
    return any(Path(path).resolve().is_relative_to(root) for root in _installed_roots())


def loose_file(module: str, folder: Path) -> Path | None:
    """The source file of a top-level module that has to travel, or None when it is installed or not there at all.

    A module that is not imported yet is looked for beside the notebook only.
    """
    loaded = sys.modules.get(module)
    if loaded is not None:
        name = getattr(loaded, "__file__", None)
        if module == "__main__" or not name or not name.endswith(".py") or _is_installed(name):
            return None
        return Path(name)
    for candidate in (folder / f"{module}.py", folder / module / "__init__.py"):
        if candidate.is_file() and not _is_installed(str(candidate)):
            return candidate
    return None


class ModuleSources:
    """Sources of loose modules, read again only when a file's time or size changed."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[tuple[int, int], str]] = {}

    def collect(self, modules: Iterable[str], folder: Path) -> dict[str, Sources]:
        """For each top-level loose module behind these dotted names, and those they import: all its sources."""
        found: dict[str, Sources] = {}
        waiting = {m.partition(".")[0] for m in modules}
        seen: set[str] = set()
        while waiting:
            module = waiting.pop()
            seen.add(module)
            file = loose_file(module, folder) if module.isidentifier() else None
            if file is None:
                continue
            found[module] = self._sources(module, file)
            for text, _ in found[module].values():
                waiting |= _imports(text) - seen
        return found

    def _sources(self, module: str, file: Path) -> Sources:
        if file.name != "__init__.py":
            return {module: (self._text(file), str(file))}
        sources: Sources = {}
        size = 0
        for path in sorted(file.parent.rglob("*.py"))[:_MOST_FILES]:
            inner = path.relative_to(file.parent).with_suffix("").parts
            if any(not p.isidentifier() for p in inner):
                continue
            text = self._text(path)
            size += len(text)
            if size > _MOST_BYTES:
                break
            dotted = ".".join([module, *(p for p in inner if p != "__init__")])
            sources[dotted] = (text, str(path))
        return sources

    def _text(self, file: Path) -> str:
        stat = file.stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
        known = self._read.get(file)
        if known is None or known[0] != stamp:
            known = self._read[file] = (stamp, file.read_text(encoding="utf-8", errors="replace"))
        return known[1]


@functools.lru_cache(maxsize=1000)
def _imports(text: str) -> frozenset[str]:
    """Top-level names of what a module's text imports absolutely."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return frozenset()  # importing it will say so
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.partition(".")[0] for a in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return frozenset(found)
