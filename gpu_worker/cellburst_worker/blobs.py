"""Values over 1 MiB on this machine: the blob folder, and HTTP to the gateway when that folder is not the gateway's own.

Layout, shared with gateway and kernels: FOLDER/<first two hex digits>/<hash>, written as FOLDER/tmp/<random> and renamed.
A blob without write permission is sealed: nothing but its one writer ever had it open for writing, and a kernel may map it
instead of copying it. A file that was moved here from a container is not: something in there may still have it open.
Everything here blocks and is called in a thread.
"""

from __future__ import annotations

import ctypes
import errno
import http.client
import os
import re
import secrets
import shutil
import stat
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import ValuePart

from . import loopback_peer

HASH = re.compile(r"[0-9a-f]{64}")
TEMPORARY_NAME = re.compile(r"[0-9a-f]{32}")
# Read, hashed and written at a time, and freed in the source when it is copied: a huge page, because Linux gives a freed one
# of that size to the next that asks for it. With 1 or 16 MiB the copy took memory that this machine had not used for a while,
# which costs seconds for a gigabyte where a hypervisor has taken it back.
CHUNK_BYTES = 2 * 1024 * 1024
SEALED_MODE, MOVED_MODE = 0o444, 0o644  # who may reach a blob at all is what its folder's mode says
HTTP_TIMEOUT_SECONDS = 30.0  # without a byte moving

Copied = Callable[[str, int, Path], str]

_fallocate = getattr(ctypes.CDLL(None), "fallocate", None)  # only on Linux


class BlobFolder:
    """A folder of blobs. What lies in it under its hash is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for path in (folder, folder / "tmp"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, hash: str) -> Path:
        """Where the blob lies or would lie. Raises PlatformError (INTEGRITY) for what is no BLAKE3 hash in hex."""
        if not HASH.fullmatch(hash):
            raise error(ErrorCode.INTEGRITY, f"{hash[:80]!r} is not a blob's hash", allowed="64 hexadecimal digits")
        return self.folder / hash[:2] / hash

    def temporary(self) -> Path:
        """A path for a file that is being written."""
        return self.folder / "tmp" / secrets.token_hex(16)

    def temporary_of(self, name: str) -> Path:
        """The file that another writes under this name. Raises PlatformError (INTEGRITY) for what is none of its names."""
        if not TEMPORARY_NAME.fullmatch(name):
            raise error(
                ErrorCode.INTEGRITY, f"{name[:80]!r} is not a temporary file's name", allowed="32 hexadecimal digits"
            )
        return self.folder / "tmp" / name

    def adopt(self, temporary: Path, hash: str) -> Path:
        """Put a finished temporary file in its place."""
        target = self.path(hash)
        target.parent.mkdir(mode=0o700, exist_ok=True)
        temporary.replace(target)
        return target

    def link_into(self, hash: str, size_bytes: int, folder: Path) -> None:
        """Show a blob as FOLDER/<hash>, readable for the container's user: by hard link, else as a copy.

        Its content is not hashed again: who can write here can write the gateway's record as well. Raises PlatformError
        (INTEGRITY) when it is not there or has another size.
        """
        source, target = self.path(hash), folder / hash
        if target.exists():
            return
        try:
            found = source.stat().st_size
        except FileNotFoundError:
            raise error(ErrorCode.INTEGRITY, f"the blob {hash[:16]}… is not there", next="run the cell again") from None
        if found != size_bytes:
            raise error(ErrorCode.INTEGRITY, f"the blob {hash[:16]}… has {found} bytes, not {size_bytes}")
        try:
            os.link(source, target)
        except FileExistsError:
            return
        except OSError as why:
            if why.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
                raise
            partial = target.with_name(f".{hash}.{secrets.token_hex(4)}")
            shutil.copyfile(source, partial)
            partial.replace(target)
        target.chmod(stat.S_IMODE(target.stat().st_mode) | 0o444)  # seals nothing that is not

    def take_file(self, folder: Path, name: str, size_bytes: int, copied: Copied = lambda name, size, path: "") -> str:
        """Move FOLDER/NAME, which a container wrote, in here and return its hash.

        `copied` puts a copy that was made already at a path, and returns its hash; "" when there is none.

        The file is first renamed away from the container, so that its name can no longer be changed under us, and only
        then opened, without following links. Raises PlatformError (INTEGRITY) for anything but a regular file of that
        size; what was at the name is gone then.
        """
        source, staged = folder / name, self.temporary()
        try:
            hash = copied(name, size_bytes, staged)
            if hash:
                _discard(source)
            else:
                hash = self._stage(source, staged, size_bytes)
            self.adopt(staged, hash)
        except FileNotFoundError:
            raise error(ErrorCode.INTEGRITY, f"the value file {name!r} is not there") from None
        finally:
            _discard(staged)
        return hash

    def keep_copy(self, source: Path) -> ValuePart:
        """Copy a file of the worker's own machine in here. Raises OSError, PlatformError (INTEGRITY: it changes meanwhile)."""
        staged = self.temporary()
        try:
            size = source.stat().st_size
            fd = _open_regular(source, size)
            try:
                hash = _hash_fd(fd, size, staged)
            finally:
                os.close(fd)
            self.adopt(staged, hash)
        finally:
            _discard(staged)
        return ValuePart(hash=hash, size_bytes=size, at="blob")

    def _stage(self, source: Path, staged: Path, size_bytes: int) -> str:
        try:
            source.rename(staged)
        except OSError as why:
            if why.errno != errno.EXDEV:
                raise
            return self._copy(source, staged, size_bytes)
        fd = _open_regular(staged, size_bytes)
        try:
            if os.fstat(fd).st_nlink != 1:  # another name of it stays in the container: keep bytes of our own
                private = self.temporary()
                hash = _hash_fd(fd, size_bytes, private)
                private.replace(staged)
                return hash
            if os.geteuid() == 0:
                os.fchown(fd, 0, 0)
            os.fchmod(fd, MOVED_MODE)
            return _hash_fd(fd, size_bytes)
        finally:
            os.close(fd)

    def _copy(self, source: Path, staged: Path, size_bytes: int) -> str:
        try:
            fd = _open_regular(source, size_bytes, os.O_RDWR)
            try:
                return _hash_fd(fd, size_bytes, staged, free=True)
            finally:
                os.close(fd)
        finally:
            _discard(source)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _open_regular(path: Path, size_bytes: int, access: int = os.O_RDONLY) -> int:
    try:
        fd = os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as why:
        if why.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES, errno.EISDIR):
            raise error(ErrorCode.INTEGRITY, f"the value file {path.name!r} is not a regular file") from None
        raise
    found = os.fstat(fd)
    if not stat.S_ISREG(found.st_mode) or found.st_size != size_bytes:
        os.close(fd)
        what = f"{found.st_size} bytes" if stat.S_ISREG(found.st_mode) else "not a regular file"
        raise error(ErrorCode.INTEGRITY, f"the value file {path.name!r} is {what}; {size_bytes} bytes were announced")
    return fd


class Copier:
    """Copies an open file from its beginning, and hashes it; `out` -1 only hashes. `free_bytes` (0: never): the file is
    not needed afterwards, and gives its memory back in steps of so much as it is copied, which the copy then takes."""

    # By read and not by mmap: a container that cuts the file short meanwhile must give an error and no SIGBUS.
    def __init__(self, source: int, out: int, size_bytes: int, *, free_bytes: int = 0) -> None:
        self._source, self._out, self.free_bytes = source, out, free_bytes
        self._hasher = blake3()
        self._buffer = memoryview(bytearray(min(CHUNK_BYTES, max(size_bytes, 1))))
        self.done = self._freed = 0

    def step(self) -> int:
        """Copy what is there, at most CHUNK_BYTES; how much that was, 0 at the end. Raises OSError; may be called again then."""
        got = os.preadv(self._source, [self._buffer], self.done)
        piece = self._buffer[:got]
        _write_all(self._out, piece, self.done)
        self._hasher.update(piece)
        self.done += got
        if self.free_bytes and self.done >= self._freed + self.free_bytes:
            punch(self._source, self._freed, self.done - self._freed)
            self._freed = self.done
        return got

    def end(self) -> None:
        """All was copied: nothing waits to be written here, see `DirectCopier.end`."""

    def hash(self) -> str:
        """BLAKE3 of what was copied, in hex."""
        return self._hasher.hexdigest()


def changed(done: int, size_bytes: int) -> CellburstError:
    """For a file that does not have as many bytes as were announced."""
    return error(ErrorCode.INTEGRITY, f"a value file changed while it was read: {done} bytes instead of {size_bytes}")


def _hash_fd(fd: int, size_bytes: int, copy_to: Path | None = None, *, free: bool = False) -> str:
    """Hash a file, and copy it. `free`: see Copier."""
    out = os.open(copy_to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SEALED_MODE) if copy_to else -1
    try:
        copier = Copier(fd, out, size_bytes, free_bytes=CHUNK_BYTES if free else 0)
        while copier.done <= size_bytes and copier.step():
            pass
    finally:
        if out >= 0:
            os.close(out)
    if copier.done != size_bytes:
        raise changed(copier.done, size_bytes)
    return copier.hash()


def punch(fd: int, offset: int, size_bytes: int) -> None:
    """Make a hole in a file; where that cannot be, its space is simply given back later, when it is removed."""
    keep_size, punch_hole = 1, 2  # linux/falloc.h
    if _fallocate is not None:
        _fallocate(fd, keep_size | punch_hole, ctypes.c_int64(offset), ctypes.c_int64(size_bytes))


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while fd >= 0 and data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


class GatewayBlobs:
    """Blobs by HTTP, for a worker that does not share the gateway's folder. `url` is http(s)://host:port; `owners` are those
    of `GatewayLink`."""

    def __init__(self, url: str, token: Callable[[], str], owners: Callable[[], Iterable[int]] = tuple) -> None:
        self._url = urllib.parse.urlsplit(url)
        self._token, self._owners = token, owners

    def fetch(self, hash: str, size_bytes: int, into: BlobFolder) -> None:
        """Get a blob, checked, unless it is here already. Raises PlatformError (INTEGRITY, UNAVAILABLE, DISK_FULL)."""
        if into.path(hash).exists():
            return
        temporary = into.temporary()
        try:
            self._download(hash, size_bytes, temporary)
            into.adopt(temporary, hash)
        finally:
            temporary.unlink(missing_ok=True)

    def send(self, hash: str, blobs: BlobFolder) -> None:
        """Put a blob. Raises PlatformError (UNAVAILABLE: try again; else what the gateway answered)."""
        with open(blobs.path(hash), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            connection = self._connect()
            try:
                connection.request(
                    "PUT", self._path(hash), body=file, headers=self._headers() | {"Content-Length": str(size)}
                )
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as why:
                raise _unavailable("sent to", why) from None
            finally:
                connection.close()
        _check_status(answer.status, "refused a value")

    def _download(self, hash: str, size_bytes: int, temporary: Path) -> None:
        connection = self._connect()
        out = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, SEALED_MODE)
        hasher, done = blake3(max_threads=blake3.AUTO), 0
        try:
            connection.request("GET", self._path(hash), headers=self._headers())
            answer = connection.getresponse()
            _check_status(answer.status, f"does not give the blob {hash[:16]}…")
            while done <= size_bytes and (piece := answer.read(CHUNK_BYTES)):
                hasher.update(piece)
                _write_local(out, piece, done)
                done += len(piece)
        except (OSError, http.client.HTTPException) as why:
            raise _unavailable("read from", why) from None
        finally:
            os.close(out)
            connection.close()
        if done != size_bytes or hasher.hexdigest() != hash:
            raise error(ErrorCode.INTEGRITY, f"the blob {hash[:16]}… came with other bytes", next="run the cell again")

    def _connect(self) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        made = kind(self._url.hostname or "", self._url.port, timeout=HTTP_TIMEOUT_SECONDS, blocksize=1024 * 1024)
        if secure:
            return made
        try:
            made.connect()
            loopback_peer.check(made.sock, self._owners())
        except OSError as why:
            made.close()
            raise _unavailable("exchanged with", why) from None
        return made

    def _path(self, hash: str) -> str:
        return f"{self._url.path.rstrip('/')}/blobs/{hash}"

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token()}"}


def _write_local(fd: int, piece: bytes, offset: int) -> None:
    try:
        _write_all(fd, memoryview(piece), offset)
    except OSError as why:
        raise error(
            ErrorCode.DISK_FULL, f"the worker's blob folder takes no more: {why.strerror}", next="free some space"
        ) from None


def _check_status(status: int, what: str) -> None:
    if status >= 500 or status == 429:
        raise error(ErrorCode.UNAVAILABLE, f"the gateway answered {status} and {what}")
    if status >= 300:
        raise error(ErrorCode.INTEGRITY, f"the gateway {what} (status {status})", next="run the cell again")


def _unavailable(what: str, why: Exception) -> CellburstError:
    return error(
        ErrorCode.UNAVAILABLE, f"a value could not be {what} the gateway: {why}", next="it is tried again by itself"
    )
