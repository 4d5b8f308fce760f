"""A gateway for worker tests: the true protocol on a real WebSocket, with a record of what came and no policy.

async with FakeGateway(tmp_path) as gateway:
    ... a worker joins gateway.url ...
    await gateway.joined(); container = await gateway.start("c1", mirror)
    await container.until(messages.ContainerReady)
"""

from __future__ import annotations

import asyncio
import http
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import websockets.asyncio.server as ws
from websockets.http11 import Request, Response

from cellburst_protocol import mac
from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.peer import LinkClosed, Peer, Stream, StreamEnded
from cellburst_protocol.resources import Resources

TOKEN = "worker-token-of-the-test"
WAIT_SECONDS = 30.0
MASTER_KEY = b"k" * 32
_T = TypeVar("_T")


@dataclass
class Got:
    """One numbered event as it came."""

    sequence: int
    call: str
    event: m.Message
    buffers: list[bytes]

    def json(self) -> dict[str, Any]:
        """Buffer 0 as JSON."""
        return dict(json.loads(self.buffers[0]))


@dataclass
class FakeContainer:
    """What the gateway knows of one container, over all links."""

    id: str
    request: m.StartContainer
    events: list[Got] = field(default_factory=list)
    replies: dict[str, tuple[m.SideReply, list[bytes]]] = field(default_factory=dict)
    coming: list[m.ValueComing] = field(default_factory=list)
    stream: Stream | None = None
    duplicates: int = 0
    acknowledge: bool = True
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def recorded(self) -> int:
        """The last sequence without a gap."""
        return self.events[-1].sequence if self.events else 0

    def of(self, kind: type[_T], call: str | None = None) -> list[tuple[Got, _T]]:
        """Events of a kind."""
        return [(g, g.event) for g in self.events if isinstance(g.event, kind) and call in (None, g.call)]

    async def wait(self, condition: Callable[[], _T | None], seconds: float = WAIT_SECONDS) -> _T:
        """Wait until `condition()` is true and return it."""
        async with asyncio.timeout(seconds), self.changed:
            while not (found := condition()):
                await self.changed.wait()
            return found

    async def until(self, kind: type[_T], call: str | None = None, seconds: float = WAIT_SECONDS) -> tuple[Got, _T]:
        """The first event of a kind."""
        return (await self.wait(lambda: self.of(kind, call), seconds))[0]

    def text(self, call: str) -> str:
        """What a call printed."""
        texts = [g.json()["content"]["text"] for g, e in self.of(m.IOPub, call) if e.msg_type == "stream"]
        return "".join(texts)

    async def run(self, call: str, code: str, *, timeout_seconds: float | None = None, **fields: Any) -> None:
        """Send a cell."""
        cell = m.RunCell(
            call=call, code=code, value_key=mac.value_key(MASTER_KEY, call), resources=Resources(timeout_seconds=timeout_seconds),
            header={"msg_id": call, "session": "s", "username": "u", "msg_type": "execute_request", "version": "5.3",
                    "date": "2026-01-01T00:00:00Z"},
            **fields,
        )  # fmt: skip
        stream = await self.wait(lambda: self.stream)
        await stream.send(cell)

    async def ask(self, kind: Any, **content: object) -> tuple[m.SideReply, list[bytes]]:
        """Send a side request and wait for its reply."""
        id = secrets.token_hex(4)
        stream = await self.wait(lambda: self.stream)
        await stream.send(m.SideRequest(id=id, kind=kind, content=content, value_key=mac.value_key(MASTER_KEY, id)))
        return await self.wait(lambda: self.replies.get(id))


class FakeGateway:
    """Listens on loopback. `restart()` is a new instance at the same port with the same record."""

    def __init__(self, folder: Path, *, shares_blobs: bool = True, grace_seconds: float = 600.0) -> None:
        self.folder, self.shares_blobs, self.grace_seconds = folder, shares_blobs, grace_seconds
        self.port = 0
        self.instance = secrets.token_hex(4)
        self.containers: dict[str, FakeContainer] = {}
        self.disowned: set[str] = set()
        self.joins: list[m.JoinWorker] = []
        self.heartbeats: list[m.Heartbeat] = []
        self.peer: Peer | None = None
        self.changed = asyncio.Condition()
        self._server: ws.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        (folder / "blobs" / "tmp").mkdir(parents=True, exist_ok=True)
        (folder / "proof").write_text("proof-of-machine")

    @property
    def url(self) -> str:
        """What a worker is given as --join."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> FakeGateway:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self) -> None:
        """Begin to serve, at the same port as before."""
        self._server = await ws.serve(
            self._serve, "127.0.0.1", self.port, process_request=_check_token, compression=None, max_size=2**20
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def close(self) -> None:
        """Stop serving and cut all links."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
        self.peer = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def wait(self, condition: Callable[[], _T | None], seconds: float = WAIT_SECONDS) -> _T:
        """Wait until `condition()` is true and return it."""
        async with asyncio.timeout(seconds), self.changed:
            while not (found := condition()):
                await self.changed.wait()
            return found

    async def joined(self, times: int = 1) -> m.JoinWorker:
        """Wait for the worker's so-many-th join."""
        return (await self.wait(lambda: self.joins if len(self.joins) >= times and self.peer else None))[-1]

    async def start(self, id: str, mirror: m.MirrorSpec, **fields: Any) -> FakeContainer:
        """Ask the worker for a container."""
        defaults: dict[str, Any] = {
            "session": "s1",
            "resources": Resources(),
            "gpus": [],
            "epoch": 1,
            "lease": f"lease-{id}",
        }
        request = m.StartContainer(container=id, notebook="n.ipynb", image=mirror, **(defaults | fields))
        container = self.containers[id] = FakeContainer(id, request)
        await self.request(request)
        return container

    async def request(self, message: m.Message) -> m.Message:
        """Send a control request over the present link."""
        peer = await self.wait(lambda: self.peer)
        return await peer.request(message)

    def notify(self, message: m.Message) -> None:
        """Send a control notification."""
        assert self.peer is not None
        self.peer.notify(message)

    async def _serve(self, socket: ws.ServerConnection) -> None:
        peer = Peer(
            dialer=False, on_message=lambda message, buffers: self._message(peer, message), on_open=self._opened
        )
        pump = asyncio.create_task(peer.pump(socket.send))
        try:
            async for frame in socket:
                assert isinstance(frame, bytes)
                peer.feed(frame)
        finally:
            peer.close()
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            await self._become(None if self.peer is peer else self.peer)

    async def _become(self, peer: Peer | None) -> None:
        self.peer = peer
        async with self.changed:
            self.changed.notify_all()

    async def _message(self, peer: Peer, message: m.Message) -> m.Message | None:
        match message:
            case m.Hello():
                return self._welcome()
            case m.JoinWorker():
                ids = [report.container for report in message.containers]
                adopted = {
                    id: self.containers[id].recorded for id in ids if id in self.containers and id not in self.disowned
                }
                self.joins.append(message)
                asyncio.get_running_loop().call_soon(lambda: self._spawn(self._become(peer)))
                return m.Joined(adopted=adopted, stop=[id for id in ids if id not in adopted])
            case m.Heartbeat():
                self.heartbeats.append(message)
                async with self.changed:
                    self.changed.notify_all()
        return None

    def _welcome(self) -> m.Welcome:
        proof = "proof-of-machine" if self.shares_blobs else "of another machine"
        return m.Welcome(
            protocol=(1, 0), software="fake", gateway_instance=self.instance, epoch=1, workspace="w", principal="p",
            blob_folder=str(self.folder / "blobs"), blob_proof_path=str(self.folder / "proof"), blob_proof=proof,
            heartbeat_seconds=0.2, disconnect_grace_seconds=self.grace_seconds,
        )  # fmt: skip

    def _opened(self, head: m.Message, stream: Stream) -> None:
        assert isinstance(head, m.ContainerStream)
        self._spawn(self._read(self.containers[head.container], stream))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _read(self, container: FakeContainer, stream: Stream) -> None:
        container.stream = stream
        async with container.changed:
            container.changed.notify_all()
        try:
            while True:
                message, buffers = await stream.recv()
                self._took(container, message, [bytes(b) for b in buffers])
                if container.acknowledge and isinstance(message, m.Numbered):
                    stream.post(m.Ack(sequence=message.sequence))
                async with container.changed:
                    container.changed.notify_all()
        except (LinkClosed, StreamEnded, CellburstError):
            if container.stream is stream:
                container.stream = None
            async with container.changed:
                container.changed.notify_all()

    def _took(self, container: FakeContainer, message: m.Message, buffers: list[bytes]) -> None:
        if isinstance(message, m.SideReply):
            container.replies[message.id] = (message, buffers)
            return
        if isinstance(message, m.ValueComing):
            container.coming.append(message)
            return
        assert isinstance(message, m.Numbered)
        if message.sequence <= container.recorded:
            container.duplicates += 1
            return
        assert message.sequence == container.recorded + 1, f"a gap before {message.sequence}"
        container.events.append(Got(message.sequence, message.call, m.decode(message.event), buffers))


def _check_token(connection: ws.ServerConnection, request: Request) -> Response | None:
    if request.headers.get("Authorization") != f"Bearer {TOKEN}" or request.path != "/link":
        return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no")
    return None
