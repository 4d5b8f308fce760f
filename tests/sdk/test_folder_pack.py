"""What of a notebook's folder goes along to another machine."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from cellburst import folder_pack
from cellburst.folder_pack import pack_folder
from cellburst.image_packs import PackWriter


def put(folder: Path, **files: int) -> None:
    for name, size in files.items():
        (folder / name.replace("_", ".")).write_bytes(b"x" * size)


def test_small_files_go_first_and_what_stays_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_pack, "MAX_BYTES", 100)
    put(tmp_path, b_csv=50, a_parquet=70, c_parquet=900, d_py=20, _env=1, other_ipynb=1, my_pem=1)
    (tmp_path / ".git").mkdir()
    put(tmp_path / ".git", HEAD=1)
    packs = PackWriter(tmp_path.parent / f"{tmp_path.name}-packs")
    found = pack_folder(tmp_path, packs)
    assert found is not None and found.size_bytes == 70 and found.left_out == (("c.parquet", 900), ("a.parquet", 70))
    with tarfile.open(packs.files[found.pack.hash]) as archive:
        assert archive.getnames() == ["b.csv", "d.py"]
    assert "2 files, 70 B; not c.parquet (900 B), a.parquet (70 B)" in found.words()
    only = pack_folder(tmp_path, packs, python_only=True)
    assert only is not None and only.pack.files == 1 and only.left_out == ()


def test_an_empty_folder_is_nothing(tmp_path: Path) -> None:
    assert pack_folder(tmp_path, PackWriter(tmp_path / "packs")) is None
