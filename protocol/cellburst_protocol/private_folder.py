"""Folders of one user's alone, which gateway, worker and SDK each make before they start; without import of any of them."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

from .errors import ErrorCode, error

START_ROOM_BYTES = (
    1024 * 1024
)  # a new record with its journal and secret files takes about 400 KiB, a spool's first segment less
FULL = (errno.ENOSPC, errno.EDQUOT)


def check_room(folder: Path) -> None:
    """Raise OSError (of FULL) where a folder has no room for a start; an empty file would find some on a full disk."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(bytes(START_ROOM_BYTES))
        probe.flush()


def private_folder(path: Path, what: str, who: str) -> Path:
    """Make `path` a folder of this user with mode 0700. `what` it is ("data folder") and `who` starts there ("a worker").

    Raises RequestError when it cannot be made or written, or is another's, PlatformError (DISK_FULL) when it has no room.
    """
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if path.stat().st_uid != os.geteuid():
            raise error(
                ErrorCode.FORBIDDEN, f"the {what} {str(path)!r} belongs to another user", next="choose another one"
            )
        path.chmod(0o700)
        check_room(path)
    except OSError as why:
        if why.errno in FULL:
            raise error(
                ErrorCode.DISK_FULL, f"the disk of the {what} {str(path)!r} is full: {why.strerror}",
                allowed=f"{who} starts with {START_ROOM_BYTES // 1024**2} MiB or more of free space there",
                next="free some space, or give a folder on another disk (--data-dir, --run-dir)",
            ) from None  # fmt: skip
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"the {what} {str(path)!r} cannot be written: {why.strerror}",
            next="give a folder of your own (--data-dir, --run-dir, or CELLBURST_DATA and CELLBURST_RUN)",
        ) from None
    return path
