"""The way from inside a container to the gateway, for containers whose code may use it: bytes passed on, nothing read.

A Unix socket beside the runner's. What connects to it is joined to the gateway's own address, over TLS where the worker's
link is; who it is, and what it may, the gateway decides by the token that the container was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import urllib.parse
from pathlib import Path

NAME = "gateway"  # in the container: $CELLBURST_VAR/ctl/gateway
MAX_CONNECTIONS = 32  # a link, and a few values at a time
READ_BYTES = 256 * 1024
DIAL_SECONDS = 10.0

log = logging.getLogger(__name__)


class GatewayDoor:
    """One container's door. `join` is the gateway's address as the worker dials it ("http(s)://HOST:PORT")."""

    def __init__(self, container: str, join: str) -> None:
        self._container = container
        parts = urllib.parse.urlsplit(join if "//" in join else f"http://{join}")
        self._tls = ssl.create_default_context() if parts.scheme in ("https", "wss") else None
        self._host = parts.hostname or "127.0.0.1"
        self._port = parts.port or (443 if self._tls else 80)
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, folder: Path) -> None:
        """Listen at FOLDER/gateway, also where that is longer than a Unix address. Raises OSError."""
        path = folder / NAME
        path.unlink(missing_ok=True)
        fd = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(f"/proc/self/fd/{fd}/{NAME}")
            path.chmod(0o666)  # for the container's user; other users cannot reach into its folder
            self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=READ_BYTES)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(fd)
        self._path = path

    async def close(self) -> None:
        """Let nobody in any more, and cut off who is."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MAX_CONNECTIONS or self._server is None:
            writer.close()
            return
        self._tasks.add(task)
        try:
            await self._join(reader, writer)
        finally:
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(DIAL_SECONDS):
                back, there = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=READ_BYTES)
            async with asyncio.TaskGroup() as both:
                both.create_task(_copy(reader, there))
                both.create_task(_copy(back, writer))
        except* (OSError, TimeoutError) as why:
            log.debug("a container's connection ended: %s", why.exceptions[0], extra={"container": self._container})
        finally:
            for end in (writer, there):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes on until their end, and then the end."""
    while data := await reader.read(READ_BYTES):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
    else:
        writer.close()
