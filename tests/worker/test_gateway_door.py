"""The way from a container's folder to the gateway's address: bytes both ways, and an end."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cellburst_worker import gateway_door
from cellburst_worker.gateway_door import GatewayDoor


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await reader.read()
    writer.close()


async def test_bytes_go_both_ways_and_each_end_is_passed_on(tmp_path: Path) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    folder = tmp_path / ("long" * 20) / ("path" * 20)  # longer than a Unix address
    folder.mkdir(parents=True)
    door = GatewayDoor("c-1", f"http://127.0.0.1:{port}")
    await door.open(folder)
    fd = os.open(folder, os.O_RDONLY)
    reader, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/gateway")
    sent = os.urandom(3_000_000)

    async def send() -> None:
        writer.write(sent)
        await writer.drain()
        writer.write_eof()

    _, got = await asyncio.gather(send(), reader.read())
    assert got == sent
    writer.close()
    await writer.wait_closed()
    await door.close()
    assert not (folder / "gateway").exists()
    with pytest.raises(OSError):
        await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/gateway")
    os.close(fd)
    server.close()
    await server.wait_closed()


async def test_no_gateway_there_ends_the_connection(tmp_path: Path) -> None:
    taken = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    taken.close()
    await taken.wait_closed()
    door = GatewayDoor("c-1", f"http://127.0.0.1:{port}")
    await door.open(tmp_path)
    reader, writer = await asyncio.open_unix_connection(tmp_path / "gateway")
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    await door.close()


async def test_it_lets_in_so_many_and_closing_cuts_them_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_door, "MAX_CONNECTIONS", 2)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    door = GatewayDoor("c-1", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await door.open(tmp_path)
    ends = []
    for number in range(3):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "gateway")
        ends.append((reader, writer))
        if number < 2:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
    assert await ends[2][0].read() == b""
    await door.close()
    assert [await reader.read() for reader, _ in ends[:2]] == [b"", b""]
    for _, writer in ends:
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
