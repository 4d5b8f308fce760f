"""Copying a large file to disk without leaving it in memory: for bytes that are written now and perhaps never read.

A gigabyte of page cache that was never used before can cost seconds on a virtual machine, and a parked session's names are
read again only if its snapshot cannot be restored. So the copy bypasses the cache (open(2), O_DIRECT) where the file system
can, is on disk when the call returns, and gives back the source's memory as it goes.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path

from blake3 import blake3

from .blobs import punch

ALIGNMENT_BYTES = 4096  # of memory, offset and size; every disk's logical block divides it
PIECE_BYTES = 8 * 1024 * 1024
_DIRECT = getattr(os, "O_DIRECT", 0)  # only on Linux


class DirectCopier:
    """Copies an open file from its beginning to one that `create` made, and hashes it. The source may still grow: what is
    there is taken at each step, and written in whole pieces. `free_bytes`: the source is not needed afterwards, and gives
    its memory back in steps of so much as it is copied."""

    def __init__(self, source: int, out: int, *, free_bytes: int = PIECE_BYTES) -> None:
        self._source, self._out, self.free_bytes = source, out, free_bytes
        self._hasher = blake3()
        self._piece = mmap.mmap(-1, PIECE_BYTES)  # aligned
        self._filled = 0
        self.done = self._written = self._freed = 0

    def step(self) -> int:
        """Copy what is there, at most a piece; how much that was, 0 at the end. Raises OSError; may be called again then."""
        self._write_piece()  # the last one, where that failed before
        with memoryview(self._piece) as view, view[self._filled :] as room:
            got = os.preadv(self._source, [room], self.done)
            with room[:got] as new:
                self._hasher.update(new)
        self._filled += got
        self.done += got
        self._write_piece()
        if self._written >= self._freed + self.free_bytes:
            punch(self._source, self._freed, self._written - self._freed)
            self._freed = self._written
        return got

    def _write_piece(self) -> None:
        if self._filled == PIECE_BYTES:
            with memoryview(self._piece) as view:
                _write_all(self._out, view, self._written)
            self._written += PIECE_BYTES
            self._filled = 0

    def end(self) -> None:
        """Write what is left of the last piece, and wait until all is on disk. Raises OSError."""
        padded = -(-self._filled // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        with memoryview(self._piece) as view:
            self._piece[self._filled : padded] = bytes(padded - self._filled)
            with view[:padded] as rest:
                _write_all(self._out, rest, self._written)
        os.ftruncate(self._out, self.done)
        os.fdatasync(self._out)

    def hash(self) -> str:
        """BLAKE3 of what was copied, in hex."""
        return self._hasher.hexdigest()


def copy_hashed(source: int, target: Path) -> tuple[int, str]:
    """Copy an open file from its beginning to a new file, 0600. Returns its size in bytes and BLAKE3 in hex. Blocks.

    Raises OSError."""
    out = create(target)
    try:
        copier = DirectCopier(source, out)
        while copier.step():
            pass
        copier.end()
    finally:
        os.close(out)
    return copier.done, copier.hash()


def create(path: Path) -> int:
    """A new file, 0600, for a DirectCopier. Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT, 0o600)
    except OSError as why:
        if why.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # a file system in memory has made it before it refused
        return os.open(path, flags, 0o600)


def _write_all(out: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        with data[done:] as rest:
            done += os.pwrite(out, rest, offset + done)
