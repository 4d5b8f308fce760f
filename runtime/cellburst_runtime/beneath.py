"""Opening, making and copying files below a folder that someone else writes in: no link and no `..` leads out of it."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error

_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def parts_of(path: str) -> list[str]:
    """The names of a relative path. Raises RequestError (FORBIDDEN) for an absolute one and for `..`."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts or "\0" in path or not parts:
        raise error(
            ErrorCode.FORBIDDEN, f"{path!r} is not a path below the notebook's folder",
            allowed="a relative path without ..", next="`%modal get` lists the files the session wrote, by their paths",
        )  # fmt: skip
    return parts


@contextmanager
def parent_folder(root: Path, path: str, *, make_as: tuple[int, int] | None = None) -> Iterator[tuple[int, str]]:
    """The open folder that holds `path` below `root`, and the last name. Missing folders are made for (uid, gid)
    `make_as`, else FileNotFoundError. Every component is opened by itself and never through a link (OSError ELOOP or
    ENOTDIR): whoever swaps one meanwhile only changes which of his own files it is."""
    *folders, name = parts_of(path)
    current = os.open(root, _FOLDER_FLAGS)
    try:
        for folder in folders:
            if make_as is not None:
                _make_folder(current, folder, make_as)
            following = os.open(folder, _FOLDER_FLAGS, dir_fd=current)
            os.close(current)
            current = following
        yield current, name
    finally:
        os.close(current)


def open_file(root: Path, path: str) -> int:
    """Open a regular file below `root` for reading. Raises RequestError (NOT_FOUND, FORBIDDEN)."""
    try:
        with parent_folder(root, path) as (folder, name):
            # O_NONBLOCK: opening a FIFO must not wait for its writer.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise error(
            ErrorCode.NOT_FOUND, f"there is no file {path!r} in the session's folder",
            next="`%modal get` lists the files the session wrote",
        ) from None  # fmt: skip
    except OSError as problem:
        raise _refused(path, problem.strerror or "not a file") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _refused(path, "not a regular file")
    return fd


def write_file(root: Path, path: str, source: Path, owner: tuple[int, int]) -> tuple[int, int]:
    """Copy a host file to `path` below `root`, whole or not at all; its size and mtime in nanoseconds there.
    Raises RequestError, PlatformError (DISK_FULL)."""
    try:
        with parent_folder(root, path, make_as=owner) as (folder, name):
            draft = f".{name[:64]}.{secrets.token_hex(8)}"
            fd = os.open(
                draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
            )
            try:
                with os.fdopen(fd, "wb") as target, open(source, "rb") as content:
                    shutil.copyfileobj(content, target, 1 << 20)
                    os.fchown(target.fileno(), *owner)
                    os.fchmod(target.fileno(), 0o644)
                    target.flush()
                    status = os.fstat(target.fileno())
                os.replace(draft, name, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                os.unlink(draft, dir_fd=folder)
                raise
        return status.st_size, status.st_mtime_ns
    except OSError as problem:
        if problem.errno in (28, 122):  # ENOSPC, EDQUOT
            raise error(
                ErrorCode.DISK_FULL,
                f"{path!r} does not fit into the session's folder",
                next="delete files there, or send less",
            ) from None
        raise _refused(path, problem.strerror or "cannot be written") from None


def _make_folder(parent: int, name: str, owner: tuple[int, int]) -> None:
    try:
        os.mkdir(name, 0o755, dir_fd=parent)
    except FileExistsError:
        return
    os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)


def _refused(path: str, reason: str) -> CellburstError:
    return error(
        ErrorCode.FORBIDDEN, f"{path!r} cannot be used: {reason}",
        allowed="regular files below the notebook's folder, not through links", next="name the file itself",
    )  # fmt: skip
