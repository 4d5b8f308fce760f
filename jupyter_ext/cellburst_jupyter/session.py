"""One session of this kernel: its stream on the link thread, and the calls that the main thread waits for.

Threads. Methods marked "loop" run on the link's thread; the others on the kernel's main thread (or a subshell's). What
passes between them: `CellRun.deliver` (a queue's `put`, or a callback for detached cells) one way, `call_soon` the other.

A lost link changes nothing for who waits: the stream is opened again from the last sequence seen, a `RunCell` without
its `CellAccepted` is sent again under the same call, and what was seen before is not delivered twice.
Over 400 lines: both threads' halves of one object.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal

import msgspec

from cellburst.loop import LoopThread
from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import (
    Ack,
    CallEnded,
    CellAccepted,
    CellRefused,
    CellStarted,
    ContainerEnded,
    ContainerParked,
    ContainerStarted,
    Event,
    Message,
    MirrorNeeded,
    MirrorSpec,
    Notice,
    Numbered,
    RunCell,
    SessionInfo,
    SessionStream,
    SideReply,
    SideRequest,
    UsageReport,
    ValueComing,
)
from cellburst_protocol.peer import LinkClosed, Peer, Stream, StreamEnded
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import SessionState

SideKind = Literal["complete", "inspect", "names", "fetch", "file_list", "file_get", "file_put", "widgets"]
_event_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


@dataclass(frozen=True)
class LinkState:
    """Put between a call's items: the link was lost (`up` False) or is there again."""

    up: bool


@dataclass(frozen=True)
class Failed:
    """Put between a call's items: the session's stream was refused, nothing more will come."""

    error: CellburstError


@dataclass(frozen=True)
class Doing:
    """Put between a call's items: what this kernel itself does for it."""

    text: str


@dataclass(frozen=True)
class Item:
    """One thing for whoever follows a call. `sequence` 0 is not numbered and needs no acknowledgement."""

    message: Message | LinkState | Failed | Doing
    buffers: Sequence[Buffer] = ()
    sequence: int = 0
    call: str = ""


@dataclass
class CellRun:
    """One call of this kernel, from RunCell to CallEnded. `deliver` is called on the loop."""

    request: RunCell
    buffers: list[Buffer]
    header: dict[str, Any] = field(default_factory=dict)
    queue: SimpleQueue[Item] = field(default_factory=SimpleQueue)
    deliver: Callable[[Item], None] = field(init=False)
    accepted: bool = False
    started: bool = False
    ended: bool = False
    value_key: str = ""
    adopted: bool = False  # an earlier kernel's call: its session's events are replayed from the first one kept

    def __post_init__(self) -> None:
        self.deliver = self.queue.put

    @property
    def call(self) -> str:
        """The call's id."""
        return self.request.call


class RemoteSession:
    """The stream of one session (notebook, name). `on_late(item)` is called on the loop for events of no current call."""

    def __init__(
        self, loop: LoopThread, notebook: str, name: str, kernel_id: str, on_late: Callable[[RemoteSession, Item], None]
    ) -> None:
        self.notebook = notebook
        self.name = name
        self._loop = loop
        self._kernel_id = kernel_id
        self._on_late = on_late
        self._stream: Stream | None = None
        self._opened: asyncio.Future[SessionInfo] | None = None
        self._sides: dict[str, asyncio.Future[tuple[SideReply, list[memoryview]]]] = {}
        self._side_ids = itertools.count(1)
        self._last_sequence = 0
        self._acked = 0
        self._held: list[Item] = []
        self._attach = False
        self.on_coming: Callable[[ValueComing], None] = lambda coming: None  # on the loop
        self.on_mirror_needed: Callable[[MirrorNeeded], None] = lambda needed: None  # on the loop
        self.id = ""
        self.info: SessionInfo | None = None
        self.current: CellRun | None = None
        self.there: dict[str, str] = {}  # names that live in the container only -> what they are
        self.names: Any = None  # the session's NameSync, made by `cell_names.Names`
        self.process = 0  # counts the processes that the session has had; a resumed one is the same
        self.names_process = 0  # the one that `names` is of
        self.shown_before = 0  # the last event that a kernel had shown when this one opened the session
        self.resources: Resources | None = None  # what the session's container was asked for
        self.mirror: MirrorSpec | None = None  # what the session's container was made from, if it was no image
        self.python_version = ""  # of the session's last container
        self.image: str | None = (
            None  # id of that container's, "" for the mirror; None: this kernel has not seen it start
        )
        self.drift_told: set[str] = set()
        self.files_told: dict[str, tuple[int, bool]] = {}  # path -> size and whether deleted

    # -- main thread -----------------------------------------------------------------------------------------------

    @property
    def container_id(self) -> str:
        """The container that has this session's names now, or ""."""
        return self.info.container.id if self.info is not None and self.info.container is not None else ""

    @property
    def goes_on(self) -> bool:
        """Whether there is something for a cell to go on with: a container, or a parked session."""
        return self.info is not None and (self.info.container is not None or self.info.parked is not None)

    @property
    def has_ended(self) -> bool:
        """Whether the session was ended by somebody else: a new one is needed."""
        return self.info is not None and self.info.state is SessionState.ENDED

    def start(self, run: CellRun) -> None:
        """Send a call; its items follow through `run.deliver`. Raises BUSY if another one of this kernel runs."""
        if self.current is not None and not self.current.ended:
            raise error(
                ErrorCode.BUSY, f"session {self.name!r} runs another cell",
                next="`%modal attach` waits for it, `%modal stop` ends it, session=NAME uses another container",
            )  # fmt: skip
        self.current = run
        self._loop.call_soon(self._post_run, run)

    def finished(self, run: CellRun) -> None:
        """Everything of the call was shown: late events may now pass it."""
        self._loop.call_soon(self._release, run)

    def send(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """Send something on the session's stream; on a lost link it is dropped."""
        self._loop.call_soon(self._post, message, buffers)

    def doing(self, call: str, text: str) -> None:
        """Tell who follows the call what this kernel does for it."""
        self._loop.call_soon(self._own, call, Doing(text))

    def tell(self, call: str, text: str) -> None:
        """A line of this kernel's own under the call."""
        self._loop.call_soon(self._own, call, Notice(text=text))

    def ack(self, sequence: int) -> None:
        """All events up to `sequence` were shown."""
        if sequence > self._acked:
            self._loop.call_soon(self._ack, sequence)

    def close(self) -> None:
        """Give the stream up; the session itself goes on at the gateway."""
        self._loop.call_soon(self._close)

    def release(self) -> None:
        """Nothing is followed any more, however it ended."""
        run = self.current
        if run is not None:
            run.ended = True
            self.finished(run)

    def side(
        self, kind: SideKind, content: dict[str, object] | None = None, timeout_seconds: float = 10.0
    ) -> tuple[SideReply, list[memoryview]]:
        """Ask beside cells, from any thread but the loop's. Raises TimeoutError, LinkClosed or the answer's error."""
        return self.side_later(kind, content, timeout_seconds)()

    def side_later(
        self, kind: SideKind, content: dict[str, object] | None = None, timeout_seconds: float = 10.0
    ) -> Callable[[], tuple[SideReply, list[memoryview]]]:
        """Ask now; what is returned waits for the answer as `side` does, and is to be called once."""
        future = self._loop.submit(self._ask(kind, content or {}, timeout_seconds))

        def wait() -> tuple[SideReply, list[memoryview]]:
            try:
                reply, buffers = future.result(timeout_seconds + 1)
            except BaseException:
                future.cancel()
                raise
            if reply.error is not None:
                raise from_info(reply.error)
            return reply, buffers

        return wait

    # -- loop ------------------------------------------------------------------------------------------------------

    async def open(self, peer: Peer, attach: str = "") -> SessionInfo:
        """Open the stream and wait for its SessionInfo. Raises the gateway's refusal or LinkClosed.

        `attach` is the id of an earlier kernel's session to go on with.
        """
        if self._stream is None:
            self._attach = bool(attach)
            self.id = attach or self.id
            self._opened = asyncio.get_running_loop().create_future()
            self.resume(peer)
        assert self._opened is not None
        return await asyncio.shield(self._opened)

    def resume(self, peer: Peer) -> None:
        """Open the stream on a new link, from the last event seen."""
        first = SessionStream(
            notebook=self.notebook, name=self.name, kernel_id=self._kernel_id, session=self.id,
            attach=self._attach, from_sequence=self._last_sequence,
        )  # fmt: skip
        stream = self._stream = peer.open(first)
        run = self.current
        if run is not None and not run.ended:
            run.deliver(Item(LinkState(up=True)))
            if not run.accepted:
                stream.post(run.request, run.buffers)
        self._reader = asyncio.get_running_loop().create_task(self._read(stream))

    def _close(self) -> None:
        stream, self._stream = self._stream, None
        self.info = None
        if stream is not None:
            stream.reset()

    def link_lost(self) -> None:
        """The link is gone; told to who waits."""
        self._stream = None
        if self.current is not None and not self.current.ended:
            self.current.deliver(Item(LinkState(up=False)))

    async def _read(self, stream: Stream) -> None:
        try:
            while True:
                message, buffers = await stream.recv()
                self._take(message, buffers)
        except StreamEnded:
            self._refused(stream, error(ErrorCode.UNAVAILABLE, "the gateway ended the session's stream"))
        except LinkClosed as lost:
            self._fail_sides(lost)
        except CellburstError as refused:
            self._refused(stream, refused)

    def _refused(self, stream: Stream, why: CellburstError) -> None:
        """The session is gone or was refused: the next cell opens it anew."""
        if self._stream is not stream:
            return
        self._stream, self.id, self._last_sequence, self._acked, self.info = None, "", 0, 0, None
        self._fail_sides(why)
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(why)
            self._opened.exception()  # it may be that nobody waits any more
        if self.current is not None and not self.current.ended:
            self.current.ended = True
            self.current.deliver(Item(Failed(why)))

    def _fail_sides(self, why: CellburstError) -> None:
        for waiting in self._sides.values():
            if not waiting.done():
                waiting.set_exception(why)
        self._sides.clear()

    def _take(self, message: Message, buffers: list[memoryview]) -> None:
        match message:
            case Numbered():
                self._take_numbered(message, buffers)
            case SessionInfo():
                self._take_info(message)
            case SideReply():
                waiting = self._sides.pop(message.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result((message, buffers))
            case CellAccepted():
                self._take_accepted(message)
            case CellRefused():
                run = self.current
                if run is not None and run.call == message.call:
                    run.ended = True
                    run.deliver(Item(message))
            case ValueComing():
                if self.current is not None and not self.current.ended:
                    self.on_coming(message)
            case MirrorNeeded():
                self.on_mirror_needed(message)
            case UsageReport():
                if self.current is not None and not self.current.ended:
                    self.current.deliver(Item(message))
            case _:
                pass  # a newer gateway may say more; unknown messages are no error

    def _take_info(self, info: SessionInfo) -> None:
        self.id, self.info = info.session, info
        self.shown_before = max(self.shown_before, info.acknowledged_sequence)
        self._take_resources()
        if self._attach and self.current is None and self._opened is not None and not self._opened.done():
            self._adopt(info)
        if self._opened is not None and not self._opened.done():
            self._opened.set_result(info)
        if self.current is not None and not self.current.ended:
            self.current.deliver(Item(info))

    def _adopt(self, info: SessionInfo) -> None:
        """Follow what an earlier kernel left running, or only what it left unread (a call without id)."""
        run = self.current = CellRun(RunCell(call=info.running_call, code=""), [], adopted=True)
        if info.running_call:  # the same call again is answered with its value key and nothing else happens
            self._post(run.request)

    def _take_accepted(self, accepted: CellAccepted) -> None:
        run = self.current
        if run is not None and run.call == accepted.call:
            run.accepted, run.value_key = True, accepted.value_key
            run.buffers = []
            run.deliver(Item(accepted))

    def _take_numbered(self, numbered: Numbered, buffers: list[memoryview]) -> None:
        if numbered.sequence <= self._last_sequence:
            return
        self._last_sequence = numbered.sequence
        event = _event_decoder.decode(numbered.event)
        item = Item(event, buffers, numbered.sequence, numbered.call)
        self._note(event)
        run = self.current
        if run is None:
            self._on_late(self, item)
            self._ack(numbered.sequence)
        elif run.ended:
            self._held.append(item)
        else:
            if isinstance(event, CallEnded) and numbered.call == run.call:
                run.ended = True
            run.deliver(item)

    def _note(self, event: Event) -> None:
        """Keep `info` in step with what the events say, before the next SessionInfo does."""
        match event:
            case ContainerStarted() if self.info is not None:
                self.process += event.start != "snapshot"
                self.info.container, self.info.parked = event.container, None
                self._take_resources()
            case ContainerEnded() if self.info is not None:
                if self.info.container is not None and self.info.container.id == event.container:
                    self.info.container = None
            case ContainerParked() if self.info is not None:
                self.info.parked = event.parked
            case CellStarted() if self.current is not None:
                self.current.started = True
            case _:
                pass

    def _take_resources(self) -> None:
        what = (self.info.container or self.info.parked) if self.info is not None else None
        if what is not None and what.resources is not None:
            self.resources = what.resources
        self.python_version = getattr(what, "python_version", "") or self.python_version  # a parked one has none

    def _own(self, call: str, message: Doing | Notice) -> None:
        run = self.current
        if run is not None and run.call == call and not run.ended:
            run.deliver(Item(message))

    def _post_run(self, run: CellRun) -> None:
        if self._stream is not None:  # else `resume` sends it
            self._post(run.request, run.buffers)

    def _post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        if self._stream is not None:
            try:
                self._stream.post(message, buffers)
            except LinkClosed:
                pass  # `resume` repeats what must not be lost

    def _ack(self, sequence: int) -> None:
        if sequence > self._acked:
            self._acked = sequence
            self._post(Ack(sequence=sequence))

    def _release(self, run: CellRun) -> None:
        if self.current is not run:
            return
        self.current = None
        held, self._held = self._held, []
        for item in held:
            self._on_late(self, item)
        if held:
            self._ack(held[-1].sequence)

    async def _ask(
        self, kind: SideKind, content: dict[str, object], timeout_seconds: float
    ) -> tuple[SideReply, list[memoryview]]:
        if self._stream is None:
            raise error(ErrorCode.LINK_CLOSED, "there is no link to the gateway just now", next="try again in a moment")
        id = f"s{next(self._side_ids)}-{self._kernel_id[:12]}"
        waiting: asyncio.Future[tuple[SideReply, list[memoryview]]] = asyncio.get_running_loop().create_future()
        self._sides[id] = waiting
        try:
            self._post(SideRequest(id=id, kind=kind, content=content))
            async with asyncio.timeout(timeout_seconds):
                return await waiting
        finally:
            self._sides.pop(id, None)
