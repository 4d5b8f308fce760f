"""Parts of values in files: read into fresh memory, written uncopied."""

from __future__ import annotations

import mmap
from typing import Any, Callable, Sequence

CHUNK_BYTES = 16 * 1024 * 1024  # files go in such steps, so that a signal waits at most for one
FILLED_BYTES = 64 * 1024  # below this, memory of Python's own


def read_file(path: str, size_bytes: int) -> memoryview:
    """A file's bytes in fresh, writable memory. Raises OSError, or EOFError when it is shorter."""
    view = fresh_memory(size_bytes)
    with open(path, "rb", buffering=0) as file:
        done = 0
        while done < size_bytes:
            count = file.readinto(view[done : done + CHUNK_BYTES])
            if not count:
                raise EOFError(f"{path} has {done} bytes, not {size_bytes}")
            done += count
    return view


def fresh_memory(size_bytes: int) -> memoryview:
    """Writable memory that is not filled first: zeros would cost as much as the reading itself.

    A plain anonymous mapping: numpy asks for huge pages, and looking for those took seconds for 1 GB where the page cache had
    filled the memory.
    """
    if size_bytes > FILLED_BYTES:
        return memoryview(mmap.mmap(-1, size_bytes))
    return memoryview(bytearray(size_bytes))


def write_file(path: str, pieces: Sequence[Any], opened: Callable[[], None] = lambda: None) -> None:
    """A new file of these buffers, one after the other, uncopied. `opened` is called when the file is there."""
    with open(path, "xb", buffering=0) as file:
        opened()
        for piece in pieces:
            view = memoryview(piece).cast("B")
            done = 0
            while done < view.nbytes:
                done += file.write(view[done : done + CHUNK_BYTES])
