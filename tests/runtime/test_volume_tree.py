"""The worker's cache of volumes: whole files, trees of versions, what goes when the disk is wanted."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, PlatformError
from cellburst_protocol.volumes import Chunk, FileEntry, VolumeFiles
from cellburst_runtime.volume_tree import VolumeStore

OWNER = (1000, 1000)


def entry(path: str, data: bytes, **changes: int) -> FileEntry:
    chunks = [Chunk(blake3(data).hexdigest(), len(data))] if data else []
    made = FileEntry(path=path, size_bytes=len(data), modified_ns=10**18 + 7, chunks=chunks)
    return msgspec.structs.replace(made, **changes)


def put(store: VolumeStore, data: dict[str, bytes], version: int = 1, volume: str = "v") -> VolumeFiles:
    files = VolumeFiles(version=version, entries=[entry(path, content) for path, content in data.items()])
    for one in store.missing(files.entries, OWNER):
        draft = store.draft()
        draft.write_bytes(data[one.path])
        store.adopt(draft, one, OWNER)
    return files


def test_a_tree_shows_a_version_as_it_was_committed(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    files = put(store, {"a": b"1", "d/e/b": b"2", "empty": b""})
    files.entries[0].mode = 0o755
    assert [one.path for one in store.missing(files.entries, OWNER)] == ["a"]  # another mode is another file
    draft = store.draft()
    draft.write_bytes(b"1")
    store.adopt(draft, files.entries[0], OWNER)
    files.entries += [
        FileEntry(path="l", kind="link", target="../../etc"), FileEntry(path="none", kind="folder", mode=0o700),
    ]  # fmt: skip
    tree = store.tree("v", files, OWNER)
    assert (tree / "a").read_bytes() == b"1" and (tree / "d/e/b").read_bytes() == b"2"
    assert (tree / "a").stat().st_mode & 0o777 == 0o755 and (tree / "a").stat().st_mtime_ns == 10**18 + 7
    assert str((tree / "l").readlink()) == "../../etc" and not any((tree / "none").iterdir())
    if os.geteuid() == 0:
        assert {(p.lstat().st_uid, p.lstat().st_gid) for p in [tree, *tree.rglob("*")]} == {OWNER}
    # The next version shares the files that did not change.
    later = put(store, {"a": b"3", "d/e/b": b"2"}, version=2)
    assert (store.tree("v", later, OWNER) / "d/e/b").stat().st_ino == (tree / "d/e/b").stat().st_ino


def test_what_the_gateway_said_is_kept_and_only_news_are_asked_for(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    assert store.known("v").version == 0
    first = store.learn("v", store.known("v"), VolumeFiles(version=1, entries=[entry("b", b"1"), entry("a", b"2")]))
    gone = FileEntry(path="b", deleted=True, version=2)
    store.learn("v", first, VolumeFiles(version=2, entries=[gone, entry("c", b"3")]))
    again = VolumeStore(tmp_path).known("v")
    assert (again.version, [one.path for one in again.entries]) == (2, ["a", "c"])


@pytest.mark.parametrize("paths", [["a", "a/b"], ["../x"], ["a/../../x"], ["/etc/x/.."]])
def test_entries_that_cannot_stand_together_are_no_tree(tmp_path: Path, paths: list[str]) -> None:
    store = VolumeStore(tmp_path / "store")
    files = put(store, dict.fromkeys(paths, b"x"))
    with pytest.raises(CellburstError):
        store.tree("v", files, OWNER)
    files.entries[0] = FileEntry(path=paths[0], kind="link", target=str(tmp_path))
    with pytest.raises(CellburstError):
        store.tree("v", files, OWNER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    assert list((tmp_path / "store" / "drafts").iterdir()) == []


def test_only_what_nobody_uses_gives_way(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path, limit_bytes=1_000_000)
    used = store.tree("used", put(store, {"u": b"u" * 300_000}, volume="used"), OWNER)
    parked = store.tree("parked", put(store, {"p": b"p" * 300_000}), OWNER)
    store.keep_parked("p1", [parked])
    store.unpin(parked)
    idle = store.tree("idle", put(store, {"i": b"i" * 300_000}), OWNER)
    store.unpin(idle)
    store.make_room(50_000, "volume x", lambda id: True)
    assert idle.is_dir()
    store.make_room(300_000, "volume x", lambda id: True)
    assert not idle.exists() and (used / "u").stat().st_size == (parked / "p").stat().st_size == 300_000
    with pytest.raises(PlatformError) as caught:
        store.make_room(600_000, "volume x", lambda id: True)
    assert caught.value.code is ErrorCode.DISK_FULL and "volume x" in caught.value.info.message
    os.utime(tmp_path / "pins" / "p1.json", (1, 1))  # parked long ago
    assert store.pin(parked)
    store.unpin(parked)
    with pytest.raises(PlatformError):
        store.make_room(600_000, "volume x", lambda id: True)
    store.make_room(600_000, "volume x", lambda id: False)  # its session is not kept any more
    assert not parked.exists() and not store.pin(parked) and (used / "u").exists()


def test_another_process_finds_it_whole(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    files = put(store, {"a": b"1"})
    store.draft().write_bytes(b"half of a file")
    again = VolumeStore(tmp_path)
    assert again.missing(files.entries, OWNER) == []
    assert (again.tree("v", files, OWNER) / "a").read_bytes() == b"1" and list((tmp_path / "drafts").iterdir()) == []
