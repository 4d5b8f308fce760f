"""A copy past the page cache has the same bytes, whatever their number and wherever it goes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_worker import direct_copy
from cellburst_worker.direct_copy import ALIGNMENT_BYTES, PIECE_BYTES, DirectCopier, copy_hashed, create

SIZES = [0, 1, ALIGNMENT_BYTES - 1, ALIGNMENT_BYTES, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 12_345]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_the_copy_is_the_same(tmp_path: Path, size_bytes: int) -> None:
    data = os.urandom(size_bytes)
    (tmp_path / "source").write_bytes(data)
    for folder in (tmp_path, Path("/dev/shm")):
        target = folder / f"copy-{os.getpid()}-{size_bytes}"
        source = os.open(tmp_path / "source", os.O_RDONLY)
        try:
            assert copy_hashed(source, target) == (size_bytes, blake3(data).hexdigest())
            assert target.read_bytes() == data and target.stat().st_mode & 0o777 == 0o600
            with pytest.raises(FileExistsError):
                copy_hashed(source, target)
        finally:
            os.close(source)
            target.unlink()


def test_a_source_that_grows_is_copied_as_it_does_and_gives_its_memory_back(tmp_path: Path) -> None:
    data = os.urandom(2 * PIECE_BYTES + 12_345)
    with open(tmp_path / "source", "w+b", buffering=0) as source:
        out = create(tmp_path / "copy")
        copier = DirectCopier(source.fileno(), out, free_bytes=PIECE_BYTES)
        for begin in range(0, len(data), 3_000_001):
            source.seek(begin)
            source.write(data[begin : begin + 3_000_001])
            while copier.step():
                pass
        assert copier.done == len(data) and (tmp_path / "copy").stat().st_size == 2 * PIECE_BYTES
        copier.end()
        os.close(out)
    assert copier.hash() == blake3(data).hexdigest() and (tmp_path / "copy").read_bytes() == data
    assert (tmp_path / "source").stat().st_blocks * 512 < PIECE_BYTES


def test_a_piece_that_could_not_be_written_is_written_by_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(PIECE_BYTES + 100)
    (tmp_path / "source").write_bytes(data)
    source, out = os.open(tmp_path / "source", os.O_RDWR), create(tmp_path / "copy")
    try:
        copier = DirectCopier(source, out)
        with monkeypatch.context() as patched:
            patched.setattr(direct_copy, "_write_all", _no_space)
            with pytest.raises(OSError, match="No space"):
                copier.step()
        while copier.step():
            pass
        copier.end()
    finally:
        os.close(source)
        os.close(out)
    assert (tmp_path / "copy").read_bytes() == data and copier.hash() == blake3(data).hexdigest()


def _no_space(out: int, data: memoryview, offset: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
