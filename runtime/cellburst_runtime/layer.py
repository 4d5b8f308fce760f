"""The notebook's folder as a session has it: reads see the host's files, writes stay in the session's own layer.

As root (`OverlayLayer`) it is an overlayfs mount on the host, bound into the container:

    FOLDER/merged    what the container sees and writes
    FOLDER/layer     the store of stated size: `upper` (what was written or deleted), `work`, `out` (bound to var/out)
    FOLDER/masks     the layer in between: a whiteout for each name no container may see
    FOLDER/shown     the notebook's folder read-only, with owners swapped where it is root's; or copies of its .py files

Without root, and with the `process` engine (`DirectLayer`), the session works in the folder itself, and what changed is
found by comparing with a list made at the start. `EmptyLayer` is for sessions without a folder.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import FileChange

from .beneath import open_file, parent_folder, parts_of, write_file
from .masks import TooManyEntries, is_masked, is_whiteout, walk

# Made by tools, not by the session's code: listing them would hide what was written.
_UNLISTED = frozenset({"__pycache__", ".ipynb_checkpoints", ".git", ".pytest_cache", ".mypy_cache", ".ruff_cache"})
MAX_LOOKED_AT = 1_000  # entries of the session's own, before each cell
MAX_LISTED = 10_000  # files in one answer; more are no list that anyone reads
_OPAQUE = "trusted.overlay.opaque"  # set on a folder that was deleted and made again


class Layer(Protocol):
    """What a session wrote over the notebook's folder. All calls block; the worker makes them in a thread."""

    notes: list[str]

    def look_again(self) -> None:
        """Have a container that is up list what the host's folder got since. Takes well under a millisecond."""

    def file_list(self) -> list[FileChange]:
        """Files written or deleted since the session began, by path; not those that are as `file_put` left them. At most
        MAX_LISTED."""

    def file_get(self, path: str) -> Path:
        """A host file with the content that `path` has for the session, which nothing in the container can exchange.
        Raises RequestError (NOT_FOUND, FORBIDDEN)."""

    def file_put(self, path: str, source: Path) -> None:
        """Copy a host file to `path` in the session's folder. Raises RequestError, PlatformError (DISK_FULL)."""


class EmptyLayer:
    """No folder is shown."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def look_again(self) -> None:
        """Nothing."""

    def file_list(self) -> list[FileChange]:
        """Nothing."""
        return []

    def file_get(self, path: str) -> Path:
        """Always NOT_FOUND."""
        raise error(
            ErrorCode.NOT_FOUND,
            f"there is no file {path!r}: this session has no folder",
            next="save the notebook first",
        )

    def file_put(self, path: str, source: Path) -> None:
        """Always NOT_FOUND."""
        self.file_get(path)


@dataclass
class OverlayLayer:
    """Writes in an overlay. `lower` is what lies below it, `fetched` a folder of ours on the store's file system."""

    merged: Path
    upper: Path
    lower: Path
    fetched: Path
    owner: tuple[int, int]
    notes: list[str]
    source: Path = Path("/nonexistent")  # the notebook's folder itself, on this machine
    put: dict[str, tuple[int, int]] = field(default_factory=dict)  # path -> size and mtime that `file_put` left
    _seen_ns: dict[str, int] = field(default_factory=dict)  # folder -> the host's mtime of it when it was listed anew

    def __post_init__(self) -> None:
        """Know what an earlier container's layer on this store was given."""
        try:
            self.put.update(msgspec.json.decode(self._put_file.read_bytes(), type=dict[str, tuple[int, int]]))
        except (OSError, msgspec.MsgspecError):
            pass  # a new store

    @property
    def _put_file(self) -> Path:
        return self.upper.parent / "put.json"

    def save_put(self) -> None:
        """Keep what `file_put` brought with the store. It may be full: then those files are listed as changed."""
        with contextlib.suppress(OSError):
            self._put_file.write_bytes(msgspec.json.encode(self.put))

    def look_again(self) -> None:
        """See `Layer.look_again`. overlayfs keeps the list that it made for a folder which somebody has open, until something is
        changed through it; only of folders that have entries above and below, so these are few."""
        for path in ("", *self._folders_above()):
            try:
                changed_ns = (self.lower / path).lstat().st_mtime_ns
            except OSError:
                continue  # it is the session's alone
            if self._seen_ns.get(path) != changed_ns:
                self._seen_ns[path] = changed_ns
                self._touch(path)

    def _folders_above(self) -> list[str]:
        found: list[str] = []
        waiting, entries = [""], 0
        while waiting and entries < MAX_LOOKED_AT:
            prefix = waiting.pop()
            with contextlib.suppress(OSError), os.scandir(self.upper / prefix) as inside:
                for entry in itertools.islice(inside, MAX_LOOKED_AT):
                    entries += 1
                    if entry.is_dir(follow_symlinks=False):
                        found.append(prefix + entry.name)
                        waiting.append(prefix + entry.name + "/")
        return found

    def _touch(self, path: str) -> None:
        name = "/".join(filter(None, (path, f".cellburst-{secrets.token_hex(8)}")))
        with contextlib.suppress(OSError), parent_folder(self.merged, name) as (folder, passing):  # full, or just gone
            os.close(os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder))
            os.unlink(passing, dir_fd=folder)

    def file_list(self) -> list[FileChange]:
        """See `Layer.file_list`. A file that only got another mode or time is not listed."""
        found: dict[str, FileChange] = {}
        waiting = [""]
        while waiting and len(found) < MAX_LISTED:
            prefix = waiting.pop()
            for entry in _entries(self.upper / prefix):
                path = prefix + entry.name
                if entry.name in _UNLISTED or is_masked(path):
                    continue
                status = entry.stat(follow_symlinks=False)
                if is_whiteout(status):
                    found.update((lost.path, lost) for lost in self._deleted(path))
                elif stat.S_ISDIR(status.st_mode):
                    if _is_opaque(Path(entry.path)):
                        found.update((lost.path, lost) for lost in self._deleted(path))
                    waiting.append(path + "/")
                elif stat.S_ISREG(status.st_mode) and not self._known(path, status):
                    found[path] = FileChange(path=path, size_bytes=status.st_size)
        return [found[path] for path in sorted(found)[:MAX_LISTED]]

    def file_get(self, path: str) -> Path:
        """See `Layer.file_get`: a hard link where the file is the session's own, else a copy."""
        _refuse_masked(path)
        return _set_aside(self.merged, path, self.fetched, self.upper)

    def file_put(self, path: str, source: Path) -> None:
        """See `Layer.file_put`."""
        _refuse_masked(path)
        self.put["/".join(parts_of(path))] = write_file(self.merged, path, source, self.owner)

    def _deleted(self, path: str) -> list[FileChange]:
        """The files that were below a deleted name. What was there only in the session itself is not the host's loss."""
        place = self.lower / path
        if place.is_symlink() or not place.is_dir():
            return [FileChange(path=path, deleted=True)] if os.path.lexists(place) else []
        try:
            below = [
                relative
                for relative, entry in walk(place, max_entries=MAX_LISTED)
                if not entry.is_dir(follow_symlinks=False)
            ]
        except TooManyEntries:
            return [FileChange(path=path + "/", deleted=True)]
        paths = [f"{path}/{relative}" for relative in below]
        return [
            FileChange(path=lost, deleted=True)
            for lost in paths
            if not is_masked(lost) and not _UNLISTED & set(lost.split("/"))
        ]

    def _known(self, path: str, status: os.stat_result) -> bool:
        """Whether this is what `file_put` brought, or the same as the host's own."""
        content = (status.st_size, status.st_mtime_ns)
        if self.put.get(path) == content:
            return True
        try:
            below = os.lstat(self.lower / path)
        except OSError:
            return False
        return stat.S_ISREG(below.st_mode) and (below.st_size, below.st_mtime_ns) == content


@dataclass
class DirectLayer:
    """Writes go to the folder itself. `before` is what was there when the session began: path -> (size, mtime)."""

    folder: Path
    fetched: Path
    before: dict[str, tuple[int, int]] | None
    notes: list[str]

    @classmethod
    def begin(cls, folder: Path, fetched: Path, notes: list[str]) -> DirectLayer:
        """Note what is there. Too many files: nothing is listed later, and a note says so."""
        try:
            return cls(folder, fetched, _snapshot(folder), notes)
        except TooManyEntries as problem:
            return cls(folder, fetched, None, [*notes, f"Changed files are not listed: {problem}."])

    def look_again(self) -> None:
        """It is the folder itself."""

    def begin_again(self) -> None:
        """The session begins now: what is there is not of its making. Raises TooManyEntries."""
        if self.before is not None:
            self.before = _snapshot(self.folder)

    def file_list(self) -> list[FileChange]:
        """See `Layer.file_list`: also what others changed meanwhile, which cannot be told apart here."""
        if self.before is None:
            return []
        try:
            now = _snapshot(self.folder)
        except TooManyEntries:
            return []
        written = [FileChange(path=path, size_bytes=now[path][0]) for path in now if self.before.get(path) != now[path]]
        deleted = [FileChange(path=path, deleted=True) for path in self.before if path not in now]
        return sorted([*written, *deleted], key=lambda change: change.path)[:MAX_LISTED]

    def file_get(self, path: str) -> Path:
        """See `Layer.file_get`."""
        _refuse_masked(path)
        return _set_aside(self.folder, path, self.fetched, None)

    def file_put(self, path: str, source: Path) -> None:
        """See `Layer.file_put`."""
        _refuse_masked(path)
        there = write_file(self.folder, path, source, (os.geteuid(), os.getegid()))
        name = "/".join(parts_of(path))
        if self.before is not None and not _is_unlisted(name):
            self.before[name] = there


def _set_aside(root: Path, path: str, fetched: Path, upper: Path | None) -> Path:
    """The file's content under a name that only we can change, on the same file system where possible."""
    aside = fetched / secrets.token_hex(8)
    fd = open_file(root, path)
    try:
        if upper is not None:
            try:
                own = open_file(upper, path)
            except OSError:
                own = -1
            except Exception:  # not written by the session: its content comes from below
                own = -1
            if own >= 0:
                try:
                    os.link(f"/proc/self/fd/{own}", aside, follow_symlinks=True)
                    return aside
                except OSError:
                    pass  # another file system: copied like the rest
                finally:
                    os.close(own)
        with open(aside, "xb") as target, open(fd, "rb", closefd=False) as content:
            shutil.copyfileobj(content, target, 1 << 20)
    finally:
        os.close(fd)
    return aside


def _refuse_masked(path: str) -> None:
    parts = parts_of(path)
    if any(is_masked("/".join(parts[: count + 1])) for count in range(len(parts))):
        raise error(
            ErrorCode.FORBIDDEN,
            f"{path!r} is hidden from sessions: it may hold keys or tokens",
            next="give the file another name",
        )


def _is_unlisted(path: str) -> bool:
    # The front end saves the notebook by itself: that is no change of the session's.
    return is_masked(path) or bool(_UNLISTED & set(path.split("/"))) or path.endswith(".ipynb")


def _snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for path, entry in walk(folder):
        if _is_unlisted(path):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if stat.S_ISREG(status.st_mode):
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []  # deleted by the session while we look


def _is_opaque(folder: Path) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False
