"""Large values that are read while they are written, both ways, through a worker with the real runner."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_protocol import mac
from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_worker import blobs, early
from cellburst_worker.early import CopyBehind, Early, Leaving
from cellburst_worker.exchange import Exchange
from tests.fakes.fake_gateway import MASTER_KEY, FakeContainer, FakeGateway
from tests.worker.conftest import Setup, joined_worker

FILE = "ab" * 16


class Value:
    """`{name: data}` on its way in: the kernel's file below tmp/, and what its cell says of it."""

    def __init__(self, gateway: FakeGateway, name: str, data: bytes) -> None:
        self.bytes = pickle.dumps({name: data}, protocol=5)
        self.part = m.ValuePart(hash=blake3(self.bytes).hexdigest(), size_bytes=len(self.bytes), at="blob")
        self.group = m.NameGroup(names=[name], hash=mac.group_hash([self.part]), parts=[self.part])
        self.file = gateway.folder / "blobs" / "tmp" / FILE
        self.blob = gateway.folder / "blobs" / self.part.hash[:2] / self.part.hash
        self.blob.parent.mkdir(exist_ok=True)

    def coming(self) -> m.ValueComing:
        return m.ValueComing(file=FILE, size_bytes=len(self.bytes))

    async def run(self, container: FakeContainer, call: str, code: str) -> str:
        seal = mac.sign(mac.value_key(MASTER_KEY, call), "in", [self.group])
        await container.run(call, code, names=[self.group], mac=seal)
        _, done = await container.until(m.CellDone, call)
        assert done.status == "ok", container.text(call)
        return container.text(call)


def read_so_far(name: str) -> int:
    """How far some process has read a file of this name, in bytes; -1 while none has it open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).endswith(name):
                info = (link.parents[1] / "fdinfo" / link.name).read_text()
                return int(info.split()[1])
    return -1


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.fixture
async def container(setup: Setup) -> FakeContainer:
    return await setup.ready()


async def test_a_value_is_read_while_the_kernel_writes_it(setup: Setup, container: FakeContainer) -> None:
    value = Value(setup.gateway, "big", b"y" * 3_000_000)
    half = 1_500_000
    assert container.stream is not None
    with value.file.open("wb", buffering=0) as file:
        file.write(value.bytes[:half])
        await container.stream.send(value.coming())
        await eventually(lambda: read_so_far(f"{FILE}.coming") == half)
        file.write(value.bytes[half:])
        os.pwrite(file.fileno(), b"NOT READ", 1000)  # these bytes were read before: the value does not have them
    value.file.rename(value.blob)
    assert await value.run(container, "call-1", "print(len(big), big.count(b'y'))") == "3000000 3000000\n"
    assert read_so_far(f"{FILE}.coming") == -1


async def test_another_file_than_the_one_announced_is_read_anew(setup: Setup, container: FakeContainer) -> None:
    value = Value(setup.gateway, "big", b"y" * 2_000_000)
    assert container.stream is not None
    value.file.write_bytes(bytes(1000))
    await container.stream.send(value.coming())
    await eventually(lambda: read_so_far(f"{FILE}.coming") == 1000)
    value.blob.write_bytes(value.bytes)
    assert await value.run(container, "call-1", "print(big.count(b'y'))") == "2000000\n"


async def test_a_value_that_breaks_off_costs_nothing(setup: Setup, container: FakeContainer) -> None:
    value = Value(setup.gateway, "big", b"y" * 2_000_000)
    assert container.stream is not None
    value.file.write_bytes(value.bytes[:1000])
    await container.stream.send(value.coming())
    await eventually(lambda: read_so_far(f"{FILE}.coming") == 1000)
    value.file.unlink()  # the kernel was interrupted
    await container.run("call-1", "print('another cell')")
    await container.until(m.CellDone, "call-1")
    assert read_so_far(f"{FILE}.coming (deleted)") == read_so_far(f"{FILE}.coming") == -1


async def test_bad_announcements_are_ignored(setup: Setup, container: FakeContainer) -> None:
    tmp = setup.gateway.folder / "blobs" / "tmp"
    (tmp / ("cd" * 16)).symlink_to("/etc/passwd")
    os.mkfifo(tmp / ("ef" * 16))
    assert container.stream is not None
    for name in ("../../proof", "cd" * 16, "ef" * 16, "01" * 16, ""):
        await container.stream.send(m.ValueComing(file=name, size_bytes=10))
    await container.run("call-1", "print('fine')")
    await container.until(m.CellDone, "call-1")
    assert container.text("call-1") == "fine\n"
    assert not list(Path(setup.folder).rglob("*.coming"))


async def test_a_result_can_be_read_while_the_container_writes_it(setup: Setup, container: FakeContainer) -> None:
    await container.run("call-1", "big = b'z' * 20_000_000", bound=["big"], out=["big"])
    _, done = await container.until(m.CellDone, "call-1")
    (part,) = [part for group in done.home for part in group.parts if part.at == "blob"]
    (coming,) = container.coming
    assert coming.size_bytes == part.size_bytes >= 20_000_000
    assert len(coming.file) == 32 and set(coming.file) <= set("0123456789abcdef")
    blobs = setup.gateway.folder / "blobs"
    assert not (blobs / "tmp" / coming.file).exists(), "its second name is gone when the cell is done"
    blob = blobs / part.hash[:2] / part.hash
    assert blake3(blob.read_bytes()).hexdigest() == part.hash and blob.stat().st_nlink == 1


async def test_small_results_are_not_announced(setup: Setup, container: FakeContainer) -> None:
    await container.run("call-1", "big = b'z' * 3_000_000", bound=["big"], out=["big"])
    await container.until(m.CellDone, "call-1")
    assert container.coming == []


async def test_nothing_is_shown_where_no_folder_is_shared(short_path: Path) -> None:
    gateway = FakeGateway(short_path / "gateway", shares_blobs=False)
    async with gateway, joined_worker(short_path, gateway) as setup:
        container = await setup.ready()
        value = Value(gateway, "big", b"y")
        value.file.write_bytes(value.bytes)
        assert container.stream is not None
        await container.stream.send(value.coming())
        await container.run("call-1", "big = b'z' * 20_000_000; del big")
        await container.until(m.CellDone, "call-1")
        assert not list(short_path.rglob("*.coming")) and container.coming == []


def test_only_regular_files_are_shown_and_only_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Early()
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(CellburstError) as refused:
        shown.show(tmp_path / "link", tmp_path / "seen")
    assert refused.value.code is ErrorCode.INTEGRITY and not (tmp_path / "seen").is_symlink()
    monkeypatch.setattr(early, "MAX_SHOWN", 1)
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "file").chmod(0o600)
    shown.show(tmp_path / "file", tmp_path / "first", mode=0o444)
    assert (tmp_path / "first").stat().st_mode & 0o777 == 0o644
    with pytest.raises(CellburstError) as refused:
        shown.show(tmp_path / "file", tmp_path / "second")
    assert refused.value.code is ErrorCode.BUSY
    shown.hide()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


DATA = bytes(range(256)) * 40_000  # five pieces


def behind(folder: Path, written: int) -> tuple[CopyBehind, Path]:
    """A copy of FOLDER/out, of which so much is written."""
    source = folder / "out"
    source.write_bytes(DATA[:written])
    return CopyBehind(source, folder / "copying", len(DATA)), source


async def test_a_file_of_another_disk_is_copied_behind_its_writer(tmp_path: Path) -> None:
    copy, source = behind(tmp_path, 5_000_000)
    await eventually(lambda: (tmp_path / "copying").stat().st_size == 5_000_000)
    with source.open("r+b", buffering=0) as file:
        file.write(b"changed")  # what was copied before counts
        file.seek(5_000_000)
        file.write(DATA[5_000_000:])
    assert copy.finish(len(DATA), tmp_path / "whole") == blake3(DATA).hexdigest()
    assert (tmp_path / "whole").read_bytes() == DATA and not (tmp_path / "copying").exists()
    assert (tmp_path / "whole").stat().st_mode & 0o777 == 0o444
    assert source.stat().st_blocks * 512 < len(DATA) // 2, "the source gives its memory back"


def test_a_copy_that_failed_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = threading.Event()
    step = blobs.Copier.step

    def once(self: blobs.Copier) -> int:
        if self.done >= blobs.CHUNK_BYTES and not failed.is_set():
            failed.set()
            raise OSError(28, "No space left on device")
        return step(self)

    monkeypatch.setattr(blobs.Copier, "step", once)
    copy, _ = behind(tmp_path, len(DATA))
    assert failed.wait(30)
    assert copy.finish(len(DATA), tmp_path / "whole") == blake3(DATA).hexdigest()
    assert (tmp_path / "whole").read_bytes() == DATA


@pytest.mark.parametrize("announced", [len(DATA) - 1, len(DATA) + 1])
def test_a_file_of_another_size_than_announced_is_refused(tmp_path: Path, announced: int) -> None:
    copy, source = behind(tmp_path, len(DATA))
    with pytest.raises(CellburstError) as refused:
        copy.finish(announced, tmp_path / "whole")
    assert refused.value.code is ErrorCode.INTEGRITY
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and source.exists()


def test_a_copy_that_nobody_wants_leaves_nothing(tmp_path: Path) -> None:
    copy, _ = behind(tmp_path, 1000)
    copy.drop()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_only_a_regular_file_is_copied(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "out"
    if kind == "link":
        source.symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(source)
    else:
        source.mkdir()
    with pytest.raises((CellburstError, OSError)):
        CopyBehind(source, tmp_path / "copying", 10)
    assert not (tmp_path / "copying").exists()


async def test_a_copy_ends_where_the_value_was_said_to_end(tmp_path: Path) -> None:
    source = tmp_path / "out"
    source.write_bytes(DATA)
    copy = CopyBehind(source, tmp_path / "copying", 1000)
    await eventually(lambda: not copy._thread.is_alive())
    assert (tmp_path / "copying").stat().st_size <= 1000 + blobs.CHUNK_BYTES < len(DATA)
    copy.drop()


def test_a_container_cannot_have_more_copied_than_its_disk_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(self: Early, source: Path, target: Path, *, mode: int = 0) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(Early, "show", other_disk)
    monkeypatch.setattr(early, "_size_bytes", lambda folder: 1000)
    exchange = Exchange(tmp_path / "blobs", "http://127.0.0.1:9", lambda: "")
    exchange.shared = True
    leaving = Leaving("c1")
    for name in ("ab" * 16, "cd" * 16):
        (tmp_path / name).write_bytes(b"x" * 600)
        assert leaving.begin(m.ValueComing(file=name, size_bytes=600), tmp_path, exchange) is None
    assert list(leaving._copies._under_way) == ["ab" * 16]
    leaving.drop()
    assert leaving.begin(m.ValueComing(file="cd" * 16, size_bytes=600), tmp_path, exchange) is None
    assert list(leaving._copies._under_way) == ["cd" * 16], "the next cell may"
    leaving.drop()
    assert list((tmp_path / "blobs" / "tmp").iterdir()) == []


def test_what_its_writer_gave_up_keeps_no_disk(tmp_path: Path) -> None:
    shown = Early()
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(b"x")
    shown.show(tmp_path / "first", tmp_path / "1.coming")
    (tmp_path / "first").unlink()
    shown.show(tmp_path / "second", tmp_path / "2.coming")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.coming", "second"]
