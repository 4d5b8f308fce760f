"""Where what is fetched from a volume goes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cellburst_protocol import volumes as protocol
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import shown

from .volume_get import Download


def places(
    entries: Sequence[protocol.FileEntry], wanted: str, local: Path, named_as_folder: bool
) -> tuple[Path, list[Download]]:
    """The folder to write below, and what goes where in it."""
    is_file = len(entries) == 1 and entries[0].path == wanted and entries[0].kind != "folder"
    name = wanted.rpartition("/")[2]
    if is_file and not (local.is_dir() or named_as_folder):
        _make(local.parent)
        return local.parent, [Download(entries[0], local.name)]
    _make(local)
    if is_file:
        return local, [Download(entries[0], name)]
    inside = f"{wanted}/" if wanted else ""
    downloads = []
    for entry in entries:
        rest = entry.path[len(inside) :] if entry.path != wanted else ""
        path = "/".join(part for part in (name, rest) if part)
        if path:
            downloads.append(Download(entry, path))
    return local, downloads


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as why:
        raise error(ErrorCode.BAD_ARGUMENT, f"{shown(str(folder))} cannot be made: {why.strerror}") from None
