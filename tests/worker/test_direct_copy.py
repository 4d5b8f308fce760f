"""A copy past the page cache has the same bytes, whatever their number and wherever it goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_worker.direct_copy import ALIGNMENT_BYTES, PIECE_BYTES, copy_hashed

SIZES = [0, 1, ALIGNMENT_BYTES - 1, ALIGNMENT_BYTES, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 12_345]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_copy_is_the_same(tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    (tmp_path / "source").write_bytes(data)
    for folder in (tmp_path, Path("/dev/shm")):
        target = folder / f"copy-{os.getpid()}-{size_bytes}"
        told: list[int] = []
        source = os.open(tmp_path / "source", os.O_RDONLY)
        try:
            assert copy_hashed(source, target, _adder(told)) == (
                size_bytes,
                blake3(data).hexdigest(),
            )
            assert target.read_bytes() == data and target.stat().st_mode & 0o777 == 0o600
            assert sum(told) == size_bytes
            with pytest.raises(FileExistsError):
                copy_hashed(source, target)
        finally:
            os.close(source)
            target.unlink()


def _adder(told: list[int]) -> Callable[[int, int], None]:
    return lambda offset, size_bytes: told.append(size_bytes)
