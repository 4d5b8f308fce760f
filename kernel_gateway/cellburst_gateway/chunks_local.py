"""Chunks in a folder of this machine: FOLDER/<workspace>/<first two hex digits>/<hash>, drafts in FOLDER/<workspace>/tmp.

Writers rename into place, so that a chunk is whole or not there however they end. By default nothing waits for the disk: the
system writes within about half a minute, and what a power cut took is noticed by its length or hash when it is read. With
`sync` each chunk is on the disk before it counts as put; programs of this machine then put theirs through the gateway too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from .chunks import ChunkStore, StoredChunk, check_bytes, not_there, workspace_part

STALE_SECONDS = 86400  # a draft untouched for a day belongs to a writer that is gone


class LocalChunks(ChunkStore):
    """See the module."""

    def __init__(self, folder: Path, *, sync: bool = False) -> None:
        self._folder = folder
        self._sync = sync
        self._known: dict[str, Path] = {}

    def put(self, workspace: str, hash: str, data: bytes | memoryview) -> None:
        """See `ChunkStore`."""
        check_bytes(hash, data)
        root = self._root(workspace)
        target, draft = root / hash[:2] / hash, root / "tmp" / secrets.token_hex(16)
        with _disk_errors():
            try:
                descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                try:
                    view = memoryview(data)
                    while view:  # a write may be partial when the disk fills up
                        view = view[os.write(descriptor, view) :]
                    if self._sync:
                        os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                try:
                    draft.replace(target)
                except FileNotFoundError:
                    target.parent.mkdir(mode=0o700, exist_ok=True)
                    draft.replace(target)
            except BaseException:
                draft.unlink(missing_ok=True)
                raise
            if self._sync:
                _sync_folder(target.parent)

    def get(self, workspace: str, hash: str) -> bytes:
        """See `ChunkStore`."""
        with _disk_errors():
            try:
                return self._path(workspace, hash).read_bytes()
            except FileNotFoundError:
                raise not_there(hash) from None

    def sizes(self, workspace: str, hashes: Iterable[str]) -> dict[str, int]:
        """See `ChunkStore`."""
        found: dict[str, int] = {}
        folder = str(self._root(workspace))
        with _disk_errors():
            for hash in hashes:
                path = f"{folder}/{hash[:2]}/{hash}"
                try:
                    os.utime(path)
                    size = os.stat(path).st_size  # noqa: PTH116  # a Path costs as much as the question
                except FileNotFoundError:
                    continue
                if size:  # an empty one is what a power cut leaves; no chunk is empty
                    found[hash] = size
        return found

    def stored(self, workspace: str) -> Iterator[StoredChunk]:
        """See `ChunkStore`."""
        with _disk_errors():
            for folder in (self._folder / workspace_part(workspace)).glob("[0-9a-f][0-9a-f]"):
                with os.scandir(folder) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            yield StoredChunk(entry.name, status.st_size, status.st_mtime)

    def remove(self, workspace: str, hash: str) -> None:
        """See `ChunkStore`."""
        with _disk_errors():
            self._path(workspace, hash).unlink(missing_ok=True)

    def folder(self, workspace: str) -> str:
        """See `ChunkStore`."""
        return "" if self._sync else str(self._root(workspace))

    def remove_stale(self, now_unix_seconds: float) -> int:
        """See `ChunkStore`."""
        removed = 0
        for path in self._folder.glob("*/tmp/*"):
            with contextlib.suppress(OSError):
                if now_unix_seconds - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()
                    removed += 1
        return removed

    def close(self) -> None:
        """Nothing is held."""

    def _root(self, workspace: str) -> Path:
        root = self._known.get(workspace)
        if root is None:
            root = self._folder / workspace_part(workspace)
            with _disk_errors():
                (root / "tmp").mkdir(mode=0o700, parents=True, exist_ok=True)
                for number in range(256):
                    (root / f"{number:02x}").mkdir(mode=0o700, exist_ok=True)
            self._known[workspace] = root
        return root

    def _path(self, workspace: str, hash: str) -> Path:
        return self._root(workspace) / hash[:2] / hash


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as why:
        if why.errno in (errno.ENOSPC, errno.EDQUOT):
            raise error(
                ErrorCode.DISK_FULL, "the disk on which volumes lie is full",
                next="free some space there, then try again: what was sent is not sent again",
            ) from None  # fmt: skip
        raise error(ErrorCode.STORE, f"the folder of volumes cannot be used: {why.strerror}") from None
