"""The door by which code in a container commits and reloads its volumes: a Unix socket beside the runner's.

One line of JSON a request, one a reply: {"op": "commit" | "reload", "volume": NAME} -> {"version": N} or {"error": ErrorInfo}.
`$CELLBURST_VOLUME_DOOR` names it in the container; `cellburst.volume_door` is the other side. Whatever dials it may do no more
than the code in the container may anyway: commit and reload the volumes it has.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo

MAX_LINE_BYTES = 64 * 1024
MAX_CONNECTIONS = 64  # threads of one program that commit at once; more wait in the socket's queue

log = logging.getLogger(__name__)


class _Request(msgspec.Struct):
    op: Literal["commit", "reload"]
    volume: str


class _Reply(msgspec.Struct, omit_defaults=True):
    version: int | None = None
    error: ErrorInfo | None = None


class Door:
    """One container's. `answer` does an operation and returns the version; it raises the error tree."""

    NAME = "volumes"

    def __init__(self, answer: Callable[[str, str], Awaitable[int]]) -> None:
        self._do = answer
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, folder: Path) -> None:
        """Listen at FOLDER/volumes, also where that is longer than a Unix address. Raises OSError."""
        await self.close()
        path = folder / self.NAME
        path.unlink(missing_ok=True)
        place = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Without /proc (not Linux) by its own path, which is short where containers have no sandbox.
            by_fd = Path(f"/proc/self/fd/{place}")
            sock.bind(str((by_fd if by_fd.exists() else folder) / self.NAME))
            path.chmod(0o666)  # for the container's user; other users cannot reach into its folder
            self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=MAX_LINE_BYTES)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(place)
        self._path = path

    async def close(self) -> None:
        """Let nobody in any more; what is being answered is given up, but not half done."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, ValueError, asyncio.CancelledError):
                while line := await reader.readline():
                    writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                    await writer.drain()
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, line: bytes) -> _Reply:
        try:
            request = msgspec.json.decode(line, type=_Request)
        except msgspec.MsgspecError as why:
            return _Reply(
                error=ErrorInfo(code=ErrorCode.BAD_MESSAGE, message=f"the volume door takes no such line: {why}")
            )
        try:
            return _Reply(version=await self._do(request.op, request.volume))
        except CellburstError as why:
            return _Reply(error=why.info)
        except Exception:
            log.exception("a volume operation failed")
            return _Reply(
                error=ErrorInfo(code=ErrorCode.INTERNAL, message="the volume operation failed: see the worker's log")
            )
