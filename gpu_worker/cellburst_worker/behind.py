"""What is done with a checkpoint's files while the engine writes them: brought to disk, and hashed. The seal has less to do then.

A hash is only for a file that is written once, from its beginning to its end, as runsc writes the pages of a checkpoint. What
is read here is what the seal stands for: a byte that was changed after it was read makes the snapshot unusable at its restore,
never wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from pathlib import Path

import blake3

from cellburst_runtime.engine_base import finish

FLUSH_SECONDS = 0.05
PIECE_BYTES = 4 << 20
POLL_SECONDS = 0.005


class HashBehind:
    """Begins at once, in a thread of its own; `path` may not be there yet. `finish` blocks until the rest is read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hash = blake3.blake3()
        self._size_bytes = 0
        self._inode = 0
        self._failed = False
        self._whole = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hash behind", daemon=True)
        self._thread.start()

    def finish(self) -> str:
        """After the writer's end: the hash in hex, "" where it is not that of the whole file (the seal reads it then)."""
        self._whole.set()
        self._thread.join()
        try:
            status = self._path.lstat()
        except OSError:
            return ""
        same = (status.st_ino, status.st_size) == (self._inode, self._size_bytes)
        return self._hash.hexdigest() if same and not self._failed else ""

    def _run(self) -> None:
        try:
            self._read()
        except OSError:
            self._failed = True

    def _read(self) -> None:
        while not self._path.exists():
            if self._whole.wait(POLL_SECONDS) and not self._path.exists():
                return
        with open(self._path, "rb", buffering=0) as file:
            self._inode = os.fstat(file.fileno()).st_ino
            view = memoryview(bytearray(PIECE_BYTES))
            while True:
                over = self._whole.is_set()
                if count := file.readinto(view):
                    self._hash.update(view[:count])
                    self._size_bytes += count
                elif over:
                    return
                else:
                    self._whole.wait(POLL_SECONDS)


async def flush_behind(folder: Path) -> None:
    """Bring to disk what is written to the folder's files, again and again, until it is cancelled."""
    while True:
        await finish(asyncio.to_thread(_flush_files, folder))
        await asyncio.sleep(FLUSH_SECONDS)


def _flush_files(folder: Path) -> None:
    for path in folder.iterdir():
        with contextlib.suppress(OSError), open(path, "rb") as file:  # it is tried again, and told, by the seal
            os.fdatasync(file.fileno())
