"""Peers over an in-memory wire: requests, errors, streams, overtaking, and what happens when the link goes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cellburst_protocol.errors import ErrorCode, RequestError, error
from cellburst_protocol.messages import (
    Ack,
    ContainerStream,
    Done,
    FindSession,
    GetStatus,
    Interrupt,
    Message,
    Notice,
    SessionFound,
)
from cellburst_protocol.peer import LinkClosed, Peer, Stream, StreamEnded


class Side:
    """What the far side does in these tests, and what it saw."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.arrived = asyncio.Event()

    async def message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        self.seen.append(message)
        self.arrived.set()
        if isinstance(message, FindSession):
            if message.notebook == "bad":
                raise error(ErrorCode.NOT_FOUND, "no such notebook", next="look again")
            if message.notebook == "broken":
                raise RuntimeError("a defect")
            return SessionFound()
        return None

    def opened(self, message: Message, stream: Stream) -> None:
        self.seen.append(message)
        self.streams.put_nowait(stream)


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Peer, Peer, Side]]:
    far = Side()
    near = Peer(dialer=True, on_message=Side().message)
    other = Peer(dialer=False, on_message=far.message, on_open=far.opened)

    async def to(target: Peer, frame: bytes) -> None:
        await asyncio.sleep(0)
        target.feed(frame)

    tasks = [
        asyncio.create_task(near.pump(lambda f: to(other, f))),
        asyncio.create_task(other.pump(lambda f: to(near, f))),
    ]
    try:
        yield near, other, far
    finally:
        near.close(), other.close()
        await asyncio.gather(*tasks)


async def test_a_request_is_answered() -> None:
    async with pair() as (near, _, _far):
        assert isinstance(await near.request(FindSession(notebook="a")), SessionFound)
        assert isinstance(await near.request(GetStatus()), Done)


async def test_an_error_comes_back_with_its_code_and_class() -> None:
    async with pair() as (near, _, _far):
        with pytest.raises(RequestError) as caught:
            await near.request(FindSession(notebook="bad"))
        assert caught.value.code is ErrorCode.NOT_FOUND and caught.value.info.next == "look again"


async def test_a_defect_is_told_by_code_and_the_link_lives(caplog: pytest.LogCaptureFixture) -> None:
    async with pair() as (near, _, _far):
        with pytest.raises(Exception, match="internal error") as caught:
            await near.request(FindSession(notebook="broken"))
        assert "a defect" not in str(caught.value) and "a defect" in caplog.text
        assert isinstance(await near.request(FindSession(notebook="a")), SessionFound)


async def test_a_stream_carries_messages_both_ways_and_ends() -> None:
    async with pair() as (near, _, far):
        stream = near.open(ContainerStream(container="c"))
        await stream.send(Notice(text="one"), [b"buffer"])
        answering = await far.streams.get()
        message, buffers = await answering.recv()
        assert message == Notice(text="one") and bytes(buffers[0]) == b"buffer"
        await answering.send(Ack(sequence=7))
        assert (await stream.recv())[0] == Ack(sequence=7)
        answering.end()
        with pytest.raises(StreamEnded):
            await stream.recv()


async def test_an_interrupt_overtakes_a_stream_that_is_full() -> None:
    async with pair() as (near, _, far):
        stream = near.open(ContainerStream(container="c"))
        sender = asyncio.create_task(_send_many(stream))
        answering = await far.streams.get()
        await answering.recv()  # and no more: the sender is stuck on credit
        far.arrived.clear()
        near.notify(Interrupt(call="x"))
        async with asyncio.timeout(5):
            await far.arrived.wait()
        assert Interrupt(call="x") in far.seen and not sender.done()
        sender.cancel()


async def _send_many(stream: Stream) -> None:
    for _ in range(100):
        await stream.send(Notice(text="x"), [bytes(200_000)])


async def test_a_slow_reader_stops_the_sender_and_not_the_memory() -> None:
    async with pair() as (near, _, far):
        stream = near.open(ContainerStream(container="c"))
        sender = asyncio.create_task(_send_many(stream))
        answering = await far.streams.get()
        await near.ping()
        held = sum(r.size_bytes for r in answering._inbox) + near.mux._streams[stream.number].queued_bytes
        assert held <= 3 * 1024 * 1024
        for _ in range(100):
            await answering.recv()
        await sender


async def test_closing_tells_every_waiter() -> None:
    async with pair() as (near, other, far):
        stream = near.open(ContainerStream(container="c"))
        await far.streams.get()
        receiving = asyncio.create_task(stream.recv())
        await asyncio.sleep(0)
        near.close("gone")
        with pytest.raises(LinkClosed, match="gone"):
            await receiving
        with pytest.raises(LinkClosed):
            await near.request(GetStatus())
        other.close()
