"""What a layer's files were when it was made: the list that tells a whole layer from a damaged one.

Two looks, since they cost differently. `differences(deep=False)` compares type, mode, owner, size and time of every
file: about 10 µs each, so the store does it for each layer once in a process. It finds what crashes do (files cut short
or missing) and every change made through the file system. `deep=True` also reads and hashes every byte: it finds decay
of the disk, and is what `verify` does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

_CHUNK_BYTES = 1 << 20


class Entry(NamedTuple):
    """One file of a layer; `content` is BLAKE3 of a regular file, the target of a link, the number of a device."""

    path: str
    mode: int  # type and permission bits
    uid: int
    gid: int
    size_bytes: int
    mtime_ns: int
    content: str


class Manifest(msgspec.Struct, kw_only=True):
    """All entries, by path; `size_bytes` is the space they take on disk."""

    entries: list[Entry]
    size_bytes: int


def scan(root: Path) -> Manifest:
    """List a layer. Raises OSError."""
    entries: list[Entry] = []
    size_bytes = 0
    for path, full, status in _walk(root):
        entries.append(_entry(path, status, _content(full, status)))
        size_bytes += status.st_blocks * 512
    return Manifest(entries=entries, size_bytes=size_bytes)


def differences(root: Path, manifest: Manifest, *, deep: bool, most: int = 5) -> list[str]:
    """What is not as listed: up to `most` paths, each with the reason; empty when the layer is whole."""
    found: list[str] = []
    known = {entry.path: entry for entry in manifest.entries}
    for path, full, status in _walk(root):
        entry = known.pop(path, None)
        if entry is None:
            found.append(f"{path}: not of this layer")
        elif why := _differs(entry, full, status, deep=deep):
            found.append(f"{path}: {why}")
        if len(found) >= most:
            return found
    return [*found, *(f"{path}: missing" for path in list(known)[: most - len(found)])]


def _differs(entry: Entry, full: str, status: os.stat_result, *, deep: bool) -> str:
    if (status.st_mode, status.st_uid, status.st_gid) != (entry.mode, entry.uid, entry.gid):
        return "another type, mode or owner"
    if stat.S_ISDIR(status.st_mode):
        return ""  # its time changes with what is below, which is compared by itself
    if status.st_size != entry.size_bytes:
        return f"{status.st_size} bytes instead of {entry.size_bytes}"
    if status.st_mtime_ns != entry.mtime_ns:
        return "changed since it was made"
    if (deep or stat.S_ISLNK(status.st_mode)) and _content(full, status) != entry.content:
        return "another content"
    return ""


def _entry(path: str, status: os.stat_result, content: str) -> Entry:
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return Entry(path, status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, content)


def _content(full: str, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return str(Path(full).readlink()).encode("utf-8", "backslashreplace").decode()
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return str(status.st_rdev)
    if not stat.S_ISREG(status.st_mode):
        return ""
    hashed = blake3()
    with open(os.open(full, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
        while data := file.read(_CHUNK_BYTES):
            hashed.update(data)
    return hashed.hexdigest()


def _walk(root: Path) -> Iterator[tuple[str, str, os.stat_result]]:
    """(path below root, full path, status) of everything, in no order; names that are no UTF-8 are written with escapes."""
    waiting = [("", os.fspath(root))]
    while waiting:
        prefix, folder = waiting.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name.encode("utf-8", "backslashreplace").decode()
                status = entry.stat(follow_symlinks=False)
                yield prefix + name, entry.path, status
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((f"{prefix}{name}/", entry.path))
