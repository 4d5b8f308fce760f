"""What a container changed in a volume: found on the host, in folders that the container writes in meanwhile.

Nothing is opened by a path: every folder is opened from its parent and no link is followed, so that whoever exchanges one
meanwhile only changes which of his own files it is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.volumes import check_path

from .masks import is_whiteout

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPAQUE = "trusted.overlay.opaque"
MAX_FOUND = 500_000  # what a volume may have; beyond it nothing more is looked at


@dataclass(frozen=True)
class Found:
    """Something at a path. `seen` changes whenever its content, mode or time does."""

    kind: str
    size_bytes: int
    mode: int
    modified_ns: int
    seen: tuple[int, int, int]  # inode, mtime, ctime
    target: str = ""


@dataclass
class Scan:
    """All that is there. `hidden` are paths of the tree below that were deleted or replaced; `left_out` names what cannot be
    in a volume (a socket, a name that is not valid Unicode), with the reason."""

    found: dict[str, Found] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    left_out: dict[str, str] = field(default_factory=dict)


def scan_upper(upper: Path, tree: Path) -> Scan:
    """What lies in an overlay's upper folder over a tree that nobody changes. Blocks."""
    scan = Scan()
    root = os.open(upper, _FOLDER_FLAGS)
    try:
        _look(scan, root, "", tree)
    finally:
        os.close(root)
    scan.hidden -= scan.found.keys()
    return scan


def scan_folder(folder: Path) -> Scan:
    """Everything in a folder, where there is no overlay. Blocks."""
    scan = Scan()
    root = os.open(folder, _FOLDER_FLAGS)
    try:
        _look(scan, root, "", None)
    finally:
        os.close(root)
    return scan


def open_found(folder: Path, path: str) -> int:
    """Open a file below a folder for reading, through no link. Raises OSError."""
    *parents, name = path.split("/")
    current = os.open(folder, _FOLDER_FLAGS)
    try:
        for parent in parents:
            following = os.open(parent, _FOLDER_FLAGS, dir_fd=current)
            os.close(current)
            current = following
        # O_NONBLOCK: opening a FIFO must not wait for its writer.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=current)
    finally:
        os.close(current)


def _look(scan: Scan, folder: int, prefix: str, below: Path | None) -> bool:
    """Look through an open folder; `below` is the same place in the tree, None where nothing shines through. Whether the
    container sees anything in it."""
    if below is not None and _is_opaque(folder):
        scan.hidden.update(_all_below(below, prefix))
        below = None
    names: set[str] = set()
    seen_any = False
    with os.scandir(folder) as entries:
        listed = list(entries)
    for entry in listed:
        path = prefix + entry.name
        names.add(entry.name)
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        if is_whiteout(status):
            scan.hidden.update(_whole(below / entry.name, path) if below is not None else ())
            continue
        seen_any = True
        if len(scan.found) >= MAX_FOUND:
            raise error(
                ErrorCode.BAD_ARGUMENT, "too many files were written to a volume", allowed=f"{MAX_FOUND}",
                next="pack them into archives",
            )  # fmt: skip
        _note(scan, folder, entry.name, path, status, below)
    if below is not None and not seen_any:
        try:
            seen_any = any(name not in names for name in (child.name for child in below.iterdir()))
        except OSError:
            pass
    return seen_any


def _note(scan: Scan, folder: int, name: str, path: str, status: os.stat_result, below: Path | None) -> None:
    why = _bad_name(path)
    under = below / name if below is not None else None
    if stat.S_ISDIR(status.st_mode):
        if why:
            scan.left_out[path] = why
            return
        if under is not None and (under.is_symlink() or not under.is_dir()):
            if os.path.lexists(under):
                scan.hidden.add(path)
            under = None
        try:
            inner = os.open(name, _FOLDER_FLAGS, dir_fd=folder)
        except OSError as problem:
            if problem.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return  # exchanged meanwhile: the next look sees it
            raise
        try:
            if not _look(scan, inner, path + "/", under):
                scan.found[path] = _found("folder", status)
        finally:
            os.close(inner)
        return
    if under is not None and under.is_dir() and not under.is_symlink():
        scan.hidden.update(_all_below(under, path + "/"))
    if why:
        scan.left_out[path] = why
    elif stat.S_ISREG(status.st_mode):
        scan.found[path] = _found("file", status)
    elif stat.S_ISLNK(status.st_mode):
        try:
            target = os.readlink(name, dir_fd=folder)
            target.encode()
        except (OSError, UnicodeEncodeError):
            return
        scan.found[path] = _found("link", status, target)
    else:
        scan.left_out[path] = "it is neither a file, a folder nor a link"


def _found(kind: str, status: os.stat_result, target: str = "") -> Found:
    return Found(
        kind, status.st_size if kind == "file" else 0, stat.S_IMODE(status.st_mode) & 0o777, status.st_mtime_ns,
        (status.st_ino, status.st_mtime_ns, status.st_ctime_ns), target,
    )  # fmt: skip


def _bad_name(path: str) -> str:
    try:
        return "" if check_path(path) == path else "its name is not in Unicode's composed form (NFC)"
    except CellburstError as why:
        return why.info.message
    except UnicodeEncodeError:
        return "its name is not valid Unicode"


def _whole(place: Path, path: str) -> Iterator[str]:
    """A path of the tree and all below it."""
    if place.is_dir() and not place.is_symlink() and any(place.iterdir()):
        yield from _all_below(place, path + "/")
    elif os.path.lexists(place):
        yield path  # also an empty folder, which is an entry of its own


def _all_below(place: Path, prefix: str) -> Iterator[str]:
    for folder, folders, files in os.walk(place):
        base = os.path.relpath(folder, place)
        start = prefix if base == "." else f"{prefix}{base}/"
        for name in folders:
            inner = Path(folder, name)
            if inner.is_symlink() or not any(inner.iterdir()):
                yield start + name
        for name in files:
            yield start + name


def _is_opaque(folder: int) -> bool:
    try:
        return os.getxattr(folder, _OPAQUE) == b"y"
    except OSError:
        return False
