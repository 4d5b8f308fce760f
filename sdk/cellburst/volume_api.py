"""What the SDK asks of a gateway for volumes: its routes over HTTP, and chunks from its folder where both are on one machine.

Everything blocks and may be called from any thread; the callers are threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.messages import Welcome
from cellburst_protocol.volumes import (
    MAX_PACK_BYTES,
    Chunk,
    ChunkHashes,
    CommitVolume,
    CreateVolume,
    RenameVolume,
    VolumeCommitted,
    VolumeFiles,
    VolumeList,
    VolumeRow,
    pack_chunks,
    unpack_chunks,
)

from .chunk_folder import ChunkFolder, checked
from .endpoint import Endpoint
from .exceptions import VolumeConflict
from .http_connection import connection

HASHES_PER_REQUEST = 100_000
SMALL_CHUNKS_PER_PACK = 2000
PIECE_BYTES = 1024**2  # of a stream
T = TypeVar("T")


class VolumeApi:
    """One gateway. `endpoint_source` is asked at the first request, and again when the gateway is gone."""

    def __init__(self, endpoint_source: Callable[[], Endpoint]) -> None:
        self._source = endpoint_source
        self._endpoint: Endpoint | None = None
        self._folder: ChunkFolder | None = None
        self._folder_known = False
        self._lock = threading.Lock()

    # -- volumes ---------------------------------------------------------------------------------------------------

    def create(self, asked: CreateVolume) -> VolumeRow:
        """Raises RequestError (CONFLICT, BAD_ARGUMENT)."""
        return self._json("POST", "/volumes", asked, VolumeRow)

    def list(self) -> VolumeList:
        """All of the workspace."""
        return self._json("GET", "/volumes", None, VolumeList)

    def row(self, name: str) -> VolumeRow:
        """One by name or id. Raises RequestError (NOT_FOUND)."""
        return self._json("GET", f"/volumes/{quote(name, safe='')}", None, VolumeRow)

    def rename(self, name: str, new: str) -> VolumeRow:
        """Raises RequestError (NOT_FOUND, CONFLICT)."""
        return self._json("PATCH", f"/volumes/{quote(name, safe='')}", RenameVolume(name=new), VolumeRow)

    def delete(self, name: str, *, used: bool = False) -> None:
        """Raises RequestError (NOT_FOUND, CONFLICT naming what uses it)."""
        self._json("DELETE", f"/volumes/{quote(name, safe='')}{'?used=1' if used else ''}", None, dict[str, Any])

    def files(self, name: str, *, since: int = 0, prefix: str = "") -> VolumeFiles:
        """What changed after a version. Raises RequestError (NOT_FOUND)."""
        query = urlencode({"since": since, "prefix": prefix})
        return self._json("GET", f"/volumes/{quote(name, safe='')}/files?{query}", None, VolumeFiles)

    def commit(self, name: str, commit: CommitVolume) -> VolumeCommitted:
        """Raises VolumeConflict; RequestError (NOT_FOUND with `missing` in its detail: chunks to send)."""
        return self._json("POST", f"/volumes/{quote(name, safe='')}/commit", commit, VolumeCommitted)

    # -- chunks ----------------------------------------------------------------------------------------------------

    def missing(self, hashes: Iterable[str]) -> set[str]:
        """Those that are to be sent."""
        wanted = list(dict.fromkeys(hashes))
        folder = self.folder()
        if folder is not None:
            return {hash for hash in wanted if not folder.has(hash)}
        found: set[str] = set()
        for start in range(0, len(wanted), HASHES_PER_REQUEST):
            asked = ChunkHashes(hashes=wanted[start : start + HASHES_PER_REQUEST])
            found.update(self._json("POST", "/chunks/missing", asked, ChunkHashes).hashes)
        return found

    def send(self, chunks: Sequence[tuple[str, bytes | memoryview]]) -> None:
        """Store chunks whose hashes were computed from these very bytes. Raises PlatformError (DISK_FULL, …)."""
        folder = self.folder()
        if folder is not None:
            for hash, data in chunks:
                folder.write(hash, data)
            return
        pack: list[tuple[str, bytes | memoryview]] = []
        size = 0
        for hash, data in chunks:
            if pack and (size + len(data) > MAX_PACK_BYTES or len(pack) >= SMALL_CHUNKS_PER_PACK):
                self._send_pack(pack)
                pack, size = [], 0
            pack.append((hash, data))
            size += len(data)
        if pack:
            self._send_pack(pack)

    def receive(self, chunks: Sequence[Chunk]) -> Iterator[tuple[Chunk, bytes | memoryview]]:
        """Chunks in the order asked for, each checked against its hash. The bytes are valid until the next one is taken.
        Raises RequestError (NOT_FOUND), PlatformError (INTEGRITY)."""
        folder = self.folder()
        if folder is not None:
            room = memoryview(bytearray(max((chunk.size_bytes for chunk in chunks), default=0)))
            for chunk in chunks:
                yield chunk, checked(chunk, folder.read(chunk, room))
            return
        start = 0
        while start < len(chunks):
            end, size = start, 0
            while end < len(chunks) and (end == start or size + chunks[end].size_bytes <= MAX_PACK_BYTES):
                size += chunks[end].size_bytes
                end += 1
                if end - start >= SMALL_CHUNKS_PER_PACK:
                    break
            part = chunks[start:end]
            body = self.request("POST", "/chunks", _encode(ChunkHashes(hashes=[chunk.hash for chunk in part])))
            given = list(unpack_chunks(body))
            if [hash for hash, _ in given] != [chunk.hash for chunk in part]:
                raise error(
                    ErrorCode.BAD_MESSAGE, "the gateway gave other chunks than it was asked for", next="try again"
                )
            for chunk, (_, data) in zip(part, given, strict=True):
                yield chunk, checked(chunk, data)
            start = end

    def folder(self) -> ChunkFolder | None:
        """The chunk folder, when it is on this machine."""
        with self._lock:
            if not self._folder_known:
                self._folder = ChunkFolder.of(asyncio.run(_welcome(self._where())))
                self._folder_known = True
            return self._folder

    def _send_pack(self, pack: Sequence[tuple[str, bytes | memoryview]]) -> None:
        self.request("PUT", "/chunks", b"".join(pack_chunks(pack)))

    # -- HTTP ------------------------------------------------------------------------------------------------------

    def request(self, verb: str, path: str, body: bytes | None = None) -> bytes:
        """One request; its answer's body. Raises CellburstError: the gateway's own, GATEWAY_DOWN."""
        try:
            return self._request(self._where(), verb, path, body)
        except ConnectionRefusedError:
            self._endpoint = None  # it may have been started again, on another port
        except OSError as why:
            raise _down(why) from None
        try:
            return self._request(self._where(), verb, path, body)
        except OSError as why:
            raise _down(why) from None

    def stream(
        self,
        verb: str,
        path: str,
        body: BinaryIO | None = None,
        moved: Callable[[int], object] = lambda size_bytes: None,
    ) -> Iterator[bytes]:
        """One request with a body of any length, read from its file as it goes; the answer in pieces. `moved` is told what was
        read. Raises CellburstError: the gateway's own, GATEWAY_DOWN. Nothing is tried again: a body is read once."""
        self.request("GET", "/nfs")  # finds the gateway anew where it was started again
        endpoint = self._where()
        dialled = connection(endpoint)
        try:
            headers = {"Authorization": f"Bearer {endpoint.token}"}
            try:
                pieces = _pieces(body, moved) if body is not None else None
                dialled.request(verb, path, body=pieces, headers=headers, encode_chunked=True)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before the body was read: the answer says why
            with contextlib.closing(dialled.getresponse()) as response:
                if response.status >= 400:
                    raise _refusal(response.status, response.read())
                while piece := response.read(PIECE_BYTES):
                    yield piece
        except (OSError, http.client.HTTPException) as why:
            raise _down(why if isinstance(why, OSError) else ConnectionError("the answer was cut off")) from None
        finally:
            dialled.close()

    def _request(self, endpoint: Endpoint, verb: str, path: str, body: bytes | None) -> bytes:
        dialled = connection(endpoint)
        try:
            headers = {"Authorization": f"Bearer {endpoint.token}"}
            try:
                dialled.request(verb, path, body=body, headers=headers)
            except (BrokenPipeError, ConnectionResetError):
                pass  # refused before the body was read: the answer says why
            with contextlib.closing(dialled.getresponse()) as response:
                answer = response.read()
                if response.status >= 400:
                    raise _refusal(response.status, answer)
                return answer
        except http.client.HTTPException as why:
            raise ConnectionError(f"the answer was cut off ({type(why).__name__})") from None
        finally:
            dialled.close()

    def _json(self, verb: str, path: str, body: msgspec.Struct | None, kind: type[T]) -> T:
        answer = self.request(verb, path, _encode(body) if body is not None else None)
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as why:
            raise error(
                ErrorCode.BAD_MESSAGE, f"the gateway's answer to {verb} {path.partition('?')[0]}: {why}"
            ) from None

    def _where(self) -> Endpoint:
        if self._endpoint is None:
            self._endpoint = self._source()
        return self._endpoint


def _pieces(body: BinaryIO, moved: Callable[[int], object]) -> Iterator[bytes]:
    while piece := body.read(PIECE_BYTES):
        yield piece
        moved(len(piece))


_encode = msgspec.json.Encoder().encode


async def _welcome(endpoint: Endpoint) -> Welcome:
    from .link import Link  # websockets takes long to import, and listing volumes needs none

    link = Link(lambda: endpoint, role="cli")
    try:
        return await link.connect()
    finally:
        await link.close()


def _refusal(status: int, answer: bytes) -> CellburstError:
    try:
        info = msgspec.json.decode(answer, type=ErrorInfo)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        info = ErrorInfo(
            code=ErrorCode.STORE, message=f"the gateway answered with HTTP status {status}", next="see its log"
        )
    return raised(info)


def raised(info: ErrorInfo) -> CellburstError:
    """The exception for an error of the gateway's."""
    return VolumeConflict(info) if info.code is ErrorCode.VOLUME_CONFLICT else from_info(info)


def _down(why: OSError) -> CellburstError:
    return error(
        ErrorCode.GATEWAY_DOWN, f"the gateway does not answer: {why}",
        next="try again: what was sent is not sent again; `cellburst up` starts a gateway",
    )  # fmt: skip
