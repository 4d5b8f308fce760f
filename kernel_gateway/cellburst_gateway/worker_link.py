"""What a worker says, over one link: it joins, beats, and opens a stream for each container."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import BuildLease, ContainerStream, Heartbeat, Hello, JoinWorker, Message
from cellburst_protocol.peer import Peer, Stream, StreamEnded

from .store_rows import TokenRecord

if TYPE_CHECKING:
    from .hub import Hub

log = logging.getLogger(__name__)


class WorkerLink:
    """One worker's link."""

    def __init__(self, hub: Hub, hello: Hello, token: TokenRecord, peer: Peer, loopback: bool) -> None:
        self._hub = hub
        self._hello = hello
        self._token = token
        self._peer = peer
        self._loopback = loopback
        self._worker = ""

    async def on_message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        """A control message."""
        match message:
            case JoinWorker():
                joined = self._hub.fleet.join(
                    message, self._hello, self._token.owner, self._peer, loopback=self._loopback
                )
                self._worker = message.worker
                return joined
            case Heartbeat():
                if self._worker:
                    self._hub.fleet.heartbeat(self._worker, message)
                return None
        raise error(ErrorCode.FORBIDDEN, f"{type(message).__name__} is not for a worker's link", next="see PROTOCOL.md")

    def on_open(self, message: Message, stream: Stream) -> None:
        """A container's stream, or one for a lease of a build's."""
        if isinstance(message, BuildLease) and self._worker:
            self._hub.spawn(self._hub.build_leases.serve(self._worker, message, stream))
            return
        if not isinstance(message, ContainerStream) or not self._worker:
            stream.reset(error(ErrorCode.FORBIDDEN, f"{type(message).__name__} is not for a worker's link").info)
            return
        handle = self._hub.fleet.containers.get(message.container)
        if handle is None or handle.worker != self._worker:
            stream.reset(error(ErrorCode.NOT_FOUND, f"container {message.container[:80]!r} is not in the record").info)
            return
        handle.attach(stream)
        self._hub.spawn(self._read(message.container, stream))

    async def _read(self, container: str, stream: Stream) -> None:
        handle = self._hub.fleet.containers[container]
        try:
            while True:
                message, buffers = await stream.recv()
                await self._hub.events.message(handle, message, buffers)
        except StreamEnded:
            pass
        except CellburstError as why:
            if why.code is not ErrorCode.LINK_CLOSED:
                # A full disk: nothing was recorded, so the worker keeps it in its spool and sends it again.
                log.error("a container's stream was given up: %s", why.info.message, extra={"container": container})
                self._peer.close("an event could not be recorded")
        finally:
            handle.detach(stream)

    def closed(self) -> None:
        """The link is gone."""
        if self._worker:
            self._hub.fleet.link_closed(self._worker, self._peer)
