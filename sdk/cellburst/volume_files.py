"""A volume's list of entries as folders and files: what lies where. No I/O."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from cellburst_protocol import volumes as protocol
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.volumes import check_path, shown

from .exceptions import VolumeFileMissing


class FileEntryType(enum.IntEnum):
    """What a path is; Modal's numbers."""

    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3


@dataclass(frozen=True)
class FileEntry:
    """A path of a volume, without a leading "/". `mtime` is whole unix seconds; a folder's is that of its newest file, its size
    0; a link's size is that of its text."""

    path: str
    type: FileEntryType
    mtime: int
    size: int


def stored_path(path: str) -> str:
    """A path as it is stored; "" is the volume's own root. Raises RequestError (BAD_ARGUMENT)."""
    return check_path(path) if path.strip("/") not in ("", ".") else ""


def listing(entries: Iterable[protocol.FileEntry], path: str, *, recursive: bool) -> list[FileEntry]:
    """What lies in a folder, or the file itself, by path. `recursive`: all that lies below it. Raises VolumeFileMissing."""
    folders: dict[str, int] = {}
    found: dict[str, FileEntry] = {}
    is_there = not path
    inside = f"{path}/" if path else ""
    for entry in entries:
        if entry.path == path:
            is_there = True
            if entry.kind != "folder":
                return [_shown(entry)]
        if not entry.path.startswith(inside):
            continue
        is_there = True
        parts = entry.path[len(inside) :].split("/")
        last = len(parts) if recursive else 1
        for depth in range(1, min(last, len(parts) - 1) + 1):
            folder = inside + "/".join(parts[:depth])
            folders[folder] = max(folders.get(folder, 0), entry.modified_ns)
        if len(parts) <= last:
            if entry.kind == "folder":
                folders[entry.path] = max(folders.get(entry.path, 0), entry.modified_ns)
            else:
                found[entry.path] = _shown(entry)
    if not is_there:
        raise missing(path)
    for folder, modified_ns in folders.items():
        found[folder] = FileEntry(folder, FileEntryType.DIRECTORY, modified_ns // 10**9, 0)
    return [found[name] for name in sorted(found)]


def below(entries: Iterable[protocol.FileEntry], path: str) -> list[protocol.FileEntry]:
    """The entry at a path and all below it; empty when there is nothing."""
    return [entry for entry in entries if not path or entry.path == path or entry.path.startswith(f"{path}/")]


def missing(path: str) -> VolumeFileMissing:
    """The error for a path of which the volume has nothing."""
    return VolumeFileMissing(
        ErrorInfo(
            code=ErrorCode.NOT_FOUND,
            message=f"the volume has no {shown(path)}",
            next="`cellburst volume ls NAME` lists what it has",
        )
    )


def _shown(entry: protocol.FileEntry) -> FileEntry:
    kind = FileEntryType.SYMLINK if entry.kind == "link" else FileEntryType.FILE
    size = len(entry.target.encode()) if entry.kind == "link" else entry.size_bytes
    return FileEntry(entry.path, kind, entry.modified_ns // 10**9, size)
