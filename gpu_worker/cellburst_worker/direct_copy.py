"""Copying a large file to disk without leaving it in memory: for bytes that are written now and perhaps never read.

A gigabyte of page cache that was never used before can cost seconds on a virtual machine, and a parked session's names are
read again only if its snapshot cannot be restored. So the copy bypasses the cache (open(2), O_DIRECT) where the file system
can, is on disk when the call returns, and gives back the source's memory as it goes.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

ALIGNMENT_BYTES = 4096  # of memory, offset and size; every disk's logical block divides it
PIECE_BYTES = 8 * 1024 * 1024
_DIRECT = getattr(os, "O_DIRECT", 0)  # only on Linux


def copy_hashed(
    source: int, target: Path, copied: Callable[[int, int], None] = lambda offset, size: None
) -> tuple[int, str]:
    """Copy an open file from where it stands to a new file, 0600. Returns its size in bytes and BLAKE3 in hex.

    `copied(offset, size)` is called for each piece that is on disk. Blocks. Raises OSError.
    """
    hasher, done = blake3(), 0
    out = _create(target)
    try:
        with mmap.mmap(-1, PIECE_BYTES) as piece, memoryview(piece) as view:
            while count := _fill(source, view):
                hasher.update(view[:count])
                padded = -(-count // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
                piece[count:padded] = bytes(padded - count)
                _write_all(out, view[:padded])
                copied(done, count)
                done += count
        os.ftruncate(out, done)
        os.fdatasync(out)
    finally:
        os.close(out)
    return done, hasher.hexdigest()


def _create(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(path, flags | _DIRECT, 0o600)
    except OSError as why:
        if why.errno != errno.EINVAL:
            raise
        path.unlink(missing_ok=True)  # a file system in memory has made it before it refused
        return os.open(path, flags, 0o600)


def _fill(source: int, view: memoryview) -> int:
    """Read until the view is full or the file ends: a short piece in the middle would break the alignment."""
    done = 0
    while done < len(view) and (count := os.readv(source, [view[done:]])):
        done += count
    return done


def _write_all(out: int, data: memoryview) -> None:
    while data:
        data = data[os.write(out, data) :]
