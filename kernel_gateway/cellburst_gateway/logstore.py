"""A session's events on disk until the kernel has them, and their text a while longer for `%modal logs`.

Append-only segments (format: `logstore_format.py`) in one folder for each session, named by their first sequence:

    FOLDER/SESSION/00000000000000000001.seg …

An append is one write to the file system and no fsync: it survives the death of this process by any signal, not a power
cut (`flush` is for moments that must). A torn last record is cut off when the session is opened again. Segments that are
wholly acknowledged stay for their text until `retain_bytes` of them are there; when all sessions together pass
`total_bytes`, ended sessions go first (`log_keeping.py`), then the oldest acknowledged segments, then the oldest of all: a
reader sees that by a gap between `after_sequence` and the first sequence it gets. Not safe for two threads at once. All
raise PlatformError (DISK_FULL, STORE).
"""

from __future__ import annotations

import bisect
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, PlatformError, error
from cellburst_protocol.framing import Buffer, unpack

from . import logstore_format as fmt
from .logstore_text import text_of
from .store_errors import translate

SEGMENT_BYTES = 4 * 1024 * 1024  # what one read brings into memory, and the step in which space comes back
RETAIN_BYTES = 8 * 1024 * 1024  # acknowledged text for `%modal logs`: 30 times what one call of it shows
TOTAL_BYTES = 2 * 1024**3
KEPT_SOURCES = 16  # containers of one session whose last sequence is remembered; more than ever live at once
INDEX_EVERY = 64  # records between two entries of a segment's in-memory index
IOV_MAX = 1024  # byte strings that one writev takes (Linux)
_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")


@dataclass(frozen=True, slots=True)
class LogEvent:
    """One event as it was appended; `head` is its encoded head, `source` (container, its sequence there) or ("", 0)."""

    sequence: int
    call: str
    head: bytes
    buffers: list[bytes]
    source: tuple[str, int]


@dataclass(slots=True)
class _Segment:
    path: Path
    first: int  # the first sequence it may hold
    last: int  # 0 while it holds none
    size: int
    created: int  # order of creation over all sessions, for dropping the oldest
    index: list[tuple[int, int]] = field(default_factory=list)  # (sequence, offset of its record), sparse


@dataclass(slots=True)
class _Session:
    folder: Path
    segments: list[_Segment] = field(default_factory=list)
    state: fmt.State = field(default_factory=fmt.State)
    descriptor: int | None = None
    records: int = 0
    acknowledged_on_disk: int = 0


class LogStore:
    """All sessions' logs under one folder."""

    def __init__(
        self,
        folder: Path,
        *,
        segment_bytes: int = SEGMENT_BYTES,
        retain_bytes: int = RETAIN_BYTES,
        total_bytes: int = TOTAL_BYTES,
    ) -> None:
        self._folder = folder
        self._segment_bytes, self._retain_bytes, self.total_bytes = segment_bytes, retain_bytes, total_bytes
        # Called first when `total_bytes` is passed, with the session that is written to; may `drop` any other.
        self.make_room: Callable[[str], None] = lambda session: None
        self._sessions: dict[str, _Session] = {}
        self._created = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._size = sum(path.stat().st_size for path in folder.glob("*/*.seg"))

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments of all sessions."""
        return self._size

    def append(
        self,
        session: str,
        sequence: int,
        call: str,
        head: Buffer,
        buffers: Sequence[Buffer] = (),
        source: tuple[str, int] | None = None,
    ) -> bool:
        """Add the next event. Returns False, and does nothing, for one that is there already (by sequence, or by source).

        `source` is (container, the event's sequence there). Raises ValueError for a sequence that leaves a gap,
        PlatformError (DISK_FULL: nothing was added, and it may be tried again).
        """
        log = self._open(session)
        state = log.state
        if sequence <= state.last_sequence or (source and source[1] <= state.sources.get(source[0], 0)):
            return False
        if sequence != state.last_sequence + 1:
            raise ValueError(f"event {sequence} of session {session} after {state.last_sequence}")
        if log.descriptor is None and log.segments:
            self._continue_segment(log)
        if log.descriptor is None or log.segments[-1].size >= self._segment_bytes:
            self._new_segment(log, sequence)
        segment = log.segments[-1]
        start = segment.size
        self._write(log, fmt.record(fmt.EVENT, sequence, call, source or ("", 0), head, buffers))
        if log.records % INDEX_EVERY == 0 or not segment.index:
            segment.index.append((sequence, start))
        log.records += 1
        segment.last = state.last_sequence = sequence
        if source:
            _note_source(state, source)
        return True

    def read(self, session: str, after_sequence: int = 0, limit_bytes: int | None = None) -> Iterator[LogEvent]:
        """The events after a sequence, in order, up to about `limit_bytes` of messages (at least one).

        What is appended while it runs may or may not come; ask again after the last one got.
        """
        log = self._open(session)
        given = 0
        for segment in list(log.segments):
            if segment.last <= after_sequence:
                continue
            data = self._bytes_of(segment)
            at = max(0, bisect.bisect_right(segment.index, after_sequence, key=lambda entry: entry[0]) - 1)
            offset = segment.index[at][1] if segment.index else len(fmt.HEADER)
            for found in fmt.records(data, offset, check=False):
                if found.kind != fmt.EVENT or found.sequence <= after_sequence:
                    continue
                if limit_bytes is not None and given and given + len(found.message) > limit_bytes:
                    return
                given += len(found.message)
                yield _event(found)

    def ack(self, session: str, sequence: int) -> None:
        """Everything up to `sequence` is safe elsewhere; less than an earlier ack changes nothing."""
        log = self._open(session)
        log.state.acknowledged = max(log.state.acknowledged, min(sequence, log.state.last_sequence))
        kept = 0
        for segment in reversed(log.segments[:-1]):
            if segment.last <= log.state.acknowledged:
                kept += segment.size
                if kept > self._retain_bytes:
                    self._delete(log, segment)

    def acknowledged(self, session: str) -> int:
        """The highest acknowledged sequence; after a kill that of the segment's start, so it may be lower than it was."""
        return self._open(session).state.acknowledged

    def last_sequence(self, session: str) -> int:
        """The last event's sequence, 0 when there never was one."""
        return self._open(session).state.last_sequence

    def last_source(self, session: str, container: str) -> int:
        """The last sequence recorded from this container, 0 for none: what a joining worker is told."""
        return self._open(session).state.sources.get(container, 0)

    def text(self, session: str, max_bytes: int) -> tuple[str, bool]:
        """The end of what the session printed, at most `max_bytes` of UTF-8, and whether more was there before it."""
        log = self._open(session)
        pieces: list[str] = []
        size = 0
        for segment in reversed(log.segments):
            events = (
                _event(found) for found in fmt.records(self._bytes_of(segment), check=False) if found.kind == fmt.EVENT
            )
            piece = "".join(text_of(found.head, found.buffers) for found in events)
            pieces.append(piece)
            size += len(piece.encode())
            if size > max_bytes:
                break
        whole = "".join(reversed(pieces)).encode()
        dropped = bool(log.segments) and log.segments[0].first > 1
        tail = whole[len(whole) - max_bytes :] if len(whole) > max_bytes else whole
        return tail.decode(errors="ignore"), dropped or len(whole) > max_bytes

    def flush(self, session: str) -> None:
        """Have the session's events on the disk itself, so that they survive a power cut."""
        log = self._open(session)
        if log.descriptor is not None:
            try:
                os.fsync(log.descriptor)
            except OSError as why:
                raise translate(why) from why

    def release(self, session: str) -> None:
        """Let go of the session's file and memory; the next use opens it again."""
        log = self._sessions.pop(session, None)
        if log is None or not log.segments:
            return
        try:
            if log.state.acknowledged > log.acknowledged_on_disk:
                if log.descriptor is None:
                    self._continue_segment(log)
                self._write_state(log)
        except PlatformError:
            pass  # what was acknowledged is only known as of the segment's start then, as after a kill
        finally:
            if log.descriptor is not None:
                os.close(log.descriptor)

    def drop(self, session: str) -> None:
        """Delete everything of a session, unread. Nothing happens if there is nothing."""
        folder = self._folder_of(session)
        log = self._sessions.pop(session, None)
        if log is not None and log.descriptor is not None:
            os.close(log.descriptor)
        size = sum(path.stat().st_size for path in folder.glob("*.seg"))
        shutil.rmtree(folder, ignore_errors=True)
        self._size -= size - sum(path.stat().st_size for path in folder.glob("*.seg"))

    def on_disk(self, before: float | None = None) -> list[str]:
        """Sessions that have a folder, longest unwritten first; only those not written to since `before` (Unix seconds)."""
        found: list[tuple[float, str]] = []
        for folder in self._folder.iterdir():
            try:
                written = max(path.stat().st_mtime for path in (folder, *folder.glob("*.seg")))
            except FileNotFoundError:
                continue  # being dropped
            if before is None or written < before:
                found.append((written, folder.name))
        return [session for _, session in sorted(found)]

    def close(self) -> None:
        """Let go of all files."""
        for session in list(self._sessions):
            self.release(session)

    def _open(self, session: str) -> _Session:
        log = self._sessions.get(session)
        if log is not None:
            return log
        log = _Session(self._folder_of(session))
        if log.folder.is_dir():
            for path in sorted(log.folder.glob("*.seg")):
                self._recover(log, path)
        log.acknowledged_on_disk = log.state.acknowledged
        self._sessions[session] = log
        return log

    def _folder_of(self, session: str) -> Path:
        if not _ID.fullmatch(session):
            raise ValueError(f"{session!r} is not a session's id")
        return self._folder / session

    def _recover(self, log: _Session, path: Path) -> None:
        self._created += 1
        segment = _Segment(path, int(path.stem), 0, path.stat().st_size, self._created)
        end = len(fmt.HEADER)
        try:
            for count, found in enumerate(fmt.records(self._bytes_of(segment))):
                if found.kind == fmt.STATE:
                    log.state = _merge(log.state, msgspec.json.decode(unpack(found.message)[0], type=fmt.State))
                else:
                    segment.last = log.state.last_sequence = found.sequence
                    if found.source:
                        _note_source(log.state, (found.source, found.source_sequence))
                    if count % INDEX_EVERY == 0 or not segment.index:
                        segment.index.append((found.sequence, end))
                end = found.end
        except (fmt.SegmentError, msgspec.MsgspecError) as why:
            raise error(
                ErrorCode.STORE, f"{path}: {why}", next="move the file away; the output in it is lost"
            ) from None
        if end < segment.size:
            os.truncate(path, end)
            self._size -= segment.size - end
            segment.size = end
        log.segments.append(segment)

    def _continue_segment(self, log: _Session) -> None:
        try:
            log.descriptor = os.open(log.segments[-1].path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as why:
            raise translate(why) from why

    def _new_segment(self, log: _Session, sequence: int) -> None:
        if log.descriptor is not None:
            os.close(log.descriptor)
            log.descriptor = None
        path = log.folder / f"{sequence:020d}.seg"
        try:
            log.folder.mkdir(exist_ok=True, mode=0o700)
            log.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError as why:
            raise translate(why) from why
        self._created += 1
        log.segments.append(_Segment(path, sequence, 0, 0, self._created))
        log.records = 0
        try:
            self._write_state(log, fmt.HEADER)
        except BaseException:
            os.close(log.descriptor)
            log.descriptor = None
            self._delete(log, log.segments[-1])
            raise
        self._keep_total(log.folder.name)

    def _write_state(self, log: _Session, *before: Buffer) -> None:
        head = msgspec.json.encode(log.state)
        self._write(log, [*before, *fmt.record(fmt.STATE, log.state.last_sequence, "", ("", 0), head)])
        log.acknowledged_on_disk = log.state.acknowledged

    def _write(self, log: _Session, parts: list[Buffer]) -> None:
        segment = log.segments[-1]
        assert log.descriptor is not None
        if len(parts) > IOV_MAX:
            parts = [b"".join(bytes(part) for part in parts)]
        total = sum(memoryview(part).nbytes for part in parts)
        try:
            written = os.writev(log.descriptor, parts)
            if written < total:  # a full disk writes what fits, then fails
                rest = b"".join(bytes(part) for part in parts)
                while written < total:
                    written += os.write(log.descriptor, rest[written:])
        except OSError as why:
            os.ftruncate(log.descriptor, segment.size)
            raise translate(why) from why
        segment.size += total
        self._size += total

    def _bytes_of(self, segment: _Segment) -> memoryview:
        try:
            return memoryview(segment.path.read_bytes())[: segment.size]
        except OSError as why:
            raise translate(why) from why

    def _delete(self, log: _Session, segment: _Segment) -> None:
        segment.path.unlink(missing_ok=True)
        self._size -= segment.size
        log.segments.remove(segment)

    def _keep_total(self, session: str) -> None:
        """Delete until the bound holds: what `make_room` finds, then acknowledged full segments, oldest first, then those of
        sessions that nobody has used since this process started, then the oldest of all. The newest of a session stays."""
        if self._size > self.total_bytes:
            self.make_room(session)
        self._delete_oldest(acknowledged_only=True)
        if self._size > self.total_bytes:
            self._delete_unused()
        self._delete_oldest(acknowledged_only=False)

    def _delete_oldest(self, *, acknowledged_only: bool) -> None:
        while self._size > self.total_bytes:
            old = [
                (segment.created, log, segment)
                for log in self._sessions.values()
                for segment in log.segments[:-1]
                if not acknowledged_only or segment.last <= log.state.acknowledged
            ]
            if not old:
                return
            _, log, segment = min(old, key=lambda entry: entry[0])
            self._delete(log, segment)

    def _delete_unused(self) -> None:
        unused = [folder for folder in self._folder.iterdir() if folder.is_dir() and folder.name not in self._sessions]
        paths = [path for folder in unused for path in sorted(folder.glob("*.seg"))[:-1]]
        for path in sorted(paths, key=lambda path: (path.stat().st_mtime, path)):
            if self._size <= self.total_bytes:
                return
            self._size -= path.stat().st_size
            path.unlink()


def _note_source(state: fmt.State, source: tuple[str, int]) -> None:
    state.sources.pop(source[0], None)  # the latest used stays last, so that the longest unused is forgotten
    state.sources[source[0]] = source[1]
    while len(state.sources) > KEPT_SOURCES:
        del state.sources[next(iter(state.sources))]


def _merge(before: fmt.State, carried: fmt.State) -> fmt.State:
    return fmt.State(max(before.last_sequence, carried.last_sequence), carried.acknowledged, dict(carried.sources))


def _event(found: fmt.Record) -> LogEvent:
    head, buffers = unpack(found.message)
    source = (found.source, found.source_sequence)
    return LogEvent(found.sequence, found.call, bytes(head), [bytes(b) for b in buffers], source)
