"""A kernel's or command line's end of a link, for tests of the gateway: the true protocol, events collected."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import websockets.asyncio.client as ws
from websockets.exceptions import ConnectionClosed

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.framing import MAX_FRAME_BYTES
from cellburst_protocol.messages import (
    Ack,
    CallEnded,
    CellAccepted,
    CellRefused,
    Hello,
    Message,
    MirrorSpec,
    Numbered,
    RunCell,
    SessionInfo,
    SessionStream,
    SideReply,
    UsageReport,
    Welcome,
    decode,
)
from cellburst_protocol.peer import Peer, Stream, StreamEnded
from cellburst_protocol.resources import Resources
from cellburst_protocol.version import PROTOCOL_VERSION

IMAGE = MirrorSpec(
    executable="/usr/bin/python3",
    python_version="3.11.7",
    prefix="/usr",
    base_prefix="/usr",
    sys_path=[],
    identity="i1",
)


class FakeKernel:
    """One link. `events` are (sequence, call, event); `said` everything else of the session's stream."""

    def __init__(self, url: str, token: str, *, role: Any = "kernel") -> None:
        self.url = url.replace("http", "ws", 1) + "/link"
        self.token = token
        self.role = role
        self.events: list[tuple[int, str, Any]] = []
        self.buffers: list[list[bytes]] = []
        self.said: list[Message] = []
        self.info: SessionInfo | None = None
        self.stream: Stream | None = None
        self.welcome: Welcome
        self.error: Exception | None = None
        self.ack = True
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[Any]] = []

    async def dial(self) -> FakeKernel:
        """Open the link and say hello."""
        self.socket = await ws.connect(
            self.url, additional_headers={"Authorization": f"Bearer {self.token}"}, compression=None,
            max_size=MAX_FRAME_BYTES + 1024, ping_interval=None, proxy=None, close_timeout=0.2,
        )  # fmt: skip
        self.peer = Peer(dialer=True, on_message=self._control)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self.peer.pump(self.socket.send))]
        welcome = await self.peer.request(
            Hello(role=self.role, protocol=PROTOCOL_VERSION, software="test", instance="k"), timeout_seconds=10
        )
        assert isinstance(welcome, Welcome)
        self.welcome = welcome
        return self

    async def close(self) -> None:
        """Lose the link."""
        self.peer.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.socket.close()

    async def session(
        self, notebook: str = "/n.ipynb", *, name: str = "default", kernel_id: str = "k1", session: str = "", attach: bool = False,
        from_sequence: int = 0,
    ) -> SessionInfo:  # fmt: skip
        """Open a session's stream and wait for its SessionInfo."""
        self.stream = self.peer.open(
            SessionStream(
                notebook=notebook,
                name=name,
                kernel_id=kernel_id,
                session=session,
                attach=attach,
                from_sequence=from_sequence,
            )
        )
        self._tasks.append(asyncio.create_task(self._collect(self.stream)))
        await self.until(lambda: self.info is not None or self.error is not None)
        if self.error is not None:
            raise self.error
        assert self.info is not None
        return self.info

    async def run(
        self, code: str, *, call: str, resources: Resources | None = None, image: MirrorSpec | None = IMAGE, **more: Any
    ) -> CellAccepted | CellRefused:
        """Send a cell and wait for its acceptance or refusal."""
        assert self.stream is not None
        before = len(self.said)
        await self.stream.send(RunCell(call=call, code=code, resources=resources, image=image, **more))
        await self.until(lambda: any(isinstance(m, CellAccepted | CellRefused) for m in self.said[before:]))
        return next(m for m in self.said[before:] if isinstance(m, CellAccepted | CellRefused))

    async def ended(self, call: str, seconds: float = 30) -> CallEnded:
        """Wait for a call's end."""
        await self.until(lambda: bool(self.of(call, CallEnded)), seconds)
        return self.of(call, CallEnded)[0]

    def of(self, call: str, kind: type[Any]) -> list[Any]:
        """Events of a call and a kind."""
        return [event for _, c, event in self.events if c == call and isinstance(event, kind)]

    def kinds(self, call: str) -> list[str]:
        """Names of a call's events, in order."""
        return [type(event).__name__ for _, c, event in self.events if c == call]

    def texts(self, kind: type[Any]) -> list[Any]:
        """What was said beside events."""
        return [m for m in self.said if isinstance(m, kind)]

    async def until(self, condition: Callable[[], bool], seconds: float = 30) -> None:
        """Wait until something that arrives makes the condition true."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(condition)

    async def side(self, request: Message) -> SideReply:
        """Ask beside cells."""
        assert self.stream is not None
        before = len(self.said)
        await self.stream.send(request)
        await self.until(lambda: any(isinstance(m, SideReply) for m in self.said[before:]))
        return next(m for m in self.said[before:] if isinstance(m, SideReply))

    async def usage(self) -> UsageReport:
        """The next live figures."""
        before = len(self.said)
        await self.until(lambda: any(isinstance(m, UsageReport) for m in self.said[before:]))
        return next(m for m in self.said[before:] if isinstance(m, UsageReport))

    async def _control(self, message: Message, buffers: list[memoryview]) -> Message | None:
        return None

    async def _read(self) -> None:
        try:
            async for frame in self.socket:
                assert isinstance(frame, bytes)
                self.peer.feed(frame)
        except ConnectionClosed:
            pass  # the loop ends by itself only after a normal close
        self.peer.close("the gateway closed the link")
        async with self._changed:
            self._changed.notify_all()

    async def _collect(self, stream: Stream) -> None:
        try:
            while True:
                message, buffers = await stream.recv()
                async with self._changed:
                    if isinstance(message, Numbered):
                        self.events.append((message.sequence, message.call, decode(message.event)))
                        self.buffers.append([bytes(b) for b in buffers])
                        if self.ack:
                            stream.post(Ack(sequence=message.sequence))
                    else:
                        self.said.append(message)
                        if isinstance(message, SessionInfo):
                            self.info = message
                    self._changed.notify_all()
        except (CellburstError, StreamEnded) as why:
            async with self._changed:
                self.error = why
                self._changed.notify_all()
