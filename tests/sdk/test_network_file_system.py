"""Network file systems as programs and the command use them, against a real gateway; buckets as programs name them."""

from __future__ import annotations

import errno
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner

from cellburst import CloudBucketMount, NetworkFileSystem, Secret, Volume
from cellburst import volume as module
from cellburst.both import run
from cellburst.cli import main
from cellburst.exceptions import ErrorCode, PlatformError, RequestError, VolumeFileExists
from cellburst.mounts import mounts_of
from cellburst.nfs_get import get_shared
from cellburst.volume_api import VolumeApi
from cellburst.volume_files import FileEntryType
from cellburst_gateway import nfs_routes
from cellburst_gateway.app import Gateway
from cellburst_protocol.volume_mounts import text_of
from tests.fakes.gateway_thread import gateway_on_thread


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, VolumeApi]]:
    with gateway_on_thread(tmp_path_factory.mktemp("gateway")) as (gateway, endpoint):
        yield gateway, VolumeApi(lambda: endpoint)


@pytest.fixture(autouse=True)
def api(served: tuple[Gateway, VolumeApi], monkeypatch: pytest.MonkeyPatch) -> VolumeApi:
    monkeypatch.setattr(module, "_shared", served[1])
    return served[1]


@pytest.fixture
def shared() -> Iterator[NetworkFileSystem]:
    NetworkFileSystem.create("scratch")
    yield NetworkFileSystem.from_name("scratch")
    NetworkFileSystem.delete("scratch", allow_missing=True)


class Told:
    """A progress that counts."""

    def __init__(self) -> None:
        self.of = (0, 0)
        self.moves: list[tuple[int, int]] = []  # of several threads

    def begin(self, files: int, size_bytes: int) -> None:
        self.of = (files, size_bytes)

    def moved(self, files: int, size_bytes: int) -> None:
        self.moves.append((files, size_bytes))


def read(shared: NetworkFileSystem, path: str) -> bytes:
    return b"".join(shared.read_file(path))


def test_files_there_and_back(shared: NetworkFileSystem, tmp_path: Path) -> None:
    big, told = os.urandom(3_500_000), []
    assert shared.write_file("/d/big", io.BytesIO(big), told.append) == len(big) == sum(told)
    assert read(shared, "d/big") == big
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a").write_text("a")
    (tmp_path / "in" / "deep" / "b").write_text("b")
    (tmp_path / "in" / "link").symlink_to("/etc/passwd")
    shared.add_local_dir(tmp_path / "in", "/")
    shared.add_local_dir(tmp_path / "in")
    shared.add_local_file(tmp_path / "in" / "a", "/d/c")
    found = {entry.path: (entry.type, entry.size) for entry in shared.listdir("/", recursive=True)}
    assert found == {
        "a": (FileEntryType.FILE, 1), "d": (FileEntryType.DIRECTORY, 0), "d/big": (FileEntryType.FILE, len(big)),
        "d/c": (FileEntryType.FILE, 1), "deep": (FileEntryType.DIRECTORY, 0), "deep/b": (FileEntryType.FILE, 1),
        "in": (FileEntryType.DIRECTORY, 0), "in/a": (FileEntryType.FILE, 1), "in/deep": (FileEntryType.DIRECTORY, 0),
        "in/deep/b": (FileEntryType.FILE, 1),
    }  # fmt: skip
    assert [entry.path for entry in shared.iterdir("/d")] == ["d/big", "d/c"]
    shared.remove_file("/in", recursive=True)
    shared.remove_file("d/big")
    assert [entry.path for entry in shared.listdir()] == ["a", "d", "deep"]
    with pytest.raises(RequestError) as caught:
        read(shared, "d/big")
    assert caught.value.code is ErrorCode.NOT_FOUND


async def test_each_has_a_twin(shared: NetworkFileSystem) -> None:
    await shared.write_file.aio("a", io.BytesIO(b"x"))
    assert [piece async for piece in shared.read_file.aio("a")] == [b"x"]
    assert [entry.path async for entry in shared.iterdir.aio("/")] == ["a"]


def test_one_that_is_not_there() -> None:
    with pytest.raises(RequestError) as caught:
        NetworkFileSystem.from_name("nobody").listdir()
    assert caught.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(RequestError):
        NetworkFileSystem.from_name("../x")
    made = NetworkFileSystem.from_name("made", create_if_missing=True)
    assert made.listdir() == [] and [row.name for row in NetworkFileSystem.list_all()] == ["made"]
    NetworkFileSystem.delete("made")
    NetworkFileSystem.delete("made", allow_missing=True)


def test_the_command(shared: NetworkFileSystem, tmp_path: Path) -> None:
    runner = CliRunner()

    def nfs(*arguments: str, code: int = 0) -> str:
        result = runner.invoke(main, ["nfs", *arguments])
        assert result.exit_code == code, result.output
        return result.output

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("hello")
    nfs("put", "scratch", f"{tmp_path}/in/", "/")
    nfs("put", "scratch", str(tmp_path / "in"))
    nfs("put", "scratch", str(tmp_path / "in" / "a.txt"), "/d/")
    rows = json.loads(nfs("ls", "scratch", "-r", "--json"))
    found = [row["path"] for row in rows if row["type"] == "file"]
    assert found == ["a.txt", "d/a.txt", "in/a.txt"] and [r["path"] for r in rows if r["type"] == "dir"] == ["d", "in"]
    assert nfs("get", "scratch", "d/a.txt", "-") == "hello"
    nfs("get", "scratch", "d/a.txt", str(tmp_path))
    assert (tmp_path / "a.txt").read_text() == "hello"
    assert "1 of them were there" in nfs("get", "scratch", "d/a.txt", str(tmp_path))
    (tmp_path / "a.txt").write_text("mine")
    assert "already" in nfs("get", "scratch", "d/a.txt", str(tmp_path), code=1)
    assert (tmp_path / "a.txt").read_text() == "mine"
    nfs("get", "scratch", "d/a.txt", str(tmp_path / "a.txt"), "--force")
    assert (tmp_path / "a.txt").read_text() == "hello"
    assert not (tmp_path / "nothing").exists()
    nfs("get", "scratch", "nothing", str(tmp_path), code=1)
    assert not (tmp_path / "nothing").exists()
    nfs("rm", "scratch", "d", "-r")
    (row,) = json.loads(nfs("list", "--json"))
    assert (row["name"], row["files"], row["size_bytes"], row["size_is_whole"]) == ("scratch", 2, 10, True)
    assert "10 B" in nfs("list") and "a.txt" in nfs("ls", "scratch")
    nfs("delete", "scratch", "-y")
    assert "volumes=/data:nfs://other" in nfs("create", "other")
    nfs("create", "third")
    nfs("delete", "other", "-y")
    nfs("delete", "third", "-y")


def test_a_folder_is_fetched_as_it_is_and_goes_on(
    served: tuple[Gateway, VolumeApi], shared: NetworkFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = Path(served[0].hub.network_file_systems.folder_text("home")) / "scratch"
    big = os.urandom(2_500_000)
    for path, data in {"d/a": b"a", "d/deep/big": big, "d/zero": b"", "other": b"x"}.items():
        shared.write_file(path, io.BytesIO(data))
    (there / "d/empty").mkdir()
    (there / "d/link").symlink_to("/etc/passwd")
    os.mkfifo(there / "d/pipe")
    shown = Told()
    report = get_shared(served[1], "scratch", "/d", str(tmp_path), force=False, progress=shown)
    assert {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == {
        "d/a": b"a", "d/deep/big": big, "d/zero": b"",
    }  # fmt: skip
    assert (tmp_path / "d/empty").is_dir() and sorted(report.skipped) == ["d/link", "d/pipe"]
    assert (tmp_path / "d/a").stat().st_mtime == pytest.approx((there / "d/a").stat().st_mtime, abs=0.001)
    assert shown.of == (3, len(big) + 1) == tuple(map(sum, zip(*shown.moves, strict=True)))

    (tmp_path / "d/a").unlink()
    asked: list[str] = []
    stream = served[1].stream
    monkeypatch.setattr(served[1], "stream", lambda verb, path: (asked.append(path), stream(verb, path))[1])
    again = get_shared(served[1], "scratch", "d", str(tmp_path), force=False, progress=Told())
    assert again.unchanged == 2 and [path.rpartition("=")[2] for path in asked] == ["d%2Fa"]

    (tmp_path / "d/a").write_text("mine")
    (there / "new").write_text("new")
    with pytest.raises(VolumeFileExists, match="d/a"):
        get_shared(served[1], "scratch", "/", str(tmp_path), force=False, progress=Told())
    assert (tmp_path / "d/a").read_text() == "mine" and not (tmp_path / "new").exists()
    get_shared(served[1], "scratch", "/", str(tmp_path), force=True, progress=Told())
    assert [(tmp_path / name).read_text() for name in ("d/a", "new", "other")] == ["a", "new", "x"]

    (tmp_path / "out").symlink_to(there)
    (there / "out").mkdir()
    (there / "out/x").write_text("x")
    with pytest.raises(RequestError, match="in its way"):  # a link of ours is not written through
        get_shared(served[1], "scratch", "out", str(tmp_path), force=True, progress=Told())


def test_what_is_removed_while_it_is_fetched_is_named_and_what_breaks_off_leaves_nothing(
    served: tuple[Gateway, VolumeApi], shared: NetworkFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        shared.write_file(name, io.BytesIO(name.encode()))
    stream = served[1].stream

    def removes(verb: str, path: str) -> Iterator[bytes]:
        if path.endswith("=b"):
            shared.remove_file("b")
        return stream(verb, path)

    def breaks(verb: str, path: str) -> Iterator[bytes]:
        yield b"half"
        raise ConnectionResetError(errno.ECONNRESET, "gone")

    part = f".{blake3(b'/nfs/scratch/a').hexdigest()[:24]}.part"
    (tmp_path / part).write_text("what a get that was killed left, longer than the file")
    monkeypatch.setattr(served[1], "stream", removes)
    report = get_shared(served[1], "scratch", "/", str(tmp_path), force=False, progress=Told())
    assert report.gone == ["b"] and [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("a", "a")]
    monkeypatch.setattr(served[1], "stream", breaks)
    (tmp_path / "a").unlink()
    with pytest.raises(PlatformError, match="cannot be written"):
        get_shared(served[1], "scratch", "/", str(tmp_path), force=False, progress=Told())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_and_a_file_that_breaks_off(
    shared: NetworkFileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared.write_file("a", io.BytesIO(b"old"))
    shared.write_file("big", io.BytesIO(bytes(3 * nfs_routes.PIECE_BYTES)))
    full, write, read_piece = os.open("/dev/full", os.O_WRONLY), nfs_routes._write_all, nfs_routes._read
    taken = 0

    def fills_up(fd: int, data: bytes) -> None:
        nonlocal taken
        taken += len(data)
        write(fd if taken < 2_000_000 else full, data)

    given = 0

    def breaks(fd: int, path: str) -> bytes:
        nonlocal given
        given += 1
        if given % 2 == 0:
            with nfs_routes.disk_told(path):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read_piece(fd, path)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(nfs_routes, "_write_all", fills_up)
            patched.setattr(nfs_routes, "_read", breaks)
            with pytest.raises(PlatformError) as caught:
                shared.write_file("a", io.BytesIO(bytes(20_000_000)))
            assert caught.value.code is ErrorCode.DISK_FULL
            with pytest.raises(PlatformError, match="cut off"):
                read(shared, "big")
            result = CliRunner().invoke(main, ["nfs", "get", "scratch", "big", str(tmp_path)])
            assert result.exit_code == 1 and not list(tmp_path.iterdir()), result.output
    finally:
        os.close(full)
    assert read(shared, "a") == b"old"


def test_buckets_have_modals_names(served: tuple[Gateway, VolumeApi]) -> None:
    mount = CloudBucketMount(
        "training-data", bucket_endpoint_url="http://127.0.0.1:9000", key_prefix="2026/x/", secret=None, read_only=True
    )
    volume = Volume.from_name("data", create_if_missing=True)
    shared = NetworkFileSystem.from_name("scratch", create_if_missing=True).read_only()
    found = run(mounts_of({"/b/": mount, Path("/v"): volume.read_only(), "/n": shared}))
    assert text_of(found) == (
        "/b:s3://training-data/2026/x?endpoint=http://127.0.0.1:9000&ro,/v:data:ro,/n:nfs://scratch?ro"
    )
    assert found[1].volume == volume.info().id
    Volume.delete("data")
    NetworkFileSystem.delete("scratch")
    with pytest.raises(RequestError, match="is no volume"):
        run(mounts_of({"/x": "data"}))  # type: ignore[dict-item]
    with pytest.raises(RequestError, match="each other"):
        run(mounts_of({"/x": mount, "/x/y": mount}))
    for wrong, says in (
        ({"key_prefix": "no-slash"}, "key_prefix='no-slash/'"),
        ({"oidc_auth_role_arn": "arn:aws:iam::1:role/x"}, "Secret.from_name"),
        ({"requester_pays": True}, "Secret.from_name"),
        ({"bucket_endpoint_url": "ftp://x"}, "endpoint=https"),
        ({"bucket_endpoint_url": "http://key:secret@x"}, "endpoint=https"),
        ({"bucket_endpoint_url": "http://169.254.169.254/latest"}, "endpoint=https"),
    ):
        with pytest.raises(RequestError) as caught:
            CloudBucketMount("training-data", **wrong)  # type: ignore[arg-type]
        assert says in str(caught.value) and "key:secret" not in str(caught.value)
    with pytest.raises(RequestError, match="no bucket's name"):
        CloudBucketMount("Training Data")
    named = CloudBucketMount("abc", secret=Secret.from_name("aws"))
    assert repr(named) == "CloudBucketMount('s3://abc')"
