"""What the SDK asks of a gateway for volumes: its routes over HTTP, and chunks from its folder where both are on one machine.

Everything blocks and may be called from any thread; the callers are threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import secrets
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.messages import Welcome
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
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
        self._folder: Path | None = None
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
            return {hash for hash in wanted if not _touched(f"{folder}/{hash[:2]}/{hash}")}
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
                _write_chunk(folder, hash, data)
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
                yield chunk, _checked(chunk, _read_chunk(folder, chunk, room))
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
                yield chunk, _checked(chunk, data)
            start = end

    def folder(self) -> Path | None:
        """The chunk folder, when it is on this machine."""
        with self._lock:
            if not self._folder_known:
                self._folder = _shared_folder(asyncio.run(_welcome(self._where())))
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


def _shared_folder(welcome: Welcome) -> Path | None:
    """The chunk folder, if the proof file can be read here and holds the proof."""
    if not welcome.chunk_folder or not welcome.blob_proof:
        return None
    try:
        proof = Path(welcome.blob_proof_path).read_text()
    except OSError:
        return None
    folder = Path(welcome.chunk_folder)
    return folder if proof == welcome.blob_proof and os.access(folder / "tmp", os.W_OK) else None


def _touched(path: str) -> bool:
    """Whether a chunk is there; it counts as used now, so that it stays until the commit."""
    try:
        os.utime(path)
        return os.stat(path).st_size > 0  # noqa: PTH116  # a Path costs as much as the question
    except FileNotFoundError:
        return False


def _write_chunk(folder: Path, hash: str, data: bytes | memoryview) -> None:
    draft = f"{folder}/tmp/{secrets.token_hex(16)}"  # noqa: S108  # a folder of the gateway's own
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(data)
            while view:  # a write may be partial when the disk fills up
                view = view[os.write(descriptor, view) :]
        finally:
            os.close(descriptor)
        try:
            os.rename(draft, f"{folder}/{hash[:2]}/{hash}")  # noqa: PTH104
        except FileNotFoundError:
            (folder / hash[:2]).mkdir(mode=0o700, exist_ok=True)
            os.rename(draft, f"{folder}/{hash[:2]}/{hash}")  # noqa: PTH104
    except BaseException as why:
        Path(draft).unlink(missing_ok=True)
        if isinstance(why, OSError):
            full = why.errno in (28, 122)  # ENOSPC, EDQUOT
            raise error(
                ErrorCode.DISK_FULL if full else ErrorCode.STORE,
                f"the gateway's disk for volumes {'is full' if full else f'cannot be written: {why.strerror}'}",
                next="free some space there, then put again: what was sent is not sent again",
            ) from None  # fmt: skip
        raise


def _read_chunk(folder: Path, chunk: Chunk, room: memoryview) -> memoryview:
    hash = chunk.hash
    try:
        with open(folder / hash[:2] / hash, "rb", buffering=0) as file:
            at = 0
            while at < chunk.size_bytes and (count := file.readinto(room[at : chunk.size_bytes])):
                at += count
            return room[: at if not file.read(1) else 0]
    except FileNotFoundError:
        raise error(
            ErrorCode.NOT_FOUND,
            f"chunk {hash[:12]}… is not there (any more)",
            next="read the volume again: it has changed",
        ) from None
    except OSError as why:
        raise error(ErrorCode.STORE, f"chunk {hash[:12]}… cannot be read: {why.strerror}") from None


def _checked(chunk: Chunk, data: bytes | memoryview) -> bytes | memoryview:
    if len(data) != chunk.size_bytes or len(data) > CHUNK_BYTES or blake3(data).hexdigest() != chunk.hash:
        raise error(
            ErrorCode.INTEGRITY, f"chunk {chunk.hash[:12]}… of the volume is damaged: it was not used",
            next="put the file again, with --force",
        )  # fmt: skip
    return data


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
