"""Large results read while they are still being written on this machine, so that their end is not waited for twice.

Only a head start: `BlobClient.get` takes what was read here if it was the very file that the result names later, and if its
bytes have the hash that the result says.
"""

from __future__ import annotations

import mmap
import os
import stat
import threading
import time
from pathlib import Path

from blake3 import blake3

READ_BYTES = 1024 * 1024
POLL_SECONDS = 0.002
STALLED_SECONDS = 5.0  # a file that did not grow for so long is given up
KEPT_SECONDS = 60.0  # what nobody took by then belonged to a cell that failed
MAX_FILES = 64


class EarlyReads:
    """The files that are being read. Thread-safe as `BlobClient` is: entries are added and removed in single steps."""

    def __init__(self) -> None:
        self._reads: dict[tuple[int, int], _Read] = {}

    def begin(self, path: Path, size_bytes: int) -> None:
        """Read a file as it grows; nothing happens if it is gone already, or no regular file."""
        now = time.monotonic()
        for read in [r for r in list(self._reads.values()) if r.began + KEPT_SECONDS < now]:
            self._reads.pop(read.file, None)
        held = sum(read.size_bytes for read in list(self._reads.values()))
        if len(self._reads) >= MAX_FILES or held + size_bytes > _memory_bytes() // 2:
            return
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            return
        read = _Read(fd, (status.st_dev, status.st_ino), size_bytes, now)
        try:
            threading.Thread(target=read.run, name="cellburst values", daemon=True).start()
        except RuntimeError:  # no more threads
            os.close(fd)
            return
        self._reads[read.file] = read

    def drop(self) -> None:
        """Give up what nobody took: the cells that it was of are over."""
        reads, self._reads = self._reads, {}
        for read in reads.values():
            read.stop = True

    def take(self, path: Path, hash: str, size_bytes: int) -> memoryview | None:
        """The bytes of the file that is now at `path`, if it is one of these and has this hash. Waits for its end, and may be
        interrupted meanwhile."""
        if not self._reads:
            return None
        try:
            status = path.stat()
        except OSError:
            return None
        read = self._reads.pop((status.st_dev, status.st_ino), None)
        if read is None or read.size_bytes != size_bytes or status.st_size != size_bytes:
            return None
        read.done.wait()
        return read.view if read.hash == hash else None


def _memory_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class _Read:
    def __init__(self, fd: int, file: tuple[int, int], size_bytes: int, began: float) -> None:
        self.file, self.size_bytes, self.began = file, size_bytes, began
        self.view: memoryview | None = None
        self.hash = ""
        self.done = threading.Event()
        self.stop = False
        self._fd = fd

    def run(self) -> None:
        """Fill `view`, and say its hash if that came to the end."""
        hasher, position, grew_at = blake3(), 0, time.monotonic()
        try:
            view = memoryview(mmap.mmap(-1, max(self.size_bytes, 1)))[: self.size_bytes]
            while position < self.size_bytes and not self.stop:
                count = os.readv(self._fd, [view[position : position + READ_BYTES]])
                if count:
                    # hashed while it is still in the processor's cache
                    hasher.update(view[position : position + count])
                    position, grew_at = position + count, time.monotonic()
                elif time.monotonic() > grew_at + STALLED_SECONDS:
                    return
                else:
                    time.sleep(POLL_SECONDS)
            if position == self.size_bytes:
                self.hash, self.view = hasher.hexdigest(), view
        except (OSError, ValueError, MemoryError, OverflowError):
            pass  # it is read when it is whole, and that says what is wrong
        finally:
            os.close(self._fd)
            self.done.set()
