"""A file's hash taken while it is written: the same as that of the whole file, or none."""

from __future__ import annotations

from pathlib import Path

import blake3
import pytest

from cellburst_worker import behind as behind_module
from cellburst_worker.behind import HashBehind


def test_it_is_the_hash_of_the_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behind_module, "PIECE_BYTES", 1000)
    path = tmp_path / "pages.img"
    behind = HashBehind(path)
    pieces = [bytes([n]) * 777 for n in range(50)]
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
            file.flush()
    assert behind.finish() == blake3.blake3(b"".join(pieces)).hexdigest()


def test_an_empty_file_has_one_too(tmp_path: Path) -> None:
    path = tmp_path / "pages.img"
    behind = HashBehind(path)
    path.touch()
    assert behind.finish() == blake3.blake3(b"").hexdigest()


def test_what_is_not_the_whole_file_gives_none(tmp_path: Path) -> None:
    assert HashBehind(tmp_path / "never there").finish() == ""
    assert HashBehind(tmp_path).finish() == ""  # a folder
    path = tmp_path / "replaced"
    path.write_bytes(b"a" * 10)
    behind = HashBehind(path)
    behind._whole.set()
    behind._thread.join()
    (tmp_path / "other").write_bytes(b"a" * 10)
    (tmp_path / "other").rename(path)
    assert behind.finish() == ""
    longer = tmp_path / "longer"
    longer.write_bytes(b"a" * 10)
    behind = HashBehind(longer)
    behind._whole.set()
    behind._thread.join()
    longer.write_bytes(b"a" * 11)
    assert behind.finish() == ""
