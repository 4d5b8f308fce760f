"""A gateway for tests of the notebook side: the true protocol on a real WebSocket, cells played by small scripts.

with FakeKernelGateway({"hello": hello}) as gateway:      # a body `#!hello` is played by `hello`
    ... a kernel with CELLBURST_GATEWAY=gateway.url, CELLBURST_TOKEN=TOKEN ...
    gateway.drop_links()                                  # every kernel redials and is sent what it has not seen
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any

import msgspec
import websockets.asyncio.server as ws

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.mac import sign
from cellburst_protocol.peer import LinkClosed, Peer, Stream, StreamEnded
from cellburst_protocol.states import CallState, EndReason, SessionState

TOKEN = "kernel-token-of-the-test"
KEY = "ab" * 32
GPU = m.GpuShown(index=0, uuid="SIM-1", type="A100-40GB", name="A100", simulated=True)
BOX = m.ContainerInfo(id="c-1", machine="fakebox", engine="fake", gpus=[GPU], cpu=1.0, usd_per_second="0.001")


class Cell:
    """One RunCell being played. Methods are called on the gateway's loop."""

    def __init__(self, session: FakeSession, request: m.RunCell, buffers: list[bytes]) -> None:
        self.session = session
        self.request = request
        self.buffers = buffers
        self.inbox: asyncio.Queue[tuple[m.Message, list[bytes]]] = asyncio.Queue()

    def emit(self, event: m.Event, *buffers: bytes) -> None:
        self.session.emit(event, self.request.call, *buffers)

    def iopub(self, msg_type: str, content: dict[str, Any], *buffers: bytes, **header: str) -> None:
        parent = {**self.request.header, **header}
        head = {"header": {"msg_type": msg_type}, "parent_header": parent, "metadata": {}, "content": content}
        self.emit(m.IOPub(msg_type=msg_type), json.dumps(head).encode(), *buffers)

    def print(self, text: str, name: str = "stdout") -> None:
        self.iopub("stream", {"name": name, "text": text})

    async def heard(self, kind: type[m.Message]) -> tuple[Any, list[bytes]]:
        """The next message of a kind that the kernel sends for this cell."""
        while True:
            message, buffers = await asyncio.wait_for(self.inbox.get(), 20)
            if isinstance(message, kind):
                return message, buffers

    def done(self, reply: dict[str, Any] | None = None, **fields: Any) -> None:
        reply = {"status": "ok", "payload": [], **(reply or {})}
        fields.setdefault("mac", sign(KEY, "out", fields.get("home", [])))
        self.emit(m.CellDone(status=reply["status"], **fields), json.dumps(reply).encode())

    def end(self, reason: EndReason = EndReason.DONE, error: ErrorInfo | None = None) -> None:
        state = CallState.SUCCEEDED if reason is EndReason.DONE else CallState.FAILED
        self.emit(m.CallEnded(state=state, reason=reason, error=error, run_seconds=0.1, container="c-1"))
        self.session.running = None


Script = Callable[[Cell], Awaitable[None]]


class FakeSession:
    """One session: its log of numbered events, and the stream that hears of them now."""

    def __init__(self, opened: m.SessionStream) -> None:
        self.opened = opened
        self.log: list[tuple[m.Numbered, list[bytes]]] = []
        self.stream: Stream | None = None
        self.running: Cell | None = None
        self.cells: list[Cell] = []
        self.acked = 0
        self.info = m.SessionInfo(
            session="s-1", notebook=opened.notebook, name=opened.name, state=SessionState.IDLE, container=BOX
        )

    def emit(self, event: m.Event, call: str, *buffers: bytes) -> None:
        numbered = m.Numbered(sequence=len(self.log) + 1, call=call, event=msgspec.Raw(m.encode(event)))
        self.log.append((numbered, list(buffers)))
        self._post(numbered, list(buffers))

    def _post(self, message: m.Message, buffers: list[bytes]) -> None:
        if self.stream is not None:
            try:
                self.stream.post(message, buffers)
            except LinkClosed:
                self.stream = None

    def park(self, parked: m.ParkedInfo, reason: EndReason = EndReason.PARKED) -> None:
        """What a kernel hears when its session is parked. On the gateway's loop."""
        assert self.info.container is not None
        container = self.info.container.id
        self.emit(m.ContainerParked(parked=parked, seconds=0.4), "")
        self.emit(m.ContainerEnded(container=container, reason=reason), "")
        self.info.container, self.info.parked, self.info.state = None, parked, SessionState.PARKED
        self.tell_info()

    def resumed(self, cell: Cell, container: str, start: m.StartKind, **fields: Any) -> None:
        """What a kernel hears when its next cell has brought it back, up to the cell's own start."""
        box = msgspec.structs.replace(BOX, id=container)
        phases = [m.PhaseTime(name="queue", seconds=0.01), m.PhaseTime(name="restore", seconds=0.42, detail="session")]
        phases = fields.pop("phases", phases)
        cell.emit(m.ContainerStarted(container=box, phases=phases, start=start, **fields))
        self.info.container, self.info.parked, self.info.state = box, None, SessionState.BUSY
        self.tell_info()
        cell.emit(m.CellStarted())

    def ended(self) -> None:
        """What a kernel hears when somebody else ended its session. On the gateway's loop."""
        self.info.container, self.info.parked, self.info.state = None, None, SessionState.ENDED
        self.tell_info()

    def tell_info(self) -> None:
        """Send SessionInfo. On the gateway's loop."""
        self._post(self.info, [])

    def resume(self, stream: Stream, from_sequence: int) -> None:
        self.stream = stream
        self.info.acknowledged_sequence, self.info.last_sequence = self.acked, len(self.log)
        stream.post(self.info)
        for numbered, buffers in self.log[from_sequence:]:
            stream.post(numbered, buffers)


class FakeKernelGateway:
    """Serves kernels on loopback, on a loop in a thread of its own."""

    def __init__(self, scripts: dict[str, Script]) -> None:
        self.scripts = scripts
        self.sessions: dict[str, FakeSession] = {}
        self.controls: list[m.Message] = []
        self.answers: dict[type, m.Message] = {}
        self.welcomes: dict[str, Any] = {}  # what Welcome says beside the usual
        self.side: Callable[[m.SideRequest], m.SideReply | None] = lambda request: m.SideReply(id=request.id)
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._links: set[ws.ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: ws.Server | None = None

    def __enter__(self) -> FakeKernelGateway:
        self._thread.start()
        self.call(self._serve())
        return self

    def __exit__(self, *error: object) -> None:
        self.call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def tell(self, session: FakeSession, act: Callable[[], None]) -> None:
        """Do something on the gateway's loop, and wait until the session's kernel has taken all of it."""

        async def done() -> None:
            act()
            session.emit(m.Phase(name="run"), "")  # numbered, so acknowledged, and of no meaning between cells
            last = len(session.log)
            async with asyncio.timeout(20):
                while session.acked < last:
                    await asyncio.sleep(0.01)

        self.call(done())

    def call(self, coroutine: Any) -> Any:
        """Run a coroutine on the gateway's loop and wait for it."""
        future: Future[Any] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        return future.result(20)

    def drop_links(self) -> None:
        """Cut every link, as a gateway that is killed does."""

        async def drop() -> None:
            for link in list(self._links):
                link.transport.abort()

        self.call(drop())

    async def _serve(self) -> None:
        self._server = await ws.serve(self._link, "127.0.0.1", 0, max_size=2**20, compression=None)
        port = next(iter(self._server.sockets)).getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    async def _close(self) -> None:
        assert self._server is not None
        for task in self._tasks:
            task.cancel()
        self._server.close()
        await self._server.wait_closed()

    async def _link(self, link: ws.ServerConnection) -> None:
        assert link.request is not None
        assert link.request.headers["Authorization"] == f"Bearer {TOKEN}"
        peer = Peer(dialer=False, on_message=self._control, on_open=self._opened)
        self._links.add(link)
        pump = asyncio.create_task(peer.pump(link.send))
        try:
            async for frame in link:
                peer.feed(frame)
        except Exception:
            pass  # the link was cut
        finally:
            self._links.discard(link)
            peer.close()
            pump.cancel()

    async def _control(self, message: m.Message, buffers: list[memoryview]) -> m.Message | None:
        self.controls.append(message)
        if isinstance(message, m.Hello):
            return m.Welcome(
                protocol=message.protocol, software="fake", gateway_instance="g", epoch=1, workspace="w", principal="p",
                max_timeout_seconds=7200.0, gpu_types=["A100-40GB"], **self.welcomes,
            )  # fmt: skip
        if isinstance(message, m.Interrupt):
            for session in self.sessions.values():
                if session.running is not None and session.running.request.call == message.call:
                    session.running.inbox.put_nowait((message, []))
        return self.answers.get(type(message))

    def _opened(self, head: m.Message, stream: Stream) -> None:
        assert isinstance(head, m.SessionStream)
        session = self.sessions.setdefault(head.name, FakeSession(head))
        session.resume(stream, head.from_sequence)
        self._spawn(self._read(session, stream))

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, session: FakeSession, stream: Stream) -> None:
        while True:
            try:
                message, views = await stream.recv()
            except (StreamEnded, LinkClosed):
                return
            buffers = [bytes(view) for view in views]
            match message:
                case m.RunCell():
                    self._run(session, stream, message, buffers)
                case m.SideRequest():
                    reply = self.side(message)
                    if reply is not None:
                        stream.post(reply)
                case m.Ack():
                    session.acked = message.sequence
                case _ if session.cells:
                    session.cells[-1].inbox.put_nowait((message, buffers))

    def _run(self, session: FakeSession, stream: Stream, request: m.RunCell, buffers: list[bytes]) -> None:
        known = any(cell.request.call == request.call for cell in session.cells)
        stream.post(m.CellAccepted(call=request.call, value_key=KEY, sequence=len(session.log)))
        if known:
            return
        cell = Cell(session, request, buffers)
        session.cells.append(cell)
        session.running = cell
        name = re.search(r"^#!(\w+)", request.code, re.MULTILINE)
        self._spawn(self.scripts[name[1] if name else "ok"](cell))
