"""A link to the gateway: dials, says Hello, and heals by dialling again.

link = Link(endpoint_source, role="kernel")
await link.connect()                    # one dial; link.peer and link.welcome are set
await link.run_forever(on_connected, on_lost)   # or: keep it up until close()
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import websockets
from websockets.asyncio.client import ClientConnection, connect, unix_connect

from cellburst_protocol import SOFTWARE_VERSION
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.framing import MAX_FRAME_BYTES, FramingError
from cellburst_protocol.messages import Hello, Message, Welcome
from cellburst_protocol.peer import LinkClosed, Peer
from cellburst_protocol.version import PROTOCOL_VERSION, negotiate

from .endpoint import Endpoint

FIRST_REDIAL_SECONDS = 0.05  # a gateway that restarts is bridged before a person notices
LAST_REDIAL_SECONDS = 5.0  # jittered; 500 kernels that redial make 100 dials a second
OPEN_TIMEOUT_SECONDS = 10.0
# Small, so that a control frame waits behind at most one data frame in this process's own buffer.
WRITE_LIMIT_BYTES = 2 * MAX_FRAME_BYTES

INSTANCE = uuid.uuid4().hex


async def _no_messages(message: Message, buffers: list[memoryview]) -> Message | None:
    return None


class Link:
    """One healing link. All methods run on one event loop.

    `endpoint_source` is called (in a thread: it may start an embedded gateway) before each dial. `on_message` serves
    control messages of the gateway.
    """

    def __init__(
        self,
        endpoint_source: Callable[[], Endpoint],
        role: Literal["kernel", "cli"],
        on_message: Callable[[Message, list[memoryview]], Awaitable[Message | None]] = _no_messages,
    ) -> None:
        self._endpoint_source = endpoint_source
        self._role = role
        self._on_message = on_message
        self._socket: ClientConnection | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._closing = False
        self.endpoint: Endpoint | None = None
        self.peer: Peer | None = None
        self.welcome: Welcome | None = None

    async def connect(self) -> Welcome:
        """Dial once. Raises GATEWAY_DOWN, UNAUTHENTICATED, VERSION or another CellburstError."""
        endpoint = self.endpoint = await asyncio.to_thread(self._endpoint_source)
        self._socket = await _dial(endpoint)
        peer = self.peer = Peer(dialer=True, on_message=self._on_message)
        self._tasks = [
            asyncio.create_task(self._read(self._socket, peer)),
            asyncio.create_task(self._write(self._socket, peer)),
        ]
        try:
            hello = Hello(
                role=self._role, protocol=PROTOCOL_VERSION, software=SOFTWARE_VERSION, instance=INSTANCE,
                pid=os.getpid(), hostname=socket.gethostname(),
            )  # fmt: skip
            welcome = await peer.request(hello, timeout_seconds=OPEN_TIMEOUT_SECONDS)
        except BaseException:
            await self._drop()
            raise
        if not isinstance(welcome, Welcome):
            raise error(ErrorCode.BAD_MESSAGE, f"the gateway answered Hello with {type(welcome).__name__}")
        negotiate(welcome.protocol, f"the gateway {welcome.software}")
        self.welcome = welcome
        return welcome

    async def run_forever(
        self,
        on_connected: Callable[[Peer, Welcome], Awaitable[None]],
        on_lost: Callable[[CellburstError], None] = lambda why: None,
    ) -> None:
        """Stay connected until `close`: dial, tell `on_connected`, wait for the loss, tell `on_lost`, dial again.

        Errors that dialling again cannot mend (wrong token, versions) are told and raised.
        """
        delay = FIRST_REDIAL_SECONDS
        while not self._closing:
            try:
                welcome = await self.connect()
                assert self.peer is not None
                await on_connected(self.peer, welcome)
                delay = FIRST_REDIAL_SECONDS
                await self.peer.closed.wait()
                on_lost(error(ErrorCode.LINK_CLOSED, "the link to the gateway was lost", next="it is dialled again"))
            except CellburstError as why:
                on_lost(why)
                if why.code in (ErrorCode.UNAUTHENTICATED, ErrorCode.FORBIDDEN, ErrorCode.VERSION):
                    raise
            except (TimeoutError, OSError) as why:
                on_lost(error(ErrorCode.GATEWAY_DOWN, f"the gateway does not answer: {why}"))
            await self._drop()
            if not self._closing:
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
                delay = min(delay * 2, LAST_REDIAL_SECONDS)

    async def close(self) -> None:
        """Close the link for good."""
        self._closing = True
        await self._drop()

    async def _drop(self) -> None:
        if self.peer is not None:
            self.peer.close()
        if self._socket is not None:
            await self._socket.close()
            self._socket = None
        for task in self._tasks:
            if task is not asyncio.current_task():
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _read(self, connection: ClientConnection, peer: Peer) -> None:
        why = "the gateway closed the link"
        try:
            async for frame in connection:
                if isinstance(frame, str):
                    raise FramingError("a text message where only binary ones are allowed")
                peer.feed(frame)
        except (FramingError, CellburstError) as problem:
            why = f"the gateway broke the protocol: {problem}"
        except websockets.ConnectionClosed as closed:
            why = f"the link broke: {closed.reason or closed}"
        finally:
            peer.close(why)

    async def _write(self, connection: ClientConnection, peer: Peer) -> None:
        try:
            await peer.pump(connection.send)
        except websockets.ConnectionClosed:
            peer.close("the link broke while writing")


async def _dial(endpoint: Endpoint) -> ClientConnection:
    options: dict[str, Any] = {
        "additional_headers": {"Authorization": f"Bearer {endpoint.token}"}, "max_size": MAX_FRAME_BYTES + 1024,
        "compression": None, "open_timeout": OPEN_TIMEOUT_SECONDS, "write_limit": WRITE_LIMIT_BYTES, "ping_interval": 20,
    }  # fmt: skip
    try:
        if endpoint.unix_path:
            return await unix_connect(endpoint.unix_path, "ws://localhost/link", **options)
        return await connect(endpoint.url.replace("http", "ws", 1) + "/link", proxy=None, **options)
    except websockets.InvalidStatus as refused:
        raise _refusal(refused, endpoint) from None
    except (OSError, TimeoutError, websockets.WebSocketException) as why:
        raise error(
            ErrorCode.GATEWAY_DOWN,
            f"no gateway answers at {endpoint.url}: {why}",
            next="start it with `cellburst up`"
            if endpoint.embedded
            else "start that gateway, or unset CELLBURST_GATEWAY",
        ) from None


def _refusal(refused: websockets.InvalidStatus, endpoint: Endpoint) -> CellburstError:
    """The gateway's own error from its HTTP answer, or one made of the status."""
    import msgspec

    try:
        return from_info(msgspec.json.decode(refused.response.body or b"", type=ErrorInfo))
    except msgspec.MsgspecError:
        code = ErrorCode.UNAUTHENTICATED if refused.response.status_code in (401, 403) else ErrorCode.GATEWAY_DOWN
        return error(
            code,
            f"the gateway at {endpoint.url} refused the link with HTTP status {refused.response.status_code}",
            next="check the token (CELLBURST_TOKEN or the token file)"
            if code is ErrorCode.UNAUTHENTICATED
            else "see its log",
        )


__all__ = ["INSTANCE", "Endpoint", "Link", "LinkClosed"]
