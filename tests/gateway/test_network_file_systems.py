"""Network file systems over HTTP: what may be there, what code in a container may have put there, and uploads cut off."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from cellburst_gateway.store_rows import Owner, Role
from cellburst_gateway.store_tokens import hash_token
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.network_file_systems import CreateShared, SharedEntries, SharedList, SharedRow
from tests.gateway.house import House
from tests.gateway.test_volumes import Client


def root(house: House) -> Path:
    return Path(house.gateway.hub.network_file_systems.folder_text("home")) / "scratch"


async def made(house: House) -> Client:
    client = Client(house)
    row = await client.good("POST", "/nfs", CreateShared(name="scratch"), SharedRow)
    assert row.name == "scratch"
    return client


async def paths(client: Client, path: str = "", recursive: bool = True) -> list[tuple[str, str]]:
    query = f"?path={quote(path)}&recursive={int(recursive)}"
    answer = await client.good("GET", f"/nfs/scratch/entries{query}", kind=SharedEntries)
    return [(entry.path, entry.kind) for entry in answer.entries]


def file(path: str, **more: int) -> str:
    return f"/nfs/scratch/file?path={quote(path)}" + "".join(f"&{key}={value}" for key, value in more.items())


async def test_files_come_and_go(house: House) -> None:
    client = await made(house)
    big = os.urandom(3_000_000)
    await client.good("PUT", file("a/ü/big"), big)
    await client.good("PUT", file("/empty"), b"")
    assert await paths(client) == [("a", "folder"), ("a/ü", "folder"), ("a/ü/big", "file"), ("empty", "file")]
    assert await paths(client, "a", recursive=False) == [("a/ü", "folder")]
    assert await paths(client, "empty") == [("empty", "file")]
    assert (await client("GET", file("a/ü/big")))[1] == big and (await client("GET", file("empty")))[1] == b""
    # Code in containers may change what came from outside.
    assert (root(house) / "a/ü/big").stat().st_mode & 0o777 == 0o666
    assert (root(house) / "a/ü").stat().st_mode & 0o777 == 0o777
    await client.good("PUT", file("a/ü/big"), b"other")
    assert (root(house) / "a/ü/big").read_bytes() == b"other"
    assert (await client.refused("DELETE", file("a"))).code is ErrorCode.BAD_ARGUMENT
    await client.good("DELETE", file("a", recursive=1))
    await client.good("DELETE", file("empty"))
    assert await paths(client) == []
    await house.until(lambda: not list((root(house).parent / ".drafts").iterdir()))
    assert (await client.refused("GET", file("a"))).code is ErrorCode.NOT_FOUND
    assert (await client.refused("DELETE", file("a"))).code is ErrorCode.NOT_FOUND
    assert (await client.refused("POST", "/nfs", CreateShared(name="scratch"))).code is ErrorCode.CONFLICT
    await client.good("POST", "/nfs", CreateShared(name="scratch", if_missing=True), SharedRow)
    assert [row.name for row in (await client.good("GET", "/nfs", kind=SharedList)).rows] == ["scratch"]
    await client.good("DELETE", "/nfs/scratch")
    assert (await client.good("GET", "/nfs", kind=SharedList)).rows == [] and not root(house).exists()
    assert (await client.refused("DELETE", "/nfs/scratch")).code is ErrorCode.NOT_FOUND


@pytest.mark.parametrize("path", ["../x", "a/../../x", "", "/", "a//b", "./a", "x\0y", "y" * 300, "d/" * 2100 + "z"])
async def test_a_path_cannot_lead_out(house: House, path: str) -> None:
    client = await made(house)
    for verb in ("PUT", "GET", "DELETE"):
        info = await client.refused(verb, file(path), b"x" if verb == "PUT" else None)
        assert info.code in (ErrorCode.BAD_ARGUMENT, ErrorCode.NOT_FOUND), (verb, info)
    assert not list(root(house).iterdir())


@pytest.mark.parametrize("name", ["..", ".drafts", "a/b", "%2e%2e", "<script>", "x" * 65])
async def test_a_name_cannot_lead_out(house: House, name: str) -> None:
    client = await made(house)
    code, _ = await client("GET", f"/nfs/{quote(name, safe='%')}/entries")
    assert code in (400, 404)
    assert (await client.refused("POST", "/nfs", CreateShared(name=name))).code is ErrorCode.BAD_ARGUMENT


async def test_links_and_pipes_that_a_container_left_lead_nowhere(house: House, tmp_path: Path) -> None:
    client = await made(house)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (root(house) / "folder").symlink_to(outside)
    (root(house) / "file").symlink_to(outside / "secret")
    os.mkfifo(root(house) / "pipe")
    assert await paths(client) == [("file", "link"), ("folder", "link"), ("pipe", "other")]
    for path in ("folder/secret", "file", "pipe"):
        info = await client.refused("GET", file(path))
        assert info.code is ErrorCode.BAD_ARGUMENT, (path, info)
    assert (await client.refused("PUT", file("folder/new"), b"x")).code is ErrorCode.BAD_ARGUMENT
    assert (await client.refused("DELETE", file("folder/secret"))).code is ErrorCode.BAD_ARGUMENT
    # A link itself may be replaced and removed; what it leads to stays.
    await client.good("PUT", file("file"), b"mine")
    await client.good("DELETE", file("folder", recursive=1))
    assert (outside / "secret").read_text() == "secret" and sorted(p.name for p in outside.iterdir()) == ["secret"]
    assert await paths(client) == [("file", "file"), ("pipe", "other")]


async def test_an_upload_that_is_cut_off_leaves_nothing(house: House) -> None:
    client = await made(house)
    await client.good("PUT", file("there"), b"old")
    address = urlsplit(house.url)
    _, writer = await asyncio.open_connection(address.hostname, address.port)
    head = f"PUT {file('there')} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {house.token}\r\n"
    writer.write(f"{head}Content-Length: 1000000\r\n\r\n".encode() + b"x" * 300_000)
    await writer.drain()
    drafts = root(house).parent / ".drafts"
    await house.until(lambda: [d for d in drafts.iterdir() if d.stat().st_size])
    writer.close()
    await writer.wait_closed()
    await house.until(lambda: not list(drafts.iterdir()))
    assert (root(house) / "there").read_bytes() == b"old"


async def test_who_may(house: House) -> None:
    await made(house)
    viewer, now = "viewer-token-of-this-test", house.gateway.clock.wall()
    house.gateway.hub.store.add_token(hash_token(viewer), Owner("home", "eve"), name="e", role=Role.VIEWER, now=now)
    client = Client(house, viewer)
    assert (await client("GET", "/nfs"))[0] == 200 and (await client("GET", "/nfs/scratch/entries"))[0] == 200
    for verb, path in (
        ("POST", "/nfs"),
        ("DELETE", "/nfs/scratch"),
        ("GET", file("a")),
        ("PUT", file("a")),
        ("DELETE", file("a")),
    ):
        body: Any = b"{}" if verb in ("POST", "PUT") else None
        assert (await client(verb, path, body))[0] == 403, (verb, path)
    assert (await Client(house, "nobody")("GET", "/nfs"))[0] == 401
