"""One end of a link for asyncio programs: typed messages, requests and streams over `framing.Mux`. Opens no socket.

Used by all three shells (the kernel's and CLI's WebSocket client, the worker's, the gateway's server). A shell does two
things: it calls `feed(frame)` for every WebSocket message, and runs `pump(send)` until the link is gone; then `close`.

    reply = await peer.request(messages.OpenSession(...))      # control: overtakes stream data
    peer.notify(messages.Interrupt(...))                       # control, without an answer
    stream = peer.open(messages.ContainerStream(...))          # credit-limited, ordered
    await stream.send(message, buffers); message, buffers = await stream.recv()

Everything runs on one event loop; none of it is thread-safe.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from .errors import CellburstError, ErrorCode, ErrorInfo, from_info
from .framing import (
    Buffer,
    ControlReceived,
    Ended,
    Event,
    FramingError,
    Mux,
    Opened,
    Pong,
    Received,
    WasReset,
    Writable,
)
from .messages import Message, decode, encode


class Envelope(msgspec.Struct, omit_defaults=True):
    """A control message: a request has `id`, its answer has `re` and either a message or an error."""

    message: msgspec.Raw = msgspec.Raw(b"null")
    id: int = 0
    re: int = 0
    error: ErrorInfo | None = None


log = logging.getLogger(__name__)
_envelope_decoder = msgspec.json.Decoder(Envelope)
_error_decoder = msgspec.json.Decoder(ErrorInfo)


class LinkClosed(CellburstError):
    """The link is gone; requests without an answer may or may not have been carried out."""


class StreamEnded(Exception):
    """The peer half-closed the stream: there are no more messages on it."""


def _closed_error(why: str) -> LinkClosed:
    return LinkClosed(ErrorInfo(code=ErrorCode.LINK_CLOSED, message=why, next="it is tried again by itself"))


class Stream:
    """One stream of a link. Messages arrive in order; `recv` gives their credit back."""

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer = peer
        self.number = number
        self._inbox: deque[Received] = deque()
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._ended = False
        self._error: Exception | None = None

    async def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message and wait while more than a window of bytes waits. Raises LinkClosed or the reset's error."""
        self.post(message, buffers)
        await self._writable.wait()
        if self._error is not None:
            raise self._error

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Queue a message without waiting: for small ones whose number is bounded otherwise."""
        if self._error is not None:
            raise self._error
        if not self._peer.mux.send(self.number, encode(message), buffers):
            self._writable.clear()
        self._peer.wake()

    async def recv(self) -> tuple[Message, list[memoryview]]:
        """The next message. Raises StreamEnded after a half-close, LinkClosed or the reset's error otherwise."""
        while not self._inbox:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StreamEnded
            self._arrived.clear()
            await self._arrived.wait()
        received = self._inbox.popleft()
        self._peer.mux.consumed(self.number, received.size_bytes)
        self._peer.wake()
        return decode(received.head), received.buffers

    @property
    def writable(self) -> bool:
        """Whether less than a window of bytes waits, so that `send` would not wait."""
        return self._error is None and self._writable.is_set()

    def end(self) -> None:
        """Send no more after what is queued."""
        self._peer.mux.end(self.number)
        self._peer.wake()

    def reset(self, error: ErrorInfo | None = None) -> None:
        """Give the stream up in both directions."""
        head = msgspec.json.encode(error) if error is not None else b"{}"
        self._peer.mux.reset(self.number, head)
        self._peer.forget(self.number)
        self._fail(from_info(error) if error else _closed_error("this side gave the stream up"))
        self._peer.wake()

    # called by Peer
    def _deliver(self, received: Received) -> None:
        self._inbox.append(received)
        self._arrived.set()

    def _end_received(self) -> None:
        self._ended = True
        self._arrived.set()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        self._arrived.set()
        self._writable.set()


Handler = Callable[[Message, list[memoryview]], Awaitable[Message | None]]
OpenHandler = Callable[[Message, Stream], None]


class Peer:
    """Typed requests and streams over one link.

    `on_message` is called for every control message; what it returns (or the CellburstError it raises) answers a
    request. It runs as a task of its own, started in order of arrival. `on_open` is called at once for a stream that
    the peer opened, and starts what serves it.
    """

    def __init__(self, *, dialer: bool, on_message: Handler, on_open: OpenHandler | None = None) -> None:
        self.mux = Mux(dialer)
        self._on_message = on_message
        self._on_open = on_open
        self._streams: dict[int, Stream] = {}
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._ids = itertools.count(1)
        self._wakeup = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._pongs: dict[bytes, asyncio.Future[None]] = {}
        self.closed = asyncio.Event()
        self._close_error: LinkClosed | None = None

    # -- what the application calls --------------------------------------------------------------------------------

    async def request(self, message: Message, *, timeout_seconds: float | None = 30.0) -> Message:
        """Send a control request and wait for its answer. Raises the peer's CellburstError, LinkClosed or TimeoutError."""
        if self._close_error is not None:
            raise self._close_error
        number = next(self._ids)
        future: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self._control(Envelope(message=msgspec.Raw(encode(message)), id=number))
            async with asyncio.timeout(timeout_seconds):
                return await future
        finally:
            self._waiting.pop(number, None)

    def notify(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send a control message that has no answer. On a closed link it is dropped."""
        if self._close_error is None:
            self._control(Envelope(message=msgspec.Raw(encode(message))), buffers)

    def open(self, message: Message) -> Stream:
        """Open a stream whose first message says what it is."""
        if self._close_error is not None:
            raise self._close_error
        stream = Stream(self, self.mux.open(encode(message)))
        self._streams[stream.number] = stream
        self.wake()
        return stream

    async def ping(self, timeout_seconds: float = 10.0) -> None:
        """Wait until the peer's link layer has answered. Raises TimeoutError or LinkClosed."""
        payload = next(self._ids).to_bytes(8, "big")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pongs[payload] = future
        self.mux.ping(payload)
        self.wake()
        try:
            async with asyncio.timeout(timeout_seconds):
                await future
        finally:
            self._pongs.pop(payload, None)

    # -- what the shell calls --------------------------------------------------------------------------------------

    def feed(self, frame: Buffer) -> None:
        """Take one frame. Raises FramingError (close the link then)."""
        for event in self.mux.receive(frame):
            self._handle(event)
        self.wake()

    async def pump(self, send: Callable[[bytes], Awaitable[Any]]) -> None:
        """Write frames with `send` (which waits while the socket is full) until the link is closed."""
        while self._close_error is None:
            self._wakeup.clear()
            while (frame := self.mux.next_frame()) is not None:
                await send(frame)
                for event in self.mux.take_events():
                    self._handle(event)
            await self._wakeup.wait()

    def close(self, why: str = "the link was closed") -> None:
        """The link is gone: every waiter is told. Safe to call twice."""
        if self._close_error is not None:
            return
        error = self._close_error = _closed_error(why)
        for stream in self._streams.values():
            stream._fail(error)
        self._streams.clear()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(error)
        for pong in self._pongs.values():
            if not pong.done():
                pong.set_exception(error)
        for task in list(self._tasks):
            task.cancel()
        self.closed.set()
        self.wake()

    def wake(self) -> None:
        """Let `pump` look for frames."""
        self._wakeup.set()

    def forget(self, number: int) -> None:
        """A stream needs no more events."""
        self._streams.pop(number, None)

    # -- events ----------------------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        match event:
            case Received():
                stream = self._streams.get(event.stream)
                if stream is not None:
                    stream._deliver(event)
                else:
                    self.mux.consumed(event.stream, event.size_bytes)
            case ControlReceived():
                self._handle_control(event)
            case Writable():
                if (stream := self._streams.get(event.stream)) is not None:
                    stream._writable.set()
            case Opened():
                opened = Stream(self, event.stream)
                self._streams[event.stream] = opened
                if self._on_open is None:
                    opened.reset(ErrorInfo(code=ErrorCode.BAD_MESSAGE, message="this side serves no streams"))
                else:
                    self._on_open(decode(event.head), opened)
            case Ended():
                if (stream := self._streams.get(event.stream)) is not None:
                    stream._end_received()
            case WasReset():
                if (stream := self._streams.pop(event.stream, None)) is not None:
                    stream._fail(_reset_error(event.head))
            case Pong():
                future = self._pongs.get(event.payload)
                if future is not None and not future.done():
                    future.set_result(None)

    def _handle_control(self, event: ControlReceived) -> None:
        try:
            envelope = _envelope_decoder.decode(event.head)
        except msgspec.MsgspecError as error:
            raise FramingError(f"a control message of the wrong shape: {error}") from None
        if envelope.re:
            future = self._waiting.get(envelope.re)
            if future is not None and not future.done():
                if envelope.error is not None:
                    future.set_exception(from_info(envelope.error))
                else:
                    future.set_result(decode(envelope.message))
            return
        task = asyncio.get_running_loop().create_task(self._answer(envelope, event.buffers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, envelope: Envelope, buffers: list[memoryview]) -> None:
        answer = Envelope(re=envelope.id)
        try:
            reply = await self._on_message(decode(envelope.message), buffers)
            if reply is not None:
                answer.message = msgspec.Raw(encode(reply))
            elif envelope.id:
                answer.message = msgspec.Raw(b'{"t":"done"}')
        except CellburstError as error:
            answer.error = error.info
        except Exception:
            # A defect of ours must reach the log whole and the asker by name, and must not end the link.
            log.exception("a handler failed")
            answer.error = ErrorInfo(
                code=ErrorCode.INTERNAL, message="an internal error; the log of this process has it"
            )
        if envelope.id and self._close_error is None:
            self._control(answer)

    def _control(self, envelope: Envelope, buffers: Sequence[Buffer] = ()) -> None:
        self.mux.control(msgspec.json.encode(envelope), buffers)
        self.wake()


def _reset_error(head: Buffer) -> Exception:
    try:
        return from_info(_error_decoder.decode(head))
    except msgspec.MsgspecError:
        return _closed_error("the peer gave the stream up")
