"""A simulated worker that speaks the true protocol over a WebSocket: for tests of the gateway and for the bench.

It starts "containers" at once and runs "cells" by script: a cell's code is lines of

    print TEXT      an IOPub stream message       stream N RATE   N lines at RATE a second, each "line I DUE SENT"
    need HASHES     NamesNeeded, waits for data   wait            until `release()` or an interrupt
    crash           ExecutorEnded                 oom             ContainerEnded(out_of_memory)
    raise NAME      CellDone(status error)        refuse          CellDone with the worker's own error, nothing started

Events are spooled until acknowledged and sent again after a lost link, as the real worker does. A parked session is a line in
`parked`, resumed by the rung that `resumes_by` says; `kill()` and a new `instance` are a worker that was killed and came back.

Over 400 lines: one worker, with every message of its link.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import websockets.asyncio.client as ws
from websockets.exceptions import WebSocketException

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.framing import MAX_FRAME_BYTES
from cellburst_protocol.images import image_key
from cellburst_protocol.messages import (
    Ack,
    CellDone,
    CellStarted,
    ContainerEnded,
    ContainerParked,
    ContainerReady,
    ContainerReport,
    ContainerStream,
    ContainerUsage,
    EngineInfo,
    Event,
    ExecutorEnded,
    ForgetParked,
    GpuShown,
    Heartbeat,
    Hello,
    Interrupt,
    Inventory,
    IOPub,
    Joined,
    JoinWorker,
    Message,
    NameGroup,
    NamesData,
    NamesNeeded,
    Numbered,
    ParkContainer,
    ParkedInfo,
    ParkedNames,
    ParkFailed,
    PhaseTime,
    RemoteName,
    RunCell,
    SendParked,
    SideReply,
    SideRequest,
    SnapshotUsage,
    StartContainer,
    StartKind,
    StopContainer,
    Waiting,
    encode,
)
from cellburst_protocol.peer import Peer, Stream, StreamEnded
from cellburst_protocol.states import ContainerState, EndReason
from cellburst_protocol.version import PROTOCOL_VERSION
from tests.fakes.fake_image_desk import FakeImageDesk


@dataclass
class FakeContainer:
    """One simulated container with its spool."""

    start: StartContainer
    spool: list[tuple[Numbered, list[bytes]]] = field(default_factory=list)
    sequence: int = 0
    state: ContainerState = ContainerState.STARTING
    running: str = ""
    stream: Stream | None = None
    sent: int = 0
    more: asyncio.Event = field(default_factory=asyncio.Event)
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    parking: str = ""  # the id of a park that is under way
    ready_sequence: int = 0
    names: asyncio.Queue[NamesData] = field(default_factory=asyncio.Queue)
    received: list[Message] = field(default_factory=list)

    def emit(self, event: Event, call: str = "", buffers: Sequence[bytes] = ()) -> None:
        """Number an event and let it be sent."""
        self.sequence += 1
        self.spool.append(
            (Numbered(sequence=self.sequence, call=call, event=msgspec.Raw(encode(event))), list(buffers))
        )
        self.more.set()


class FakeWorker:
    """A worker. `run()` joins and joins again until `stop()`; every `hold_*` flag makes it do less."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        name: str = "fake",
        gpus: Sequence[str] = ("A100-80GB",),
        cpu: float = 64,
        memory_mib: int = 262144,
        hostname: str = "",
        machine_id: str = "",
    ) -> None:
        self.url = url.replace("http", "ws", 1) + "/link"
        self.token = token
        self.name = name
        self.machine_id = machine_id  # as MirrorSpec has it
        shown = [
            GpuShown(index=i, uuid=f"SIM-{name}-{i}", type=t, name=t, memory_mib=81920, simulated=True)
            for i, t in enumerate(gpus)
        ]
        engine = EngineInfo(name="fake", isolates=False, warning="the fake engine isolates nothing")
        self.inventory = Inventory(
            hostname=hostname or socket.gethostname(),
            cpu_cores=cpu,
            memory_mib=memory_mib,
            gpus=shown,
            engines=[engine],
        )
        self.pid = os.getpid()
        self.instance = "fake-1"
        self.heartbeat_seconds = 1.0
        self.hold_ready = False  # accept containers and never say that they are ready
        self.hold_heartbeat = False
        self.hold_park = False  # begin to park and never finish; `finish_park` does
        self.park_fails: ErrorInfo | None = None
        self.resumes_by: StartKind = "snapshot"
        self.phases: list[PhaseTime] = []  # of starts, where a test says more than the usual one
        self.parked: dict[str, ParkedInfo] = {}
        self.parks_asked: list[ParkContainer] = []
        self.waiting: list[Waiting] = []
        self.names_refused: CellburstError | None = None  # SendParked
        self.forgotten: list[str] = []
        self.may_dial = asyncio.Event()  # cleared: stays away after a lost link
        self.may_dial.set()
        self.containers: dict[str, FakeContainer] = {}
        self.joined = asyncio.Event()
        self.joins: list[Joined] = []
        self.interrupts: list[Interrupt] = []
        self.peer: Peer | None = None
        self.socket: ws.ClientConnection | None = None
        self.error: Exception | None = None
        self.images = FakeImageDesk()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._main: asyncio.Task[None] | None = None
        self._loop_time = asyncio.get_running_loop().time
        self._began = self._loop_time()

    # -- life --------------------------------------------------------------------------------------------------------

    async def start(self) -> FakeWorker:
        """Join, and keep joined."""
        self._main = asyncio.create_task(self.run())
        async with asyncio.timeout(10):
            await self.joined.wait()
        return self

    async def run(self) -> None:
        """Dial for ever."""
        while True:
            await self.may_dial.wait()
            try:
                await self._once()
            except (OSError, WebSocketException, CellburstError) as why:
                self.error = why
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Go away without a word, as a killed worker does."""
        tasks = [t for t in (self._main, *self._tasks) if t is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.socket is not None:
            await self.socket.close()

    async def kill(self) -> None:
        """Lose the process with its containers; `revive` is the next one on the same disk."""
        self.may_dial.clear()
        self.containers.clear()
        self.instance = f"{self.instance}+"
        await self.drop_link()

    def revive(self) -> None:
        """Dial again."""
        self.may_dial.set()

    async def drop_link(self) -> None:
        """Lose the link; `run` dials again."""
        self.joined.clear()
        if self.socket is not None:
            self.socket.transport.abort()

    async def _once(self) -> None:
        self.socket = await ws.connect(
            self.url, additional_headers={"Authorization": f"Bearer {self.token}"}, compression=None,
            max_size=MAX_FRAME_BYTES + 1024, ping_interval=None, proxy=None, close_timeout=0.2,
        )  # fmt: skip
        peer = self.peer = Peer(dialer=True, on_message=self._control, on_open=self.images.opened)
        work = [asyncio.create_task(self._read(peer)), asyncio.create_task(peer.pump(self.socket.send))]
        try:
            await peer.request(
                Hello(role="worker", protocol=PROTOCOL_VERSION, software="fake", instance=self.instance, pid=self.pid,
                      hostname=socket.gethostname(), machine_id=self.machine_id)
            )  # fmt: skip
            reports = [
                ContainerReport(
                    container=c.start.container, lease=c.start.lease, epoch=c.start.epoch, state=c.state, uptime_seconds=1.0,
                    running_call=c.running, last_sequence=c.sequence,
                )
                for c in self.containers.values()
            ]  # fmt: skip
            joined = await peer.request(
                JoinWorker(
                    worker=self.name, inventory=self.inventory, containers=reports, parked=list(self.parked.values()), pid=self.pid
                )
            )  # fmt: skip
            assert isinstance(joined, Joined)
            self.joins.append(joined)
            self.forget(joined.forget)
            for name in joined.stop:
                self.containers.pop(name, None)
            for name, recorded in joined.adopted.items():
                self._open(peer, self.containers[name], recorded)
            self.joined.set()
            work.append(asyncio.create_task(self._beat(peer)))
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            peer.close()
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            await self.socket.close()

    async def _read(self, peer: Peer) -> None:
        assert self.socket is not None
        async for frame in self.socket:
            assert isinstance(frame, bytes)
            peer.feed(frame)

    async def _beat(self, peer: Peer) -> None:
        while True:
            if not self.hold_heartbeat:
                usage = [
                    ContainerUsage(
                        container=name, uptime_seconds=round(self._loop_time() - self._began, 3), memory_bytes=1 << 20
                    )
                    for name in self.containers
                ]
                sizes = [info.size_bytes for info in self.parked.values()]
                kept = SnapshotUsage(parked_count=len(sizes), parked_bytes=sum(sizes), limit_bytes=10**12)
                peer.notify(Heartbeat(worker=self.name, usage=usage, snapshots=kept))
            await asyncio.sleep(self.heartbeat_seconds)

    # -- what the gateway asks ---------------------------------------------------------------------------------------

    async def _control(self, message: Message, buffers: list[memoryview]) -> Message | None:
        match message:
            case StartContainer():
                container = FakeContainer(message)
                self.containers[message.container] = container
                assert self.peer is not None
                self._open(self.peer, container, 0)
                if not self.hold_ready:
                    self.ready(container)
            case ParkContainer():
                self.parks_asked.append(message)
                self._park(message)
            case ForgetParked():
                self.forget(message.parked)
            case SendParked():
                if self.names_refused is not None:
                    raise self.names_refused
                info = self.parked[message.parked]
                return ParkedNames(groups=[NameGroup(names=info.names, hash="h", parts=[])], lost=info.lost)
            case Waiting():
                self.waiting.append(message)
            case StopContainer():
                if message.container in self.containers:
                    self.end(message.container, message.reason)
            case Interrupt():
                self.interrupts.append(message)
                if message.container in self.containers:
                    self.containers[message.container].interrupted.set()
            case _:
                return self.images.answer(message)
        return None

    def ready(self, container: FakeContainer) -> None:
        """Say that a container is up."""
        container.state = ContainerState.READY
        start: StartKind = "boot"
        lost: list[RemoteName] = []
        if container.start.parked:
            info = self.parked.get(container.start.parked)
            start = self.resumes_by if info is not None else "boot"
            lost = info.lost if info is not None and start == "names" else []
        if container.start.names is not None:
            start, lost = "names", container.start.names.lost
        detail = {"snapshot": "session", "template": "template"}.get(start, "")
        phases = self.phases or [PhaseTime(name="restore" if detail else "boot", seconds=0.01, detail=detail)]
        container.emit(
            ContainerReady(
                engine=self.inventory.engines[0],
                network="none",
                phases=phases,
                python_version="3.12.1",
                image_id=image_key(container.start.recipe) if container.start.recipe is not None else "",
                start=start,
                lost=lost,
            ),
            call=container.start.prepare_call,
        )
        container.ready_sequence = container.sequence

    def _park(self, asked: ParkContainer) -> None:
        container = self.containers.get(asked.container)
        if container is None:
            raise error(ErrorCode.NOT_FOUND, f"container {asked.container} is not here")
        if container.running:
            raise error(ErrorCode.BUSY, "a cell runs")
        if container.parking == asked.parked:
            return
        container.parking = asked.parked
        if not self.hold_park:
            self.finish_park(container)

    def finish_park(self, container: FakeContainer) -> None:
        """Commit what is being parked, or fail as `park_fails` says."""
        id, container.parking = container.parking, ""
        if self.park_fails is not None:
            container.emit(ParkFailed(parked=id, error=self.park_fails))
            return
        info = self.commit(id, container)
        container.emit(ContainerParked(parked=info, seconds=0.5, notes=["a note of the park"]))
        self.end(container.start.container, EndReason.PARKED)

    def commit(self, id: str, container: FakeContainer) -> ParkedInfo:
        """Have the bytes on disk, without a word."""
        lost = [RemoteName(name="gen", type="generator", why="unpicklable", detail="cannot pickle 'generator' object")]
        info = self.parked[id] = ParkedInfo(
            id=id, session=container.start.session, size_bytes=1_200_000_000, names=["x", "y"], lost=lost,
            parked_unix_seconds=1_700_000_000.0,
        )  # fmt: skip
        return info

    def forget(self, parked: Sequence[str]) -> None:
        """Remove parked sessions."""
        for id in parked:
            self.forgotten.append(id)
            self.parked.pop(id, None)

    def end(self, name: str, reason: EndReason) -> None:
        """End a container."""
        container = self.containers[name]
        container.state = ContainerState.ENDED
        container.interrupted.set()
        container.emit(ContainerEnded(container=name, reason=reason))

    def release(self) -> None:
        """Let every `wait` go on."""
        for container in self.containers.values():
            container.released.set()

    def _open(self, peer: Peer, container: FakeContainer, recorded: int) -> None:
        container.sent = recorded
        container.stream = peer.open(ContainerStream(container=container.start.container, from_sequence=recorded))
        container.more.set()
        self._spawn(self._send(container, container.stream))
        self._spawn(self._receive(container, container.stream))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, container: FakeContainer, stream: Stream) -> None:
        try:
            while container.stream is stream:
                container.more.clear()
                for numbered, buffers in list(container.spool):
                    if numbered.sequence > container.sent and container.stream is stream:
                        await stream.send(numbered, buffers)
                        container.sent = numbered.sequence
                await container.more.wait()
        except CellburstError:
            return

    async def _receive(self, container: FakeContainer, stream: Stream) -> None:
        try:
            while True:
                message, _ = await stream.recv()
                container.received.append(message)
                match message:
                    case Ack():
                        container.spool = [e for e in container.spool if e[0].sequence > message.sequence]
                        if container.ready_sequence and message.sequence >= container.ready_sequence:
                            self.parked.pop(container.start.parked, None)  # it runs, and the gateway knows
                    case RunCell():
                        if message.call != container.running:
                            container.running = message.call
                            self._spawn(self._cell(container, message))
                    case NamesData():
                        container.names.put_nowait(message)
                    case SideRequest():
                        stream.post(SideReply(id=message.id, content={"kind": message.kind}, mac="m"))
        except (StreamEnded, CellburstError):
            if container.state is ContainerState.ENDED:
                self.containers.pop(container.start.container, None)

    async def _cell(self, container: FakeContainer, cell: RunCell) -> None:
        container.interrupted.clear()
        began = self._loop_time()
        content: dict[str, Any] = {"status": "ok"}
        lines = cell.code.splitlines()
        if lines and lines[0].startswith("need "):
            container.emit(NamesNeeded(groups=lines.pop(0).split()[1:]), cell.call)
            await container.names.get()
        if lines == ["refuse"]:
            container.running = ""
            why = ErrorInfo(code=ErrorCode.DISK_FULL, message="no room for the values", next="free some space there")
            done = CellDone(status="error", error=why)
            container.emit(done, cell.call, [json.dumps({"status": "error", "ename": "PlatformError"}).encode()])
            return
        container.emit(CellStarted(), cell.call)
        for line in lines:
            word, _, rest = line.partition(" ")
            if word == "print":
                self.output(container, cell.call, rest)
            elif word == "stream":
                count, rate = rest.split()
                first = self._loop_time()
                for number in range(int(count)):
                    due = first + number / float(rate)  # no drift: a late line does not make the next one late
                    await asyncio.sleep(max(0.0, due - self._loop_time()))
                    self.output(container, cell.call, f"line {number} {due:.6f} {self._loop_time():.6f}")
            elif word == "wait":
                waits = [asyncio.create_task(e.wait()) for e in (container.interrupted, container.released)]
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in waits:
                    task.cancel()
                if container.interrupted.is_set():
                    content = {"status": "error", "ename": "KeyboardInterrupt", "evalue": ""}
            elif word == "raise":
                content = {"status": "error", "ename": rest, "evalue": "asked to"}
            elif word == "crash":
                container.running = ""
                container.emit(ExecutorEnded(call=cell.call, exit_code=3), cell.call)
                return
            elif word == "oom":
                container.running = ""
                self.end(container.start.container, EndReason.OUT_OF_MEMORY)
                return
        container.running = ""
        if container.state is ContainerState.READY:
            status = "ok" if content["status"] == "ok" else "error"
            done = CellDone(status=status, run_seconds=round(self._loop_time() - began, 4))
            container.emit(done, cell.call, [json.dumps(content).encode()])

    def output(self, container: FakeContainer, call: str, text: str) -> None:
        """One line of a cell's output."""
        message = {"header": {"msg_type": "stream"}, "parent_header": {}, "metadata": {},
                   "content": {"name": "stdout", "text": text + "\n"}}  # fmt: skip
        container.emit(IOPub(msg_type="stream", text_bytes=len(text) + 1), call, [json.dumps(message).encode()])
