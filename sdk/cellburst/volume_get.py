"""Files of a volume onto this machine: never outside the target folder, never over another file without `force`.

A file is written as `.HASH.part` beside its place, each chunk checked before it is written, and renamed when it is whole. A get
that was cut off goes on with the chunks that its `.part` files have.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.volumes import CHUNK_BYTES, Chunk, FileEntry, shown

from .beneath import folder_of, refused
from .exceptions import VolumeFileExists
from .volume_api import VolumeApi
from .volume_put import BATCH_BYTES, BATCH_PIECES, THREADS, Progress

_NO_LINKS = (1, 18, 38, 95)  # EPERM, EXDEV, ENOSYS, EOPNOTSUPP: a file system without hard links


class Counted(Protocol):
    """A report that counts what was there already."""

    unchanged: int


@dataclass
class GetReport:
    """What a get did. `skipped` are links that lead out of the folder: they are not made."""

    files: int = 0
    size_bytes: int = 0
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass
class Download:
    """An entry and where it goes, relative to the target folder."""

    entry: FileEntry
    path: str
    part: int = -1  # the open `.part` file


Write = Callable[[Download, int, bytes | memoryview], None]


class Getter:
    """One get into `root`, which is there. `run` blocks; `stop` may be set from elsewhere."""

    def __init__(
        self, api: VolumeApi, volume: str, root: Path, *, force: bool, progress: Progress, stop: threading.Event
    ) -> None:
        self._api, self._volume, self._root, self._force = api, volume, root, force
        self._progress, self._stop = progress, stop

    def run(self, downloads: Sequence[Download]) -> GetReport:
        """Fetch. Raises VolumeFileExists (before anything is written), RequestError (FORBIDDEN), PlatformError."""
        report = GetReport(files=len(downloads), size_bytes=sum(d.entry.size_bytes for d in downloads))
        self._progress.begin(len(downloads), report.size_bytes)
        with disk_told(self._root):
            todo = left_to_fetch(
                self._root, downloads, self._state, report, self._progress, force=self._force, other="with other content",
                next="force=True (--force) replaces it; or give another folder",
            )  # fmt: skip
            for download in todo:
                if download.entry.kind == "folder":
                    with folder_of(self._root, f"{download.path}/-", make=True):
                        self._progress.moved(1, 0)
            files = [download for download in todo if download.entry.kind == "file"]
            small = [d for d in files if len(d.entry.chunks) <= 1]
            self._fetch([(d, list(enumerate(d.entry.chunks))) for d in small], self._write_small)
            for download in files:  # one after another: each keeps all threads busy
                if len(download.entry.chunks) > 1:
                    self._large(download)
            for download in todo:  # at the end: nothing is written through them
                if download.entry.kind == "link":
                    self._link(download, report)
        return report

    def _state(self, download: Download) -> str:
        """What is at its place: "" nothing, "same" the very content, "other" something else."""
        entry = download.entry
        try:
            with folder_of(self._root, download.path, make=False) as (folder, name):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if entry.kind == "folder":
                    if stat.S_ISDIR(status.st_mode):
                        return "same"
                    raise refused(self._root, download.path)
                if stat.S_ISDIR(status.st_mode):
                    raise refused(self._root, download.path)
                if entry.kind == "link":
                    is_same = stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=folder) == entry.target
                    return "same" if is_same else "other"
                if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size_bytes:
                    return "other"
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
                try:
                    return (
                        "same" if all(_has(fd, number, chunk) for number, chunk in enumerate(entry.chunks)) else "other"
                    )
                finally:
                    os.close(fd)
        except FileNotFoundError:
            return ""

    # -- writing ---------------------------------------------------------------------------------------------------

    def _fetch(self, wanted: Sequence[tuple[Download, list[tuple[int, Chunk]]]], write: Write) -> None:
        with ThreadPoolExecutor(THREADS, "cellburst-get") as threads:
            working = [threads.submit(self._batch, batch, write) for batch in _batches(wanted)]
            try:
                for work in working:
                    work.result()
            except BaseException:
                self._stop.set()
                raise

    def _batch(self, batch: Sequence[tuple[Download, int, Chunk | None]], write: Write) -> None:
        if self._stop.is_set():
            return
        chunks = [chunk for _, _, chunk in batch if chunk is not None]
        given = self._api.receive(chunks)
        for download, number, chunk in batch:
            data: bytes | memoryview = next(given)[1] if chunk is not None else b""
            write(download, number, data)
            if self._stop.is_set():
                return

    def _write_small(self, download: Download, number: int, data: bytes | memoryview) -> None:
        with folder_of(self._root, download.path, make=True) as (folder, name):
            part = self._part(download)
            fd = open_part(folder, part)
            try:
                os.ftruncate(fd, 0)
                _write_at(fd, data, 0)
                self._finish(download, folder, name, part, fd)
            finally:
                os.close(fd)
        self._progress.moved(1, len(data))

    def _large(self, download: Download) -> None:
        chunks = download.entry.chunks
        with folder_of(self._root, download.path, make=True) as (folder, name):
            part = self._part(download)
            fd = download.part = open_part(folder, part)
            try:
                before = os.fstat(fd).st_size
                os.ftruncate(fd, download.entry.size_bytes)
                wanted = list(enumerate(chunks))
                if before:
                    wanted = [(number, chunk) for number, chunk in wanted if not _has(fd, number, chunk)]
                    self._progress.moved(0, download.entry.size_bytes - sum(chunk.size_bytes for _, chunk in wanted))
                self._fetch([(download, wanted)] if wanted else [], self._write_piece)
                if self._stop.is_set():
                    return
                self._finish(download, folder, name, part, fd)
            finally:
                os.close(fd)
        self._progress.moved(1, 0)

    def _write_piece(self, download: Download, number: int, data: bytes | memoryview) -> None:
        _write_at(download.part, data, number * CHUNK_BYTES)
        self._progress.moved(0, len(data))

    def _part(self, download: Download) -> str:
        return f".{blake3(f'{self._volume}/{download.entry.path}'.encode()).hexdigest()[:24]}.part"

    def _finish(self, download: Download, folder: int, name: str, part: str, fd: int) -> None:
        """Give it its mode, time and name."""
        entry = download.entry
        os.fchmod(fd, (entry.mode & 0o777) | stat.S_IRUSR | stat.S_IWUSR)
        if entry.modified_ns:
            os.utime(fd, ns=(entry.modified_ns, entry.modified_ns))
        if self._force:
            os.replace(part, name, src_dir_fd=folder, dst_dir_fd=folder)
            return
        try:
            os.link(part, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)  # fails where something is
        except FileExistsError:
            raise self._came_meanwhile(download) from None
        except OSError as why:
            if why.errno not in _NO_LINKS:
                raise
            if _exists(name, folder):
                raise self._came_meanwhile(download) from None
            os.rename(part, name, src_dir_fd=folder, dst_dir_fd=folder)
        else:
            os.unlink(part, dir_fd=folder)

    def _link(self, download: Download, report: GetReport) -> None:
        if _leads_out(download.entry):
            report.skipped.append(download.path)
            self._progress.moved(1, 0)
            return
        with folder_of(self._root, download.path, make=True) as (folder, name):
            if self._force and _exists(name, folder):
                os.unlink(name, dir_fd=folder)
            try:
                os.symlink(download.entry.target, name, dir_fd=folder)
            except FileExistsError:
                raise self._came_meanwhile(download) from None
        self._progress.moved(1, 0)

    def _came_meanwhile(self, download: Download) -> Exception:
        return VolumeFileExists(
            ErrorInfo(
                code=ErrorCode.CONFLICT, message=f"{shown(download.path)} came to be while it was fetched: it was left as it is",
                next="force=True (--force) replaces it",
            )
        )  # fmt: skip


@contextlib.contextmanager
def disk_told(root: Path) -> Iterator[None]:
    """An OSError as PlatformError (DISK_FULL, STORE): the disk below `root` is full, or cannot be written."""
    try:
        yield
    except CellburstError:
        raise  # VolumeFileExists is an OSError too
    except OSError as why:
        full = why.errno in (28, 122)
        raise error(
            ErrorCode.DISK_FULL if full else ErrorCode.STORE,
            f"{shown(str(root))} {'is on a full disk' if full else f'cannot be written: {why.strerror}'}",
            next="free some space, then get again: what is there is not fetched again",
        ) from None  # fmt: skip


def left_to_fetch(
    root: Path, downloads: Sequence[Download], state: Callable[[Download], str], report: Counted, progress: Progress, *,
    force: bool, other: str, next: str,
) -> list[Download]:  # fmt: skip
    """Those that are not there already. `state` says what is at a place: "" nothing, "same", or "other", which without `force` is
    refused (VolumeFileExists, before anything is written; `other` and `next` are words of it)."""
    todo, taken = [], []
    for download in downloads:
        there = state(download)
        if there == "same":
            report.unchanged += 1
            progress.moved(1, download.entry.size_bytes)
            continue
        if there == "other" and not force:
            taken.append(download.path)
        todo.append(download)
    if taken:
        more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
        raise VolumeFileExists(
            ErrorInfo(
                code=ErrorCode.CONFLICT, message=f"{shown(str(root))} has {shown(taken[0])}{more} already, {other}",
                next=next, detail={"paths": "\n".join(taken[:100])},
            )
        )  # fmt: skip
    return todo


def open_part(folder: int, part: str, mode: int = 0o600) -> int:
    """A draft in an open folder, made or found again: nobody else writes it until it is closed. Raises RequestError (FORBIDDEN,
    BUSY)."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(part, flags, mode, dir_fd=folder)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            raise error(ErrorCode.FORBIDDEN, f"{part} is no file of ours", next="remove it, then get again")
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise error(ErrorCode.BUSY, "another get writes the same file", next="wait until it is done") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _batches(
    wanted: Sequence[tuple[Download, list[tuple[int, Chunk]]]],
) -> Iterator[list[tuple[Download, int, Chunk | None]]]:
    batch: list[tuple[Download, int, Chunk | None]] = []
    size = 0
    for download, chunks in wanted:
        pieces: list[tuple[int, Chunk | None]] = [*chunks] if chunks else [(0, None)]
        for number, chunk in pieces:
            length = chunk.size_bytes if chunk is not None else 0
            if batch and (size + length > BATCH_BYTES or len(batch) >= BATCH_PIECES):
                yield batch
                batch, size = [], 0
            batch.append((download, number, chunk))
            size += length
    if batch:
        yield batch


def _has(fd: int, number: int, chunk: Chunk) -> bool:
    data = os.pread(fd, chunk.size_bytes, number * CHUNK_BYTES)
    return len(data) == chunk.size_bytes and blake3(data).hexdigest() == chunk.hash


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _exists(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _leads_out(entry: FileEntry) -> bool:
    """Whether a link may lead out of the folder. A `..` behind a name counts as leading out: that name may be a link itself."""
    parts = [part for part in entry.target.split("/") if part not in ("", ".")]
    up = 0
    while up < len(parts) and parts[up] == "..":
        up += 1
    return entry.target.startswith("/") or ".." in parts[up:] or up > entry.path.count("/")
