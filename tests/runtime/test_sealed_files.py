"""Files that are encrypted on disk: they come back as they were, or not at all."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from cellburst_runtime import sealed_files
from cellburst_runtime.sealed_files import CHUNK_BYTES, open_file, open_folder, seal_file, seal_folder
from cellburst_runtime.snapshot_manifest import SnapshotUnusable

KEY = bytes(range(32))
SENTINEL = b"sentinel-value-of-a-secret"
CASES = {
    "empty": b"",
    "small": SENTINEL,
    "zeros": bytes(3 * CHUNK_BYTES + 17),
    "a whole chunk": b"x" * CHUNK_BYTES,
    "holes": b"a" * CHUNK_BYTES + bytes(5 * CHUNK_BYTES) + SENTINEL + bytes(CHUNK_BYTES + 1),
    "ends with a hole": SENTINEL + bytes(4 * CHUNK_BYTES),
}


@pytest.mark.parametrize("what", CASES)
def test_a_file_comes_back_as_it_was_and_is_not_readable_meanwhile(what: str, tmp_path: Path) -> None:
    plain, sealed, back = tmp_path / "plain", tmp_path / "sealed", tmp_path / "back"
    plain.write_bytes(CASES[what])
    seal_file(plain, sealed, KEY, "pages.img")
    assert SENTINEL not in sealed.read_bytes() and sealed.stat().st_mode & 0o777 == 0o600
    open_file(sealed, back, KEY, "pages.img")
    assert back.read_bytes() == CASES[what] and back.stat().st_mode & 0o777 == 0o600


def test_holes_cost_no_disk(tmp_path: Path) -> None:
    plain, sealed, back = tmp_path / "plain", tmp_path / "sealed", tmp_path / "back"
    with plain.open("wb") as file:
        file.truncate(64 * CHUNK_BYTES)
        file.seek(32 * CHUNK_BYTES)
        file.write(SENTINEL)
    seal_file(plain, sealed, KEY, "store.img")
    assert sealed.stat().st_size < 2 * CHUNK_BYTES
    open_file(sealed, back, KEY, "store.img")
    assert back.stat().st_size == 64 * CHUNK_BYTES and back.stat().st_blocks * 512 < 4 * CHUNK_BYTES


def test_two_files_of_one_content_differ(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(SENTINEL)
    for name in ("one", "two"):
        seal_file(plain, tmp_path / name, KEY, "same")
    assert (tmp_path / "one").read_bytes() != (tmp_path / "two").read_bytes()


def refused(path: Path, back: Path, key: bytes = KEY, name: str = "f") -> None:
    with pytest.raises(SnapshotUnusable):
        open_file(path, back, key, name)
    assert not back.exists()


def test_another_key_another_name_and_every_kind_of_damage_are_refused(tmp_path: Path) -> None:
    plain, sealed, bad, back = (tmp_path / name for name in ("plain", "sealed", "bad", "back"))
    plain.write_bytes(random.Random(1).randbytes(2 * CHUNK_BYTES + 100) + bytes(2 * CHUNK_BYTES))
    seal_file(plain, sealed, KEY, "f")
    good = sealed.read_bytes()
    refused(sealed, back, key=bytes(32))
    refused(sealed, back, name="g")
    draws = random.Random(2)
    for _ in range(60):
        at = draws.randrange(len(good))
        bad.write_bytes(good[:at] + bytes([good[at] ^ 1 << draws.randrange(8)]) + good[at + 1 :])
        refused(bad, back)
    for size in (0, 8, 24, 30, CHUNK_BYTES, len(good) - 1):
        bad.write_bytes(good[:size])
        refused(bad, back)
    bad.write_bytes(good + b"x")
    refused(bad, back)
    record = sealed_files._HEAD.size + CHUNK_BYTES + sealed_files.TAG_BYTES
    first = len(sealed_files.MAGIC) + sealed_files.SALT_BYTES
    moved = (
        good[:first]
        + good[first + record : first + 2 * record]
        + good[first : first + record]
        + good[first + 2 * record :]
    )
    bad.write_bytes(moved)
    refused(bad, back)
    bad.write_bytes(good[:first] + good[first + record :])  # one left out
    refused(bad, back)


def test_folders(tmp_path: Path) -> None:
    for name in ("plain", "sealed", "back"):
        (tmp_path / name).mkdir()
    (tmp_path / "plain" / "pages.img").write_bytes(SENTINEL * 1000)
    (tmp_path / "plain" / "checkpoint.img").write_bytes(b"state")
    seal_folder(tmp_path / "plain", tmp_path / "sealed", KEY)
    assert not any(SENTINEL in path.read_bytes() for path in (tmp_path / "sealed").iterdir())
    open_folder(tmp_path / "sealed", tmp_path / "back", KEY)
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "plain").iterdir()
    }
    (tmp_path / "sealed" / "pages.img").rename(tmp_path / "sealed" / "x")
    (tmp_path / "sealed" / "checkpoint.img").rename(tmp_path / "sealed" / "pages.img")  # swapped
    with pytest.raises(SnapshotUnusable):
        open_file(tmp_path / "sealed" / "pages.img", tmp_path / "z", KEY, "pages.img")
