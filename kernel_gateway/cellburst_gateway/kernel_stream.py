"""The kernel's stream of a session: what it says goes to cells and container, events come from the session's log.

The sender reads the log at the pace of the stream's credit, so a kernel that does not read costs no memory here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.framing import Buffer
from cellburst_protocol.mac import value_key
from cellburst_protocol.messages import (
    Ack,
    CommMessage,
    Message,
    MirrorRecipe,
    NamesData,
    Numbered,
    RunCell,
    SideReply,
    SideRequest,
    StdinReply,
    ValueComing,
)
from cellburst_protocol.peer import Stream, StreamEnded

from .session import Session

if TYPE_CHECKING:
    from .hub import Hub

READ_BYTES = 1024 * 1024  # of the log at a time: a window of the stream
MAX_SIDES = 200  # questions under way in one session; completion asks one at a time

log = logging.getLogger(__name__)


class KernelStream:
    """One stream; the session's subscriber while it is open."""

    def __init__(self, hub: Hub, session: Session, stream: Stream, from_sequence: int) -> None:
        self._hub = hub
        self._session = session
        self._stream = stream
        self._sent = max(0, min(from_sequence, session.last_sequence))
        self._wakeup = asyncio.Event()
        self._wakeup.set()
        self._closed = False

    # -- as the session's subscriber -------------------------------------------------------------------------------

    def wake(self) -> None:
        """There are new events in the log."""
        self._wakeup.set()

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send beside events; dropped when the stream is gone."""
        if not self._closed:
            try:
                self._stream.post(message, buffers)
            except CellburstError:
                self._closed = True

    def post_live(self, message: Message) -> None:
        """Send a live figure unless earlier data waits."""
        if self._stream.writable and self._sent == self._session.last_sequence:
            self.post(message)

    def close(self, why: str) -> None:
        """Another stream took the session."""
        self._closed = True
        self._stream.reset(ErrorInfo(code=ErrorCode.CONFLICT, message=why))

    # -- running ---------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the stream until it ends."""
        session = self._session
        if session.subscriber is not None:
            session.subscriber.close("the session was opened again on another link")
        session.subscriber = self
        session.kernel_left_at = None
        info = session.info()
        info.acknowledged_sequence = self._hub.logs.acknowledged(session.id)
        self.post(info)
        sender = asyncio.get_running_loop().create_task(self._send_events())
        try:
            while True:
                message, buffers = await self._stream.recv()
                await self._take(message, buffers)
        except StreamEnded:
            self._stream.end()
        except CellburstError as why:
            if why.code is ErrorCode.BAD_MESSAGE:
                self._stream.reset(why.info)
        finally:
            self._closed = True
            sender.cancel()
            if session.subscriber is self:
                session.subscriber = None
                session.kernel_left_at = self._hub.clock.monotonic()

    async def _send_events(self) -> None:
        session = self._session
        try:
            while True:
                if self._sent >= session.last_sequence:
                    self._wakeup.clear()
                    await self._wakeup.wait()
                    continue
                for numbered, buffers in session.recent(self._sent) or self._from_log():
                    self._sending(numbered)
                    await self._stream.send(numbered, buffers)
                    self._sent = numbered.sequence
        except CellburstError as why:
            if why.code is not ErrorCode.LINK_CLOSED and not self._closed:
                log.error("a session's log cannot be read: %s", why.info.message, extra={"session": session.id})
                self._stream.reset(why.info)

    def _sending(self, numbered: Numbered) -> None:
        """An event is about to go."""

    def _from_log(self) -> list[tuple[Numbered, list[bytes]]]:
        found = [
            (Numbered(sequence=event.sequence, call=event.call, event=msgspec.Raw(event.head)), event.buffers)
            for event in self._hub.logs.read(self._session.id, self._sent, READ_BYTES)
        ]
        if not found:  # the log was trimmed of all that was asked for
            self._sent = self._session.last_sequence
        return found

    # -- what the kernel says --------------------------------------------------------------------------------------

    async def _take(self, message: Message, buffers: list[memoryview]) -> None:
        session = self._session
        match message:
            case RunCell():
                await self._hub.cells.run(session, message, buffers)
            case MirrorRecipe():
                self._hub.mirrors.answered(session, message)
            case NamesData():
                await self._hub.cells.names(session, message, buffers)
            case Ack():
                self._hub.logs.ack(session.id, message.sequence)
            case SideRequest():
                await self._side(message, buffers)
            case ValueComing():
                if session.container is not None and session.container.connected and session.park is None:
                    with contextlib.suppress(CellburstError):  # nobody relies on it
                        await session.container.send(message)
            case StdinReply() | CommMessage():
                if session.container is not None:
                    try:
                        await session.container.send(message, buffers)
                    except CellburstError as why:
                        log.warning("a message was dropped: %s", why.info.message, extra={"session": session.id})
            case _:
                raise CellburstError(
                    ErrorInfo(
                        code=ErrorCode.BAD_MESSAGE,
                        message=f"{type(message).__name__} has no place on a session's stream",
                    )
                )

    async def _side(self, request: SideRequest, buffers: list[memoryview]) -> None:
        session, container = self._session, self._session.container
        problem = None
        if session.park is not None or (container is None and session.kept is not None):
            problem = ErrorInfo(
                code=ErrorCode.NOT_FOUND,
                message=f"session {session.record.name!r} is parked"
                if container is None
                else f"session {session.record.name!r} is being parked",
                next="run a cell: it brings the session back",
            )
        elif container is None:
            problem = ErrorInfo(
                code=ErrorCode.NOT_FOUND,
                message=f"session {session.record.name!r} has no container now",
                next="run a cell: it starts one",
            )
        elif not container.connected:
            problem = ErrorInfo(
                code=ErrorCode.UNAVAILABLE,
                message="the session's worker cannot be reached now",
                next="try again in a moment",
            )
        elif len(session.sides) >= MAX_SIDES:
            problem = ErrorInfo(
                code=ErrorCode.BUSY, message=f"{MAX_SIDES} questions already wait for this session's container"
            )
        if problem is not None or container is None:
            self.post(SideReply(id=request.id, error=problem))
            return
        key = value_key(self._hub.secrets.master_key, f"side:{session.id}:{request.id}")
        session.sides[request.id] = key
        await container.send(msgspec.structs.replace(request, value_key=key), buffers)
