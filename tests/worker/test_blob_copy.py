"""Value files that lie on another file system than the blob folder: copied whole, and gone afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_worker.blobs import CHUNK_BYTES, BlobFolder

OTHER = Path("/dev/shm")  # a file system of its own


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder on another file system than `tmp_path`."""
    if not OTHER.is_dir() or OTHER.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    import tempfile

    return Path(tempfile.mkdtemp(dir=OTHER, prefix="cb-test-"))


def test_a_copied_file_is_whole_though_its_source_is_freed_on_the_way(tmp_path: Path, out: Path) -> None:
    data = os.urandom(3 * CHUNK_BYTES + 12_345)
    (out / "value").write_bytes(data)
    blobs = BlobFolder(tmp_path / "blobs")
    hash = blobs.take_file(out, "value", len(data))
    assert hash == blake3(data).hexdigest()
    assert blobs.path(hash).read_bytes() == data
    assert not blobs.path(hash).stat().st_mode & 0o222, "bytes of the worker's own are sealed: a kernel may map them"
    assert list(out.iterdir()) == []
    out.rmdir()


def test_a_folder_in_place_of_a_value_is_refused_and_gone(tmp_path: Path, out: Path) -> None:
    (out / "value" / "inner").mkdir(parents=True)
    with pytest.raises(CellburstError) as caught:
        BlobFolder(tmp_path / "blobs").take_file(out, "value", 10)
    assert caught.value.code is ErrorCode.INTEGRITY
    assert list(out.iterdir()) == []
    out.rmdir()
