"""What each notebook imported, remembered from one container to the next: what its image's template imports beforehand.

One small file for each notebook, DATA/snapshots/imports/<hash of notebook>.json. Losing one costs a slower first import.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec
from blake3 import blake3

MAX_NAMES = 500  # the newest are kept: a template that imports more takes longer than it saves
MAX_NAME_CHARACTERS = 200

log = logging.getLogger(__name__)


class Imports:
    """The remembered imports of one worker. Small files, read once each; written when there is something new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, dict[str, None]] = {}

    def of(self, notebook: str) -> list[str]:
        """Names in the order in which they were first imported."""
        return list(self._load(notebook))

    def add(self, notebook: str, names: Sequence[str]) -> None:
        """Remember what a cell imported. What is no module's name is left out: the container is not trusted."""
        known = self._load(notebook)
        new = [name for name in names if name not in known and _is_module_name(name)]
        if not new:
            return
        known.update(dict.fromkeys(new))
        for name in list(known)[: max(0, len(known) - MAX_NAMES)]:
            del known[name]
        path = self._path(notebook)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = path.with_suffix(".new")
            draft.write_bytes(msgspec.json.encode(list(known)))
            draft.replace(path)
        except OSError as why:
            log.warning("what a notebook imports could not be kept", extra={"why": str(why)})

    def _load(self, notebook: str) -> dict[str, None]:
        known = self._known.get(notebook)
        if known is None:
            try:
                names = msgspec.json.decode(self._path(notebook).read_bytes(), type=list[str])
            except (OSError, msgspec.MsgspecError):
                names = []
            known = self._known[notebook] = dict.fromkeys(filter(_is_module_name, names))
        return known

    def _path(self, notebook: str) -> Path:
        return self._folder / f"{blake3(notebook.encode()).hexdigest(length=16)}.json"


def _is_module_name(name: str) -> bool:
    return len(name) <= MAX_NAME_CHARACTERS and all(part.isidentifier() for part in name.split("."))
