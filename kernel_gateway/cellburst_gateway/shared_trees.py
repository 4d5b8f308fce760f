"""Trees that code in containers made: listed and removed whatever their depth, while that code may go on changing them.

No link is followed, nothing recurses, and no more than a few folders are open at once. Everything here blocks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.network_file_systems import MAX_DEPTH, MAX_ENTRIES, MAX_SIZED, SharedEntry, SharedSize
from cellburst_protocol.volumes import shown

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"), (stat.S_ISREG, "file"))


def entry_of(path: str, status: os.stat_result) -> SharedEntry:
    """A path as a list says it."""
    kind = next((word for is_so, word in _KINDS if is_so(status.st_mode)), "other")
    return SharedEntry(path=path, kind=kind, size_bytes=status.st_size, modified_unix_seconds=status.st_mtime)


def list_tree(top: int, base: str, *, recursive: bool) -> list[SharedEntry]:
    """What lies in an open folder whose path is `base`, in no order. Raises RequestError (TOO_LARGE), OSError."""
    found: list[SharedEntry] = []
    waiting: list[tuple[str, ...]] = [()]  # folders below `top`; each is opened anew, part by part
    while waiting:
        parts = waiting.pop()
        try:
            folder = _opened(top, parts)
        except OSError:
            if not parts:
                raise
            continue  # removed, or exchanged for a link
        try:
            for path, name, status in _entries(folder, "/".join((base, *parts) if base else parts)):
                found.append(entry_of(path, status))
                if len(found) > MAX_ENTRIES:
                    raise error(
                        ErrorCode.TOO_LARGE, f"more than {MAX_ENTRIES:,} entries", next="list its folders one by one"
                    )
                if recursive and stat.S_ISDIR(status.st_mode):
                    if len(parts) == MAX_DEPTH:
                        raise error(
                            ErrorCode.TOO_LARGE, f"folders lie in one another more than {MAX_DEPTH} deep",
                            next=f"list {shown(path)} by itself",
                        )  # fmt: skip
                    waiting.append((*parts, name))
        finally:
            os.close(folder)
    return found


def size_of_tree(top: int) -> SharedSize:
    """What the files below an open folder hold together; of many, and below deep folders, of some. Raises OSError."""
    size, files, looked, whole = 0, 0, 0, True
    waiting: list[tuple[str, ...]] = [()]
    while waiting:
        parts = waiting.pop()
        try:
            folder = _opened(top, parts)
        except OSError:
            if not parts:
                raise
            continue
        try:
            for _, name, status in _entries(folder, ""):
                if looked == MAX_SIZED:
                    return SharedSize(size_bytes=size, files=files, whole=False)
                looked += 1
                if stat.S_ISREG(status.st_mode):
                    size, files = size + status.st_size, files + 1
                elif stat.S_ISDIR(status.st_mode) and len(parts) < MAX_DEPTH:
                    waiting.append((*parts, name))
                elif stat.S_ISDIR(status.st_mode):
                    whole = False
        finally:
            os.close(folder)
    return SharedSize(size_bytes=size, files=files, whole=whole)


def remove_trees(drafts: int, stopped: Callable[[], bool]) -> int:
    """Remove the folders that lie in the open folder `drafts`, with all they hold; how many could not be.

    A folder's own folders are first put beside it, so that depth costs nothing and what was left half-way is found again.
    """
    left = 0
    waiting = [name for name in os.listdir(drafts) if _is_folder(name, drafts)]
    while waiting and not stopped():
        name = waiting.pop()
        try:
            waiting.extend(_emptied(drafts, name, stopped))
            os.rmdir(name, dir_fd=drafts)
        except FileNotFoundError:
            continue
        except OSError:  # a container that has it still writes there, or it is not ours to remove
            left += 1
    return left


def _emptied(drafts: int, name: str, stopped: Callable[[], bool]) -> list[str]:
    """Take everything out of a folder; the new names of its own folders, in `drafts`."""
    _allow(name, drafts)
    folder: int = os.open(name, FOLDER, dir_fd=drafts)
    moved: list[str] = []
    try:
        for inner in os.listdir(folder):
            if stopped():
                break
            with contextlib.suppress(FileNotFoundError):
                if not _is_folder(inner, folder):
                    os.unlink(inner, dir_fd=folder)
                    continue
                _allow(inner, folder)
                aside = secrets.token_hex(12)
                os.rename(inner, aside, src_dir_fd=folder, dst_dir_fd=drafts)
                moved.append(aside)
    except OSError:
        if not moved:
            raise  # else the folder is found again when it is to go, or by the next look
    finally:
        os.close(folder)
    return moved


def _allow(name: str, folder: int) -> None:
    """Code in containers may have taken away the right to change a folder of its own."""
    with contextlib.suppress(OSError):
        it = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            Path(f"/proc/self/fd/{it}").chmod(0o700)
        finally:
            os.close(it)


def _is_folder(name: str, folder: int) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _opened(top: int, parts: tuple[str, ...]) -> int:
    current = os.open(".", FOLDER, dir_fd=top)
    for part in parts:
        try:
            following = os.open(part, FOLDER, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current


def _entries(folder: int, base: str) -> Iterator[tuple[str, str, os.stat_result]]:
    for name in os.listdir(folder):  # an open folder
        path = f"{base}/{name}" if base else name
        try:
            path.encode()
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except (UnicodeEncodeError, FileNotFoundError):
            continue  # no name that could be asked for; removed meanwhile
        yield path, name, status
