"""The events of one container that the gateway has not acknowledged: on disk, with the newest ones in memory too.

Theory of operation. `append` numbers an event from 1 without gaps and writes it to the last of a row of segment files;
`read` gives any event after the acknowledged ones, `ack` drops the rest, a whole segment file at a time. Memory holds
at most `memory_bytes` of what is on disk already, so a gateway that is away costs disk and not memory. When more than
`limit_bytes` wait, or the disk takes no more, the spool is `full`: the container is then given no more credit and the
code waits in its own write, so that nothing is lost. What the disk refused stays in memory (bounded by the credit that
was given before) and is written by a later call.

The files need not survive a crash of the machine and are not synced: containers never outlive their worker.

Segment file: records one after the other; record: length u32 big endian | a message of `framing.pack` whose head is
`Numbered`.
"""

from __future__ import annotations

import os
import shutil
import struct
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cellburst_protocol.framing import Buffer, pack, unpack
from cellburst_protocol.messages import Numbered, encode

LIMIT_BYTES = 256 * 1024 * 1024  # eight times the output a call may print in full
MEMORY_BYTES = 1024 * 1024  # a stream's window: what a gateway that keeps up never has to be read from disk for
SEGMENT_BYTES = 8 * 1024 * 1024  # what an acknowledgement can leave behind on disk at most

_LENGTH = struct.Struct(">I")
_decoder = msgspec.json.Decoder(Numbered)


@dataclass
class _Segment:
    path: Path
    fd: int
    first_sequence: int
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    size_bytes: int = 0

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.offsets) - 1


@dataclass(frozen=True)
class _Held:
    message: Numbered
    buffers: tuple[bytes, ...]
    size_bytes: int


class Spool:
    """One container's events. `folder` is made when the first event comes."""

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int = LIMIT_BYTES,
        memory_bytes: int = MEMORY_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        self.folder = folder
        self._limit_bytes, self._memory_bytes, self._segment_bytes = limit_bytes, memory_bytes, segment_bytes
        self._reuse_bytes = min(segment_bytes, limit_bytes) // 4
        self.last_sequence = 0
        self.acked_sequence = 0
        self.disk_error = ""  # the last refusal of the disk, empty when it takes everything
        self._segments: deque[_Segment] = deque()
        self._memory: deque[_Held] = deque()  # the newest events, without gaps
        self._memory_held_bytes = 0
        self._written_sequence = 0  # on disk up to here
        self._disk_bytes = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many events are not acknowledged."""
        return self.last_sequence - self.acked_sequence

    @property
    def full(self) -> bool:
        """Whether the container should be given no more credit."""
        return bool(self.disk_error) or self._disk_bytes > self._limit_bytes

    def append(self, event: Buffer, buffers: Sequence[Buffer] = (), call: str = "") -> int:
        """Take an event (its JSON head) and return its number. Never fails: see `full`."""
        self.last_sequence += 1
        message = Numbered(sequence=self.last_sequence, call=call, event=msgspec.Raw(bytes(event)))
        kept = tuple(bytes(b) for b in buffers)
        size = len(message.event) + sum(len(b) for b in kept)
        self._memory.append(_Held(message, kept, size))
        self._memory_held_bytes += size
        self.flush()
        return self.last_sequence

    def read(self, sequence: int) -> tuple[Numbered, Sequence[bytes]]:
        """Event `sequence`, which must be after the acknowledged ones. Raises KeyError when there is none."""
        if not self.acked_sequence < sequence <= self.last_sequence:
            raise KeyError(sequence)
        first_held = self.last_sequence - len(self._memory) + 1
        if sequence >= first_held:
            held = self._memory[sequence - first_held]
            return held.message, held.buffers
        for segment in self._segments:
            if segment.first_sequence <= sequence <= segment.last_sequence:
                return _read_record(segment, sequence)
        raise KeyError(sequence)

    def ack(self, sequence: int) -> None:
        """The gateway has everything up to `sequence`. An earlier or an impossible number changes nothing."""
        if not self.acked_sequence < sequence <= self.last_sequence:
            return
        self.acked_sequence = sequence
        first_held = self.last_sequence - len(self._memory) + 1
        for _ in range(first_held, sequence + 1):
            self._drop_oldest_held()
        self._written_sequence = max(self._written_sequence, sequence)
        while self._segments and self._segments[0].last_sequence <= sequence:
            # The newest segment is written on until it has some size: no new file for each acknowledgement.
            if len(self._segments) == 1 and self._segments[0].size_bytes < self._reuse_bytes:
                break
            self._drop_segment()
        if self.disk_error:
            self.flush()

    def flush(self) -> None:
        """Try to write what is only in memory; called by `append` and `ack`, and by a timer while the disk is full."""
        first_held = self.last_sequence - len(self._memory) + 1
        while self._written_sequence < self.last_sequence and not self._closed:
            held = self._memory[max(self._written_sequence + 1, first_held) - first_held]
            try:
                self._write(held)
            except OSError as why:
                self.disk_error = why.strerror or str(why)
                return
            self._written_sequence = held.message.sequence
        self.disk_error = ""
        while self._memory_held_bytes > self._memory_bytes and len(self._memory) > 1:
            self._drop_oldest_held()

    def remove(self) -> None:
        """Drop everything, on disk too. Idempotent."""
        self._closed = True
        while self._segments:
            self._drop_segment()
        self._memory.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, held: _Held) -> None:
        segment = self._segments[-1] if self._segments else None
        # Events acknowledged before the disk took them leave a gap, which a segment cannot have.
        if (
            segment is None
            or segment.size_bytes >= self._segment_bytes
            or segment.last_sequence + 1 != held.message.sequence
        ):
            segment = self._new_segment(held.message.sequence)
        record = pack(encode(held.message), held.buffers)
        data = b"".join([_LENGTH.pack(sum(len(part) for part in record)), *record])
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(segment.fd, memoryview(data)[done:], segment.size_bytes + done)
        except OSError:
            os.ftruncate(segment.fd, segment.size_bytes)  # a full disk gets back what half a record took
            raise
        segment.offsets.append(segment.size_bytes)
        segment.size_bytes += len(data)
        self._disk_bytes += len(data)

    def _new_segment(self, first_sequence: int) -> _Segment:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / f"{first_sequence:012d}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self._segments.append(_Segment(path, fd, first_sequence))
        return self._segments[-1]

    def _drop_segment(self) -> None:
        segment = self._segments.popleft()
        os.close(segment.fd)
        segment.path.unlink(missing_ok=True)
        self._disk_bytes -= segment.size_bytes

    def _drop_oldest_held(self) -> None:
        self._memory_held_bytes -= self._memory.popleft().size_bytes


def _read_record(segment: _Segment, sequence: int) -> tuple[Numbered, Sequence[bytes]]:
    offset = segment.offsets[sequence - segment.first_sequence]
    (length,) = _LENGTH.unpack(_pread(segment.fd, _LENGTH.size, offset))
    head, buffers = unpack(_pread(segment.fd, length, offset + _LENGTH.size))
    return _decoder.decode(head), [bytes(b) for b in buffers]


def _pread(fd: int, size_bytes: int, offset: int) -> bytes:
    pieces = []
    while size_bytes > 0:
        piece = os.pread(fd, size_bytes, offset)
        if not piece:
            raise OSError(f"a spool file ends {size_bytes} bytes early")
        pieces.append(piece)
        size_bytes -= len(piece)
        offset += len(piece)
    return b"".join(pieces)
