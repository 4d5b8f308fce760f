"""What a layer's files were when it was made: the list that tells a whole layer from a damaged one.

Two looks, since they cost differently. `find_differences(deep=False)` compares type, mode, owner, size and time of every
file: about 10 µs each, so the store does it for each layer once in a process. It finds what crashes do (files cut short
or missing) and every change made through the file system. `deep=True` also reads and hashes every byte: it finds decay
of the disk, and is what `image_verify` does.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec
from blake3 import blake3

MOST_PROBLEMS = 5  # lines about one layer: who reads them wants to know whether, not all of it
_CHUNK_BYTES = 1 << 20
Rest = Callable[[int], None]


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


class Difference(NamedTuple):
    """A path that is not as listed, and why. `shared`: (device, inode) of a regular file that has other names too."""

    path: str
    why: str
    shared: tuple[int, int] | None = None


def find_differences(root: Path, manifest: Manifest, *, deep: bool, rest: Rest | None = None) -> Iterator[Difference]:
    """What is not as listed; nothing when the layer is whole. `rest` is called with each number of bytes that were read."""
    known = {entry.path: entry for entry in manifest.entries}
    for path, full, status in _walk(root):
        entry = known.pop(path, None)
        why = "not of this layer" if entry is None else _differs(entry, full, status, deep, rest)
        if why:
            shared = (status.st_dev, status.st_ino) if stat.S_ISREG(status.st_mode) and status.st_nlink > 1 else None
            yield Difference(path, why, shared)
    yield from (Difference(path, "missing") for path in known)


@dataclass(frozen=True)
class Damage:
    """What is wrong with a layer: up to MOST_PROBLEMS lines, and the files of it that have other names too (device, inode): in
    uv's cache and in other layers, which have the damage as well."""

    problems: list[str] = field(default_factory=list)
    shared: set[tuple[int, int]] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.problems)


def find_damage(layer: Path, manifest_hash: str, *, deep: bool, rest: Rest | None = None) -> Damage:
    """What is wrong with the layer in a folder (`fs` and `manifest.json`), whose list of files has this checksum."""
    found = Damage()
    try:
        data = (layer / "manifest.json").read_bytes()
        if blake3(data).hexdigest() != manifest_hash:
            return Damage(["its list of files was changed"])
        manifest = msgspec.json.decode(data, type=Manifest)
        for difference in find_differences(layer / "fs", manifest, deep=deep, rest=rest):
            if len(found.problems) < MOST_PROBLEMS:
                found.problems.append(f"{difference.path}: {difference.why}")
            found.shared.update([difference.shared] if difference.shared is not None else [])
    except (OSError, msgspec.MsgspecError) as problem:
        return Damage([*found.problems, str(problem)], found.shared)
    return found


def differences(root: Path, manifest: Manifest, *, deep: bool, most: int = MOST_PROBLEMS) -> list[str]:
    """The first `most` of them, as text."""
    found = islice(find_differences(root, manifest, deep=deep), most)
    return [f"{difference.path}: {difference.why}" for difference in found]


def _differs(entry: Entry, full: str, status: os.stat_result, deep: bool, rest: Rest | None) -> str:
    if (status.st_mode, status.st_uid, status.st_gid) != (entry.mode, entry.uid, entry.gid):
        return "another type, mode or owner"
    if stat.S_ISDIR(status.st_mode):
        return ""  # its time changes with what is below, which is compared by itself
    if status.st_size != entry.size_bytes:
        return f"{status.st_size} bytes instead of {entry.size_bytes}"
    if status.st_mtime_ns != entry.mtime_ns:
        return "changed since it was made"
    if (deep or stat.S_ISLNK(status.st_mode)) and _content(full, status, rest) != entry.content:
        return "another content"
    return ""


def _entry(path: str, status: os.stat_result, content: str) -> Entry:
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return Entry(path, status.st_mode, status.st_uid, status.st_gid, size, status.st_mtime_ns, content)


def _content(full: str, status: os.stat_result, rest: Rest | None = None) -> str:
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
            if rest is not None:
                rest(len(data))
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
