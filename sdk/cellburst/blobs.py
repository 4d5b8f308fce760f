"""Values over 1 MiB: a file in the gateway's blob folder when it is on this machine, an HTTP stream otherwise."""

from __future__ import annotations

import contextlib
import http.client
import mmap
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import Welcome

from .blobs_early import EarlyReads
from .endpoint import Endpoint
from .http_connection import connection
from .local_files import lies_on_this_machine

TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}")
CHUNK_BYTES = 8 * 1024 * 1024
READ_BYTES = 1024 * 1024
HASH_BYTES = 64 * 1024 * 1024
HTTP_TIMEOUT_SECONDS = 60.0
MAP_BYTES = 64 * 1024 * 1024  # copying less takes under 0.2 s even into memory that was never used before


class BlobClient:
    """Puts and gets blobs. Synchronous and thread-safe; big transfers belong into a thread, never onto a link's loop."""

    def __init__(self, endpoint: Endpoint, welcome: Welcome) -> None:
        self._endpoint = endpoint
        self._folder = _shared_folder(welcome)
        self._early = EarlyReads()

    @property
    def shared(self) -> bool:
        """Whether the gateway's blob folder is used directly."""
        return self._folder is not None

    def has(self, hash: str) -> bool:
        """Whether the gateway has the blob (of this workspace)."""
        if self._folder is not None:
            return (self._folder / hash[:2] / hash).exists()
        with self._request("HEAD", hash) as response:
            return response.status == 200

    def put(self, hash: str, view: Buffer, on_file: Callable[[str], None] = lambda name: None) -> None:
        """Store bytes under their BLAKE3 hash; nothing happens if it is there. Raises DISK_FULL or another error.

        `on_file` is told the name below tmp/ of the shared folder's file that the bytes are being written to.
        """
        if self.has(hash):
            return
        data = memoryview(view).cast("B")
        if self._folder is None:
            with self._request("PUT", hash, data) as response:
                _expect(response, 200, 201, 204)
            return
        (self._folder / "tmp").mkdir(exist_ok=True)
        (self._folder / hash[:2]).mkdir(exist_ok=True)
        part = self._folder / "tmp" / secrets.token_hex(16)
        try:
            with open(part, "xb", buffering=0) as file:
                on_file(part.name)
                for start in range(0, len(data), CHUNK_BYTES):
                    _write_all(file.fileno(), data[start : start + CHUNK_BYTES])
            part.rename(self._folder / hash[:2] / hash)
        except OSError as why:
            raise error(
                ErrorCode.DISK_FULL if why.errno in (28, 122) else ErrorCode.STORE,
                f"a value of {len(data):,} bytes could not be stored in {self._folder}: {why.strerror}",
                next="free some space and run the cell again; nothing was lost",
            ) from None
        finally:
            part.unlink(missing_ok=True)  # also when the cell was interrupted

    def put_file(self, hash: str, path: Path, on_progress: Callable[[int], None] = lambda count: None) -> None:
        """Store a file's bytes under their BLAKE3 hash, without reading it whole into memory; nothing happens if it is there.
        `on_progress` is told how many more bytes were taken. Raises DISK_FULL or another error."""
        if self.has(hash):
            return
        try:
            with open(path, "rb", buffering=0) as file:
                if self._folder is None:
                    body = _Counted(file, on_progress)
                    with self._request("PUT", hash, body, os.fstat(file.fileno()).st_size) as response:
                        _expect(response, 200, 201, 204)
                else:
                    self._copy_in(hash, file, on_progress)
        except OSError as why:
            raise error(
                ErrorCode.DISK_FULL if why.errno in (28, 122) else ErrorCode.STORE,
                f"{path.name} could not be stored: {why.strerror}", next="free some space and try again; nothing was lost",
            ) from None  # fmt: skip

    def _copy_in(self, hash: str, file: IO[bytes], on_progress: Callable[[int], None]) -> None:
        assert self._folder is not None
        (self._folder / "tmp").mkdir(exist_ok=True)
        (self._folder / hash[:2]).mkdir(exist_ok=True)
        part = self._folder / "tmp" / secrets.token_hex(16)
        try:
            with open(part, "xb", buffering=0) as sink:
                while chunk := file.read(CHUNK_BYTES):
                    _write_all(sink.fileno(), memoryview(chunk))
                    on_progress(len(chunk))
            part.rename(self._folder / hash[:2] / hash)
        finally:
            part.unlink(missing_ok=True)

    def begin_get(self, file: str, size_bytes: int) -> None:
        """A result is being written as `file` below tmp/ of the shared folder: read it from now on, for a `get` of it later.
        Nothing happens where it cannot be read here."""
        if self._folder is not None and TEMPORARY_NAME.fullmatch(file):
            self._early.begin(self._folder / "tmp" / file, size_bytes)

    def end_get(self) -> None:
        """The cells that results were announced for are over: what was read for them and not taken is given up."""
        self._early.drop()

    def discard(self, hash: str) -> None:
        """The blob was a result, and it was read: its file goes, so that its disk and memory can be used again.

        One that a container uses too (another link to the file) stays, and so does everything on another machine: the
        gateway removes what was long not used. Memory that `get` gave stays valid; a mapped file's disk space is free once
        that memory is.
        """
        if self._folder is None:
            return
        path = self._folder / hash[:2] / hash
        with contextlib.suppress(OSError):
            if path.stat().st_nlink == 1:
                path.unlink()

    def get(self, hash: str, size_bytes: int) -> memoryview:
        """The blob's bytes in writable memory of the caller's own, checked against the hash. Raises NOT_FOUND or INTEGRITY.

        A large blob of this machine that nobody can change any more is not copied: its file is mapped, and a page is copied
        when it is first written to.
        """
        if self._folder is not None:
            early = self._early.take(self._folder / hash[:2] / hash, hash, size_bytes)
            if early is not None:
                return early
        if self._folder is not None and size_bytes >= MAP_BYTES:
            mapped = _map_sealed(self._folder / hash[:2] / hash, size_bytes)
            if mapped is not None:
                if _hash_in_steps(mapped) != hash:
                    raise _damaged(hash)
                return mapped
        # A mapping is zeros already: a bytearray of this size would be filled with them first.
        view = memoryview(mmap.mmap(-1, size_bytes) if size_bytes else bytearray())
        with self._open(hash) as file:
            found, position = _read_and_hash(file.readinto, view)
            more = file.read(1)
        if position != size_bytes or more or found != hash:
            raise _damaged(hash)
        return view

    @contextlib.contextmanager
    def _open(self, hash: str) -> Iterator[http.client.HTTPResponse]:
        if self._folder is None:
            with self._request("GET", hash) as response:
                _expect(response, 200)
                yield response
            return
        try:
            file = open(self._folder / hash[:2] / hash, "rb", buffering=0)  # noqa: SIM115  # closed by the with below
        except FileNotFoundError:
            raise _not_found(hash) from None
        with file:
            yield file  # type: ignore[misc]  # readinto and read are all that is used of either

    @contextlib.contextmanager
    def _request(
        self, verb: str, hash: str, body: memoryview | _Counted | None = None, size_bytes: int = 0
    ) -> Iterator[http.client.HTTPResponse]:
        dialled = connection(self._endpoint, HTTP_TIMEOUT_SECONDS)
        try:
            headers = {"Authorization": f"Bearer {self._endpoint.token}"}
            if body is not None:
                headers["Content-Length"] = str(len(body) if isinstance(body, memoryview) else size_bytes)
            dialled.request(verb, f"/blobs/{hash}", body=body, headers=headers)
            # Of an answer that ends its connection the socket is the response's, not the connection's.
            with contextlib.closing(dialled.getresponse()) as response:
                yield response
        except OSError as why:
            raise error(ErrorCode.GATEWAY_DOWN, f"the gateway did not take or give a blob: {why}") from None
        finally:
            dialled.close()


class _Counted:
    """A file that says how much was read of it."""

    def __init__(self, file: IO[bytes], on_progress: Callable[[int], None]) -> None:
        self._file = file
        self._on_progress = on_progress

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(max(size, READ_BYTES))  # http.client asks for 8 KiB at a time
        self._on_progress(len(data))
        return data


def _shared_folder(welcome: Welcome) -> Path | None:
    """The blob folder, if the proof file can be read here and holds the proof."""
    if not welcome.blob_folder or not welcome.blob_proof:
        return None
    try:
        proof = Path(welcome.blob_proof_path).read_text()
    except OSError:
        return None
    folder = Path(welcome.blob_folder)
    return folder if proof == welcome.blob_proof and os.access(folder, os.W_OK) else None


def _map_sealed(path: Path, size_bytes: int) -> memoryview | None:
    """The file as private, writable memory; None where it must be copied.

    It may be mapped when no process has it open for writing or ever will (a worker that stores bytes of its own leaves the
    file without write permission, and gives write permission to one that came from a container), and when it lies on this
    machine: a file that another machine removes would take this process with it at the next access.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None  # the way that copies says what is wrong
    try:
        status = os.fstat(fd)
        sealed = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o222
        if not sealed or status.st_size != size_bytes or not lies_on_this_machine(status.st_dev):
            return None
        return memoryview(mmap.mmap(fd, size_bytes, access=mmap.ACCESS_COPY))
    except OSError:
        return None  # no mappings of files here
    finally:
        os.close(fd)


def _hash_in_steps(view: memoryview) -> str:
    """The hash, on all cores, in steps between which an interrupt is noticed."""
    hasher = blake3(max_threads=blake3.AUTO)
    for start in range(0, len(view), HASH_BYTES):
        hasher.update(view[start : start + HASH_BYTES])
    return hasher.hexdigest()


def _read_and_hash(readinto: Callable[[memoryview], int | None], view: memoryview) -> tuple[str, int]:
    """Fill `view`; the hash and how much was read. Each piece is hashed while it is still in the processor's cache: another
    thread for it, or a second pass on all cores, took as long (both wait for memory)."""
    hasher, position = blake3(), 0
    while position < len(view):
        count = readinto(view[position : position + READ_BYTES])
        if not count:
            break
        hasher.update(view[position : position + count])
        position += count
    return hasher.hexdigest(), position


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _damaged(hash: str) -> Exception:
    return error(ErrorCode.INTEGRITY, f"blob {hash[:12]}… is damaged: it was not used", next="run the cell again")


def _not_found(hash: str) -> Exception:
    return error(ErrorCode.NOT_FOUND, f"blob {hash[:12]}… is not there (any more)", next="run the cell again")


def _expect(response: http.client.HTTPResponse, *statuses: int) -> None:
    if response.status in statuses:
        return
    if response.status == 404:
        raise _not_found("")
    code = ErrorCode.DISK_FULL if response.status == 507 else ErrorCode.STORE
    raise error(code, f"the gateway answered a blob with HTTP status {response.status}", next="see its log")
