"""Notebooks' folders from other machines: unpacked once, whole or not at all, and not kept for ever."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cellburst.folder_pack import pack_folder
from cellburst.image_packs import PackWriter
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_runtime import brought_folders
from cellburst_runtime.brought_folders import BroughtFolders


async def test_a_folder_is_unpacked_once_and_kept_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, packs, place = tmp_path / "nb", PackWriter(tmp_path / "packs"), tmp_path / "folders"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a.txt").write_text("a")
    (source / "run.sh").write_text("true")
    (source / "run.sh").chmod(0o755)
    found = pack_folder(source, packs)
    assert found is not None
    pack, fetched = found.pack, list[str]()

    def file(hash: str) -> Path:
        fetched.append(hash)
        return packs.files[hash]

    folders = BroughtFolders(place)
    for _ in range(2):
        await folders.bring(pack, file)
    there = folders.path(pack)
    assert (
        fetched == [pack.hash] and (there / "sub" / "a.txt").read_text() == "a" and os.access(there / "run.sh", os.X_OK)
    )
    folders.show_empty()
    (place / ".part-of-a-killed-one").mkdir()
    os.utime(folders.path(None), (0, 0))
    folders.collect_garbage()
    assert {path.name for path in place.iterdir()} == {pack.hash, brought_folders.EMPTY}
    os.utime(there, (0, 0))
    folders.collect_garbage()
    assert [path.name for path in place.iterdir()] == [brought_folders.EMPTY]


async def test_a_damaged_pack_leaves_nothing(tmp_path: Path) -> None:
    (source := tmp_path / "nb").mkdir()
    (source / "a").write_text("a")
    packs = PackWriter(tmp_path / "packs")
    found = pack_folder(source, packs)
    assert found is not None
    packs.files[found.pack.hash].write_bytes(b"something else")
    with pytest.raises(CellburstError) as caught:
        await BroughtFolders(tmp_path / "folders").bring(found.pack, lambda hash: packs.files[hash])
    assert caught.value.code is ErrorCode.INTEGRITY and not list((tmp_path / "folders").glob("*"))
