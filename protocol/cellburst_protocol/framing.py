"""Frames, streams, credit and overtaking: the one framing of every WebSocket link, without any I/O.

Theory of operation. A link carries numbered streams and one control channel (stream 0). A logical *message* is a JSON
head and any number of raw buffers, packed by `pack`. It is cut into frames of at most `MAX_FRAME_BYTES`; every frame
but a message's last has the flag MORE. Each direction of a stream has a credit window: a sender may have that many
payload bytes unconfirmed, and asks no more of the receiver's memory. Credit comes back when the application has taken
a message. Only while it holds none are the parts of a message that is still arriving credited too (else one larger than
the window could never arrive; `MAX_MESSAGE_BYTES` bounds that memory). Credit is given in quarters of a window, so that
a sender never dribbles. Control frames (CONTROL, CREDIT, RESET,
PING, PONG) wait in their own queue, which `next_frame` empties first: that is how an interrupt overtakes a gigabyte.
Streams with data and credit take turns frame by frame.

    Mux.open/send/end/reset/control/ping   what the application wants   -> frames from next_frame()
    Mux.receive(frame)                      what the peer sent           -> events

The dialling side opens odd streams, the other side even ones. Any breach of these rules raises `FramingError`, after
which the link is of no use and is closed; the record and the sequence numbers above this layer make a new link go on.

Frame, big endian:  type u8 | flags u8 | zero u16 | stream u32 | sequence u32 | payload (the rest of the WebSocket message)
Message:            head length u32 | head | buffer count u16 | buffer lengths u32 each | buffers

A little over 400 lines: both directions of one state machine, which are read together.
"""

from __future__ import annotations

import enum
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

Buffer = bytes | bytearray | memoryview

MAX_FRAME_BYTES = 256 * 1024  # an interrupt waits behind at most one frame: 25 ms at 10 MB/s
WINDOW_BYTES = 1024 * 1024  # per stream and direction: two 256 KiB frames in flight at 20 ms and 25 MB/s
MAX_MESSAGE_BYTES = 64 * 1024 * 1024  # one display of a large figure; values go as blobs instead
MAX_CONTROL_BYTES = 1024 * 1024  # control messages are small by design
MAX_STREAMS = 4096  # a gateway with 200 sessions uses one a session and direction

_HEADER = struct.Struct(">BBHII")
_U32 = struct.Struct(">I")
_U16 = struct.Struct(">H")
MORE = 1


class FrameType(enum.IntEnum):
    """What a frame is. DATA and END keep their order within a stream; the others overtake."""

    OPEN = 1
    DATA = 2
    CREDIT = 3
    END = 4
    RESET = 5
    CONTROL = 6
    PING = 7
    PONG = 8


class FramingError(Exception):
    """The peer broke the framing, or a message is larger than allowed. The link cannot go on."""


def pack(head: Buffer, buffers: Sequence[Buffer] = ()) -> list[Buffer]:
    """A message as a list of byte strings, the buffers themselves uncopied."""
    sizes = [memoryview(b).nbytes for b in buffers]
    prefix = b"".join([_U32.pack(len(head)), bytes(head), _U16.pack(len(sizes)), *(_U32.pack(n) for n in sizes)])
    return [prefix, *(memoryview(b).cast("B") for b in buffers if memoryview(b).nbytes)]


def unpack(data: Buffer) -> tuple[memoryview, list[memoryview]]:
    """The head and the buffers of a packed message, as views of `data`. Raises FramingError when it does not add up."""
    view = memoryview(data)
    try:
        (head_size,) = _U32.unpack_from(view, 0)
        position = 4 + head_size
        head = view[4:position]
        (count,) = _U16.unpack_from(view, position)
        position += 2
        sizes = struct.unpack_from(f">{count}I", view, position)
    except struct.error as error:
        raise FramingError(f"message of {len(view)} bytes is cut short: {error}") from None
    position += 4 * count
    buffers = []
    for size in sizes:
        buffers.append(view[position : position + size])
        position += size
    if position != len(view):
        raise FramingError(f"message says {position} bytes and has {len(view)}")
    return head, buffers


@dataclass(frozen=True)
class Opened:
    """The peer opened `stream` with this head."""

    stream: int
    head: memoryview


@dataclass(frozen=True)
class Received:
    """A whole message on `stream`. Give `size_bytes` back with `Mux.consumed` once it was taken."""

    stream: int
    head: memoryview
    buffers: list[memoryview]
    size_bytes: int


@dataclass(frozen=True)
class Ended:
    """The peer will send no more on `stream` (half-close)."""

    stream: int


@dataclass(frozen=True)
class WasReset:
    """The peer gave `stream` up; the head says why. Nothing further is sent or arrives on it."""

    stream: int
    head: memoryview


@dataclass(frozen=True)
class ControlReceived:
    """A whole control message."""

    head: memoryview
    buffers: list[memoryview]


@dataclass(frozen=True)
class Writable:
    """Fewer than a window of bytes wait on `stream` now: its sender may go on."""

    stream: int


@dataclass(frozen=True)
class Pong:
    """The answer to `ping(payload)`."""

    payload: bytes


Event = Opened | Received | Ended | WasReset | ControlReceived | Writable | Pong


@dataclass
class _Stream:
    queue: deque[tuple[memoryview, bool]] = field(default_factory=deque)  # (bytes still to send, more follows)
    queued_bytes: int = 0
    credit_bytes: int = WINDOW_BYTES
    granted_bytes: int = WINDOW_BYTES  # what the peer may still send
    owed_bytes: int = 0  # taken by the application, not yet credited
    held_bytes: int = 0  # in whole messages that the application has not taken
    partial_uncredited_bytes: int = 0
    send_sequence: int = 0
    receive_sequence: int = 0
    partial: list[Buffer] = field(default_factory=list)
    partial_bytes: int = 0
    end_wanted: bool = False
    end_sent: bool = False
    end_received: bool = False
    blocked: bool = False  # the application was told to wait for Writable


class Mux:
    """One side of a link. See the module's theory of operation; all methods are immediate and raise FramingError."""

    def __init__(self, dialer: bool) -> None:
        self._next_stream = 1 if dialer else 2
        self._peer_parity = 0 if dialer else 1
        self._highest_peer_stream = 0
        self._streams: dict[int, _Stream] = {}
        self._urgent: deque[bytes] = deque()
        self._ready: deque[int] = deque()
        self._ready_set: set[int] = set()
        self._control_partial: list[Buffer] = []
        self._control_partial_bytes = 0
        self._events: list[Event] = []

    # -- sending ---------------------------------------------------------------------------------------------------

    def open(self, head: Buffer) -> int:
        """Open a stream; `head` (at most one frame) says what it is for. Returns the stream's number."""
        if len(head) > MAX_FRAME_BYTES:
            raise FramingError(f"an opening head of {len(head)} bytes; at most {MAX_FRAME_BYTES}")
        number = self._next_stream
        self._next_stream += 2
        self._streams[number] = _Stream()
        self._urgent.append(_frame(FrameType.OPEN, 0, number, 0, head))
        return number

    def send(self, stream: int, head: Buffer, buffers: Sequence[Buffer] = ()) -> bool:
        """Queue a message. False: the queue holds more than a window now, wait for Writable before the next."""
        state = self._streams.get(stream)
        if state is None or state.end_wanted:
            raise FramingError(f"stream {stream} is closed for sending")
        parts = pack(head, buffers)
        size = sum(len(p) for p in parts)
        if size > MAX_MESSAGE_BYTES:
            raise FramingError(f"a message of {size} bytes; at most {MAX_MESSAGE_BYTES}, larger values go as blobs")
        last = len(parts) - 1
        for i, part in enumerate(parts):
            state.queue.append((memoryview(part), i != last))
        state.queued_bytes += size
        self._mark_ready(stream, state)
        state.blocked = state.queued_bytes > WINDOW_BYTES
        return not state.blocked

    def control(self, head: Buffer, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a control message: it overtakes all stream data."""
        whole = b"".join(pack(head, buffers))
        if len(whole) > MAX_CONTROL_BYTES:
            raise FramingError(f"a control message of {len(whole)} bytes; at most {MAX_CONTROL_BYTES}")
        for start in range(0, len(whole), MAX_FRAME_BYTES):
            piece = whole[start : start + MAX_FRAME_BYTES]
            more = MORE if start + MAX_FRAME_BYTES < len(whole) else 0
            self._urgent.append(_frame(FrameType.CONTROL, more, 0, 0, piece))

    def end(self, stream: int) -> None:
        """Half-close: no more messages from this side, after those already queued."""
        state = self._streams.get(stream)
        if state is not None and not state.end_wanted:
            state.end_wanted = True
            self._mark_ready(stream, state)

    def reset(self, stream: int, head: Buffer = b"{}") -> None:
        """Give the stream up at once in both directions; what is queued on it is dropped. Unknown streams are ignored."""
        if self._streams.pop(stream, None) is not None:
            self._urgent.append(_frame(FrameType.RESET, 0, stream, 0, head))

    def ping(self, payload: bytes) -> None:
        """Ask for a Pong with the same payload (at most 64 bytes)."""
        self._urgent.append(_frame(FrameType.PING, 0, 0, 0, payload[:64]))

    def consumed(self, stream: int, size_bytes: int) -> None:
        """The application has taken so much from the stream: give credit back. Fine for streams already gone."""
        state = self._streams.get(stream)
        if state is not None:
            state.held_bytes -= size_bytes
            if state.held_bytes == 0:
                size_bytes += state.partial_uncredited_bytes
                state.partial_uncredited_bytes = 0
            self._credit(stream, state, size_bytes)

    def next_frame(self) -> bytes | None:
        """The next frame to put on the wire, or None when nothing may be sent now."""
        if self._urgent:
            return self._urgent.popleft()
        while self._ready:
            number = self._ready.popleft()
            self._ready_set.discard(number)
            state = self._streams.get(number)
            if state is None:
                continue
            frame = self._data_frame(number, state)
            if frame is not None:
                self._mark_ready(number, state)
                return frame
        return None

    def has_frames(self) -> bool:
        """Whether next_frame() would give something, as far as known without building it."""
        return bool(self._urgent or self._ready)

    def take_events(self) -> list[Event]:
        """Events that arose from sending (Writable), not from receiving."""
        events, self._events = self._events, []
        return events

    def _mark_ready(self, number: int, state: _Stream) -> None:
        wants = (state.queue and state.credit_bytes > 0) or (
            state.end_wanted and not state.queue and not state.end_sent
        )
        if wants and number not in self._ready_set:
            self._ready.append(number)
            self._ready_set.add(number)

    def _data_frame(self, number: int, state: _Stream) -> bytes | None:
        if not state.queue:
            if state.end_wanted and not state.end_sent:
                state.end_sent = True
                frame = _frame(FrameType.END, 0, number, state.send_sequence, b"")
                self._forget_if_done(number, state)
                return frame
            return None
        room = min(state.credit_bytes, MAX_FRAME_BYTES)
        if room <= 0:
            return None
        pieces: list[memoryview] = []
        more = True
        while state.queue and room > 0:
            part, part_more = state.queue[0]
            piece = part[:room]
            pieces.append(piece)
            room -= len(piece)
            if len(piece) < len(part):
                state.queue[0] = (part[len(piece) :], part_more)
            else:
                state.queue.popleft()
                more = part_more
                if not more:
                    break  # one message never shares a frame with the next
        size = sum(len(p) for p in pieces)
        state.credit_bytes -= size
        state.queued_bytes -= size
        frame = b"".join([_HEADER.pack(FrameType.DATA, MORE if more else 0, 0, number, state.send_sequence), *pieces])
        state.send_sequence = (state.send_sequence + 1) & 0xFFFFFFFF
        if state.blocked and state.queued_bytes <= WINDOW_BYTES // 2:
            state.blocked = False
            self._events.append(Writable(number))
        return frame

    # -- receiving -------------------------------------------------------------------------------------------------

    def receive(self, frame: Buffer) -> list[Event]:
        """Take one frame of the peer's and return what it means."""
        view = memoryview(frame)
        if len(view) < _HEADER.size or len(view) > _HEADER.size + MAX_FRAME_BYTES:
            raise FramingError(
                f"a frame of {len(view)} bytes; {_HEADER.size} to {_HEADER.size + MAX_FRAME_BYTES} are allowed"
            )
        kind, flags, _zero, number, sequence = _HEADER.unpack_from(view, 0)
        payload = view[_HEADER.size :]
        match kind:
            case FrameType.DATA:
                return self._received_data(number, sequence, flags, payload)
            case FrameType.CONTROL:
                return self._received_control(flags, payload)
            case FrameType.CREDIT:
                return self._received_credit(number, payload)
            case FrameType.OPEN:
                return self._received_open(number, payload)
            case FrameType.END:
                return self._received_end(number, sequence)
            case FrameType.RESET:
                known = self._streams.pop(number, None)
                return [WasReset(number, payload)] if known is not None else []
            case FrameType.PING:
                self._urgent.append(_frame(FrameType.PONG, 0, 0, 0, payload))
                return []
            case FrameType.PONG:
                return [Pong(bytes(payload))]
        raise FramingError(f"frame type {kind} is not known")

    def _received_open(self, number: int, payload: memoryview) -> list[Event]:
        if number % 2 != self._peer_parity or number <= self._highest_peer_stream:
            raise FramingError(f"stream {number} cannot be opened: it is not the peer's next one")
        if len(self._streams) >= MAX_STREAMS:
            raise FramingError(f"more than {MAX_STREAMS} streams are open")
        self._highest_peer_stream = number
        self._streams[number] = _Stream()
        return [Opened(number, payload)]

    def _received_data(self, number: int, sequence: int, flags: int, payload: memoryview) -> list[Event]:
        state = self._streams.get(number)
        if state is None:
            return []  # reset by us while this was on its way
        if state.end_received or sequence != state.receive_sequence:
            raise FramingError(f"stream {number}: frame {sequence} where {state.receive_sequence} was due")
        state.receive_sequence = (state.receive_sequence + 1) & 0xFFFFFFFF
        size = len(payload)
        state.granted_bytes -= size
        if state.granted_bytes < 0:
            raise FramingError(f"stream {number}: {-state.granted_bytes} bytes beyond the credit given")
        state.partial.append(payload)
        state.partial_bytes += size
        state.partial_uncredited_bytes += size
        if flags & MORE:
            if state.partial_bytes > MAX_MESSAGE_BYTES:
                raise FramingError(f"stream {number}: a message of more than {MAX_MESSAGE_BYTES} bytes")
            if state.held_bytes == 0:
                self._credit(number, state, state.partial_uncredited_bytes)
                state.partial_uncredited_bytes = 0
            return []
        whole = state.partial[0] if len(state.partial) == 1 else b"".join(state.partial)
        state.partial, state.partial_bytes = [], 0
        size = state.partial_uncredited_bytes
        state.partial_uncredited_bytes = 0
        state.held_bytes += size
        head, buffers = unpack(whole)
        return [Received(number, head, buffers, size)]

    def _received_control(self, flags: int, payload: memoryview) -> list[Event]:
        self._control_partial.append(payload)
        self._control_partial_bytes += len(payload)
        if self._control_partial_bytes > MAX_CONTROL_BYTES + MAX_FRAME_BYTES:
            raise FramingError(f"a control message of more than {MAX_CONTROL_BYTES} bytes")
        if flags & MORE:
            return []
        whole = b"".join(self._control_partial)
        self._control_partial, self._control_partial_bytes = [], 0
        return [ControlReceived(*unpack(whole))]

    def _received_credit(self, number: int, payload: memoryview) -> list[Event]:
        if len(payload) != 4:
            raise FramingError("a credit frame has 4 bytes of payload")
        state = self._streams.get(number)
        if state is not None:
            state.credit_bytes += _U32.unpack(payload)[0]
            self._mark_ready(number, state)
        return []

    def _received_end(self, number: int, sequence: int) -> list[Event]:
        state = self._streams.get(number)
        if state is None:
            return []
        if state.partial or sequence != state.receive_sequence:
            raise FramingError(f"stream {number} ended inside a message")
        state.end_received = True
        self._forget_if_done(number, state)
        return [Ended(number)]

    def _credit(self, number: int, state: _Stream, size_bytes: int) -> None:
        state.owed_bytes += size_bytes
        if state.owed_bytes >= WINDOW_BYTES // 4:
            state.granted_bytes += state.owed_bytes
            self._urgent.append(_frame(FrameType.CREDIT, 0, number, 0, _U32.pack(state.owed_bytes)))
            state.owed_bytes = 0

    def _forget_if_done(self, number: int, state: _Stream) -> None:
        if state.end_sent and state.end_received:
            self._streams.pop(number, None)


def _frame(kind: FrameType, flags: int, stream: int, sequence: int, payload: Buffer) -> bytes:
    return b"".join([_HEADER.pack(kind, flags, 0, stream, sequence), payload])
