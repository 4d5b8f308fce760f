"""The worker's link to its gateway: dials, says who it is, joins, and dials again for ever.

A gateway that is started again is back within seconds, so the first tries come fast; a machine that is away is tried
every few seconds. Control frames overtake because frames are only taken from the mux when the socket has room.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import urllib.parse
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol

import websockets.asyncio.client as ws
from websockets.datastructures import HeadersLike
from websockets.exceptions import InvalidHandshake, WebSocketException

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.framing import MAX_FRAME_BYTES, FramingError
from cellburst_protocol.messages import Hello, Joined, JoinWorker, Message, Welcome
from cellburst_protocol.peer import Peer, Stream
from cellburst_protocol.version import negotiate

from . import loopback_peer

FIRST_DELAY_SECONDS = 0.03
QUICK_TRIES = 60  # about 4 s of quick tries: a gateway that is killed and started again serves within 3 s
QUICK_DELAY_SECONDS = 0.07
MAX_DELAY_SECONDS = 5.0
LOOPBACK_DELAY_SECONDS = 1.0  # a try costs no network; the other end of an ssh tunnel may be back at any moment
OPEN_SECONDS = 10.0
PING_SECONDS = 5.0  # a link without any sign for PING + PONG seconds is dialled anew
PONG_SECONDS = 10.0
WRITE_LIMIT_BYTES = 64 * 1024  # what an interrupt may wait behind in this process
MAX_MESSAGE_BYTES = MAX_FRAME_BYTES + 1024  # a frame and its header

log = logging.getLogger(__name__)


class Member(Protocol):
    """The worker, as its link sees it."""

    def hello(self) -> Hello:
        """Who dials."""

    def join(self) -> JoinWorker:
        """What the machine has and runs, now."""

    def joined(self, peer: Peer, welcome: Welcome, joined: Joined) -> None:
        """The link is up: open streams, stop what is not adopted."""

    def parted(self) -> None:
        """The link is gone."""

    async def on_message(self, message: Message, buffers: list[memoryview]) -> Message | None:
        """A control message."""

    def on_open(self, head: Message, stream: Stream) -> None:
        """A stream that the gateway opened."""


def delays(
    random_ratio: Callable[[], float] = random.random, longest_seconds: float = MAX_DELAY_SECONDS
) -> Iterator[float]:
    """Seconds to wait before each try, jittered by a fifth so that many workers do not come at once."""
    delay = FIRST_DELAY_SECONDS
    tries = 0
    while True:
        yield delay * (0.8 + 0.4 * random_ratio())
        tries += 1
        delay = QUICK_DELAY_SECONDS if tries < QUICK_TRIES else min(longest_seconds, delay * 1.5)


def link_url(join: str) -> str:
    """The WebSocket address for what a person gave to --join. Raises RequestError for a link in the clear to elsewhere."""
    parts = urllib.parse.urlsplit(join if "//" in join else f"http://{join}")
    scheme = {"http": "ws", "ws": "ws", "https": "wss", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise error(ErrorCode.BAD_ARGUMENT, f"--join {join!r} is no gateway's address", allowed="http(s)://HOST:PORT")
    if scheme == "ws" and not _is_loopback(parts.hostname):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"--join {join!r} would send the token in the clear to {parts.hostname}",
            allowed="https://HOST:PORT, or http:// on loopback",
            next="use TLS, or an ssh tunnel: ssh -L 8787:127.0.0.1:8787 HOST",
        )  # fmt: skip
    return urllib.parse.urlunsplit(
        (scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/link") + "/link", "", "")
    )


def http_url(link: str) -> str:
    """The same gateway's address for blobs."""
    return link.replace("ws", "http", 1).removesuffix("/link")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class GatewayLink:
    """Keeps a worker joined. `owners`: the users, beside root and this process's, who may serve on loopback what it joins."""

    def __init__(
        self, url: str, token: Callable[[], str], member: Member, owners: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self._url, self._token, self._member, self._owners = url, token, member, owners
        self._said = ""

    async def run(self) -> None:
        """Dial and serve, for ever; cancel it to part."""
        near = _is_loopback(urllib.parse.urlsplit(self._url).hostname or "")
        longest = LOOPBACK_DELAY_SECONDS if near else MAX_DELAY_SECONDS
        waits = delays(longest_seconds=longest)
        while True:
            try:
                if await self._once():
                    waits = delays(longest_seconds=longest)
            except (OSError, WebSocketException, CellburstError, FramingError, TimeoutError) as why:
                self._say(why)
            await asyncio.sleep(next(waits))

    def _say(self, why: Exception) -> None:
        text = f"{type(why).__name__}: {why}"
        if text != self._said:  # one line for a gateway that is away, not one for each try
            level = logging.ERROR if isinstance(why, CellburstError | InvalidHandshake) else logging.WARNING
            log.log(level, "the gateway cannot be reached; it is tried again", extra={"why": text})
            self._said = text

    async def _once(self) -> bool:
        """One link from dial to loss. Returns whether the worker was joined."""
        socket = await ws.connect(
            self._url,
            additional_headers={"Authorization": f"Bearer {self._token()}"},
            compression=None, max_size=MAX_MESSAGE_BYTES, write_limit=WRITE_LIMIT_BYTES, open_timeout=OPEN_SECONDS,
            ping_interval=PING_SECONDS, ping_timeout=PONG_SECONDS, close_timeout=1.0,
            proxy=None if _is_loopback(urllib.parse.urlsplit(self._url).hostname or "") else True,
            create_connection=_looks_first(self._owners),
        )  # fmt: skip
        peer = Peer(dialer=True, on_message=self._member.on_message, on_open=self._member.on_open)
        joined = asyncio.Event()
        async with socket:
            try:
                await _first_to_end(self._read(socket, peer), peer.pump(socket.send), self._serve(peer, joined))
            finally:
                peer.close()
                if joined.is_set():
                    self._member.parted()
        return joined.is_set()

    async def _serve(self, peer: Peer, joined: asyncio.Event) -> None:
        welcome = await peer.request(self._member.hello())
        if not isinstance(welcome, Welcome):
            raise error(ErrorCode.BAD_MESSAGE, f"the gateway answered hello with {type(welcome).__name__}")
        negotiate(welcome.protocol, "the gateway")
        answer = await peer.request(self._member.join())
        if not isinstance(answer, Joined):
            raise error(ErrorCode.BAD_MESSAGE, f"the gateway answered join_worker with {type(answer).__name__}")
        log.info("joined the gateway", extra={"gateway": welcome.gateway_instance, "epoch": welcome.epoch})
        self._said = ""
        joined.set()
        self._member.joined(peer, welcome, answer)
        await peer.closed.wait()

    async def _read(self, socket: ws.ClientConnection, peer: Peer) -> None:
        async for frame in socket:
            if isinstance(frame, str):
                raise FramingError("a text message; frames are binary")
            peer.feed(frame)


def _looks_first(owners: Callable[[], Iterable[int]]) -> type[ws.ClientConnection]:
    """A connection that looks who has the other end before it says anything."""

    class Connection(ws.ClientConnection):
        async def handshake(self, additional_headers: HeadersLike | None = None, *words: Any, **more: Any) -> None:
            if (raw := self.transport.get_extra_info("socket")) is not None and not self.protocol.uri.secure:
                try:
                    loopback_peer.check(raw, owners())
                except PermissionError as why:
                    raise error(
                        ErrorCode.FORBIDDEN, str(why), next="end what listens there; it is tried again by itself"
                    ) from None
            await super().handshake(additional_headers, *words, **more)

    return Connection


async def _first_to_end(*work: Awaitable[object]) -> None:
    """Run all, end all when one ends, and raise what that one raised."""
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
