"""The gateway's volumes by HTTP, as a worker uses them; chunks straight from its folder where both are on one machine.

Routes and bodies are those of `cellburst_protocol.volumes`. Everything here blocks and is called in a thread.
"""

from __future__ import annotations

import errno
import http.client
import os
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.volumes import (
    MAX_PACK_BYTES,
    Chunk,
    ChunkHashes,
    CommitVolume,
    FileEntry,
    VolumeCommitted,
    VolumeFiles,
    check_hash,
    pack_chunks,
    unpack_chunks,
)
from cellburst_runtime.volume_tree import Owner, VolumeStore

from . import loopback_peer

TIMEOUT_SECONDS = 60.0  # without a byte moving: a commit of 50,000 paths on a slow disk
MAX_ANSWER_BYTES = 512 * 1024**2  # a list of 500,000 files
BATCH_BYTES = MAX_PACK_BYTES // 2  # of one request: four at once keep a link busy and 64 MiB of memory
BATCH_CHUNKS = 2_000
AT_ONCE = 4
COPY_BYTES = 2 * 1024**2
COPY_AT_ONCE_BYTES = 1024**3  # by the kernel itself
T = TypeVar("T")


class GatewayVolumes:
    """Asks one gateway. `url` is http(s)://host:port. `chunk_folder` is set where its chunks can be read as files.
    `owners` are those of `GatewayLink`."""

    def __init__(self, url: str, token: Callable[[], str], owners: Callable[[], Iterable[int]] = tuple) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._token, self._owners = token, owners
        self.chunk_folder: Path | None = None

    def files(self, volume: str, since: int) -> VolumeFiles:
        """What changed after a version. Raises the gateway's error (NOT_FOUND), PlatformError (UNAVAILABLE)."""
        return self._json("GET", f"/volumes/{volume}/files?since={since}", None, VolumeFiles)

    def commit(self, volume: str, commit: CommitVolume) -> VolumeCommitted:
        """Publish. Raises the gateway's error (VOLUME_CONFLICT, NOT_FOUND), PlatformError (UNAVAILABLE: it may have been done;
        the same again is the same commit)."""
        return self._json("POST", f"/volumes/{volume}/commit", commit, VolumeCommitted)

    def missing(self, hashes: Sequence[str]) -> set[str]:
        """Those of the chunks that the gateway lacks."""
        lacking: set[str] = set()
        for start in range(0, len(hashes), 10_000):
            asked = ChunkHashes(hashes=list(hashes[start : start + 10_000]))
            lacking |= set(self._json("POST", "/chunks/missing", asked, ChunkHashes).hashes)
        return lacking

    def put(self, chunks: Sequence[tuple[str, bytes]]) -> None:
        """Let the gateway have chunks, at most MAX_PACK_BYTES together."""
        self._request("PUT", "/chunks", b"".join(pack_chunks(chunks)), "application/octet-stream")

    def get(self, chunks: Sequence[Chunk]) -> list[bytes | memoryview]:
        """The bytes of chunks, checked, in order. Raises PlatformError (INTEGRITY, UNAVAILABLE)."""
        body = msgspec.json.encode(ChunkHashes(hashes=[chunk.hash for chunk in chunks]))
        answer = self._request("POST", "/chunks", body, "application/json")
        found = list(unpack_chunks(answer))
        right = len(found) == len(chunks) and all(
            hash == chunk.hash and len(data) == chunk.size_bytes and blake3(data).hexdigest() == hash
            for (hash, data), chunk in zip(found, chunks, strict=True)
        )
        if not right:
            raise error(ErrorCode.INTEGRITY, "chunks of a volume came with other bytes", next="run the cell again")
        return [data for _, data in found]

    def local(self, hash: str) -> Path | None:
        """The file of a chunk on this machine, or None."""
        if self.chunk_folder is None:
            return None
        path = Path(f"{self.chunk_folder}/{check_hash(hash)[:2]}/{hash}")
        return path if path.is_file() else None

    def _json(self, method: str, path: str, body: object, answer: type[T]) -> T:
        raw = self._request(method, path, None if body is None else msgspec.json.encode(body), "application/json")
        try:
            return msgspec.json.decode(raw, type=answer)
        except msgspec.MsgspecError as why:
            raise error(ErrorCode.INTERNAL, f"the gateway's answer about volumes cannot be read: {why}") from None

    def _request(self, method: str, path: str, body: bytes | None, kind: str) -> bytes:
        secure = self._url.scheme == "https"
        make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = make(self._url.hostname or "", self._url.port, timeout=TIMEOUT_SECONDS, blocksize=1024 * 1024)
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": kind}
        try:
            if not secure:
                connection.connect()
                loopback_peer.check(connection.sock, self._owners())
            connection.request(method, self._url.path.rstrip("/") + path, body=body, headers=headers)
            answer = connection.getresponse()
            raw = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as why:
            raise error(
                ErrorCode.UNAVAILABLE, f"the gateway cannot be reached for volumes: {why}", next="it is tried again"
            ) from None
        finally:
            connection.close()
        if answer.status >= 300:
            raise from_info(_problem(answer.status, raw))
        return raw


def _problem(status: int, raw: bytes) -> ErrorInfo:
    try:
        return msgspec.json.decode(raw, type=ErrorInfo)
    except msgspec.MsgspecError:
        code = ErrorCode.UNAVAILABLE if status >= 500 else ErrorCode.INTERNAL
        return ErrorInfo(code=code, message=f"the gateway answered {status} about volumes")


# -- fetching files --------------------------------------------------------------------------------------------------


@dataclass
class _Wanted:
    """A file that is being fetched. `left` counts its chunks that are not there yet."""

    entry: FileEntry
    draft: Path
    left: int
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Batch:
    chunks: dict[str, Chunk] = field(default_factory=dict)
    places: dict[str, list[tuple[_Wanted, int]]] = field(default_factory=dict)
    size_bytes: int = 0


def fetch_files(
    gateway: GatewayVolumes, store: VolumeStore, entries: Sequence[FileEntry], owner: Owner,
    stopped: Callable[[], bool] = lambda: False,
) -> None:  # fmt: skip
    """Have these files in the store, several requests at a time. `stopped`: nobody waits for them any more.

    What came is kept when another part fails. Raises PlatformError (UNAVAILABLE, INTEGRITY, DISK_FULL), OSError.
    """
    batches: list[_Batch] = [_Batch()]
    drafts: set[Path] = set()
    try:
        for entry in entries:
            if stopped():
                raise _given_up()
            draft = store.draft()
            drafts.add(draft)
            if (there := store.copy_of(entry, owner)) is not None:
                _copy(there, draft)
                store.adopt(draft, entry, owner)
            elif not entry.chunks:
                draft.touch()
                store.adopt(draft, entry, owner)
            elif all(gateway.local(chunk.hash) is not None for chunk in entry.chunks):
                _join(gateway, entry, draft)
                store.adopt(draft, entry, owner)
                drafts.discard(draft)
                store.remember(entry, owner)
            else:
                _plan(batches, entry, draft)
        with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="volume") as pool:
            tasks = [pool.submit(_fetch, gateway, store, batch, owner, stopped) for batch in batches if batch.chunks]
            try:
                for task in tasks:
                    task.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    except OSError as why:
        raise _full(why) from why
    finally:
        for draft in drafts:
            draft.unlink(missing_ok=True)


def _plan(batches: list[_Batch], entry: FileEntry, draft: Path) -> None:
    wanted = _Wanted(entry, draft, len(entry.chunks))
    offset = 0
    for chunk in entry.chunks:
        batch = batches[-1]
        if batch.size_bytes + chunk.size_bytes > BATCH_BYTES or len(batch.chunks) >= BATCH_CHUNKS:
            batch = _Batch()
            batches.append(batch)
        if chunk.hash not in batch.chunks:
            batch.chunks[chunk.hash] = chunk
            batch.size_bytes += chunk.size_bytes
        batch.places.setdefault(chunk.hash, []).append((wanted, offset))
        offset += chunk.size_bytes


def _fetch(
    gateway: GatewayVolumes, store: VolumeStore, batch: _Batch, owner: Owner, stopped: Callable[[], bool]
) -> None:
    if stopped():
        raise _given_up()
    chunks = list(batch.chunks.values())
    for chunk, data in zip(chunks, gateway.get(chunks), strict=True):
        for wanted, offset in batch.places[chunk.hash]:
            fd = os.open(wanted.draft, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                _write_at(fd, memoryview(data), offset)
            finally:
                os.close(fd)
            with wanted.lock:
                wanted.left -= 1
                whole = not wanted.left
            if whole:
                store.adopt(wanted.draft, wanted.entry, owner)
                store.remember(wanted.entry, owner)


def _join(gateway: GatewayVolumes, entry: FileEntry, draft: Path) -> None:
    """A file out of the gateway's own chunk files. They are not hashed again: who can write there can write its record."""
    with open(draft, "xb") as out:
        for chunk in entry.chunks:
            path = gateway.local(chunk.hash)
            if path is None:
                raise error(ErrorCode.INTEGRITY, f"the chunk {chunk.hash[:16]}… is gone", next="run the cell again")
            with open(path, "rb") as source:
                if os.fstat(source.fileno()).st_size != chunk.size_bytes:
                    raise error(ErrorCode.INTEGRITY, f"the chunk {chunk.hash[:16]}… has another size")
                _pour(source.fileno(), out.fileno())


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as file, open(target, "xb") as out:
        _pour(file.fileno(), out.fileno())


def _pour(source: int, target: int) -> None:
    if hasattr(os, "copy_file_range"):
        try:
            while os.copy_file_range(source, target, COPY_AT_ONCE_BYTES):
                pass
            return
        except OSError as why:
            if why.errno not in (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
                raise  # else not between these file systems: what is left goes the other way
    buffer = memoryview(bytearray(min(COPY_BYTES, os.fstat(source).st_size + 1)))
    while got := os.readv(source, [buffer]):
        data = buffer[:got]
        while data:
            data = data[os.write(target, data) :]


def _write_at(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


def _given_up() -> CellburstError:
    return error(ErrorCode.UNAVAILABLE, "fetching a volume was given up: the container is not wanted any more")


def _full(why: OSError) -> CellburstError:
    code = ErrorCode.DISK_FULL if why.errno in (28, 122) else ErrorCode.STORE  # ENOSPC, EDQUOT
    return error(code, f"a volume's files could not be kept on the worker: {why}", next="free space on its disk")
