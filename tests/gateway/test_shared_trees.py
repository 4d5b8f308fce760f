"""Network file systems: deep trees, removals that take their time or were cut off, who uses which, disks that fail half-way."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cellburst_gateway import app, nfs_routes, shared_trees
from cellburst_gateway.config import GatewayConfig
from cellburst_gateway.shared_trees import remove_trees
from cellburst_gateway.store_rows import Owner, Role
from cellburst_gateway.store_tokens import hash_token
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.network_file_systems import MAX_DEPTH, SharedEntries, SharedSize
from cellburst_protocol.states import EndReason
from cellburst_protocol.volume_mounts import parse_volumes
from tests.fakes.fake_kernel import FakeKernel
from tests.gateway.house import House
from tests.gateway.scheduled import Scheduling, notebook
from tests.gateway.test_cell_buckets import newest
from tests.gateway.test_network_file_systems import file, made, root
from tests.gateway.test_volumes import Client


def nested(folder: Path, depth: int) -> None:
    """Folders in one another, deeper than a path may be long; a file in each."""
    current = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=current)
        following = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = following
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=current))
    os.close(current)


@pytest.fixture
def nothing_nested_stays(config: GatewayConfig) -> Iterator[None]:
    """What a failed test leaves is deeper than pytest itself can remove."""
    yield
    for folder in (config.data_folder / "shared" / "home").glob("*"):
        top = os.open(folder, os.O_RDONLY)
        try:
            remove_trees(top, lambda: False)
        finally:
            os.close(top)


def drafts(house: House) -> list[Path]:
    return list((root(house).parent / ".drafts").iterdir())


@pytest.mark.usefixtures("nothing_nested_stays")
async def test_folders_nested_deeper_than_a_program_can_recurse(house: House, tmp_path: Path) -> None:
    client = await made(house)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    nested(root(house), 3000)
    (root(house) / "d/d/link").symlink_to(outside)
    info = await client.refused("GET", "/nfs/scratch/entries?recursive=1")
    assert info.code is ErrorCode.TOO_LARGE and f"{MAX_DEPTH} deep" in info.message, info
    # What it names may be listed, and so on.
    below = "/".join("d" * (MAX_DEPTH + 1))
    assert repr(below)[1:40] in info.next
    listed = await client.good("GET", f"/nfs/scratch/entries?path={below}", kind=SharedEntries)
    assert [entry.path for entry in listed.entries] == [f"{below}/d", f"{below}/f"]
    assert await client.good("DELETE", file("d", recursive=1)) == {}
    assert not list(root(house).iterdir())
    await house.until(lambda: not drafts(house))
    nested(root(house), 3000)
    assert await client.good("DELETE", "/nfs/scratch") == {}
    await house.until(lambda: not drafts(house))
    assert (outside / "kept").read_text() == "kept"


async def test_as_deep_as_it_may_be_and_no_deeper(house: House) -> None:
    client = await made(house)
    deepest = "/".join(["d"] * MAX_DEPTH)
    await client.good("PUT", file(f"{deepest}/f"), b"x")
    listed = await client.good("GET", "/nfs/scratch/entries?recursive=1", kind=SharedEntries)
    assert len(listed.entries) == MAX_DEPTH + 1 and listed.entries[-1].path == f"{deepest}/f"
    info = await client.refused("PUT", file(f"{deepest}/e/f"), b"x")
    assert info.code is ErrorCode.BAD_ARGUMENT and str(MAX_DEPTH) in info.message
    assert not (root(house) / deepest / "e").exists() and not drafts(house)


def test_what_a_container_goes_on_writing_goes_later(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    (gone / "inner").mkdir(parents=True)
    inner = os.open(gone / "inner", os.O_RDONLY)  # as a container has it, wherever it is put
    top = os.open(tmp_path, os.O_RDONLY)
    late: list[str] = []

    def writes() -> bool:
        # Asked between any two steps: something new each time that the folder is still there.
        if os.fstat(inner).st_nlink and len(late) < 5:
            late.append(f"late-{len(late)}")
            os.close(os.open(late[-1], os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=inner))
        return False

    try:
        (gone / "inner" / "there").touch()
        assert remove_trees(top, writes) == 1 and late and not gone.exists() and len(os.listdir(tmp_path)) == 1
        assert remove_trees(top, lambda: False) == 0 and not os.listdir(tmp_path)
    finally:
        os.close(inner)
        os.close(top)


async def test_the_size_of_all_it_holds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await made(house)

    async def size() -> SharedSize:
        return await client.good("GET", "/nfs/scratch/size", kind=SharedSize)

    assert await size() == SharedSize()
    await client.good("PUT", file("a/b/c"), b"x" * 1000)
    await client.good("PUT", file("e"), b"x" * 50)
    (root(house) / "link").symlink_to("/etc/passwd")
    (root(house) / "to").symlink_to("/usr")
    assert await size() == SharedSize(size_bytes=1050, files=2)
    monkeypatch.setattr(shared_trees, "MAX_SIZED", 5)
    assert not (await size()).whole
    monkeypatch.undo()
    nested(root(house), MAX_DEPTH + 2)
    deep = await size()
    assert (deep.whole, deep.files) == (False, 2 + MAX_DEPTH)
    assert (await client.refused("GET", "/nfs/nobody/size")).code is ErrorCode.NOT_FOUND


async def test_what_a_gateway_that_was_killed_left(
    config: GatewayConfig, make_house: Callable[..., Awaitable[House]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left = config.data_folder / "shared/home/.drafts"
    (left / "folder/deep").mkdir(parents=True)
    for path in (config.data_folder, left.parent.parent, left.parent, left):
        path.chmod(0o700)
    (left / "folder/deep/file").touch()
    (left / "upload").touch()
    monkeypatch.setattr(app, "EVICT_SECONDS", 0.0)
    house = await make_house()
    assert not (left / "upload").exists()
    await house.until(lambda: not list(left.iterdir()))
    # The regular look takes folders, and no upload that is under way.
    (left / "upload").touch()
    (left / "later").mkdir()
    await house.until(lambda: [path.name for path in left.iterdir()] == ["upload"])


async def test_each_workspace_has_its_own_of_a_name(house: House) -> None:
    worker, now = await house.worker(), house.gateway.clock.wall()
    house.gateway.hub.store.add_token(
        hash_token("other-workspace-of-this-test"), Owner("other", "bob"), name="b", role=Role.USER, now=now
    )
    mine, others = await made(house), Client(house, "other-workspace-of-this-test")
    kernel = await FakeKernel(house.url, others.token).dial()
    try:
        await kernel.session()
        there = house.gateway.hub.network_file_systems
        there.create("other", "scratch", if_missing=False)
        await kernel.run("x", call="1", volumes=parse_volumes("/s:nfs://scratch"))
        assert (await kernel.ended("1")).reason is EndReason.DONE
        start = newest(worker)  # its token is of the workspace `home`
        assert start.shared_folder == there.folder_text("other") != there.folder_text("home")
        assert there.row("home", "scratch").used_by == []
        assert "session" in (await others.refused("DELETE", "/nfs/scratch")).message
        await mine.good("DELETE", "/nfs/scratch")
    finally:
        await kernel.close()


async def test_a_schedule_that_uses_one_is_named(house: House) -> None:
    client, scheduling = await made(house), await Scheduling.of(house)
    await scheduling.put(notebook("1"), volumes=parse_volumes("/s:nfs://scratch"))
    await scheduling.put(notebook("%%modal volumes=/s:nfs://scratch\n1"), name="weekly", modal_cells="own")
    await scheduling.put(notebook("1"), name="without")
    info = await client.refused("DELETE", "/nfs/scratch")
    assert info.code is ErrorCode.CONFLICT
    assert "schedule nightly, schedule weekly" in info.message and "without" not in info.message
    await client.good("DELETE", "/nfs/scratch?used=1")


async def test_a_disk_that_is_full_during_an_upload(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await made(house)
    await client.good("PUT", file("there"), b"old")
    full, write = os.open("/dev/full", os.O_WRONLY), nfs_routes._write_all
    monkeypatch.setattr(nfs_routes, "_write_all", lambda fd, data: write(full, data))
    try:
        code, body = await client("PUT", file("there"), b"new")
        assert code == 507 and b"platform.disk_full" in body
        await house.until(lambda: not drafts(house))
        assert (root(house) / "there").read_bytes() == b"old"
        assert (await client("GET", file("there")))[1] == b"old"
    finally:
        monkeypatch.undo()
        os.close(full)


async def test_a_disk_that_fails_while_a_file_is_read(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await made(house)
    await client.good("PUT", file("big"), bytes(3 * nfs_routes.PIECE_BYTES))
    read, given, after = os.read, list[int](), 1

    def fails(fd: int, size: int) -> bytes:
        if size != nfs_routes.PIECE_BYTES:
            return read(fd, size)
        if len(given) == after:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        given.append(size)
        return read(fd, size)

    monkeypatch.setattr(nfs_routes.os, "read", fails)
    address = urlsplit(house.url)

    async def answer() -> bytes:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(
            f"GET {file('big')} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {house.token}\r\n\r\n".encode()
        )
        async with asyncio.timeout(30):
            got = await reader.read()  # to the end: it is closed
        writer.close()
        await writer.wait_closed()
        return got

    got = await answer()
    assert b"200 OK" in got and len(got) > nfs_routes.PIECE_BYTES and not got.endswith(b"0\r\n\r\n")
    # Before the first piece it is an error as any other.
    given.clear()
    after = 0
    code, body = await client("GET", file("big"))
    assert code == 503 and ErrorCode.STORE.value.encode() in body
