"""The routes of volumes and their chunks; `cellburst_protocol.volumes` says what they take and give.

Bodies are taken into memory, each route's to a limit of its own, and only so many large ones at the same time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import parse_qs

import msgspec
from tornado.web import stream_request_body

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.volumes import (
    MAX_PACK_BYTES,
    ChunkHashes,
    CommitVolume,
    CreateVolume,
    RenameVolume,
    VolumeList,
    pack_chunks,
)

from .http_base import Base
from .store_rows import Owner, Role

if TYPE_CHECKING:
    from .volumes import Volumes

SMALL_BODY_BYTES = 64 * 1024
HASHES_BODY_BYTES = 16 * 1024**2  # of 200,000 chunks
COMMIT_BODY_BYTES = 64 * 1024**2  # 50,000 paths, or a file of 1 TiB
PACK_BODY_BYTES = MAX_PACK_BYTES + 36 * 100_000  # what stands before each chunk
MAX_HASHES = 200_000
T = TypeVar("T")


@stream_request_body
class _VolumeBase(Base):
    """A route whose body is collected up to `limits` of its method. Viewers may only look."""

    limits: ClassVar[dict[str, int]] = {}
    _held = False

    async def prepare(self) -> None:  # type: ignore[override]  # tornado awaits it
        """Check the token, then make room for the body."""
        super().prepare()
        if self._finished:
            return
        self._body = bytearray()
        assert self.token is not None
        if self.token.role is Role.VIEWER and self.request.method not in ("GET", "HEAD"):
            self.refuse(error(ErrorCode.FORBIDDEN, "this token may look at volumes, and not change or read them").info)
            return
        limit = self.limits.get(self.request.method or "", SMALL_BODY_BYTES)
        length = int(self.request.headers.get("Content-Length") or 0)
        self._limit = limit
        if length > limit:
            self.refuse(_too_large(limit).info)
            return
        if limit > SMALL_BODY_BYTES:
            self.request.connection.set_max_body_size(limit)  # type: ignore[union-attr]  # tornado's HTTP/1 one
            await self.volumes.room.acquire()
            self._held = True
            if self.request.connection.stream.closed():  # type: ignore[union-attr]
                self._let_go()

    def data_received(self, chunk: bytes) -> None:
        """The next bytes of the body."""
        if self._finished:
            return
        self._body += chunk
        if len(self._body) > self._limit:
            self.refuse(_too_large(self._limit).info)

    def on_finish(self) -> None:
        """The body's room is free."""
        self._let_go()

    def on_connection_close(self) -> None:
        """The other side went away."""
        self._let_go()

    def _let_go(self) -> None:
        if self._held:
            self._held = False
            self.volumes.room.release()

    def decoded(self, kind: type[T]) -> T:
        """The body. Raises RequestError (BAD_MESSAGE)."""
        try:
            return msgspec.json.decode(bytes(self._body), type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as why:
            raise error(ErrorCode.BAD_MESSAGE, f"the request's body is no {kind.__name__}: {str(why)[:300]}") from None

    def answer(self, body: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(body))

    @property
    def volumes(self) -> Volumes:
        """The part that does it."""
        return self.hub.volumes

    @property
    def owner(self) -> Owner:
        """Who asks."""
        assert self.token is not None
        return self.token.owner


class VolumesRoute(_VolumeBase):
    """All volumes."""

    async def get(self) -> None:
        """List them."""
        self.answer(VolumeList(rows=await self.volumes.rows(self.owner.workspace)))

    async def post(self) -> None:
        """Make one."""
        row, created = await self.volumes.create(self.owner, self.decoded(CreateVolume))
        self.answer(row, 201 if created else 200)


class VolumeRoute(_VolumeBase):
    """One volume."""

    async def get(self, name: str) -> None:
        """What it is."""
        self.answer(await self.volumes.get(self.owner.workspace, name))

    async def patch(self, name: str) -> None:
        """Rename it."""
        self.answer(await self.volumes.rename(self.owner.workspace, name, self.decoded(RenameVolume).name))

    async def delete(self, name: str) -> None:
        """Delete it."""
        used = parse_qs(self.request.query).get("used", [""])[-1] == "1"
        await self.volumes.delete(self.owner.workspace, name, used=used)
        self.answer({})


class VolumeFilesRoute(_VolumeBase):
    """The files of a volume."""

    async def get(self, name: str) -> None:
        """What changed after a version."""
        try:
            given = parse_qs(self.request.query, encoding="utf-8", errors="strict")
        except (UnicodeDecodeError, ValueError):
            raise error(ErrorCode.BAD_ARGUMENT, "the address is not valid UTF-8") from None
        text = given.get("since", ["0"])[-1]
        if not text.isascii() or not text.isdigit() or len(text) > 18:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"since={text[:40]!r} is no version", allowed="0 or a whole number above"
            )
        files = await self.volumes.files(self.owner.workspace, name, int(text), given.get("prefix", [""])[-1])
        self.set_header("Content-Type", "application/json")
        self.finish(await asyncio.to_thread(msgspec.json.encode, files))


class VolumeCommitRoute(_VolumeBase):
    """Commits of a volume."""

    limits: ClassVar[dict[str, int]] = {"POST": COMMIT_BODY_BYTES}

    async def post(self, name: str) -> None:
        """Publish changed files and deletions."""
        commit = await asyncio.to_thread(self.decoded, CommitVolume)
        self.answer(await self.volumes.commit(self.owner, name, commit))


class MissingChunksRoute(_VolumeBase):
    """Which chunks are not there."""

    limits: ClassVar[dict[str, int]] = {"POST": HASHES_BODY_BYTES}

    async def post(self) -> None:
        """Those that the workspace lacks."""
        hashes = self.decoded(ChunkHashes).hashes
        if len(hashes) > MAX_HASHES:
            raise error(ErrorCode.TOO_LARGE, f"{len(hashes):,} chunks", allowed=f"{MAX_HASHES:,}", next="ask in parts")
        self.answer(ChunkHashes(hashes=await self.volumes.missing(self.owner.workspace, hashes)))


class ChunksRoute(_VolumeBase):
    """Chunks."""

    limits: ClassVar[dict[str, int]] = {"PUT": PACK_BODY_BYTES, "POST": HASHES_BODY_BYTES}

    async def put(self) -> None:
        """Take packed chunks."""
        await self.volumes.take(self.owner.workspace, self._body)
        self.answer({}, 201)

    async def post(self) -> None:
        """Give chunks, packed, in the order asked for."""
        chunks = await self.volumes.give(self.owner.workspace, self.decoded(ChunkHashes).hashes)
        self.set_header("Content-Type", "application/octet-stream")
        try:
            async for chunk in chunks:
                for piece in pack_chunks([chunk]):
                    self.write(bytes(piece))
                await self.flush()
        except CellburstError:
            if not self._headers_written:
                raise
            # Its length was not said in advance: an answer that ends well would be taken for whole.
            self.request.connection.stream.close()  # type: ignore[union-attr]  # tornado's HTTP/1 one
            return
        self.finish()


def volume_routes(base: dict[str, Any]) -> list[tuple[str, type[Base], dict[str, Any]]]:
    """The routes, for `app.routes`."""
    return [
        (r"/volumes", VolumesRoute, base),
        (r"/volumes/([^/]*)", VolumeRoute, base),
        (r"/volumes/([^/]*)/files", VolumeFilesRoute, base),
        (r"/volumes/([^/]*)/commit", VolumeCommitRoute, base),
        (r"/chunks/missing", MissingChunksRoute, base),
        (r"/chunks", ChunksRoute, base),
    ]


def _too_large(limit: int) -> CellburstError:
    return error(ErrorCode.TOO_LARGE, f"a body of more than {limit:,} bytes", next="send it in several requests")
