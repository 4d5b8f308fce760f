"""The worker's side of the runner's wire: bytes to messages and back, without any I/O.

A message is its length (u32, big endian, of what follows) and then exactly a message of `framing.pack`. A runner's
event head carries `call` beside the event's own fields. The runner's side is `cellburst_runner.wire` (standard library
only); both are tested against `protocol/golden/`.

Credit: a runner may send `INITIAL_CREDIT_BYTES` of events on a new connection, then as much as `RunnerCredit` gives.
What counts is `Incoming.credit_bytes`, the whole message with its length; give it back once the event is safe.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from .framing import MAX_MESSAGE_BYTES, Buffer, FramingError, pack, unpack
from .messages import Message, decode, encode

INITIAL_CREDIT_BYTES = (
    4 * 1024 * 1024
)  # two of the largest ordinary displays on their way while the worker writes its spool
# Sent before any waiting event, and without credit.
CONTROL_TAGS = frozenset({
    "runner_hello", "runner_ready", "runner_pong", "executor_ended", "side_reply", "runner_frozen", "runner_names_loaded",
    "value_coming",
})  # fmt: skip

_U32 = struct.Struct(">I")


class _Envelope(msgspec.Struct):
    """The fields that every head from a runner has besides its message's own."""

    t: str
    call: str = ""


_envelope_decoder = msgspec.json.Decoder(_Envelope)


@dataclass(frozen=True)
class Incoming:
    """A message from the runner.

    `head` is its JSON as it came, `buffers` views of its raw buffers, `call` the call it belongs to (empty for none).
    `credit_bytes` is what it took of the runner's credit: 0 for control messages.
    """

    message: Message
    call: str
    head: bytes
    buffers: list[memoryview]
    credit_bytes: int

    @property
    def size_bytes(self) -> int:
        """What it holds in memory, a control message too."""
        return len(self.head) + sum(buffer.nbytes for buffer in self.buffers)


def to_runner(message: Message, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """A message as byte strings to write in order, the buffers uncopied. Raises FramingError above MAX_MESSAGE_BYTES."""
    return to_runner_raw(encode(message), buffers)


def to_runner_raw(head: Buffer, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """As `to_runner`, for a head that is encoded already (a relayed message keeps its head)."""
    parts = pack(head, buffers)
    size = sum(len(part) for part in parts)
    if size > MAX_MESSAGE_BYTES:
        raise FramingError(f"a message of {size} bytes to a runner; at most {MAX_MESSAGE_BYTES}")
    return [_U32.pack(size) + bytes(parts[0]), *parts[1:]]


class RunnerDecoder:
    """Cuts what a runner sends into messages; one for each connection."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._wanted = 4

    def feed(self, chunk: Buffer) -> list[Incoming]:
        """Add bytes and return the messages that are complete now.

        Raises FramingError or RequestError (BAD_MESSAGE) when it is no message: close the socket then.
        """
        self._data += chunk
        complete: list[Incoming] = []
        position = 0
        while len(self._data) - position >= self._wanted:
            (size,) = _U32.unpack_from(self._data, position)
            if size > MAX_MESSAGE_BYTES:
                raise FramingError(f"a message of {size} bytes from a runner; at most {MAX_MESSAGE_BYTES}")
            if len(self._data) - position < 4 + size:
                self._wanted = 4 + size
                break
            complete.append(_incoming(bytes(memoryview(self._data)[position + 4 : position + 4 + size])))
            position += 4 + size
            self._wanted = 4
        del self._data[:position]
        return complete


def _incoming(body: bytes) -> Incoming:
    head, buffers = unpack(body)
    message = decode(head)
    envelope = _envelope_decoder.decode(head)
    credit = 0 if envelope.t in CONTROL_TAGS else 4 + len(body)
    return Incoming(message=message, call=envelope.call, head=bytes(head), buffers=buffers, credit_bytes=credit)
