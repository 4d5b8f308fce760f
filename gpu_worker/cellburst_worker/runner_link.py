"""The worker's end of one container's Unix socket: listens before the engine starts, takes the runner's messages, pings.

One runner at a time: while it is connected any other connection is closed, so that user code that finds the socket
cannot take its place. When the connection breaks the runner dials again; only silence ends a container. Silence is
counted in pings without an answer and not in seconds, so that a worker that was itself stopped for a while does not
take its own pause for the runner's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.framing import Buffer, FramingError
from cellburst_protocol.messages import Message, RunnerDetach, RunnerHello, RunnerPing, RunnerPong
from cellburst_protocol.runner_wire import Incoming, RunnerDecoder, to_runner
from cellburst_protocol.version import negotiate

PING_SECONDS = 1.0
SILENT_PINGS = 10  # a runner that answers none of so many pings in a row is lost: 10 s, as DESIGN section 8 says
HELLO_SECONDS = 10.0  # whoever connects says hello within this, or is cut off
READ_BYTES = 256 * 1024
# What a runner may have on its way at most: its credit, one message beyond it, and control messages. More is a breach.
MAX_UNPROCESSED_BYTES = 72 * 1024 * 1024

log = logging.getLogger(__name__)


OnMessage = Callable[[Incoming], None]


class RunnerLink:
    """Listens for a container's runner. `on_message` gets all but hello and pong; `on_connect` is told of each hello."""

    def __init__(
        self,
        container: str,
        on_message: OnMessage,
        *,
        on_connect: Callable[[], None] = lambda: None,
        ping_seconds: float = PING_SECONDS,
    ) -> None:
        self._container = container
        self._on_message, self._on_connect = on_message, on_connect
        self._ping_seconds = ping_seconds
        self._server: asyncio.Server | None = None
        self._path: Path | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._taken = False
        self._pings = 0
        self._unanswered = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.hello: asyncio.Future[RunnerHello] = asyncio.get_running_loop().create_future()
        self.silent = asyncio.Event()  # set for good once the runner is lost
        self.connected = asyncio.Event()
        self.disconnected = asyncio.Event()  # the other of the two
        self.disconnected.set()

    async def listen(self, path: Path) -> None:
        """Listen at `path`, also where it is longer than the 108 bytes that a Unix address holds; again after `detach`
        or `unlisten`, there or elsewhere: `hello` is then the next runner's."""
        path.unlink(missing_ok=True)
        if self.hello.done():
            self.hello = asyncio.get_running_loop().create_future()
        self._path = path
        folder = os.open(path.parent, os.O_RDONLY | os.O_CLOEXEC)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(f"/proc/self/fd/{folder}/{path.name}")
            path.chmod(0o777)  # the container's user dials it; the container's folder is 0700
            self._server = await asyncio.start_unix_server(self._accept, sock=sock, limit=READ_BYTES)
        except BaseException:
            sock.close()
            raise
        finally:
            os.close(folder)

    def start_pings(self) -> None:
        """Begin to watch for silence: from the first hello on, and again after `detach`."""
        self._unanswered = 0
        self._pinging = self._spawn(self._ping())

    async def detach(self, seconds: float) -> bool:
        """Tell a frozen runner to close its socket, and wait for that. Nobody listens then, so it dials in vain until the
        next `listen`. False: it did not close within `seconds`."""
        self._stop_listening()
        self.post(RunnerDetach())
        try:
            async with asyncio.timeout(seconds):
                await self.disconnected.wait()
        except TimeoutError:
            return False
        return True

    async def unlisten(self) -> None:
        """Let go of a container that did not come up: cut the connection and wait until it is gone. Idempotent."""
        self._stop_listening()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _stop_listening(self) -> None:
        if self._pinging is not None:
            self._pinging.cancel()
            self._pinging = None
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> bool:
        """Send without waiting: for small messages. False when no runner is connected."""
        if self._writer is None:
            return False
        self._writer.writelines(to_runner(message, buffers))
        return True

    async def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send, waiting for a connection and for room in the socket."""
        while not self.post(message, buffers):
            await self.connected.wait()
        writer = self._writer
        if writer is not None:
            with contextlib.suppress(ConnectionError):  # the reading side sees it and waits for the next connection
                await writer.drain()

    async def close(self) -> None:
        """Stop listening and cut the connection, for good. Idempotent."""
        await self.unlisten()
        if not self.hello.done():
            self.hello.cancel()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if self._taken:
            log.warning("a second connection to a container's socket was refused", extra={"container": self._container})
            writer.close()
            return
        self._taken = True
        try:
            await self._serve(reader, writer)
        except (FramingError, CellburstError) as why:
            log.warning("a runner's connection was cut", extra={"container": self._container, "why": str(why)})
        except (ConnectionError, TimeoutError):
            pass  # it dials again
        except asyncio.CancelledError:
            pass  # `unlisten`: this is the whole task, and asyncio of Python 3.11 logs one that ends cancelled
        finally:
            self._taken = False
            self._writer = None
            self.connected.clear()
            self.disconnected.set()
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder = RunnerDecoder()
        greeted = False
        while True:
            async with asyncio.timeout(None if greeted else HELLO_SECONDS):
                data = await reader.read(READ_BYTES)
            if not data:
                return
            for incoming in decoder.feed(data):
                if not greeted:
                    self._greet(incoming.message, writer)
                    greeted = True
                elif not isinstance(incoming.message, RunnerPong | RunnerHello):
                    self._on_message(incoming)
            self._unanswered = 0

    def _greet(self, hello: Message, writer: asyncio.StreamWriter) -> None:
        if not isinstance(hello, RunnerHello):
            raise FramingError(f"a runner began with {type(hello).__name__} and not with RunnerHello")
        negotiate(hello.protocol, "the runner")
        self._writer = writer
        self._on_connect()
        self.connected.set()
        self.disconnected.clear()
        if not self.hello.done():
            self.hello.set_result(hello)

    async def _ping(self) -> None:
        while self._unanswered < SILENT_PINGS:
            self._pings += 1
            self._unanswered += 1
            self.post(RunnerPing(number=self._pings))
            await asyncio.sleep(self._ping_seconds)
        self.silent.set()
