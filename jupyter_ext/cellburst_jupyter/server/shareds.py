"""REST of network file systems: the folders of the gateway's machine that containers share live.

To a window they are as volumes are: a file comes in the same pieces (`POST nfs/NAME/chunks`), which the gateway keeps for an
hour, and `POST nfs/NAME/files` has them written as one file, whole or not at all. There are no versions, and no renaming.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote, urlencode

import msgspec
from jupyter_server.auth.decorator import authorized
from tornado.web import authenticated

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.network_file_systems import (
    CreateShared,
    SharedEntries,
    SharedEntry,
    SharedList,
    SharedRow,
    SharedSize,
)
from cellburst_protocol.volumes import Chunk, ChunkHashes, FileEntry, check_name, check_path, shown

from .gateway import Gateway, decoded
from .transfers import LIST_SECONDS, SHOWN_ENTRIES, FolderEntry, FolderList, NewFile, VolumeChange, entry_of
from .volumes import MAX_PREVIEW_BYTES, VolumesBase, check_size

if TYPE_CHECKING:
    from cellburst.volume_api import VolumeApi


class Shareds:
    """The user's network file systems, as windows see them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def folder(self, name: str, path: str) -> FolderList:
        """What a folder holds now; "" is the root. Sizes of folders are not known. Raises RequestError (NOT_FOUND, BAD_ARGUMENT,
        TOO_LARGE)."""
        inside = check_path(path) if path.strip("/") else ""
        found = await self._entries(name, inside)
        if inside and len(found) == 1 and found[0].path == inside:
            raise error(ErrorCode.BAD_ARGUMENT, f"{shown(inside)} is a file", next="open the folder that it is in")
        entries = [
            FolderEntry(
                name=one.path.rpartition("/")[2], kind=one.kind, modified_unix_seconds=one.modified_unix_seconds,
                size_bytes=one.size_bytes if one.kind == "file" else 0,
            )
            for one in found
        ]  # fmt: skip
        entries.sort(key=lambda e: (e.kind != "folder", e.name.lower(), e.name))
        return FolderList(version=0, path=inside, entries=entries[:SHOWN_ENTRIES], entries_count=len(entries))

    async def file(self, name: str, path: str) -> SharedEntry:
        """A file as it is now. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        wanted = check_path(path)
        found = await self._entries(name, wanted)
        if len(found) != 1 or found[0].path != wanted or found[0].kind != "file":
            raise error(ErrorCode.NOT_FOUND, f"there is no file {shown(wanted)} in network file system {shown(name)}")
        return found[0]

    async def read(self, name: str, entry: SharedEntry, limit_bytes: int) -> AsyncIterator[Buffer]:
        """A file's bytes from its start, exactly as many as were said. Raises PlatformError (STORE) where it has become shorter;
        of one that grows meanwhile, the rest is left out."""
        left = limit_bytes
        api = await self._gateway.files()
        pieces = cast(Generator[bytes, None, None], api.stream("GET", _at(name, "file", path=entry.path)))
        try:
            while left and (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                yield memoryview(piece)[:left]
                left -= min(left, len(piece))
        finally:
            await asyncio.to_thread(pieces.close)
        if left:
            raise error(ErrorCode.STORE, f"{shown(entry.path)} became shorter while it was read", next="try again")

    async def change(self, name: str, asked: VolumeChange) -> None:
        """Write new files and remove others, one after another. Raises RequestError: CONFLICT with the paths that are there,
        NOT_FOUND, BAD_ARGUMENT; what was done before stays."""
        if asked.renamed:
            raise error(
                ErrorCode.BAD_ARGUMENT, "files of a network file system are not renamed from here",
                next="rename them in a container (`mv`): all others see it at once",
            )  # fmt: skip
        if not asked.overwrite:
            await self._check_free(name, asked.files)
        await self._check_chunks(asked.files)
        for file in asked.files:
            await asyncio.to_thread(_write, await self._gateway.files(), name, entry_of(file))
        for path in asked.deleted:
            await self._gateway.fetch("DELETE", _at(name, "file", path=check_path(path), recursive="1"))

    async def _check_chunks(self, files: list[NewFile]) -> None:
        hashes = list({chunk.hash for file in files for chunk in file.chunks})
        body = msgspec.json.encode(ChunkHashes(hashes=hashes))
        missing: ChunkHashes = decoded(await self._gateway.fetch("POST", "/chunks/missing", body), ChunkHashes)
        if missing.hashes:
            raise error(
                ErrorCode.NOT_FOUND, f"{len(missing.hashes):,} of {len(hashes):,} pieces are not there (any more)",
                next="upload it again: what is there is not sent twice",
            )  # fmt: skip

    async def _check_free(self, name: str, files: list[NewFile]) -> None:
        taken = []
        for file in files:
            try:
                await self._entries(name, check_path(file.path))
                taken.append(file.path)
            except CellburstError as why:
                if why.info.code is not ErrorCode.NOT_FOUND:
                    raise
                await self._entries(name, "")  # the file is not there, or all of it is not
        if taken:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise error(
                ErrorCode.CONFLICT, f"{shown(taken[0])}{more} is there already", next="replace it, or use another name",
                paths="\n".join(taken[:100]),
            )  # fmt: skip

    async def _entries(self, name: str, path: str) -> list[SharedEntry]:
        body = await self._gateway.fetch("GET", _at(name, "entries", path=path), timeout_seconds=LIST_SECONDS)
        found: SharedEntries = decoded(body, SharedEntries)
        return found.entries


class _Shareds(VolumesBase):
    def initialize(self, shareds: Shareds, **more: Any) -> None:  # type: ignore[override]  # one more than the base
        """Tornado gives each handler these."""
        super().initialize(**more)
        self.shareds = shareds


class SharedsHandler(_Shareds):
    """GET and POST nfs."""

    @authenticated
    @authorized
    async def get(self) -> None:
        """All of them."""
        self.answer(decoded(await self.gateway.fetch("GET", "/nfs"), SharedList))

    @authenticated
    @authorized
    async def post(self) -> None:
        """Make one."""
        body = msgspec.json.encode(CreateShared(name=check_name(self.body(CreateShared).name)))
        self.answer(decoded(await self.gateway.fetch("POST", "/nfs", body), SharedRow))


class SharedHandler(_Shareds):
    """DELETE nfs/NAME."""

    @authenticated
    @authorized
    async def delete(self, name: str) -> None:
        """Delete it; refused while something uses it, unless `used=1`."""
        used = "?used=1" if self.get_query_argument("used", "") == "1" else ""
        await self.gateway.fetch("DELETE", f"/nfs/{quote(name, safe='')}{used}")
        self.answer({})


class SharedSizeHandler(_Shareds):
    """GET nfs/NAME/size."""

    @authenticated
    @authorized
    async def get(self, name: str) -> None:
        """What its files hold together: the gateway looks at each."""
        body = await self.gateway.fetch("GET", f"/nfs/{quote(name, safe='')}/size", timeout_seconds=LIST_SECONDS)
        self.answer(decoded(body, SharedSize))


class SharedFilesHandler(_Shareds):
    """GET and POST nfs/NAME/files."""

    @authenticated
    @authorized
    async def get(self, name: str) -> None:
        """One folder (`path`)."""
        self.answer(await self.shareds.folder(name, self.get_query_argument("path", "", strip=False)))

    @authenticated
    @authorized
    async def post(self, name: str) -> None:
        """New files and deletions."""
        asked = self.body(VolumeChange)
        check_size(asked, self.server_options)
        await self.shareds.change(name, asked)
        self.answer({})


class SharedFileHandler(_Shareds):
    """GET nfs/NAME/files/PATH."""

    @authenticated
    @authorized
    async def get(self, name: str, path: str) -> None:
        """Its bytes; with `preview=1` at most 8 MiB of its start. Never a type that a browser would run."""
        entry = await self.shareds.file(name, path)
        preview = self.get_query_argument("preview", "") == "1"
        limit = min(entry.size_bytes, MAX_PREVIEW_BYTES) if preview else entry.size_bytes
        await self.send_file(entry.path.rpartition("/")[2], limit, self.shareds.read(name, entry, limit))


class _Body(io.RawIOBase):
    """Chunks, read as one file."""

    def __init__(self, chunks: Iterator[tuple[Chunk, bytes | memoryview]]) -> None:
        self._chunks, self._rest = chunks, memoryview(b"")

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; b"" at the end."""
        while not self._rest:
            following = next(self._chunks, None)
            if following is None:
                return b""
            self._rest = memoryview(following[1])
        piece = bytes(self._rest[:size] if size >= 0 else self._rest)
        self._rest = self._rest[len(piece) :]
        return piece


def _write(api: VolumeApi, name: str, file: FileEntry) -> None:
    body = cast(BinaryIO, _Body(api.receive(file.chunks)))
    for _ in api.stream("PUT", _at(name, "file", path=file.path), body):
        pass  # its answer says nothing


def _at(name: str, what: str, **query: str) -> str:
    return f"/nfs/{quote(name, safe='')}/{what}?{urlencode(query, quote_via=quote)}"
