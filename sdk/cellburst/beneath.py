"""Writing below a folder of the user's so that nothing leads out of it: each part of a path is opened by itself, never a link."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.volumes import shown

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@contextmanager
def folder_of(root: Path, path: str, *, make: bool) -> Iterator[tuple[int, str]]:
    """The open folder that holds the relative `path` below `root`, and the last name. Missing folders are made, or (not `make`)
    FileNotFoundError. Raises RequestError (FORBIDDEN) for `..` and for a link or file on the way."""
    *folders, name = path.split("/")
    if any(part in ("", ".", "..") for part in (*folders, name)) or "\0" in path:
        raise error(ErrorCode.FORBIDDEN, f"{shown(path)} leads out of its folder")
    current = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the user named it: it may be a link
    try:
        for folder in folders:
            try:
                following = os.open(folder, _FOLDER, dir_fd=current)
            except FileNotFoundError:
                if not make:
                    raise
                try:
                    os.mkdir(folder, 0o777, dir_fd=current)
                except FileExistsError:
                    pass  # another thread's
                following = os.open(folder, _FOLDER, dir_fd=current)
            os.close(current)
            current = following
        yield current, name
    except OSError as why:
        if why.errno in (20, 40):  # ENOTDIR, ELOOP
            raise refused(root, path) from None
        raise
    finally:
        os.close(current)


def refused(root: Path, path: str) -> CellburstError:
    """RequestError (FORBIDDEN): there is a link or a file where a folder should be."""
    return error(
        ErrorCode.FORBIDDEN, f"{shown(path)} is not written: in {shown(str(root))} a link or a file is in its way",
        next="give another folder, or remove what is in the way",
    )  # fmt: skip
