"""Files of this machine into a volume: hashed in pieces, sent where the gateway lacks them, then one commit.

What was sent stays with the gateway for an hour and more, so that a put that was cut off goes on where it was when it is
repeated. Links are stored as links and never followed, other than one that is named itself. A file that changes while it is
read is noticed (inode, size and times before and after) and ends the put before anything is published.
"""

from __future__ import annotations

import os
import stat
import threading
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_PATHS_PER_COMMIT,
    Chunk,
    CommitVolume,
    FileEntry,
    check_path,
    same_content,
    shown,
)

from .exceptions import VolumeFileExists
from .file_hashes import FileHashes
from .volume_api import VolumeApi

THREADS = 4  # each reads, hashes and writes or sends a batch
BATCH_BYTES = 2 * CHUNK_BYTES
BATCH_PIECES = 256
CHUNKS_PER_COMMIT = 300_000  # keeps a commit's body below what the gateway takes
TRIES = 3  # of a commit whose chunks were removed meanwhile


class Progress(Protocol):
    """Who shows a transfer; called from several threads."""

    def begin(self, files: int, size_bytes: int) -> None:
        """So much is to be done."""

    def moved(self, files: int, size_bytes: int) -> None:
        """So much more is done, or needed not be."""


class Silent:
    """Shows nothing."""

    def begin(self, files: int, size_bytes: int) -> None:
        """See `Progress`."""

    def moved(self, files: int, size_bytes: int) -> None:
        """See `Progress`."""


@dataclass
class Upload:
    """One path to publish. `source` is a file's path with the status it had, an open file, or None for a link or folder."""

    path: str
    kind: str = "file"
    source: str | BinaryIO | None = None
    status: os.stat_result | None = None
    mode: int | None = None
    target: str = ""
    hashes: list[str] = field(default_factory=list)
    size_bytes: int = 0
    done_pieces: int = 0


@dataclass
class PutReport:
    """What a put did. `skipped` are paths that are no file, folder or link."""

    version: int = 0
    files: int = 0
    size_bytes: int = 0
    unchanged: int = 0
    skipped: list[str] = field(default_factory=list)


def scan(local: Path, remote: str, report: PutReport) -> Iterator[Upload]:
    """All of a folder, below `remote`. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
    count = 0
    pending = [(os.fspath(local), remote)]
    while pending:
        folder, prefix = pending.pop()
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as why:
            raise _unreadable(folder, why) from None
        if not entries and prefix:
            yield Upload(check_path(prefix), kind="folder", mode=_status_of(folder).st_mode)
        for entry in entries:
            count += 1
            if count > MAX_FILES:
                raise error(
                    ErrorCode.TOO_LARGE, f"{shown(str(local))} has more than {MAX_FILES:,} files",
                    allowed=f"{MAX_FILES:,} in a volume", next="put parts of it into several volumes, or an archive",
                )  # fmt: skip
            path = f"{prefix}/{entry.name}" if prefix else entry.name
            if entry.is_symlink():
                try:
                    target = os.readlink(entry.path)  # noqa: PTH115
                except OSError as why:
                    raise _unreadable(entry.path, why) from None
                yield Upload(check_path(path), kind="link", target=_text(entry.path, target))
            elif entry.is_dir(follow_symlinks=False):
                pending.append((entry.path, path))
            elif entry.is_file(follow_symlinks=False):
                yield file_upload(entry.path, path)
            else:
                report.skipped.append(entry.path)


def file_upload(local: str, remote: str, *, follow: bool = False) -> Upload:
    """One file. Raises RequestError (NOT_FOUND, TOO_LARGE)."""
    path = os.path.realpath(local) if follow else local
    status = _status_of(path)
    if not stat.S_ISREG(status.st_mode):
        raise error(ErrorCode.BAD_ARGUMENT, f"{shown(local)} is no file", allowed="regular files, and folders of them")
    if status.st_size > MAX_FILE_BYTES:
        raise error(ErrorCode.TOO_LARGE, f"{shown(local)} has {status.st_size:,} bytes", allowed=f"{MAX_FILE_BYTES:,}")
    return Upload(check_path(remote), source=path, status=status, size_bytes=status.st_size)


class Putter:
    """One put. `run` blocks; `stop` may be set from elsewhere."""

    def __init__(
        self, api: VolumeApi, volume: str, by: str, *, force: bool, progress: Progress, stop: threading.Event,
        memory: FileHashes | None = None,
    ) -> None:  # fmt: skip
        self._api, self._volume, self._by, self._force = api, volume, by, force
        self._progress, self._stop = progress, stop
        self._memory = memory or FileHashes()
        self._counting = threading.Lock()
        self._local = threading.local()

    def run(self, uploads: Sequence[Upload], report: PutReport) -> PutReport:
        """Send and publish. Raises VolumeFileExists, VolumeConflict, CellburstError; nothing is published then."""
        twice = _first_twice(upload.path for upload in uploads)
        if twice:
            raise error(ErrorCode.BAD_ARGUMENT, f"{shown(twice)} would be put twice", next="name each path once")
        files = self._api.files(self._volume)
        there = {entry.path: entry for entry in files.entries}
        self._progress.begin(len(uploads), sum(upload.size_bytes for upload in uploads))
        for attempt in range(TRIES):
            self._send(uploads, trust=attempt == 0, again=attempt > 0)
            entries = [_entry(upload) for upload in uploads]
            self._check_existing(entries, there)
            try:
                report.version = self._commit(files.version, entries)
                break
            except CellburstError as why:
                if why.code is not ErrorCode.NOT_FOUND or "missing" not in why.info.detail or attempt == TRIES - 1:
                    raise
        report.files = len(entries)
        report.size_bytes = sum(entry.size_bytes for entry in entries)
        report.unchanged = sum(entry.path in there and same_content(entry, there[entry.path]) for entry in entries)
        return report

    def _check_existing(self, entries: Iterable[FileEntry], there: dict[str, FileEntry]) -> None:
        if self._force:
            return
        taken = [entry.path for entry in entries if entry.path in there and not same_content(entry, there[entry.path])]
        if taken:
            more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
            raise VolumeFileExists(
                ErrorInfo(
                    code=ErrorCode.CONFLICT, message=f"the volume has {shown(taken[0])}{more} already, with other content",
                    next="force=True (--force) replaces what is there", detail={"paths": "\n".join(taken[:100])},
                )
            )  # fmt: skip

    def _commit(self, base: int, entries: list[FileEntry]) -> int:
        version = base
        for part in _parts(entries):
            commit = CommitVolume(
                base=base, key=uuid.uuid4().hex, by=self._by, changes=part, last_write_wins=self._force
            )
            version = self._api.commit(self._volume, commit).version
        return version

    # -- sending ---------------------------------------------------------------------------------------------------

    def _send(self, uploads: Sequence[Upload], *, trust: bool, again: bool) -> None:
        """Bring all bytes to the gateway. `trust`: what is remembered of unchanged files; `again`: send also what it says it
        has."""
        files = [upload for upload in uploads if isinstance(upload.source, str)]
        known = self._memory.known((str(u.source), u.status) for u in files if u.status is not None) if trust else {}
        lacking = self._api.missing(hash for hashes in known.values() for hash in hashes) if known else set()
        todo = []
        for upload in files:
            hashes = known.get(str(upload.source))
            if hashes is not None and lacking.isdisjoint(hashes):
                upload.hashes = hashes
                self._progress.moved(1, upload.size_bytes)
            else:
                pieces = -(-upload.size_bytes // CHUNK_BYTES)
                upload.hashes, upload.done_pieces = [""] * pieces, 0
                todo.append(upload)
        with ThreadPoolExecutor(THREADS, "cellburst-put") as threads:
            working = [threads.submit(self._batch, batch, again) for batch in _batches(todo)]
            try:
                for work in working:
                    work.result()
            except BaseException:
                self._stop.set()
                raise
        self._memory.remember([(str(u.source), u.status, u.hashes) for u in todo if u.status is not None])
        for upload in uploads:
            if upload.source is None:
                self._progress.moved(1, 0)
            elif not isinstance(upload.source, str):
                self._send_stream(upload, upload.source)

    def _batch(self, batch: Sequence[tuple[Upload, int]], again: bool) -> None:
        """Read, hash and send pieces of files."""
        if self._stop.is_set():
            return
        chunks: dict[str, memoryview] = {}
        room = memoryview(self._buffer())
        finished = size = 0
        read: list[Upload] = []
        for upload, number in batch:
            if number < 0:  # of an empty file there is nothing to read
                finished += 1
                continue
            data = _read_piece(upload, number, room[size:])
            hash = blake3(data).hexdigest()
            upload.hashes[number] = hash
            chunks[hash] = data
            size += len(data)
            read.append(upload)
        wanted = set(chunks) if again else self._api.missing(chunks)
        if wanted and not self._stop.is_set():
            self._api.send([(hash, chunks[hash]) for hash in wanted])
        with self._counting:
            for upload in read:
                upload.done_pieces += 1
                finished += upload.done_pieces == len(upload.hashes)
        self._progress.moved(finished, size)

    def _buffer(self) -> bytearray:
        """This thread's memory for a batch: new memory for each would cost as much as the copying."""
        if not hasattr(self._local, "buffer"):
            self._local.buffer = bytearray(BATCH_BYTES)
        buffer: bytearray = self._local.buffer
        return buffer

    def _send_stream(self, upload: Upload, stream: BinaryIO) -> None:
        if stream.seekable():
            stream.seek(0)
        upload.hashes, upload.size_bytes = [], 0
        while data := _read_whole(stream):
            if self._stop.is_set():
                return
            hash = blake3(data).hexdigest()
            if self._api.missing([hash]):
                self._api.send([(hash, data)])
            upload.hashes.append(hash)
            upload.size_bytes += len(data)
            self._progress.moved(0, len(data))
        self._progress.moved(1, 0)


def _batches(uploads: Iterable[Upload]) -> Iterator[list[tuple[Upload, int]]]:
    batch: list[tuple[Upload, int]] = []
    size = 0
    for upload in uploads:
        for number in range(len(upload.hashes)) or [-1]:
            piece = min(CHUNK_BYTES, upload.size_bytes - number * CHUNK_BYTES) if number >= 0 else 0
            if batch and (size + piece > BATCH_BYTES or len(batch) >= BATCH_PIECES):
                yield batch
                batch, size = [], 0
            batch.append((upload, number))
            size += piece
    if batch:
        yield batch


def _read_piece(upload: Upload, number: int, room: memoryview) -> memoryview:
    """A piece of a file that is still as it was when it was listed, in `room`. Raises RequestError (CONFLICT) when it is not."""
    assert isinstance(upload.source, str) and upload.status is not None
    start = number * CHUNK_BYTES
    piece = room[: min(CHUNK_BYTES, upload.size_bytes - start)]
    try:
        # No link is followed, and a FIFO that took the file's place is not waited for.
        fd = os.open(upload.source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as why:
        raise _unreadable(upload.source, why) from None
    try:
        at = 0
        while at < len(piece) and (count := os.preadv(fd, [piece[at:]], start + at)):
            at += count
        if at < len(piece) or _identity(os.fstat(fd)) != _identity(upload.status):
            raise _changed(upload.source)
    except OSError as why:
        raise _unreadable(upload.source, why) from None
    finally:
        os.close(fd)
    return piece


def _read_whole(stream: BinaryIO) -> bytes:
    """As much as a chunk; less at the end only."""
    parts: list[bytes] = []
    left = CHUNK_BYTES
    while left and (part := stream.read(left)):
        if not isinstance(part, bytes | bytearray | memoryview):
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"a file that gives {type(part).__name__} cannot be put",
                next="open it in binary mode",
            )
        parts.append(bytes(part))
        left -= len(part)
    return b"".join(parts)


def _entry(upload: Upload) -> FileEntry:
    mode = upload.mode if upload.mode is not None else upload.status.st_mode if upload.status else 0o644
    sizes = [min(CHUNK_BYTES, upload.size_bytes - i * CHUNK_BYTES) for i in range(len(upload.hashes))]
    return FileEntry(
        path=upload.path, kind=upload.kind, size_bytes=upload.size_bytes, mode=mode & 0o777,
        modified_ns=max(0, upload.status.st_mtime_ns) if upload.status else 0, target=upload.target,
        chunks=[Chunk(hash, size) for hash, size in zip(upload.hashes, sizes, strict=True)],
    )  # fmt: skip


def _parts(entries: Sequence[FileEntry]) -> Iterator[list[FileEntry]]:
    """What goes into one commit each: all of it, unless it is very much."""
    part: list[FileEntry] = []
    chunks = 0
    for entry in entries:
        if part and (len(part) >= MAX_PATHS_PER_COMMIT or chunks + len(entry.chunks) > CHUNKS_PER_COMMIT):
            yield part
            part, chunks = [], 0
        part.append(entry)
        chunks += len(entry.chunks)
    if part:
        yield part


def _first_twice(paths: Iterable[str]) -> str:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            return path
        seen.add(path)
    return ""


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _status_of(path: str) -> os.stat_result:
    try:
        return os.lstat(path)
    except OSError as why:
        raise _unreadable(path, why) from None


def _text(path: str, target: str) -> str:
    try:
        target.encode()
    except UnicodeEncodeError:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"the link {shown(path)} leads to a name that is not valid Unicode"
        ) from None
    return target


def _changed(path: str) -> Exception:
    return error(
        ErrorCode.CONFLICT, f"{shown(path)} changed while it was read; nothing was published",
        next="put again when nobody writes to it",
    )  # fmt: skip


def _unreadable(path: str, why: OSError) -> Exception:
    code = ErrorCode.NOT_FOUND if isinstance(why, FileNotFoundError) else ErrorCode.BAD_ARGUMENT
    return error(code, f"{shown(path)} cannot be read: {why.strerror}", next="put again when it can be")
