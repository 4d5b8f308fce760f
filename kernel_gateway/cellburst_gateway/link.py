"""The WebSocket /link of kernels, command lines and workers: who it is, the frames, and what it may say.

A socket belongs to one token. Its first control message is Hello; what follows depends on the token's role, never on
what the other side says it is.
"""

from __future__ import annotations

import asyncio
import logging
import socket as sockets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.framing import MAX_FRAME_BYTES, FramingError
from cellburst_protocol.messages import Hello, Message, Welcome
from cellburst_protocol.peer import Peer, Stream
from cellburst_protocol.version import negotiate

from .config import is_loopback
from .http_base import Base
from .store_rows import Role, TokenRecord

if TYPE_CHECKING:
    from .hub import Hub

MAX_WEBSOCKET_BYTES = MAX_FRAME_BYTES + 1024  # a frame with its header
HELLO_SECONDS = 10.0  # a socket that does not say who it is is closed
CHECK_SECONDS = 2.0  # how often an open link's token is looked up again: revoked ones are closed within 5 s
CLOSE_POLICY, CLOSE_DATA, CLOSE_RESTART = 1008, 1003, 1012
SOFTWARE = "cellburst-gateway 0.1.0"

log = logging.getLogger(__name__)


class Served(Protocol):
    """What a link carries after Hello: a kernel's or a worker's messages."""

    async def on_message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        """A control message."""

    def on_open(self, message: Message, stream: Stream) -> None:
        """A stream that the other side opened."""

    def closed(self) -> None:
        """The link is gone."""


Serve = Callable[[Hello, TokenRecord, Peer, bool], Served]


class Links:
    """All open links, so that revoked tokens and a shutdown reach them."""

    def __init__(self) -> None:
        self.open: set[LinkHandler] = set()

    def close_all(self) -> None:
        """The gateway is going away."""
        for link in list(self.open):
            link.close(CLOSE_RESTART, "the gateway is stopping")

    def check_tokens(self) -> None:
        """Close links whose token has expired or was revoked."""
        good: dict[str, bool] = {}
        for link in list(self.open):
            hashed = link.token_hash
            if hashed not in good:
                try:
                    link.auth.check(hashed)
                    good[hashed] = True
                except CellburstError as why:
                    good[hashed] = why.code is not ErrorCode.UNAUTHENTICATED  # a busy record is no revocation
            if not good[hashed]:
                link.close(CLOSE_POLICY, "the token was revoked or has expired")


class LinkHandler(WebSocketHandler, Base):
    """One socket."""

    for_containers = True

    def initialize(self, hub: Hub, auth: Any, links: Links, serve_kernel: Serve, serve_worker: Serve) -> None:  # type: ignore[override]
        """Tornado gives each handler these."""
        Base.initialize(self, hub, auth)
        self._links = links
        self._serve = {"kernel": serve_kernel, "worker": serve_worker}
        self._served: Served | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.peer: Peer | None = None

    def prepare(self) -> None:
        """Host, Origin and token, as on every route."""
        Base.prepare(self)
        if not self._finished and self.hub.stopping:
            self.refuse(error(ErrorCode.UNAVAILABLE, "the gateway is stopping", next="try again when it is back").info)

    def check_origin(self, origin: str) -> bool:
        """Checked in `prepare`, for all routes alike."""
        return True

    def get_compression_options(self) -> dict[str, Any] | None:
        """None: values do not compress, and compression beside secrets tells about them."""
        return None

    def open(self, *args: str, **kwargs: str) -> None:
        """The socket is up."""
        self.set_nodelay(True)
        self._keep_alive()
        self.peer = Peer(dialer=False, on_message=self._control, on_open=self._opened)
        self._links.open.add(self)
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._pump()), loop.create_task(self._hello_due())]

    def on_message(self, message: str | bytes) -> None:
        """One frame."""
        if self.peer is None:
            return
        if isinstance(message, str):
            self.close(CLOSE_DATA, "frames are binary")
            return
        try:
            self.peer.feed(message)
        except (FramingError, CellburstError) as why:
            log.warning("a link was closed: %s", str(why)[:300])
            self.close(CLOSE_POLICY, _reason(str(why)))

    def on_close(self) -> None:
        """The socket is gone."""
        self._links.open.discard(self)
        for task in self._tasks:
            task.cancel()
        if self.peer is not None:
            self.peer.close()
        if self._served is not None:
            self._served.closed()
            self._served = None

    # -- frames ----------------------------------------------------------------------------------------------------

    async def _pump(self) -> None:
        assert self.peer is not None
        try:
            # Waiting for each write keeps data in the mux, where control frames overtake it.
            await self.peer.pump(self._write)
        except (WebSocketClosedError, StreamClosedError):
            self.close()
        else:
            self.close(CLOSE_POLICY, "the link was given up")

    async def _write(self, frame: bytes) -> None:
        await self.write_message(frame, binary=True)

    async def _hello_due(self) -> None:
        await asyncio.sleep(HELLO_SECONDS)
        if self._served is None:
            self.close(CLOSE_POLICY, "no hello")

    def _keep_alive(self) -> None:
        # The system's own probes find a peer that is gone without a word; unlike WebSocket pings they are answered by
        # a kernel whose code holds the interpreter lock for minutes.
        connection = self.ws_connection
        raw = getattr(getattr(connection, "stream", None), "socket", None)
        if raw is None:
            return
        raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
            if hasattr(sockets, name):
                raw.setsockopt(sockets.IPPROTO_TCP, getattr(sockets, name), value)

    # -- messages --------------------------------------------------------------------------------------------------

    async def _control(self, message: Message, buffers: list[memoryview]) -> Message | None:
        if self._served is not None:
            return await self._served.on_message(message, buffers)
        if not isinstance(message, Hello):
            raise error(
                ErrorCode.BAD_MESSAGE,
                f"the first message was {type(message).__name__}",
                allowed="hello",
                next="see PROTOCOL.md",
            )
        return self._hello(message)

    def _hello(self, hello: Hello) -> Welcome:
        assert self.token is not None and self.peer is not None
        version = negotiate(hello.protocol, hello.software[:100])
        is_worker = self.token.role is Role.WORKER
        if is_worker != (hello.role == "worker"):
            kind = "a worker's" if is_worker else "a user's"
            raise error(
                ErrorCode.FORBIDDEN, f"this is {kind} token, and the link is opened as {hello.role}",
                next="workers use DATA/worker-token, kernels and command lines DATA/token",
            )  # fmt: skip
        loopback = is_loopback(self.request.remote_ip or "")
        serve = self._serve["worker" if is_worker else "kernel"]
        self._served = serve(hello, self.token, self.peer, loopback)
        config = self.hub.config
        return Welcome(
            protocol=version, software=SOFTWARE, gateway_instance=self.hub.instance, epoch=self.hub.epoch,
            workspace=self.token.owner.workspace, principal=self.token.owner.principal, blob_folder=str(self.hub.blobs.folder),
            blob_proof_path=str(self.hub.proof_path), blob_proof=self.hub.proof,
            disconnect_grace_seconds=config.disconnect_grace_seconds, max_timeout_seconds=config.max_timeout_seconds,
            gpu_types=self.hub.fleet.gpu_types(), chunk_folder=self.hub.volumes.chunks.folder(self.token.owner.workspace),
        )  # fmt: skip

    def _opened(self, message: Message, stream: Stream) -> None:
        if self._served is None:
            stream.reset(error(ErrorCode.BAD_MESSAGE, "a stream before hello").info)
            return
        self._served.on_open(message, stream)


def _reason(text: str) -> str:
    """A close reason: at most 123 bytes (RFC 6455, 5.5)."""
    return text.encode()[:120].decode(errors="ignore")
