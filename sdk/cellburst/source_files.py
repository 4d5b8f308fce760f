"""What of an editable package's source folder goes along when its environment is built elsewhere, or kept for later."""

from __future__ import annotations

from pathlib import Path

from .schedule_freeze import LEFT_OUT, is_secret


class SourceLeftOut:
    """For `list_tree` of a source folder: what builds and tools leave there, notebooks, keys, and links that lead out of it (they
    would lead elsewhere there). Nobody was asked about these files, so a doubtful one stays."""

    def __init__(self, root: Path) -> None:
        self._root = root.expanduser().absolute()
        self._real_root = self._root.resolve()

    def __call__(self, path: Path) -> bool:
        return self.covers(path) or self._leads_out(self._root / path)

    def covers(self, path: Path) -> bool:
        """Whether also all below it stays; `path` is relative to the root."""
        if path.parts[0] in ("build", "dist", "labextension"):  # what builds leave there
            return True
        return any(
            name.startswith(".") or name in LEFT_OUT or is_secret(name) or name.endswith((".egg-info", ".ipynb"))
            for name in path.parts
        )

    def _leads_out(self, place: Path) -> bool:
        if not place.is_symlink():
            return False
        target = str(place.readlink())
        return target.startswith("/") or not (place.parent / target).resolve().is_relative_to(self._real_root)
