"""Volumes as programs use them, against a real gateway: with its chunk folder at hand, and by HTTP alone.

Over 400 lines: one class, both ways in which its bytes go.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from cellburst import volume as module
from cellburst.cli import main
from cellburst.exceptions import (
    ErrorCode,
    PlatformError,
    RequestError,
    VolumeConflict,
    VolumeFileExists,
    VolumeFileMissing,
)
from cellburst.file_hashes import FileHashes
from cellburst.volume import FileEntryType, Volume
from cellburst.volume_api import VolumeApi
from cellburst_protocol.volumes import CHUNK_BYTES, CommitVolume, FileEntry
from tests.fakes.gateway_thread import gateway_on_thread

BIG = os.urandom(2 * CHUNK_BYTES + 1000)


@pytest.fixture(scope="module", params=["folder", "http"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VolumeApi]:
    with gateway_on_thread(tmp_path_factory.mktemp("gateway")) as (_, endpoint):
        api = VolumeApi(lambda: endpoint)
        if request.param == "http":
            api._folder_known = True
        else:
            assert api.folder() is not None
        yield api


@pytest.fixture
def api(served: VolumeApi, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> VolumeApi:
    monkeypatch.setattr(module, "_shared", served)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CELLBURST_VOLUME_DOOR", raising=False)
    return served


@pytest.fixture
def volume(api: VolumeApi) -> Iterator[Volume]:
    with Volume.ephemeral() as made:
        yield made


def put(volume: Volume, files: dict[str, bytes], force: bool = False) -> int:
    with volume.batch_upload(force) as batch:
        for path, data in files.items():
            batch.put_file(io.BytesIO(data), path)
    return batch.report.version


def read(volume: Volume, path: str) -> bytes:
    return b"".join(volume.read_file(path))


def names(volume: Volume, path: str = "/", recursive: bool = True) -> list[str]:
    return [
        entry.path + "/" * (entry.type is FileEntryType.DIRECTORY)
        for entry in volume.listdir(path, recursive=recursive)
    ]


def tree(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()
    }  # fmt: skip


def test_names_are_made_found_listed_renamed_and_deleted(api: VolumeApi) -> None:
    with pytest.raises(RequestError, match="no volume 'absent'"):
        Volume.from_name("absent").info()
    with pytest.raises(RequestError, match="no name for a volume"):
        Volume.from_name("../x")
    made = Volume.from_name("one", create_if_missing=True)
    assert made.info().name == "one" and made.info().version == 0
    Volume.rename("one", "two")
    assert made.info().name == "two", "a volume stays the one it is"
    assert [info.name for info in Volume.list_all() if info.name] == ["two"]
    Volume.delete("two")
    Volume.delete("two", allow_missing=True)
    with pytest.raises(RequestError):
        Volume.delete("two")


def test_an_ephemeral_one_is_gone_afterwards(api: VolumeApi) -> None:
    with Volume.ephemeral() as made:
        id = made.info().id
    with pytest.raises(RequestError) as caught:
        api.row(id)
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_a_folder_goes_there_and_back_unchanged(volume: Volume, tmp_path: Path) -> None:
    source = tmp_path / "source"
    files = {
        "a.txt": b"a", "empty": b"", "big.bin": BIG, "deep/er/<script>alert(1)</script>": b"s", "deep/\"quo'tes": b"q",
        "deep/😀\u202e": b"e", "n" * 255: b"n",
    }  # fmt: skip
    for name, data in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(data)
    (source / "a.txt").chmod(0o755)
    (source / "nothing").mkdir()
    (source / "link").symlink_to("deep/er")
    (source / "out").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    with volume.batch_upload() as batch:
        batch.put_directory(source, "/d")
    assert batch.report.skipped == [str(source / "fifo")]
    assert {e.path for e in volume.listdir("d")} >= {"d/a.txt", "d/big.bin", "d/deep", "d/link", "d/nothing"}
    kinds = {e.path: e.type for e in volume.iterdir("d")}
    assert (
        kinds["d/link"] is FileEntryType.SYMLINK and kinds["d/nothing"] is kinds["d/deep/er"] is FileEntryType.DIRECTORY
    )
    assert read(volume, "/d/big.bin") == BIG and read(volume, "d/empty") == b""
    target = tmp_path / "target"
    report = volume.download("d", target.parent / "got")
    target = target.parent / "got" / "d"
    assert report.skipped == ["d/out"], "a link that leads out is not made"
    assert tree(target) == {**files, "link": "deep/er"} and (target / "nothing").is_dir()
    assert (target / "a.txt").stat().st_mode & 0o777 == 0o755
    assert (target / "a.txt").stat().st_mtime_ns == (source / "a.txt").stat().st_mtime_ns
    assert not list(target.rglob("*.part"))
    assert volume.download("d", target.parent).unchanged == report.files - 1, "all but the link"
    (tmp_path / "into").mkdir()
    volume.download("d/deep", tmp_path / "into")
    assert (tmp_path / "into/deep/\"quo'tes").read_bytes() == b"q"
    volume.download("d/a.txt", tmp_path / "into" / "b.txt")
    assert (tmp_path / "into" / "b.txt").read_bytes() == b"a"


def test_a_put_replaces_only_with_force_and_unchanged_files_are_no_change(volume: Volume) -> None:
    assert put(volume, {"a": b"1", "b": b"2"}) == 1
    assert put(volume, {"a": b"1"}) == 1
    with pytest.raises(VolumeFileExists, match="'a'"):
        put(volume, {"a": b"new", "c": b"3"})
    with pytest.raises(FileExistsError):
        put(volume, {"a": b"new", "c": b"3"})
    assert names(volume) == ["a", "b"]
    assert put(volume, {"a": b"new"}, force=True) == 2 and read(volume, "a") == b"new"
    with pytest.raises(KeyError), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"x"), "never")
        raise KeyError
    assert names(volume) == ["a", "b"]


@pytest.mark.parametrize("path", ["", "/", "..", "../x", "a/../../b", "a/./b", "a\0b", "b" * 256])
def test_paths_that_are_none_are_refused(volume: Volume, path: str) -> None:
    with pytest.raises(RequestError), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"x"), path)
    assert names(volume) == []


def test_files_are_listed_copied_and_removed_as_one_knows_it(volume: Volume) -> None:
    put(volume, {"a.txt": b"a", "d/b": b"b", "d/e/c": b"c"})
    assert names(volume, "/", False) == ["a.txt", "d/"]
    assert names(volume) == ["a.txt", "d/", "d/b", "d/e/", "d/e/c"]
    assert names(volume, "a.txt") == ["a.txt"]
    for wrong in ("d/x", "a.txt/x", "a"):
        with pytest.raises(FileNotFoundError):
            volume.listdir(wrong)
    with pytest.raises(VolumeFileMissing):
        read(volume, "d")
    volume.copy_files(["a.txt"], "b.txt")
    volume.copy_files(["a.txt", "b.txt"], "d")
    with pytest.raises(RequestError, match="folder"):
        volume.copy_files(["d"], "f")
    volume.copy_files(["d"], "f", recursive=True)
    assert names(volume, "f") == ["f/a.txt", "f/b", "f/b.txt", "f/e/", "f/e/c"] and read(volume, "f/e/c") == b"c"
    for target in ("d", "d/x"):
        with pytest.raises(RequestError, match="itself"):
            volume.copy_files(["d"], target + ("/" if target == "d/x" else ""), recursive=True)
    with pytest.raises(RequestError, match="folder"):
        volume.remove_file("d")
    volume.remove_file("d", recursive=True)
    volume.remove_file("a.txt")
    assert names(volume, "/", False) == ["b.txt", "f/"]
    with pytest.raises(VolumeFileMissing):
        volume.remove_file("a.txt")


def test_somebody_elses_change_is_told_and_not_written_over(
    volume: Volume, api: VolumeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(volume, {"a": b"1"})
    id, real = volume.info().id, api.commit

    def later(name: str, commit: CommitVolume) -> object:
        monkeypatch.setattr(api, "commit", real)
        real(name, CommitVolume(base=1, key="other", by="eve", changes=[FileEntry(path="a"), FileEntry(path="new")]))
        return real(name, commit)

    monkeypatch.setattr(api, "commit", later)
    with pytest.raises(VolumeConflict) as caught:
        volume.remove_file("a")
    assert caught.value.paths == ["a"] and caught.value.by == "eve"
    monkeypatch.setattr(api, "commit", later)
    assert api.files(id).version == 2


def test_read_only_volumes_read(volume: Volume) -> None:
    put(volume, {"a": b"1"})
    frozen = volume.read_only()
    assert read(frozen, "a") == b"1"
    for change in (
        lambda: frozen.remove_file("a"),
        lambda: frozen.copy_files(["a"], "b"),
        lambda: put(frozen, {"b": b""}),
    ):
        with pytest.raises(RequestError, match="read-only"):
            change()


def test_commit_and_reload_are_for_containers(volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    for call in (volume.commit, volume.reload):
        with pytest.raises(RequestError, match="container"):
            call()
    monkeypatch.setenv("CELLBURST_VOLUME_DOOR", "/nowhere/ctl/volumes")
    with pytest.raises(RequestError, match="folder"):
        volume.listdir("/")
    with pytest.raises(PlatformError):
        volume.commit()


async def test_the_twins_work_on_a_loop_of_ones_own(volume: Volume) -> None:
    async with volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(BIG), "/big")
    assert [entry.path for entry in await volume.listdir.aio("/")] == ["big"]
    assert [e.path async for e in volume.iterdir.aio("/")] == ["big"]
    assert b"".join([piece async for piece in volume.read_file.aio("big")]) == BIG
    async with Volume.ephemeral() as other:
        assert (await other.info.aio()).files == 0
    assert volume.info().files == 1  # blocking on a thread whose loop runs, as in a notebook


def test_a_file_that_changes_while_it_is_read_is_told(volume: Volume, tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"x" * 1000)
    for change in (
        lambda: path.write_bytes(b"y" * 1001),
        lambda: path.write_bytes(b"y"),
        path.unlink,
        lambda: path.symlink_to("/etc/passwd"),
    ):
        with pytest.raises(RequestError) as caught, volume.batch_upload() as batch:
            batch.put_file(path, "/f")
            change()
        assert "growing" in str(caught.value)
    assert names(volume) == []


def test_a_put_that_was_cut_off_goes_on_where_it_was(
    volume: Volume, api: VolumeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(5 * CHUNK_BYTES))
    real, sent = api.send, []
    lock = threading.Lock()

    def cut(chunks: list[tuple[str, bytes]]) -> None:
        with lock:
            if len(sent) >= 2:
                raise PlatformError(module.ErrorInfo(code=ErrorCode.GATEWAY_DOWN, message="cut"))
            sent.extend(hash for hash, _ in chunks)
        real(chunks)

    monkeypatch.setattr(api, "send", cut)
    with pytest.raises(PlatformError, match="cut"), volume.batch_upload() as batch:
        batch.put_file(path, "/big")
    assert names(volume) == [] and 2 <= len(sent) < 5
    again: list[str] = []

    def counted(chunks: list[tuple[str, bytes]]) -> None:
        again.extend(hash for hash, _ in chunks)
        real(chunks)

    monkeypatch.setattr(api, "send", counted)
    with volume.batch_upload() as batch:
        batch.put_file(path, "/big")
    assert len(again) == 5 - len(sent) and not set(again) & set(sent)
    assert read(volume, "big") == path.read_bytes()


def test_chunks_that_went_before_the_commit_are_sent_again(
    volume: Volume, api: VolumeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1000))
    monkeypatch.setattr(api, "missing", lambda hashes: set())  # it says that it has all
    with volume.batch_upload() as batch:
        batch.put_file(path, "/f")
    assert read(volume, "f") == path.read_bytes()


def test_a_get_that_was_cut_off_goes_on_and_checks_what_it_has(
    volume: Volume, api: VolumeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(volume, {"big": BIG})
    real, asked = api.receive, []

    def one(chunks):  # type: ignore[no-untyped-def]
        yield next(real(chunks[:1]))
        raise PlatformError(module.ErrorInfo(code=ErrorCode.GATEWAY_DOWN, message="cut"))

    monkeypatch.setattr(api, "receive", one)
    with pytest.raises(PlatformError, match="cut"):
        volume.download("big", tmp_path / "big")
    [part] = list(tmp_path.glob(".*.part"))
    assert not (tmp_path / "big").exists()
    whole = bytearray(part.read_bytes())
    whole[5] ^= 1  # a chunk that is damaged is fetched again
    part.write_bytes(whole)

    def counted(chunks):  # type: ignore[no-untyped-def]
        asked.extend(chunks)
        return real(chunks)

    monkeypatch.setattr(api, "receive", counted)
    volume.download("big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG and 1 <= len(asked) <= 3
    assert not list(tmp_path.glob(".*.part"))


def test_a_get_overwrites_only_with_force_and_goes_through_no_link(volume: Volume, tmp_path: Path) -> None:
    put(volume, {"d/a": b"theirs", "d/b": b"b"})
    outside, target = tmp_path / "outside", tmp_path / "target"
    outside.mkdir(), target.mkdir()
    (target / "d").mkdir()
    (target / "d/a").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="'d/a'"):
        volume.download("d", target)
    assert tree(target) == {"d/a": b"mine"}, "nothing was written"
    volume.download("d", target, force=True)
    assert tree(target) == {"d/a": b"theirs", "d/b": b"b"}
    (target / "d/a").unlink()
    (target / "d/a").symlink_to(outside / "a")
    with pytest.raises(VolumeFileExists):
        volume.download("d", target)
    volume.download("d", target, force=True)
    assert tree(target)["d/a"] == b"theirs" and tree(outside) == {}
    (target / "d/a").unlink(), (target / "d/b").unlink(), (target / "d").rmdir()
    (target / "d").symlink_to(outside)
    for force in (False, True):
        with pytest.raises(RequestError, match="link") as caught:
            volume.download("/", target, force=force)
        assert caught.value.code is ErrorCode.FORBIDDEN
    assert tree(outside) == {}


def test_links_that_may_lead_out_are_not_made(volume: Volume, api: VolumeApi, tmp_path: Path) -> None:
    targets = {"/etc": False, "..": False, "../x": False, "a/../..": False, "a/..": False, "b": True, "./b/c": True}
    changes = [FileEntry(path=f"l{n}", kind="link", target=text) for n, text in enumerate(targets)]
    changes += [
        FileEntry(path="deep/up", kind="link", target="../b"),
        FileEntry(path="deep/upup", kind="link", target="../../b"),
    ]
    api.commit(volume.info().id, CommitVolume(base=0, key="links", by="eve", changes=changes))
    report = volume.download("/", tmp_path / "t")
    made = {str(p.relative_to(tmp_path / "t")) for p in (tmp_path / "t").rglob("*") if p.is_symlink()}
    assert made == {f"l{n}" for n, kept in enumerate(targets.values()) if kept} | {"deep/up"}
    assert len(report.skipped) == 6


def test_what_files_consist_of_is_remembered_and_not_believed_too_early(tmp_path: Path) -> None:
    path, now = tmp_path / "file", [0]
    path.write_bytes(bytes(100_000))
    memory = FileHashes(tmp_path / "cache" / "hashes", lambda: now[0])
    status = path.stat()
    hashes = ["ab" * 32, "cd" * 32]
    now[0] = status.st_ctime_ns + 1_900_000_000
    memory.remember([(str(path), status, hashes)])
    now[0] += 10**10
    assert memory.known([(str(path), status)]) == {}, "it was read too soon after a change"
    memory.remember([(str(path), status, hashes)])
    assert memory.known([(str(path), status)]) == {str(path): hashes}
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # the same times, set by hand: the change time differs
    assert memory.known([(str(path), path.stat())]) == {}
    (tmp_path / "cache" / "hashes").write_bytes(b"no database" * 100)
    memory.remember([(str(path), status, hashes)])
    assert memory.known([(str(path), status)]) == {}


def test_an_unchanged_file_is_not_read_again(volume: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "big"
    path.write_bytes(BIG)
    os.utime(path, ns=(10**18, 10**18))
    later = path.stat().st_ctime_ns + 3 * 10**9
    monkeypatch.setattr("cellburst.volume_put.FileHashes", lambda: FileHashes(tmp_path / "hashes", lambda: later))
    with volume.batch_upload() as batch:
        batch.put_file(path, "/big")
    monkeypatch.setattr("cellburst.volume_put._read_piece", lambda *a: pytest.fail("it was read"))
    with volume.batch_upload(force=True) as batch:
        batch.put_file(path, "/other")
    assert read(volume, "other") == BIG


@pytest.mark.netns  # root, for a mount
def test_a_full_disk_in_the_middle_of_a_put_is_said_and_publishes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "data" / "chunks"
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(place)], check=True)
    try:
        with gateway_on_thread(tmp_path) as (_, endpoint):
            path = tmp_path / "big"
            path.write_bytes(os.urandom(40 * 1024**2))
            for by_http in (False, True):
                api = VolumeApi(lambda: endpoint)
                api._folder_known = by_http
                monkeypatch.setattr(module, "_shared", api)
                with Volume.ephemeral() as volume:
                    with pytest.raises(PlatformError, match="full") as caught, volume.batch_upload() as batch:
                        batch.put_file(path, "/big")
                    assert caught.value.code is ErrorCode.DISK_FULL
                    assert names(volume) == []
                    assert not list(place.glob("*/tmp/*"))
                for chunk in place.glob("*/*/*"):
                    chunk.unlink()
                    assert len(chunk.name) == 64
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_the_command_does_all_that(api: VolumeApi, tmp_path: Path) -> None:
    def run(*arguments: str, code: int = 0, **more: object) -> str:
        result = CliRunner().invoke(main, ["volume", *arguments], **more)  # type: ignore[arg-type]
        assert result.exit_code == code, result.output
        return result.output

    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.txt").write_bytes(b"hello")
    run("create", "shelf")
    assert "already" in run("create", "shelf", code=1)
    assert "1 file, 5 B" in run("put", "shelf", str(tmp_path / "src"), "/d")
    run("put", "shelf", str(tmp_path / "src/a.txt"), "e/")
    run("put", "shelf", str(tmp_path / "src"))  # under its own name, as Modal's does
    assert json.loads(run("ls", "shelf", "src", "--json"))[0]["path"] == "src/a.txt"
    run("rm", "shelf", "src", "-r")
    run("put", "shelf", f"{tmp_path}/src/")  # without a name: its content
    run("rm", "shelf", "a.txt")
    assert [e["path"] for e in json.loads(run("ls", "shelf", "-r", "--json"))] == ["d", "d/a.txt", "e", "e/a.txt"]
    assert "a.txt" in run("ls", "shelf", "d")
    assert run("get", "shelf", "d/a.txt", "-") == "hello"
    run("get", "shelf", "d", str(tmp_path / "out"))
    assert (tmp_path / "out/d/a.txt").read_bytes() == b"hello"
    (tmp_path / "out/d/a.txt").write_bytes(b"other")
    assert "--force" in run("get", "shelf", "d", str(tmp_path / "out"), code=1)
    run("cp", "shelf", "d/a.txt", "f")
    assert "-r" in run("rm", "shelf", "d", code=1)
    run("rm", "shelf", "d", "-r")
    run("rename", "shelf", "board")
    assert [v["name"] for v in json.loads(run("list", "--json")) if v["name"]] == ["board"]
    assert "board" in run("list")
    run("delete", "board", code=1, input="n\n")
    run("delete", "board", input="y\n")
    assert "no volume 'board'" in run("ls", "board", code=1)
    api.commit(
        Volume.from_name("x", create_if_missing=True).info().id,
        CommitVolume(base=0, key="k", by="e", changes=[FileEntry(path="[red]\x1b[2J\u202e")]),
    )
    shown = run("ls", "x")
    assert "[red]" in shown and "\x1b[2J" not in shown and "\u202e" not in shown
    run("delete", "x", "-y")


def test_a_file_is_open_or_has_a_path(volume: Volume, tmp_path: Path) -> None:
    with volume.batch_upload() as batch:
        with pytest.raises(RequestError):
            batch.put_file(3, "/a")  # type: ignore[arg-type]
        with pytest.raises(RequestError):
            batch.put_file(tmp_path, "/a")
        with pytest.raises(RequestError):
            batch.put_file(tmp_path / "absent", "/a")
        with pytest.raises(RequestError):
            batch.put_directory(tmp_path / "absent", "/a")
    with pytest.raises(RequestError, match="binary"), volume.batch_upload() as batch:
        batch.put_file(io.StringIO("text"), "/a")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="twice"), volume.batch_upload() as batch:
        batch.put_file(io.BytesIO(b"1"), "/a")
        batch.put_file(io.BytesIO(b"2"), "a")
    assert names(volume) == []
