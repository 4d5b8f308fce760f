"""The format of a log segment on disk. All numbers are big endian.

    segment   +----------+---------+--------+--------+-- ...
              | magic 6  | ver. u16| record | record |
              +----------+---------+--------+--------+-- ...
    record    +-----------+---------+---------+--------------+----------------------+-----------+----------+
              | length u32| crc u32 | kind u8 | sequence u64 | source sequence u64  | call u16  | src. u16 |
              +-----------+---------+---------+--------------+----------------------+-----------+----------+
              | call, utf-8 | source container, utf-8 | message: framing.pack(head, buffers) |
              +-------------+-------------------------+--------------------------------------+

`length` counts everything after `crc`, and `crc` (CRC-32) is of exactly that. A record that is cut short or whose
checksum differs is where the process was killed: the segment ends before it. Kind 0 is an event. Kind 1 opens every
segment: JSON of what must outlive older segments (last sequence, acknowledged sequence, last sequence of each source).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec

from cellburst_protocol.framing import Buffer, pack

MAGIC = b"CBLOG\x00"
VERSION = 1
HEADER = MAGIC + struct.pack(">H", VERSION)
EVENT, STATE = 0, 1

_PREFIX = struct.Struct(">II")
_FIXED = struct.Struct(">BQQHH")


class SegmentError(Exception):
    """A file that is not a segment of a version we know."""


class State(msgspec.Struct):
    """What a new segment carries over from those before it."""

    last_sequence: int = 0
    acknowledged: int = 0
    sources: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Record:
    """A record found in a segment; `message` is a view into the segment's bytes, `end` the offset after the record."""

    kind: int
    sequence: int
    call: str
    source: str
    source_sequence: int
    message: memoryview
    end: int


def record(
    kind: int, sequence: int, call: str, source: tuple[str, int], head: Buffer, buffers: Sequence[Buffer] = ()
) -> list[Buffer]:
    """A record as byte strings to be written one after the other; the buffers are not copied."""
    call_bytes, source_bytes = call.encode(), source[0].encode()
    fixed = _FIXED.pack(kind, sequence, source[1], len(call_bytes), len(source_bytes)) + call_bytes + source_bytes
    message = pack(head, buffers)
    length, crc = len(fixed), zlib.crc32(fixed)
    for part in message:
        length += memoryview(part).nbytes
        crc = zlib.crc32(part, crc)
    return [_PREFIX.pack(length, crc) + fixed, *message]


def records(data: memoryview, offset: int = len(HEADER), *, check: bool = True) -> Iterator[Record]:
    """The records from `offset` on, up to the end or the first that is torn (`check` compares checksums).

    Raises SegmentError when the file is not a segment of ours; one shorter than its header is an empty one.
    """
    if len(data) < len(HEADER):
        return
    if bytes(data[: len(HEADER)]) != HEADER:
        raise SegmentError(f"not a log segment of version {VERSION}: starts with {bytes(data[: len(HEADER)])!r}")
    while offset + _PREFIX.size + _FIXED.size <= len(data):
        length, crc = _PREFIX.unpack_from(data, offset)
        start, end = offset + _PREFIX.size, offset + _PREFIX.size + length
        if length < _FIXED.size or end > len(data) or (check and zlib.crc32(data[start:end]) != crc):
            return
        kind, sequence, source_sequence, call_size, source_size = _FIXED.unpack_from(data, start)
        at = start + _FIXED.size
        call, source = data[at : at + call_size], data[at + call_size : at + call_size + source_size]
        message = data[at + call_size + source_size : end]
        yield Record(kind, sequence, str(call, "utf-8"), str(source, "utf-8"), source_sequence, message, end)
        offset = end
