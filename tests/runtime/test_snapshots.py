"""The store of snapshots on disk: whole or not there, sealed, bounded, and its garbage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_protocol.messages import NameGroup, RemoteName, ValuePart
from cellburst_runtime.snapshot_failures import FORGET_SECONDS, MOST_FAILURES
from cellburst_runtime.snapshot_seal import BLOCK_BYTES
from cellburst_runtime.snapshots import LiveFile, Manifest, SnapshotKind, SnapshotStore, SnapshotUnusable

MIB = 1 << 20


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snapshots", 100 * MIB)


def add(
    store: SnapshotStore,
    snapshot_id: str,
    *,
    kind: SnapshotKind = "session",
    size_bytes: int = 3 * MIB,
    **fields: object,
) -> Manifest:
    """Keep a snapshot with a checkpoint, names and a store."""
    draft = store.draft(kind, snapshot_id, size_bytes)
    (draft.folder / "checkpoint").mkdir()
    (draft.folder / "checkpoint/pages.img").write_bytes(os.urandom(size_bytes))
    (draft.folder / "checkpoint/checkpoint.img").write_bytes(b"state")
    (draft.folder / "names").mkdir()
    (draft.folder / "names/aa").write_bytes(b"value")
    image(draft.folder / "store.img")
    return draft.commit(Manifest(kind=kind, id=snapshot_id, **fields))  # type: ignore[arg-type]


def image(path: Path) -> None:
    """A sparse file of 64 MiB: data at its start, in an odd place, and zeros that were written."""
    with open(path, "wb") as file:
        file.write(b"begin")
        file.seek(20 * MIB + 77)
        file.write(b"middle" * BLOCK_BYTES)
        file.seek(50 * MIB)
        file.write(bytes(MIB))
        file.truncate(64 * MIB)


def test_a_manifest_comes_back_as_it_was(store: SnapshotStore) -> None:
    part = ValuePart(hash="aa", size_bytes=5)
    kept = add(
        store, "p1", key="k", key_parts={"engine": "e"}, session="s", notebook="n", workspace="w", parked_unix_seconds=2.5,
        names=[NameGroup(names=["x"], hash="h", parts=[part])], lost=[RemoteName(name="y", type="socket", why="unpicklable")],
        preloaded=["numpy"], live_files=[LiveFile(path="/a", host_path="/a", device=1, inode=2, size_bytes=3, mtime_ns=4)],
    )  # fmt: skip
    assert kept.size_bytes >= 3 * MIB
    again = SnapshotStore(store.folder, 100 * MIB)
    assert again.parked("p1") == kept and again.parked_all() == [kept]
    assert again.template("p1") is None and again.parked("p2") is None
    assert again.usage().parked_bytes == kept.size_bytes and again.usage().parked_count == 1
    assert kept.size_bytes < 20 * MIB, "holes take no disk"
    folder = again.path(kept)
    assert (folder.stat().st_mode & 0o777, again.checkpoint(kept)) == (0o700, folder / "checkpoint")
    assert (store.folder.parent / "snapshot-key").stat().st_mode & 0o777 == 0o600
    again.remove("session", "p1")
    again.remove("session", "p1")
    assert again.parked("p1") is None and again.usage().parked_count == 0
    assert not folder.exists() and list((store.folder / "drafts").iterdir()) == []


def flip(path: Path, position: int) -> None:
    with open(path, "r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


def forge(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"session":"s"', b'"session":"t"'))


DAMAGES: dict[str, tuple[str, Callable[[Path], None], str, bool]] = {
    # what is damaged, how, what is said, whether the names are still good
    "flipped bit": ("checkpoint/pages.img", lambda path: flip(path, 2 * MIB + 5), "damaged", True),
    "truncated": (
        "checkpoint/pages.img",
        lambda path: os.truncate(path, MIB),
        f"{MIB} bytes instead of {3 * MIB}",
        True,
    ),
    "gone": ("checkpoint/checkpoint.img", Path.unlink, "gone", True),
    "a name": ("names/aa", lambda path: flip(path, 1), "", False),
    "the manifest": ("manifest.json", forge, "manifest.json is damaged", False),
    "the seal": ("seal.json", lambda path: flip(path, len(path.read_bytes()) - 9), "seal", False),
    "no seal": ("seal.json", Path.unlink, "seal", False),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(store: SnapshotStore, damage: str) -> None:
    name, how, said, names_are_good = DAMAGES[damage]
    kept = add(store, "p", session="s")
    store.check(kept, checkpoint=True)
    store.check(kept, checkpoint=False)
    how(store.path(kept) / name)
    if said:
        with pytest.raises(SnapshotUnusable, match=said):
            store.check(kept, checkpoint=True)
    if names_are_good:
        store.check(kept, checkpoint=False)
    else:
        with pytest.raises(SnapshotUnusable):
            store.check(kept, checkpoint=False)


def test_a_template_is_read_again_when_it_was_written_to(store: SnapshotStore) -> None:
    kept = add(store, "k", kind="template")
    pages = store.path(kept) / "checkpoint/pages.img"
    store.check(kept, checkpoint=True)
    good = pages.stat()
    assert store._read_lately(store.path(kept), ["checkpoint/checkpoint.img", "checkpoint/pages.img", "manifest.json"])
    store.check(kept, checkpoint=True)
    flip(pages, MIB)
    os.utime(pages, ns=(good.st_atime_ns, good.st_mtime_ns))
    with pytest.raises(SnapshotUnusable, match="damaged"):
        store.check(kept, checkpoint=True)


def test_a_seal_of_another_installation_is_none(store: SnapshotStore, tmp_path: Path) -> None:
    kept = add(store, "p")
    (store.folder.parent / "snapshot-key").unlink()
    with pytest.raises(SnapshotUnusable, match="seal"):
        store.check(kept, checkpoint=True)


def test_names_alone(store: SnapshotStore) -> None:
    draft = store.draft("session", "p", 10)
    (draft.folder / "names").mkdir()
    (draft.folder / "names/aa").write_bytes(b"value")
    kept = draft.commit(Manifest(kind="session", id="p"))
    store.check(kept, checkpoint=False)
    assert store.checkpoint(kept) is None and store.store_copy(kept, store.folder) is None
    with pytest.raises(SnapshotUnusable, match="only names"):
        store.check(kept, checkpoint=True)


@pytest.mark.parametrize("change", ["replaced", "changed", "deleted", "no name"])
def test_a_live_file_that_is_another(store: SnapshotStore, tmp_path: Path, change: str) -> None:
    library = tmp_path / "lib.so"
    library.write_bytes(b"one")
    status = library.stat()
    seen = LiveFile(
        path="/usr/lib.so", host_path=str(library), device=status.st_dev, inode=status.st_ino, size_bytes=3,
        mtime_ns=status.st_mtime_ns,
    )  # fmt: skip
    if change == "no name":
        seen.inode = 0
    kept = add(store, "p", live_files=[seen])
    if change == "replaced":
        (tmp_path / "new").write_bytes(b"two")
        os.utime(tmp_path / "new", ns=(status.st_mtime_ns, status.st_mtime_ns))
        (tmp_path / "new").rename(library)
    elif change == "changed":
        os.utime(library, ns=(1, 1))
    elif change == "deleted":
        library.unlink()
    with pytest.raises(SnapshotUnusable, match=change):
        store.check(kept, checkpoint=True)
    store.check(kept, checkpoint=False)


def test_a_copy_of_what_the_session_wrote(store: SnapshotStore, tmp_path: Path) -> None:
    kept = add(store, "p")
    copy = store.store_copy(kept, tmp_path / "stores")
    assert copy is not None and copy.stat().st_size == 64 * MIB and copy.stat().st_blocks * 512 < 30 * MIB
    with open(copy, "rb") as one, open(store.path(kept) / "store.img", "rb") as other:
        assert all(one.read(MIB) == other.read(MIB) for _ in range(64))
    flip(store.path(kept) / "store.img", 20 * MIB + 80)
    with pytest.raises(SnapshotUnusable, match=r"store\.img is damaged"):
        store.store_copy(kept, tmp_path / "stores")
    (store.path(kept) / "store.img").unlink()
    with pytest.raises(SnapshotUnusable, match=r"store\.img is gone"):
        store.store_copy(kept, tmp_path / "stores")
    assert list((tmp_path / "stores").iterdir()) == [copy]


def test_templates_make_room_least_recently_used_first(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snapshots", 20 * MIB)
    for key in ("a", "b", "c"):
        add(store, key, kind="template")
    parked = add(store, "p")
    for number, key in enumerate(("b", "c", "a")):
        os.utime(store.folder / "templates" / key, ns=(number, number))
    store.used("b")  # used now
    room = 20 * MIB - store.usage().template_bytes - store.usage().parked_bytes
    store.draft("session", "q", room).abandon()
    assert [key for key in "abc" if store.template(key)] == ["a", "b", "c"]
    draft = store.draft("session", "q", room + 1)
    assert [key for key in "abc" if store.template(key)] == ["a", "b"]
    with pytest.raises(PlatformError) as full:  # the draft's own room is taken, and all templates would not be enough
        store.draft("session", "r", 20 * MIB - parked.size_bytes - room)
    assert full.value.code == ErrorCode.DISK_FULL
    assert [key for key in "abc" if store.template(key)] == ["a", "b"], "nothing is dropped in vain"
    draft.abandon()
    store.draft("session", "r", 20 * MIB - parked.size_bytes).abandon()
    assert [key for key in "abc" if store.template(key)] == [] and store.parked("p") == parked
    with pytest.raises(PlatformError):
        store.draft("template", "d", 20 * MIB)
    assert list((store.folder / "drafts").iterdir()) == [] and store.drafts == {}


def test_three_failures_in_a_row_disable_a_key(store: SnapshotStore) -> None:
    add(store, "k", kind="template")
    for _ in range(2):
        store.failures.failed("template", "k")
    store.used("k")
    for _ in range(2):
        store.failures.failed("template", "k")
    assert store.template("k") is not None and not store.disabled("k")
    store.failures.failed("template", "k")
    assert store.template("k") is None and store.disabled("k")
    add(store, "k", kind="template")
    again = SnapshotStore(store.folder, 100 * MIB)
    assert again.template("k") is None and not again.disabled("other")
    again.used("k")
    assert again.template("k") is not None


def test_a_session_s_failures_are_its_own(store: SnapshotStore) -> None:
    add(store, "k", kind="template")
    for _ in range(MOST_FAILURES):
        store.failures.failed("session", "k")  # an id may well look like a key
    assert store.failures.too_many("session", "k") and not store.failures.too_many("session", "other")
    assert store.template("k") is not None
    store.used("k")
    assert store.failures.too_many("session", "k")
    store.failures.succeeded("session", "k")
    assert not store.failures.too_many("session", "k")


def test_failures_are_forgotten_after_a_day(store: SnapshotStore) -> None:
    add(store, "k", kind="template")
    now = 1e9
    store.failures.wall = lambda: now
    for _ in range(MOST_FAILURES):
        store.failures.failed("template", "k")
    store.failures.failed("template", "other")
    now += FORGET_SECONDS - 1
    assert store.disabled("k")
    store.failures.failed("template", "late")
    now += 1
    assert not store.disabled("k") and store.template("k") is not None
    store.failures.failed("template", "k")
    assert not store.disabled("k")  # counted from one again
    assert set(msgspec.json.decode((store.folder / "failures.json").read_bytes())) == {"template k", "template late"}
    (store.folder / "failures.json").write_text('{"k": 3}')  # what an earlier version wrote
    assert not store.disabled("k")


def test_a_second_commit_replaces_the_first(store: SnapshotStore) -> None:
    add(store, "p", session="one")
    kept = add(store, "p", session="two")
    store.check(kept, checkpoint=True)
    found = store.parked("p")
    assert found is not None and found.session == "two" and len(store.parked_all()) == 1


def test_what_is_no_snapshot_is_not_one(store: SnapshotStore) -> None:
    for bad in ("", ".", "..", "../x", "a/b"):
        with pytest.raises(ValueError, match="no id"):
            store.draft("session", bad, 0)
    draft = store.draft("session", "p", 0)
    with pytest.raises(ValueError, match="draft"):
        draft.commit(Manifest(kind="template", id="p"))
    draft.abandon()
    (store.folder / "sessions/rubbish").mkdir()
    (store.folder / "sessions/broken").mkdir()
    (store.folder / "sessions/broken/manifest.json").write_bytes(b"{")
    kept = add(store, "p")
    (store.folder / "sessions/moved").mkdir()
    (store.folder / "sessions/moved/manifest.json").write_bytes((store.path(kept) / "manifest.json").read_bytes())
    assert store.parked_all() == [kept] and store.parked("moved") is None
    assert list((store.folder / "drafts").iterdir()) == []


def test_drafts_of_a_killed_process_are_garbage(store: SnapshotStore) -> None:
    mine = store.draft("session", "mine", 10)
    (mine.folder / "names").mkdir()
    code = f"""
        import sys
        from pathlib import Path
        from cellburst_runtime.snapshots import SnapshotStore
        draft = SnapshotStore(Path({str(store.folder)!r}), 1 << 30).draft("session", "other", 10)
        (draft.folder / "half").write_bytes(b"written")
        print("drafted", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"drafted\n"
        store.collect_garbage()
        assert len(list((store.folder / "drafts").iterdir())) == 2, "both are being made"
        other.send_signal(signal.SIGKILL)
    store.collect_garbage()
    assert [entry.name for entry in (store.folder / "drafts").iterdir()] == [mine.folder.parent.name]
    assert mine.commit(Manifest(kind="session", id="mine")) == store.parked("mine")
    assert store.parked("other") is None and list((store.folder / "drafts").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.netns  # mounts
def test_a_full_disk(small_disk: Path) -> None:
    store = SnapshotStore(small_disk / "d" / "snapshots", 1 << 40)
    kept = add(store, "p")
    with pytest.raises(PlatformError) as full:
        store.draft("session", "q", 60 * MIB)  # 300 MiB but for a reserve of 256 MiB
    assert full.value.code == ErrorCode.DISK_FULL and "MiB of disk are free" in str(full.value)
    draft = store.draft("session", "q", 10 * MIB)
    with open(small_disk / "others", "wb", buffering=0) as others, pytest.raises(OSError, match="No space"):
        while True:
            others.write(bytes(MIB))
    with pytest.raises(PlatformError) as full:
        draft.commit(Manifest(kind="session", id="q", session="s" * 65536))
    assert full.value.code == ErrorCode.DISK_FULL
    draft.abandon()
    assert store.parked("q") is None and list((store.folder / "drafts").iterdir()) == []
    store.failures.failed("session", "k")  # not counted, not raised
    store.check(kept, checkpoint=True)
