"""The record of volumes, on SQLite and PostgreSQL: every verb, its repeats and refusals, and that no update is lost in silence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst_gateway import store_volumes
from cellburst_gateway.store import Owner, Store
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.volumes import Chunk, CommitVolume, FileEntry, VolumeCommitted
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures
from tests.gateway.test_store import refused

ANN = Owner("lab", "ann")


@pytest.fixture
def store(record_url: str) -> Iterator[Store]:  # noqa: F811
    opened = Store.open(record_url, now=1.0)
    yield opened
    opened.close()


@pytest.fixture
def volume(store: Store) -> str:
    return store.create_volume("v-1", ANN, name="data", now=5.0)[0].id


def file(path: str, content: int = 1, size: int = 10) -> FileEntry:
    return FileEntry(path=path, size_bytes=size, chunks=[Chunk(f"{content:064x}", size)])


def commit(
    store: Store,
    base: int,
    *changes: FileEntry,
    delete: tuple[str, ...] = (),
    key: str = "",
    by: str = "ann",
    last: bool = False,
    now: float = 9.0,
) -> VolumeCommitted:
    key = key or f"{by} {base} {[(e.path, e.chunks) for e in changes]} {delete}"
    asked = CommitVolume(base=base, key=key, by=by, changes=list(changes), deleted=list(delete), last_write_wins=last)
    return store.commit_volume("lab", "v-1", "ann", asked, now=now)[1]


def paths(store: Store, since: int = 0, prefix: str = "") -> list[str]:
    return [("-" if e.deleted else "") + e.path for e in store.volume_files("v-1", since=since, prefix=prefix)[1]]


def test_a_volume_is_made_found_listed_renamed_and_deleted(store: Store) -> None:
    made, created = store.create_volume("v-1", ANN, name="data", now=5.0)
    assert created and (made.name, made.version, made.files) == ("data", 0, 0)
    assert store.create_volume("v-1", ANN, name="data", now=6.0) == (made, False)
    assert store.create_volume("v-2", ANN, name="data", now=6.0, if_missing=True) == (made, False)
    assert "already" in refused(ErrorCode.CONFLICT, store.create_volume, "v-2", ANN, name="data", now=6.0)
    store.create_volume("v-3", Owner("other", "bob"), name="data", now=6.0)
    assert store.get_volume("lab", "data") == store.get_volume("lab", "v-1") == made
    refused(ErrorCode.NOT_FOUND, store.get_volume, "lab", "v-3")
    refused(ErrorCode.NOT_FOUND, store.get_volume, "lab", "")
    store.create_volume("v-4", ANN, name="b", now=6.0)
    assert [v.name for v in store.list_volumes("lab")] == ["b", "data"]
    refused(ErrorCode.CONFLICT, store.rename_volume, "lab", "b", name="data")
    assert store.rename_volume("lab", "b", name="c").id == "v-4"
    assert store.rename_volume("lab", "c", name="c").name == "c"
    store.delete_volume("lab", "c")
    refused(ErrorCode.NOT_FOUND, store.delete_volume, "lab", "c")
    refused(ErrorCode.NOT_FOUND, store.delete_volume, "lab", "v-3")
    assert [v.id for v in store.list_volumes("other")] == ["v-3"]


def test_ephemeral_ones_have_no_name_and_are_idle_when_nobody_asks(store: Store) -> None:
    for number in (1, 2):
        store.create_volume(f"v-{number}", ANN, name="", now=5.0, ephemeral=True)
    refused(ErrorCode.BAD_ARGUMENT, store.rename_volume, "lab", "v-1", name="x")
    store.get_volume("lab", "v-1", now=50.0)
    assert [v.id for v in store.idle_ephemeral_volumes(before=40.0)] == ["v-2"]
    assert {v.id for v in store.idle_ephemeral_volumes(before=60.0)} == {"v-1", "v-2"}


def test_commits_count_up_when_something_changed_and_never_else(store: Store, volume: str) -> None:
    assert commit(store, 0, file("a/b"), file("c", size=5)) == VolumeCommitted(version=1, changed=2)
    assert commit(store, 1, file("a/b")) == VolumeCommitted(version=1, changed=0)
    assert commit(store, 1, delete=("gone", "never/was")) == VolumeCommitted(version=1, changed=0)
    assert commit(store, 1, file("a/b", 2, 20), delete=("c",)) == VolumeCommitted(version=2, changed=2)
    found = store.get_volume("lab", volume)
    assert (found.version, found.files, found.size_bytes, found.changed) == (2, 1, 20, 9.0)
    assert commit(store, 2, file("c")).version == 3
    assert store.get_volume("lab", volume).size_bytes == 30
    mode = FileEntry(path="c", size_bytes=10, mode=0o755, chunks=file("c").chunks)
    assert commit(store, 3, mode) == VolumeCommitted(version=4, changed=1)


def test_the_same_key_is_the_same_commit(store: Store, volume: str) -> None:
    first = commit(store, 0, file("a"), key="k")
    commit(store, 1, file("a", 2), key="other")
    assert commit(store, 0, file("a"), key="k") == first
    assert store.get_volume("lab", volume).version == 2
    assert store.drop_old_commits(before=9.0) == 0
    assert store.drop_old_commits(before=9.1) == 1  # the newest stays
    refused(ErrorCode.VOLUME_CONFLICT, commit, store, 0, file("a", 3), key="k")


def test_lists_show_what_changed_since_with_deletions_and_below_a_folder(store: Store, volume: str) -> None:
    commit(store, 0, file("a/x"), file("a/y"), file("ab"), file("a.txt"), file("Z"), file("é"))
    commit(store, 1, file("a/x", 2), delete=("a/y",))
    assert paths(store) == ["Z", "a.txt", "a/x", "ab", "é"]
    assert paths(store, since=1) == ["a/x", "-a/y"]
    assert paths(store, since=2) == []
    assert paths(store, prefix="a") == ["a/x"]
    assert paths(store, prefix="ab") == ["ab"]
    assert paths(store, since=1, prefix="a/y") == ["-a/y"]
    entry = store.volume_files(volume, prefix="a/x")[1][0]
    assert (entry.version, entry.by, entry.chunks) == (2, "ann", file("a/x", 2).chunks)
    refused(ErrorCode.NOT_FOUND, store.volume_files, "nothing")


def test_two_writers_of_one_file_are_told_and_of_different_ones_are_merged(store: Store, volume: str) -> None:
    commit(store, 0, file("a"), file("b"))
    assert commit(store, 1, file("a", 2), by="bob").version == 2
    assert commit(store, 1, file("b", 3), by="eve").version == 3
    text = refused(ErrorCode.VOLUME_CONFLICT, commit, store, 1, file("a", 4), file("new"), by="ann")
    assert "'a'" in text and "bob" in text and "version 2" in text
    assert paths(store) == ["a", "b"], "nothing of a refused commit is there"
    assert commit(store, 1, file("a", 2), by="ann") == VolumeCommitted(version=3, changed=0), "both wrote the same"
    refused(ErrorCode.VOLUME_CONFLICT, commit, store, 1, delete=("a",))
    assert commit(store, 3, delete=("a",), by="bob").version == 4
    assert "deleted by bob" in refused(ErrorCode.VOLUME_CONFLICT, commit, store, 3, file("a", 5), by="ann")
    assert commit(store, 1, file("a", 4), last=True).version == 5
    refused(ErrorCode.BAD_ARGUMENT, commit, store, 6, file("a", 4))


def test_a_file_is_never_a_folder_too(store: Store, volume: str) -> None:
    commit(store, 0, file("a/b/c"), file("d"), FileEntry(path="empty", kind="folder"))
    refused(ErrorCode.BAD_ARGUMENT, commit, store, 1, file("a"))
    refused(ErrorCode.BAD_ARGUMENT, commit, store, 1, file("a/b"))
    refused(ErrorCode.BAD_ARGUMENT, commit, store, 1, file("d/e"))
    refused(ErrorCode.BAD_ARGUMENT, commit, store, 1, file("n"), file("n/m"))
    assert commit(store, 1, file("empty/x")).version == 2
    assert commit(store, 2, file("a"), delete=("a/b/c",)).version == 3
    assert commit(store, 3, file("d/e"), delete=("d",)).version == 4
    assert paths(store) == ["a", "d/e", "empty", "empty/x"]
    refused(ErrorCode.VOLUME_CONFLICT, commit, store, 2, file("a/later"), by="bob")
    assert commit(store, 2, file("a/later"), file("d", 7), by="bob", last=True).version == 5
    assert paths(store) == ["a/later", "d", "empty", "empty/x"]
    assert store.get_volume("lab", volume).files == 4


def test_there_are_limits(store: Store, volume: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_volumes, "MAX_FILES", 3)
    commit(store, 0, file("a"), file("b"), file("c"))
    assert "4 files" in refused(ErrorCode.TOO_LARGE, commit, store, 1, file("d"))
    assert commit(store, 1, file("d"), delete=("a",)).version == 2


def test_chunks_that_live_files_have_are_listed_in_pages(
    store: Store, volume: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_volumes, "PAGE_ROWS", 2)
    commit(store, 0, *(file(f"f{n}", n) for n in range(5)))
    commit(store, 1, file("f1", 11), delete=("f2",))
    store.create_volume("v-2", Owner("other", "bob"), name="data", now=5.0)
    found: set[str] = set()
    after: tuple[str, str] | None = ("", "")
    pages = 0
    while after is not None:
        page, after = store.chunks_page("lab", after)
        found |= page
        pages += 1
    assert found == {f"{n:064x}" for n in (0, 11, 3, 4)} and pages == 3
    assert store.chunk_workspaces() == ["lab", "other"]


NAMES = ["a", "b", "d/e", "d/f", "d"]
steps = st.lists(
    st.tuples(
        st.integers(0, 2),  # the writer
        st.sampled_from(["read", "write", "delete"]),
        st.sampled_from(NAMES), st.integers(1, 3),
    ), min_size=1, max_size=25,
)  # fmt: skip


@settings(max_examples=60)
@given(steps)
def test_no_update_is_lost_in_silence(drawn: list[tuple[int, str, str, int]]) -> None:
    """Writers that read and write in any order, against a history: each published write was made by one who had seen what it
    replaced, or replaced it by the same."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store.open(Path(folder) / "record.sqlite", now=1.0, synchronous="OFF")
        try:
            store.create_volume("v-1", ANN, name="data", now=5.0)
            seen = [0, 0, 0]
            history: list[dict[str, int]] = [{}]  # content by path, of each version
            for number, (writer, action, path, content) in enumerate(drawn):
                now = history[-1]
                if action == "read":
                    seen[writer] = len(history) - 1
                    continue
                wanted = {path: content} if action == "write" else {}
                base = history[seen[writer]]
                asked = CommitVolume(
                    base=seen[writer], key=str(number), by=str(writer), changes=[file(path, content)] if wanted else [],
                    deleted=[] if wanted else [path],
                )  # fmt: skip
                touched = [
                    p for p in {*now, *base} if p == path or p.startswith(f"{path}/") or path.startswith(f"{p}/")
                ]
                try:
                    done = store.commit_volume("lab", "v-1", "ann", asked, now=9.0)[1]
                except CellburstError as why:
                    assert why.code in (ErrorCode.VOLUME_CONFLICT, ErrorCode.BAD_ARGUMENT)
                    if why.code is ErrorCode.BAD_ARGUMENT:
                        assert any(p != path for p in touched), "a file beside a folder of its name"
                    else:  # somebody did something there that this writer has not seen
                        since = history[seen[writer] :]
                        assert any(v.get(p) != base.get(p) for p in touched or [path] for v in since)
                    continue
                after = {p: c for p, c in now.items() if p != path} | wanted
                if after != now:
                    assert now.get(path) == base.get(path), "it replaced what it had not seen"
                    history.append(after)
                assert done.version == len(history) - 1
                live = {e.path: int(e.chunks[0].hash, 16) for e in store.volume_files("v-1")[1]}
                assert live == history[-1]
                assert store.get_volume("lab", "v-1").files == len(live)
        finally:
            store.close()


def test_what_was_deleted_long_ago_is_forgotten_and_who_asks_since_before_gets_all(store: Store, volume: str) -> None:
    commit(store, 0, file("a"), file("b"), file("c"), now=10.0)
    commit(store, 1, delete=("a",), now=20.0)
    commit(store, 2, delete=("b",), now=30.0)
    commit(store, 3, file("d"), now=40.0)
    assert paths(store, since=1) == ["-a", "-b", "d"] and store.volume_horizon(volume) == 1
    assert store.drop_old_commits(before=25.0) == 1
    # What may still be asked for is known: since version 2, of which the newest old commit is.
    assert store.volume_horizon(volume) == 2 and paths(store, since=2) == ["-b", "d"] and paths(store) == ["c", "d"]
    assert paths(store, since=1) == ["-b", "d"]  # lacks a: the gateway does not ask so, but for all
    assert store.drop_old_commits(before=25.0) == 0 and store.volume_horizon(volume) == 2
    assert store.drop_old_commits(before=1000.0) == 2
    assert store.volume_horizon(volume) == 4 and paths(store, since=3) == ["d"] and paths(store) == ["c", "d"]
    # A path that was deleted can be written again, from a version of then too.
    assert commit(store, 1, file("a", 9), now=1001.0).version == 5
    assert paths(store, since=4) == ["a"]
