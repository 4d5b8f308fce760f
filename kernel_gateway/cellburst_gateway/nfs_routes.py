"""The routes of network file systems; `cellburst_protocol.network_file_systems` says what they take and give.

A file's bytes are never in memory whole: a body goes to a draft as it comes, an answer is read as it goes.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import msgspec
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.network_file_systems import MAX_FILE_BYTES, CreateShared, SharedList

from .http_base import Base
from .network_file_systems import NetworkFileSystems, disk_told
from .store_rows import Role

PIECE_BYTES = 1024**2

log = logging.getLogger(__name__)


class _SharedBase(Base):
    """A route of network file systems. Viewers may only list."""

    lists_only = False

    def prepare(self) -> None:
        """Check the token."""
        super().prepare()
        if self._finished:
            return
        assert self.token is not None
        if self.token.role is Role.VIEWER and not (self.lists_only and self.request.method in ("GET", "HEAD")):
            self.refuse(error(ErrorCode.FORBIDDEN, "this token may list network file systems, and no more").info)

    @property
    def all(self) -> NetworkFileSystems:
        """The part that does it."""
        return self.hub.network_file_systems

    @property
    def workspace(self) -> str:
        """Of who asks."""
        assert self.token is not None
        return self.token.owner.workspace

    def given(self, key: str) -> str:
        """Of the query, "" where it is not there. Raises RequestError (BAD_ARGUMENT)."""
        try:
            return parse_qs(self.request.query, encoding="utf-8", errors="strict").get(key, [""])[-1]
        except (UnicodeDecodeError, ValueError):
            raise error(ErrorCode.BAD_ARGUMENT, "the address is not valid UTF-8") from None

    def answer(self, body: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(body))


class SharedsRoute(_SharedBase):
    """All network file systems."""

    lists_only = True

    async def get(self) -> None:
        """List them."""
        self.answer(SharedList(rows=await asyncio.to_thread(self.all.rows, self.workspace)))

    async def post(self) -> None:
        """Make one."""
        try:
            asked = msgspec.json.decode(self.request.body, type=CreateShared)
        except msgspec.MsgspecError as why:
            raise error(ErrorCode.BAD_MESSAGE, f"the request's body is no CreateShared: {str(why)[:300]}") from None
        self.answer(
            await asyncio.to_thread(self.all.create, self.workspace, asked.name, if_missing=asked.if_missing), 201
        )


class SharedRoute(_SharedBase):
    """One network file system."""

    async def delete(self, name: str) -> None:
        """Delete it."""
        await asyncio.to_thread(self.all.delete, self.workspace, name, used=self.given("used") == "1")
        self.answer({})


class SharedSizeRoute(_SharedBase):
    """What one holds."""

    lists_only = True

    async def get(self, name: str) -> None:
        """Look at all of it."""
        self.answer(await asyncio.to_thread(self.all.size, self.workspace, name))


class SharedEntriesRoute(_SharedBase):
    """What lies in one."""

    lists_only = True

    async def get(self, name: str) -> None:
        """List a folder."""
        recursive = self.given("recursive") == "1"
        path = self.given("path")
        self.answer(await asyncio.to_thread(self.all.entries, self.workspace, name, path, recursive=recursive))


@stream_request_body
class SharedFileRoute(_SharedBase):
    """A file in one."""

    _draft: Path | None = None
    _out = -1
    _writing = False  # a thread has the descriptor: it is not closed now
    _gone = False

    async def prepare(self) -> None:  # type: ignore[override]  # tornado awaits it
        """Check the token, then open the draft for a body."""
        super().prepare()
        if self._finished or self.request.method != "PUT":
            return
        self.request.connection.set_max_body_size(MAX_FILE_BYTES)  # type: ignore[union-attr]  # tornado's HTTP/1 one
        name = self.path_args[0]
        self._draft = await asyncio.to_thread(self.all.draft, self.workspace, name, self.given("path"))
        with disk_told():
            self._out = os.open(self._draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def data_received(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        if self._out < 0 or self._finished:
            return
        self._writing, refused = True, None
        try:
            with disk_told(self.given("path")):
                await asyncio.to_thread(_write_all, self._out, chunk)
        except CellburstError as why:  # what is raised here would close the connection without a word
            refused = why.info
        finally:
            self._writing = False
            if self._gone or refused is not None:
                self._forget()
        if refused is not None and not self._gone:
            self.refuse(refused)

    async def put(self, name: str) -> None:
        """Keep the body."""
        if self._finished:
            return
        assert self._draft is not None
        self._close()
        await asyncio.to_thread(self.all.adopt, self._draft, self.workspace, name, self.given("path"))
        self.answer({}, 201)

    async def get(self, name: str) -> None:
        """Its bytes."""
        fd = await asyncio.to_thread(self.all.open_file, self.workspace, name, self.given("path"))
        begun = False
        try:
            self.set_header("Content-Type", "application/octet-stream")
            while piece := await asyncio.to_thread(_read, fd, self.given("path")):
                self.write(piece)
                begun = True
                await self.flush()
        except StreamClosedError:
            return
        except CellburstError as why:
            if not begun:
                raise
            log.error("an answer was cut off: %s", why.info.message)
            # The end of the answer would say that the file is whole.
            self.request.connection.stream.close()  # type: ignore[union-attr]  # tornado's HTTP/1 one
            return
        finally:
            os.close(fd)
        self.finish()

    async def delete(self, name: str) -> None:
        """Remove it."""
        recursive = self.given("recursive") == "1"
        await asyncio.to_thread(self.all.remove, self.workspace, name, self.given("path"), recursive=recursive)
        self.answer({})

    def on_finish(self) -> None:
        """No draft stays."""
        self._forget()

    def on_connection_close(self) -> None:
        """The other side went away."""
        self._forget()

    def _close(self) -> None:
        out, self._out = self._out, -1
        if out >= 0:
            os.close(out)

    def _forget(self) -> None:
        if self._writing:
            self._gone = True
            return
        self._close()
        if self._draft is not None:
            self._draft.unlink(missing_ok=True)


def nfs_routes(base: dict[str, Any]) -> list[tuple[str, type[Base], dict[str, Any]]]:
    """The routes, for `app.routes`."""
    return [
        (r"/nfs", SharedsRoute, base),
        (r"/nfs/([^/]*)", SharedRoute, base),
        (r"/nfs/([^/]*)/size", SharedSizeRoute, base),
        (r"/nfs/([^/]*)/entries", SharedEntriesRoute, base),
        (r"/nfs/([^/]*)/file", SharedFileRoute, base),
    ]


def _read(fd: int, path: str) -> bytes:
    with disk_told(path):
        return os.read(fd, PIECE_BYTES)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
