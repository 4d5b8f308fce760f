"""What runs, told to visible windows: at once when something changes, at most once a second when only figures do.

One watcher asks the gateway for all windows, and only while one of them is visible. To a window go
`{"t": "status", "status": Status}` and `{"t": "offline", "error": ErrorInfo, "starting": bool}`; from it comes
`{"visible": bool, "start": bool}`: whether its page is shown, and whether a gateway may be started now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from typing import Any

import msgspec
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.messages import GetStatus, Status

from .base import RESOURCE
from .gateway import Gateway
from .settings import CellburstServer

OFFLINE_SECONDS = 1.0  # between two looks for a gateway that is not there: a file and a short request
MAX_WINDOW_BYTES = 4096  # of a window's message

log = logging.getLogger(__name__)


class Asked(msgspec.Struct, kw_only=True):
    """A window's message."""

    visible: bool = True
    start: bool = False


class Watcher:
    """Asks the gateway while a window is visible, and tells all visible windows."""

    def __init__(self, gateway: Gateway, options: CellburstServer) -> None:
        self._gateway = gateway
        self._options = options
        self._windows: set[LiveHandler] = set()
        self._task: asyncio.Task[None] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._start_error: ErrorInfo | None = None
        self._last = b""

    def show(self, window: LiveHandler, *, start: bool) -> None:
        """A window is visible: it gets the last picture at once."""
        self._windows.add(window)
        if start and self._options.start_gateway and self._starting is None:
            self._starting = asyncio.create_task(self._start())
        if self._last:
            window.tell(self._last)
        if self._task is None:
            self._task = asyncio.create_task(self._watch())

    def hide(self, window: LiveHandler) -> None:
        """A window is hidden or gone; with the last one the asking ends."""
        self._windows.discard(window)
        if not self._windows and self._task is not None:
            self._task.cancel()
            self._task, self._last = None, b""

    async def close(self) -> None:
        """End what runs."""
        tasks = [task for task in (self._task, self._starting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._task = self._starting = None

    async def _start(self) -> None:
        try:
            self._start_error = None
            await self._gateway.start()
        except CellburstError as why:
            self._start_error = why.info
        finally:
            self._starting = None

    async def _watch(self) -> None:
        clock = asyncio.get_running_loop().time
        shape: object = None
        told_at = 0.0
        while True:
            began = clock()
            try:
                status = await self._gateway.ask(GetStatus(), Status, 10.0)
                self._start_error = None
                new, message = _shape(status), msgspec.json.encode({"t": "status", "status": status})
                pause = self._options.poll_seconds
            except (CellburstError, OSError, TimeoutError) as why:
                new, message = self._offline(why)
                pause = self._options.poll_seconds if self._starting else OFFLINE_SECONDS
            if new != shape or clock() - told_at >= self._options.push_seconds:
                shape, told_at, self._last = new, clock(), message
                for window in list(self._windows):
                    window.tell(message)
            await asyncio.sleep(max(0.01, pause - (clock() - began)))

    def _offline(self, why: Exception) -> tuple[object, bytes]:
        info = why.info if isinstance(why, CellburstError) else ErrorInfo(
            code=ErrorCode.GATEWAY_DOWN, message=f"the gateway does not answer: {why or 'no answer in time'}"
        )  # fmt: skip
        info = self._start_error or info
        told = {"t": "offline", "error": info, "starting": self._starting is not None}
        message = msgspec.json.encode(told)
        return message, message


def _shape(status: Status) -> object:
    """All of it that does not change from second to second by itself."""
    sessions = [
        (
            s.id,
            s.state,
            s.notebook,
            s.name,
            s.running_call,
            s.container and (s.container.id, s.container.state),
            s.parked is None,
        )
        for s in status.sessions
    ]
    workers = [(w.id, w.state, w.free_gpus, w.snapshots and len(w.snapshots.warm)) for w in status.workers]
    return sessions, workers, [re.sub(r"\d+", "", line) for line in status.queue], status.gateway_pid


class LiveHandler(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """GET live: one window's WebSocket."""

    auth_resource = RESOURCE

    def initialize(self, watcher: Watcher) -> None:
        """Tornado gives each handler these."""
        self.watcher = watcher
        self._waiting: bytes | None = None
        self._sending: asyncio.Task[None] | None = None

    def set_default_headers(self) -> None:
        """None: this is no page."""

    def get_compression_options(self) -> dict[str, Any]:
        """Figures are JSON that repeats itself: a tenth of it is left."""
        return {"compression_level": 1}

    async def pre_get(self) -> None:
        """Login and permission, before the connection is made. Raises HTTPError (403)."""
        user = self.current_user
        if user is None:
            self.log.warning("Couldn't authenticate WebSocket connection")
            raise HTTPError(403)
        may = self.authorizer.is_authorized(self, user, "read", RESOURCE)
        if asyncio.iscoroutine(may):
            may = await may
        if not may:
            raise HTTPError(403)

    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Make the connection."""
        await self.pre_get()
        answer = super().get(*args, **kwargs)
        if answer is not None:
            await answer

    def on_message(self, message: str | bytes) -> None:
        """The window says whether it is shown."""
        try:
            if len(message) > MAX_WINDOW_BYTES:
                raise msgspec.ValidationError("too long")
            asked = msgspec.json.decode(message, type=Asked)
        except (msgspec.MsgspecError, UnicodeError):
            self.close(1003, "a message of the wrong shape")
            return
        if asked.visible:
            self.watcher.show(self, start=asked.start)
        else:
            self.watcher.hide(self)

    def on_close(self) -> None:
        """The window is gone."""
        self.watcher.hide(self)
        super().on_close()

    def tell(self, message: bytes) -> None:
        """Send a picture. One that is not sent yet is replaced: a slow window sees fewer, never older ones."""
        self._waiting = message
        if self._sending is None or self._sending.done():
            self._sending = asyncio.create_task(self._send())

    async def _send(self) -> None:
        while (message := self._waiting) is not None:
            self._waiting = None
            with contextlib.suppress(WebSocketClosedError):
                await self.write_message(message)
