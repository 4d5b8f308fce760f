"""The framing: streams, credit, overtaking, refusal of what breaks the rules."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cellburst_protocol.framing import (
    MAX_CONTROL_BYTES,
    MAX_FRAME_BYTES,
    MAX_MESSAGE_BYTES,
    WINDOW_BYTES,
    ControlReceived,
    Ended,
    FramingError,
    Mux,
    Opened,
    Received,
    WasReset,
    pack,
    unpack,
)


class Pair:
    """Two sides with a perfect wire between them."""

    def __init__(self) -> None:
        self.a, self.b = Mux(dialer=True), Mux(dialer=False)

    def deliver(self, limit: int = 10**9, consume: bool = True) -> list[object]:
        events: list[object] = []
        for _ in range(limit):
            moved = False
            for source, target in ((self.a, self.b), (self.b, self.a)):
                frame = source.next_frame()
                if frame is not None:
                    moved = True
                    for event in target.receive(frame):
                        events.append(event)
                        if consume and isinstance(event, Received):
                            target.consumed(event.stream, event.size_bytes)
            if not moved:
                break
        return events


def messages_of(events: list[object]) -> list[tuple[bytes, list[bytes]]]:
    return [(bytes(e.head), [bytes(b) for b in e.buffers]) for e in events if isinstance(e, Received)]


def test_a_message_arrives_whole_with_its_buffers() -> None:
    pair = Pair()
    stream = pair.a.open(b"why")
    pair.a.send(stream, b'{"t":"x"}', [b"one", b"", b"three"])
    events = pair.deliver()
    assert events[0] == Opened(stream, memoryview(b"why"))
    assert messages_of(events) == [(b'{"t":"x"}', [b"one", b"", b"three"])]


def test_a_message_larger_than_the_window_arrives() -> None:
    pair = Pair()
    stream = pair.a.open(b"")
    body = bytes(range(256)) * (5 * WINDOW_BYTES // 256)
    assert pair.a.send(stream, b"head", [body]) is False
    assert messages_of(pair.deliver()) == [(b"head", [body])]


def test_no_frame_is_larger_than_allowed() -> None:
    mux = Mux(dialer=True)
    stream = mux.open(b"")
    mux.send(stream, b"h", [bytes(3 * MAX_FRAME_BYTES)])
    frames = iter(mux.next_frame, None)
    assert max(len(f) for f in frames) <= MAX_FRAME_BYTES + 12


def test_a_sender_stops_at_the_window_until_the_application_takes_messages() -> None:
    pair = Pair()
    stream = pair.a.open(b"")
    for _ in range(20):
        pair.a.send(stream, b"h", [bytes(100_000)])
    taken = [e for e in pair.deliver(consume=False) if isinstance(e, Received)]
    assert sum(e.size_bytes for e in taken) <= WINDOW_BYTES
    for event in taken:
        pair.b.consumed(stream, event.size_bytes)
    rest = [e for e in pair.deliver() if isinstance(e, Received)]
    assert len(taken) + len(rest) == 20, "credit lets the rest come"


def test_a_sender_never_dribbles() -> None:
    pair = Pair()
    stream = pair.a.open(b"")
    for _ in range(100):
        pair.a.send(stream, b"h", [bytes(100_000)])
    frames = 0
    while True:
        moved = False
        for source, target in ((pair.a, pair.b), (pair.b, pair.a)):
            while (frame := source.next_frame()) is not None:
                moved, frames = True, frames + 1
                for event in target.receive(frame):
                    if isinstance(event, Received):
                        target.consumed(event.stream, event.size_bytes)
        if not moved:
            break
    assert pair.a._streams[stream].queued_bytes == 0
    assert frames < 3 * 10_000_000 / 100_000


def test_control_overtakes_data_that_waits() -> None:
    mux = Mux(dialer=True)
    stream = mux.open(b"")
    mux.send(stream, b"h", [bytes(900_000)])
    mux.next_frame(), mux.next_frame()  # OPEN and the first data frame
    mux.control(b"interrupt")
    frame = mux.next_frame()
    assert frame is not None and frame[0] == 6


def test_streams_take_turns() -> None:
    mux = Mux(dialer=True)
    first, second = mux.open(b""), mux.open(b"")
    for stream in (first, second):
        mux.send(stream, b"h", [bytes(3 * MAX_FRAME_BYTES)])
    frames = [f for f in iter(mux.next_frame, None) if f[0] == 2]
    assert [int.from_bytes(f[4:8], "big") for f in frames[:4]] == [first, second, first, second]


def test_half_close_comes_after_the_data() -> None:
    pair = Pair()
    stream = pair.a.open(b"")
    pair.a.send(stream, b"last")
    pair.a.end(stream)
    events = pair.deliver()
    assert [type(e) for e in events] == [Opened, Received, Ended]
    with pytest.raises(FramingError, match="closed for sending"):
        pair.a.send(stream, b"more")


def test_reset_drops_what_is_queued() -> None:
    pair = Pair()
    stream = pair.a.open(b"")
    pair.deliver()
    pair.a.send(stream, b"h", [bytes(10)])
    pair.a.reset(stream, b"why")
    assert pair.deliver() == [WasReset(stream, memoryview(b"why"))]


@pytest.mark.parametrize(
    ("frame", "what"),
    [
        (b"", "frame of 0 bytes"),
        (bytes(MAX_FRAME_BYTES + 13), "frame of"),
        (bytes([99]) + bytes(11), "type 99"),
        (bytes([1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]), "cannot be opened"),
        (bytes([3, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1]), "4 bytes"),
    ],
)
def test_what_breaks_the_rules_is_refused(frame: bytes, what: str) -> None:
    with pytest.raises(FramingError, match=what):
        Mux(dialer=True).receive(frame)


def test_data_beyond_the_credit_is_refused() -> None:
    sender, receiver = Mux(dialer=True), Mux(dialer=False)
    stream = sender.open(b"")
    state = sender._streams[stream]
    state.credit_bytes = 10 * WINDOW_BYTES  # a sender that does not keep to its credit
    for _ in range(12):
        sender.send(stream, b"h", [bytes(200_000)])
    with pytest.raises(FramingError, match="beyond the credit"):
        while (frame := sender.next_frame()) is not None:
            receiver.receive(frame)


def test_a_lost_frame_is_noticed() -> None:
    pair = Pair()
    stream = pair.a.open(b"")
    pair.deliver()
    for _ in range(2):
        pair.a.send(stream, b"h", [bytes(MAX_FRAME_BYTES - 20)])
    pair.a.next_frame()
    second = pair.a.next_frame()
    assert second is not None
    with pytest.raises(FramingError, match="was due"):
        pair.b.receive(second)


def test_too_large_messages_are_refused_by_the_sender() -> None:
    mux = Mux(dialer=True)
    stream = mux.open(b"")
    with pytest.raises(FramingError, match="as blobs"):
        mux.send(stream, b"h", [bytes(MAX_MESSAGE_BYTES)])
    with pytest.raises(FramingError, match="control message"):
        mux.control(b"x" * MAX_CONTROL_BYTES)


@given(st.binary(max_size=50), st.lists(st.binary(max_size=300), max_size=5))
def test_pack_and_unpack_agree(head: bytes, buffers: list[bytes]) -> None:
    found_head, found = unpack(b"".join(pack(head, buffers)))
    assert bytes(found_head) == head and [bytes(b) for b in found] == buffers


@given(st.binary(max_size=64))
def test_unpack_never_does_anything_but_refuse(data: bytes) -> None:
    try:
        unpack(data)
    except FramingError:
        pass


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 700_000)), max_size=25))
def test_every_stream_keeps_its_order_whatever_is_sent(plan: list[tuple[int, int]]) -> None:
    pair = Pair()
    streams = [pair.a.open(b"") for _ in range(3)]
    sent: dict[int, list[tuple[bytes, int]]] = {s: [] for s in streams}
    for number, (which, size) in enumerate(plan):
        stream = streams[which]
        pair.a.send(stream, str(number).encode(), [bytes(size)])
        sent[stream].append((str(number).encode(), size))
        pair.a.control(str(number).encode())
    events = pair.deliver()
    for stream in streams:
        got = [(bytes(e.head), len(e.buffers[0])) for e in events if isinstance(e, Received) and e.stream == stream]
        assert got == sent[stream]
    assert [bytes(e.head) for e in events if isinstance(e, ControlReceived)] == [
        str(n).encode() for n in range(len(plan))
    ]
