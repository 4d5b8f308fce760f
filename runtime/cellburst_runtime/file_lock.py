"""Locks between processes: flock(2) on a file. The kernel drops one when its holder ends, however it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

_POLL_SECONDS = 0.05  # a lock waits for a build of seconds; flock itself can only block a thread, which no cancel ends


class FileLock:
    """A lock that is held until `release`. Children do not inherit it."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Let it go; may be repeated."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Delete the file and let it go. Only by an exclusive holder: whoever waits for it starts anew on a new file."""
        if self._fd >= 0:
            self.path.unlink(missing_ok=True)
        self.release()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def try_lock(path: Path, *, shared: bool = False) -> FileLock | None:
    """Take the lock now, or None when somebody has it. Makes the file. Raises OSError."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except BaseException:
            os.close(fd)
            raise
        if _is_at(path, fd):
            return FileLock(path, fd)
        os.close(fd)  # deleted between opening and locking


async def lock(path: Path, *, shared: bool = False, waiting: Callable[[], None] | None = None) -> FileLock:
    """Take the lock when it is free. `waiting` is called once if it is not at first."""
    while (taken := try_lock(path, shared=shared)) is None:
        if waiting is not None:
            waiting()
            waiting = None
        await asyncio.sleep(_POLL_SECONDS)
    return taken


def _is_at(path: Path, fd: int) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    ours = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
