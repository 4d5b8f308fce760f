"""Values over 1 MiB by HTTP: PUT, GET and HEAD /blobs/HASH, streamed, checked while they are written.

A blob lies at BLOB_FOLDER/<first two hex digits>/<hash>. A hash is no capability: what another workspace put is 404.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error

HASH = re.compile(r"[0-9a-f]{64}")
CHUNK_BYTES = 1024 * 1024  # read and sent at a time: bounds memory per download
KEEP_SECONDS = 3600.0
STALE_SECONDS = 86400  # a temporary file untouched for a day belongs to a writer that is gone


class BlobFolder:
    """The folder of blobs. Writers rename into place, so a blob that is there is whole."""

    def __init__(self, folder: Path, home_workspace: str) -> None:
        self.folder = folder
        self._home = home_workspace
        for path in (folder, folder / "tmp", folder / "owners"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, hash: str) -> Path:
        """Where the blob lies or would lie. Raises RequestError for what is no BLAKE3 hash in hex."""
        if not HASH.fullmatch(hash):
            raise error(ErrorCode.BAD_ARGUMENT, f"{hash[:80]!r} is not a blob's hash", allowed="64 hexadecimal digits")
        return self.folder / hash[:2] / hash

    def writer(self, hash: str, max_bytes: int) -> BlobWriter:
        """Begin to write the blob of this hash."""
        return BlobWriter(self, hash, max_bytes)

    def add_owner(self, workspace: str, hash: str) -> None:
        """Note that a workspace put the blob itself."""
        if workspace != self._home:
            mark = self._mark(workspace, hash)
            mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            mark.touch()

    def may_read(self, workspace: str, hash: str) -> bool:
        """Whether the blob is there and this workspace's. Files that processes of this machine put are the home
        workspace's: only this user can write there."""
        if not self.path(hash).is_file():
            return False
        return workspace == self._home or self._mark(workspace, hash).exists()

    def missing(self, workspace: str, hashes: Iterable[str]) -> list[str]:
        """Those that this workspace may not read or that are not there. The others count as used now, so that they stay for
        who is about to fetch them. Raises RequestError for what is no hash."""
        found: list[str] = []
        for hash in hashes:
            try:
                if not self.may_read(workspace, hash):
                    found.append(hash)
                else:
                    with contextlib.suppress(PermissionError):
                        os.utime(self.path(hash))
            except FileNotFoundError:
                found.append(hash)
        return found

    def _mark(self, workspace: str, hash: str) -> Path:
        return self.folder / "owners" / blake3(workspace.encode()).hexdigest()[:32] / hash

    def remove_stale(self, now_unix_seconds: float) -> int:
        """Remove temporary files whose writers are gone; returns how many."""
        removed = 0
        for path in (self.folder / "tmp").iterdir():
            with contextlib.suppress(OSError):
                if now_unix_seconds - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
                    removed += 1
        return removed

    def evict(self, max_bytes: int, now_unix_seconds: float) -> int:
        """Remove the blobs that were longest not used until at most `max_bytes` are left; returns how many went.

        One that was used within `KEEP_SECONDS` stays: a cell may be on its way to it. Every blob is a copy of what a
        kernel or container holds, so that an evicted one is sent again when it is asked for.
        """
        found = []
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((max(status.st_mtime, status.st_ctime), status.st_size, path))
        left, removed = sum(size for _, size, _ in found), 0
        for used, size, path in sorted(found):
            if left <= max_bytes or now_unix_seconds - used < KEEP_SECONDS:
                break
            with contextlib.suppress(OSError):
                path.unlink()
                left, removed = left - size, removed + 1
        return removed


class BlobWriter:
    """One upload. `write` any number of times, then `finish`; `abandon` at any time, also after `finish`."""

    def __init__(self, blobs: BlobFolder, hash: str, max_bytes: int) -> None:
        self._target = blobs.path(hash)
        self._hash = hash
        self._max_bytes = max_bytes
        self._hasher = blake3()
        self._temporary = blobs.folder / "tmp" / secrets.token_hex(16)
        self.size_bytes = 0
        with translated_disk_errors():
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._file: IO[bytes] | None = os.fdopen(descriptor, "wb", buffering=0)

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises RequestError (TOO_LARGE) or PlatformError (DISK_FULL)."""
        assert self._file is not None
        self.size_bytes += len(data)
        if self.size_bytes > self._max_bytes:
            raise error(
                ErrorCode.TOO_LARGE,
                f"a blob of more than {self._max_bytes} bytes",
                next="send less, or put it in a volume",
            )
        self._hasher.update(data)
        view = memoryview(data)
        with translated_disk_errors():
            while view:  # an unbuffered write may be partial when the disk fills up
                view = view[self._file.write(view) :]

    def finish(self) -> None:
        """Check the hash and put the blob in place. Raises RequestError (BAD_ARGUMENT) when the bytes are others."""
        assert self._file is not None
        found = self._hasher.hexdigest()
        if found != self._hash:
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"the bytes sent have the hash {found}, not {self._hash}",
                next="send them again",
            )
        with translated_disk_errors():
            self._file.close()
            self._file = None
            self._target.parent.mkdir(mode=0o700, exist_ok=True)
            self._temporary.replace(self._target)

    def abandon(self) -> None:
        """Leave nothing of an unfinished upload."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def translated_disk_errors() -> Iterator[None]:
    """Turn the system's disk errors into PlatformError (DISK_FULL or STORE)."""
    try:
        yield
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error(
                ErrorCode.DISK_FULL, "the gateway's disk is full", next="free some space, then try again"
            ) from None
        raise error(ErrorCode.STORE, f"the gateway cannot write its blob folder: {why.strerror}") from None
