"""Large values read while the kernel still writes them, so that a cell waits for the slower of both and not for the sum.

The worker shows such a file as IN/<name>.coming before it is whole, and says so; when it is whole, the cell that uses it comes,
and the same file is IN/<hash>. Nothing here may be relied on: what was not announced, or broke off, or is not the very file
that the cell names, is read anew.
"""

from __future__ import annotations

import os
import threading
from typing import Dict, Optional, Tuple

from .values_files import CHUNK_BYTES, fresh_memory

POLL_SECONDS = 0.002
STALLED_SECONDS = 5.0  # a file that did not grow for so long is given up: who wrote it is gone


class Coming:
    """The values on their way to one executor. All but the reading is on the main thread."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._readers: Dict[Tuple[int, int], _Reader] = {}

    def begin(self, name: str, size_bytes: int) -> None:
        """Read FOLDER/<name>.coming as it grows."""
        try:
            # opened here and not in the thread: what it is decides later whether it is used
            descriptor = os.open(
                os.path.join(self._folder, os.path.basename(name) + ".coming"),
                os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC,
            )
        except OSError:
            return
        try:
            reader = _Reader(descriptor, size_bytes)
        except RuntimeError:  # no more threads
            os.close(descriptor)
            return
        self._readers[reader.file] = reader

    def take(self, hash: str, size_bytes: int) -> Optional[memoryview]:
        """The bytes of FOLDER/<hash>, once they are read; None when they have to be read by the caller. May be interrupted."""
        if not self._readers:
            return None
        status = os.stat(os.path.join(self._folder, hash))
        reader = self._readers.get((status.st_dev, status.st_ino))
        if reader is None or status.st_size != size_bytes:
            return None
        reader.done.wait()
        del self._readers[reader.file]
        return reader.view if reader.position == size_bytes else None

    def drop(self) -> None:
        """Give up what nobody took; no file is open afterwards."""
        readers, self._readers = self._readers, {}
        for reader in readers.values():
            reader.stop.set()
        for reader in readers.values():
            reader.done.wait()


class _Reader:
    """One file and the thread that reads it. `position` is how many bytes are in `view`; `file` is (device, inode)."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        self.stop, self.done = threading.Event(), threading.Event()
        self.view: Optional[memoryview] = None
        self.position = 0
        status = os.fstat(descriptor)
        self.file = (status.st_dev, status.st_ino)
        self._descriptor, self._size = descriptor, size_bytes
        threading.Thread(target=self._run, name="cellburst values", daemon=True).start()

    def _run(self) -> None:
        try:
            self.view = fresh_memory(self._size)
            stalled = 0.0
            while self.position < self._size and stalled < STALLED_SECONDS and not self.stop.is_set():
                count = os.readv(self._descriptor, [self.view[self.position : self.position + CHUNK_BYTES]])
                self.position += count
                stalled = 0.0 if count else stalled + POLL_SECONDS
                if not count:
                    self.stop.wait(POLL_SECONDS)
        except (OSError, MemoryError, OverflowError, ValueError):
            self.position = -1
        finally:
            if self.position != self._size:
                self.view = None
            os.close(self._descriptor)
            self.done.set()
