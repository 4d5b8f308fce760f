"""The runner's wire: length-prefixed messages of a JSON head and raw buffers. Standard library only, no I/O.

The same form is spoken between worker and supervisor and between supervisor and executor:

    length u32 big endian | head length u32 | head | buffer count u16 | buffer lengths u32 each | buffers

`length` counts what follows it. The worker's side is `cellburst_protocol.runner_wire`; both are tested against the
golden vectors in `protocol/golden/`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from typing import Any, Union

Buffer = Union[bytes, bytearray, memoryview]

PROTOCOL_VERSION = (1, 0)
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # as framing.MAX_MESSAGE_BYTES: one display of a large figure
INITIAL_CREDIT_BYTES = 4 * 1024 * 1024  # events a runner may send before the first runner_credit
# These are sent before any waiting event and take no credit.
CONTROL_TAGS = frozenset({
    "runner_hello", "runner_ready", "runner_pong", "executor_ended", "side_reply", "runner_frozen", "runner_names_loaded",
    "value_coming",
})  # fmt: skip

_U32 = struct.Struct(">I")
_U16 = struct.Struct(">H")


class WireError(Exception):
    """The peer sent something that is no message. The socket cannot go on."""


def encode_head(head: dict[str, Any]) -> bytes:
    """A head as compact JSON; lone surrogates become `?` as they have no UTF-8."""
    return json.dumps(head, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def encode(head: dict[str, Any], buffers: Sequence[Buffer] = ()) -> bytes:
    """A whole message with its length in front. Raises WireError when it is larger than MAX_MESSAGE_BYTES."""
    return encode_raw(encode_head(head), buffers)


def encode_raw(head: Buffer, buffers: Sequence[Buffer] = ()) -> bytes:
    """As `encode`, for a head that is JSON already."""
    views = [memoryview(b).cast("B") if memoryview(b).nbytes else memoryview(b"") for b in buffers]
    size = 4 + len(head) + 2 + 4 * len(views) + sum(v.nbytes for v in views)
    if size > MAX_MESSAGE_BYTES:
        raise WireError(f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES}")
    lengths = struct.pack(f">{len(views)}I", *(v.nbytes for v in views))
    return b"".join([_U32.pack(size), _U32.pack(len(head)), head, _U16.pack(len(views)), lengths, *views])


def split(body: Buffer) -> tuple[memoryview, list[memoryview]]:
    """Head and buffers of a message without its length, as views of it. Raises WireError when it does not add up."""
    view = memoryview(body)
    try:
        (head_size,) = _U32.unpack_from(view, 0)
        position = 4 + head_size
        head = view[4:position]
        (count,) = _U16.unpack_from(view, position)
        sizes = struct.unpack_from(f">{count}I", view, position + 2)
    except struct.error as why:
        raise WireError(f"a message of {len(view)} bytes is cut short: {why}") from None
    position += 2 + 4 * count
    buffers = []
    for size in sizes:
        buffers.append(view[position : position + size])
        position += size
    if position != len(view):
        raise WireError(f"a message says {position} bytes and has {len(view)}")
    return head, buffers


def decode_head(head: Buffer) -> dict[str, Any]:
    """The JSON object of a head. Raises WireError when it is none or has no tag."""
    try:
        value = json.loads(bytes(head))
    except ValueError as why:
        raise WireError(f"a head that is no JSON: {why}") from None
    if not isinstance(value, dict) or not isinstance(value.get("t"), str):
        raise WireError("a head without its tag 't'")
    return value


class Decoder:
    """Cuts a byte stream into message bodies. `feed` what arrives, then take the bodies that are whole.

    `scratch` is memory to receive into: a fresh buffer for each recv costs three system calls, dear in a sandbox.
    """

    def __init__(self, scratch_bytes: int = 256 * 1024) -> None:
        self.scratch = memoryview(bytearray(scratch_bytes))
        self._data = bytearray()
        self._wanted = 4  # bytes needed before anything can be said

    def feed(self, chunk: Buffer) -> Iterator[bytes]:
        """Add bytes and yield every message that is complete, without its length. Raises WireError for a size too large."""
        self._data += chunk
        position = 0
        try:
            while len(self._data) - position >= self._wanted:
                (size,) = _U32.unpack_from(self._data, position)
                if size > MAX_MESSAGE_BYTES:
                    raise WireError(f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES}")
                if len(self._data) - position < 4 + size:
                    self._wanted = 4 + size
                    return
                body = bytes(memoryview(self._data)[position + 4 : position + 4 + size])
                position += 4 + size
                self._wanted = 4
                yield body
        finally:
            del self._data[:position]
