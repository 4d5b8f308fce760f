"""This kernel's one connection to the gateway, and its sessions. Made at the first `%%modal`, never at import.

An idle kernel never starts a gateway: after `cellburst down` only a cell that is run brings it up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from cellburst.blobs import BlobClient
from cellburst.config import settings
from cellburst.embedded import ensure_gateway, find
from cellburst.endpoint import Endpoint
from cellburst.link import Link
from cellburst.loop import LoopThread
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import Message, SessionInfo, Welcome
from cellburst_protocol.peer import Peer

from .mirror_offer import MirrorOffer
from .session import Item, RemoteSession

POLL_SECONDS = 0.1  # a main thread that waits looks for SIGINT at least this often
KERNEL_ID = uuid.uuid4().hex  # new for each kernel process: a restarted kernel has none of the old one's names


class Hub:
    """The link, the sessions by name, and where the notebook is."""

    def __init__(self, notebook: str, folder: str, on_late: Callable[[RemoteSession, Item], None]) -> None:
        self.notebook = notebook
        self.folder = Path(folder)
        self.loop = LoopThread.shared()
        self.sessions: dict[str, RemoteSession] = {}
        self._on_late = on_late
        self._link: Link | None = None
        self._task: asyncio.Task[None] | None = None
        self._peer: Peer | None = None
        self._progress: Callable[[str], None] = lambda line: None
        self._waiting = 0
        self._blobs: BlobClient | None = None
        self.welcome: Welcome | None = None

    # -- main thread -----------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a link now."""
        return self._peer is not None

    @property
    def blobs(self) -> BlobClient:
        """Transfers of large values; only after `connect`."""
        assert self._blobs is not None
        return self._blobs

    @property
    def embedded(self) -> bool:
        """Whether the gateway is this user's own on this machine."""
        return self._link is not None and self._link.endpoint is not None and self._link.endpoint.embedded

    def connect(self, on_progress: Callable[[str], None] = lambda line: None) -> None:
        """Return when linked; starts the embedded gateway if there is none. Raises CellburstError or KeyboardInterrupt."""
        if self.connected:
            return
        lines: SimpleQueue[str] = SimpleQueue()
        self._progress = lines.put
        self._waiting += 1
        try:
            wait(self.loop.submit(self._connect()), lines, on_progress)
        finally:
            self._waiting -= 1

    def session(self, name: str, attach: str = "") -> RemoteSession:
        """The open session of this name, or the earlier kernel's with id `attach`. Connects first.

        Raises CellburstError or KeyboardInterrupt.
        """
        session = self.sessions.get(name)
        if session is None:
            session = RemoteSession(self.loop, self.notebook, name, KERNEL_ID, self._on_late)
            session.on_coming = lambda coming: self.blobs.begin_get(coming.file, coming.size_bytes)
            session.on_mirror_needed = MirrorOffer(session, self.folder, lambda: self.blobs).needed
        if session.info is None or not self.connected:
            self.connect()
            wait(self.loop.submit(self._open(session, attach)))
            self.sessions[name] = session
        return session

    def request(self, message: Message, timeout_seconds: float = 30.0) -> Message:
        """A control request. Connects first. Raises the gateway's CellburstError, LinkClosed or TimeoutError."""
        self.connect()
        answer: Message = wait(self.loop.submit(self._request(message, timeout_seconds)))
        return answer

    def notify(self, message: Message) -> None:
        """A control message without an answer (an interrupt): overtakes everything, dropped without a link."""
        self.loop.call_soon(self._notify, message)

    # -- loop ------------------------------------------------------------------------------------------------------

    async def _connect(self) -> None:
        if self._peer is not None:
            return
        await self._stop_task()
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._link = Link(self._endpoint, role="kernel")
        self._task = asyncio.create_task(self._keep(self._link, first))
        try:
            await asyncio.shield(first)
        except BaseException:
            await self._stop_task()
            raise

    async def _keep(self, link: Link, first: asyncio.Future[None]) -> None:
        async def connected(peer: Peer, welcome: Welcome) -> None:
            assert link.endpoint is not None
            self._peer, self.welcome, self._blobs = peer, welcome, BlobClient(link.endpoint, welcome)
            for session in self.sessions.values():
                if session.id:
                    session.resume(peer)
            if not first.done():
                first.set_result(None)

        def lost(why: CellburstError) -> None:
            self._peer = None
            for session in self.sessions.values():
                session.link_lost()
            if not first.done():
                first.set_exception(why)

        with contextlib.suppress(CellburstError):  # told by `lost` before
            await link.run_forever(connected, lost)

    async def _stop_task(self) -> None:
        task, self._task = self._task, None
        link, self._link = self._link, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if link is not None:
            await link.close()

    def _endpoint(self) -> Endpoint:
        """Called in a thread before each dial."""
        if self._waiting or any(s.current is not None for s in self.sessions.values()):
            return ensure_gateway(self._progress)
        configured = settings()
        if configured.gateway_url or find(configured.folders) is not None:
            return ensure_gateway(self._progress)
        raise error(ErrorCode.GATEWAY_DOWN, "the gateway is down", next="run a %%modal cell or `cellburst up`")

    async def _open(self, session: RemoteSession, attach: str) -> SessionInfo:
        if self._peer is None:
            raise error(ErrorCode.LINK_CLOSED, "the link to the gateway was lost", next="run the cell again")
        return await session.open(self._peer, attach)

    async def _request(self, message: Message, timeout_seconds: float) -> Message:
        if self._peer is None:
            raise error(ErrorCode.LINK_CLOSED, "the link to the gateway was lost", next="try again in a moment")
        return await self._peer.request(message, timeout_seconds=timeout_seconds)

    def _notify(self, message: Message) -> None:
        if self._peer is not None:
            self._peer.notify(message)


def wait(
    future: Future[Any], lines: SimpleQueue[str] | None = None, on_line: Callable[[str], None] = lambda line: None
) -> Any:
    """A future's result, waited for so that SIGINT is seen; then the future is cancelled."""
    try:
        while True:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
            while lines is not None:
                try:
                    on_line(lines.get_nowait())
                except Empty:
                    break
    except BaseException:
        future.cancel()
        raise
