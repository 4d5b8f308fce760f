"""From the runner to the gateway: events are checked, numbered and spooled; values get their true hashes and a seal.

A message that needs no work is passed on with the head the runner gave it, in the same turn of the event loop. One that
needs a thread (values in files, a list of files) waits in a queue with all that come after it, so that order holds. The
runner gets credit back for what was spooled, as long as the spool is not full. Over 400 lines: whatever leaves a container passes
here, in one order.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from cellburst_protocol import mac
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.framing import Buffer, FramingError
from cellburst_protocol.messages import (
    CellDone,
    CellStarted,
    ExecutorEnded,
    FileChange,
    IOPub,
    Message,
    NamesNeeded,
    Notice,
    ReleaseSecrets,
    RemoteName,
    RunnerCredit,
    SideReply,
    StdinRequest,
    ValueComing,
    encode,
)
from cellburst_protocol.peer import Stream
from cellburst_protocol.runner_wire import Incoming
from cellburst_protocol.states import EndReason

from .answers import ANSWERS, Answers
from .blobs import TEMPORARY_NAME
from .calls import Call, Calls
from .early import Leaving
from .feed import Feed
from .hiding import Hiding
from .runner_link import MAX_UNPROCESSED_BYTES, RunnerLink
from .side import shown_files
from .site import Layer, Site
from .spool import Spool
from .values import Taken, is_small, take, take_blob

PASSED = IOPub | Notice | StdinRequest | NamesNeeded | CellStarted
GRANT_BYTES = 256 * 1024  # a sixteenth of the runner's credit: few grants, and it never runs dry

log = logging.getLogger(__name__)


class Outbound:
    """One container's way out. `began(call)` is called when user code starts."""

    def __init__(
        self, container: str, site: Site, spool: Spool, calls: Calls, on_started: Callable[[Call], None]
    ) -> None:
        self._container, self._site, self._spool, self._calls = container, site, spool, calls
        self._on_started = on_started
        self.link: RunnerLink | None = None
        self.folder: Path | None = None
        self.layer: Layer | None = None
        self.stream: Stream | None = None
        self.feed = Feed(spool)
        self.last_executor_text = ""
        self.side_keys: dict[str, str] = {}
        self.hiding: Hiding | None = None  # None: it was never given a secret, and nothing is read
        self.answers = Answers()
        self.on_imported: Callable[[list[str]], None] = lambda names: None
        self.saving: Callable[[ValueComing], None] | None = None  # told of large names that are written to be kept
        self.restoring = False  # an executor that ends then is a failed restore's, and nobody's loss
        self.idle = asyncio.Event()  # nothing waits and nothing is being worked on
        self.idle.set()
        self._queue: deque[Incoming] = deque()
        self._arrived = asyncio.Event()
        self._waiting_bytes = 0
        self._owed_bytes = 0
        self._side_tasks: set[asyncio.Task[None]] = set()
        self._leaving = Leaving(container)

    # -- events of the worker's own --------------------------------------------------------------------------------

    def emit(self, event: Message, call: str = "", buffers: Sequence[Buffer] = ()) -> None:
        """Number an event and spool it."""
        head = encode(event)
        if self.hiding is not None:
            self._let_go(self.hiding)
            head = self.hiding.head(head)
            buffers = (
                [self.hiding.json(buffers[0]), *buffers[1:]] if isinstance(event, CellDone) and buffers else buffers
            )
        self._spool.append(head, buffers, call)
        self.feed.wake()

    # -- secrets ---------------------------------------------------------------------------------------------------

    def hide(self, release: ReleaseSecrets) -> None:
        """The container is about to get these: from now on nothing that leaves it shows them."""
        if self.hiding is None and not release.environment and not release.hidden:
            return
        if self.hiding is None:
            self.hiding = Hiding()
        self.hiding.add(release)

    def know_hidden(self, given: Sequence[tuple[str, str]]) -> None:
        """The container is about to be restored, and had these (`Hiding.given`)."""
        if given:
            self.hiding = self.hiding or Hiding()
            self.hiding.know(given)

    def clear_text(self, text: str) -> str:
        """A text of the container's for a log or a list, without its secrets."""
        return text if self.hiding is None else self.hiding.text(text)

    def _let_go(self, hiding: Hiding) -> None:
        for shown in hiding.settle():
            self._spool.append(shown.head, shown.buffers, shown.call)

    def _hidden(self, hiding: Hiding, incoming: Incoming, call: str) -> None:
        """Pass an event of the runner on without a secret in it."""
        now = self._site.clock.monotonic()
        if isinstance(incoming.message, IOPub):
            for shown in hiding.iopub(incoming.message, incoming.buffers, call, now):
                self._spool.append(shown.head, shown.buffers, shown.call)
            if (due_at := hiding.due_at) is not None:
                asyncio.get_running_loop().call_later(due_at - now + 0.001, self._held_too_long)
        else:
            self._let_go(hiding)
            self._spool.append(hiding.head(incoming.head), incoming.buffers, call)

    def _held_too_long(self) -> None:
        if self.hiding is not None:
            for shown in self.hiding.due(self._site.clock.monotonic()):
                self._spool.append(shown.head, shown.buffers, shown.call)
            self.feed.wake()

    def refuse(self, call: Call, error: ErrorInfo | None = None) -> None:
        """End a call that the runner was not given: cancelled, or with an error."""
        self._calls.ended(call.id)
        status = "aborted" if error is None else "error"
        reply: dict[str, object] = {"status": status}
        if error is not None:
            reply |= {"ename": "PlatformError", "evalue": error.text(), "traceback": [error.text()]}
        done = CellDone(
            status="aborted" if error is None else "error",
            error=error,
            ended_by=EndReason.CANCELLED if error is None else None,
            mac=mac.sign(call.value_key, "out", []) if call.value_key else "",
        )
        self.emit(done, call.id, [msgspec.json.encode(reply)])

    # -- the runner's messages -------------------------------------------------------------------------------------

    def received(self, incoming: Incoming) -> None:
        """Take a message of the runner's. Raises FramingError when it sends more than its credit allows."""
        if self.idle.is_set() and isinstance(incoming.message, PASSED):
            self._pass_on(incoming)
            return
        self._waiting_bytes += incoming.size_bytes
        if self._waiting_bytes > MAX_UNPROCESSED_BYTES:
            raise FramingError(f"the runner sent {self._waiting_bytes} bytes, more than its credit")
        self._queue.append(incoming)
        self.idle.clear()
        self._arrived.set()

    def connected(self) -> None:
        """A runner has dialled: its credit starts anew."""
        self._owed_bytes = 0

    async def run(self) -> None:
        """Work through what waits, for ever."""
        while True:
            self._arrived.clear()
            while self._queue:
                incoming = self._queue.popleft()
                try:
                    await self._handle(incoming)
                except (CellburstError, ValueError) as why:
                    self._drop(incoming, why)
                self._waiting_bytes -= incoming.size_bytes
            self.idle.set()
            await self._arrived.wait()

    def grant(self) -> None:
        """Give the runner credit back, as far as the spool has room. Also called by a timer and after acknowledgements."""
        due = self._owed_bytes >= GRANT_BYTES
        if due and not self._spool.full and self.link and self.link.post(RunnerCredit(size_bytes=self._owed_bytes)):
            self._owed_bytes = 0

    async def close(self) -> None:
        """Stop what runs beside the queue."""
        self._leaving.drop()
        for task in list(self._side_tasks):
            task.cancel()
        await asyncio.gather(*self._side_tasks, return_exceptions=True)

    async def _handle(self, incoming: Incoming) -> None:
        match incoming.message:
            case CellDone():
                await self._finish_cell(incoming.call, incoming.message, incoming.buffers)
                self._owe(incoming.credit_bytes)
            case ExecutorEnded():
                self._executor_ended(incoming.message)
                self._owe(len(incoming.head))  # it may have waited behind events, and took credit then
            case SideReply():
                task = asyncio.create_task(self._side_reply(incoming.message, incoming.buffers))
                self._side_tasks.add(task)
                task.add_done_callback(self._side_tasks.discard)
            case ValueComing():
                self._value_coming(incoming.message)
            case _ if isinstance(incoming.message, ANSWERS):
                self.answers.received(incoming)
            case _:
                self._pass_on(incoming)

    def _value_coming(self, coming: ValueComing) -> None:
        if self.saving is not None:
            try:
                if TEMPORARY_NAME.fullmatch(coming.file):
                    self.saving(coming)
            except (OSError, CellburstError) as why:
                what = {"container": self._container, "why": str(why)}
                log.info("a name is kept only when it is whole", extra=what)
            return
        told = None
        if self._calls.running and self.hiding is None:
            told = self._leaving.begin(coming, self._out_folder(), self._site.exchange)
        if told is not None:
            self.answer(told)

    def _pass_on(self, incoming: Incoming) -> None:
        self._owe(incoming.credit_bytes)
        if not isinstance(incoming.message, PASSED):
            self._drop(incoming, "no event that a runner may send")
            return
        if isinstance(incoming.message, CellStarted):
            call = self._calls.started(incoming.call, self._site.clock.monotonic())
            if call is None:
                return
            self._on_started(call)
        call_id = incoming.call if self._calls.knows(incoming.call) else ""
        if self.hiding is not None:
            self._hidden(self.hiding, incoming, call_id)
        else:
            self._spool.append(incoming.head, incoming.buffers, call_id)
        self.feed.wake()

    def _owe(self, size_bytes: int) -> None:
        self._owed_bytes += size_bytes
        self.grant()

    def _drop(self, incoming: Incoming, why: object) -> None:
        what = {
            "container": self._container,
            "type": type(incoming.message).__name__,
            "why": self.clear_text(str(why)),
        }
        log.warning("a runner's message was dropped", extra=what)

    # -- ends of cells ---------------------------------------------------------------------------------------------

    async def _finish_cell(self, id: str, done: CellDone, buffers: list[memoryview]) -> None:
        call = self._calls.get(id)
        if call is None or not buffers:
            log.warning("the end of a call that does not run", extra={"container": self._container, "call": id[:64]})
            self._leaving.drop()
            return
        inline: Sequence[Buffer] = buffers[1:]
        if self.hiding is not None and done.home:
            inline = await self._keep_back(self.hiding, id, done, inline)
        taken = await self._take(done, inline)
        for group, why in taken.refused:
            self.emit(
                Notice(text=f"{', '.join(group.names)} stayed in the container: {why.message}", level="warning"), id
            )
            done.stayed += [RemoteName(name=n, type="", why="not_asked", detail=why.message) for n in group.names]
        done.home = taken.groups
        done.files = await self._files()
        done.ended_by = EndReason.TIMEOUT if call.limit.timed_out else None
        done.error = None
        self.on_imported([name for name in done.imported if self.clear_text(name) == name])
        done.imported = []
        done.mac = mac.sign(call.value_key, "out", done.home) if call.value_key else ""
        self._ended(id)
        self.emit(done, id, [buffers[0], *taken.buffers])

    async def _keep_back(self, hiding: Hiding, id: str, done: CellDone, inline: Sequence[Buffer]) -> Sequence[Buffer]:
        """Names whose bytes have a secret's value stay in the container: what goes home is stored on the way."""
        there = await asyncio.to_thread(hiding.held_back, done.home, inline, self._out_folder())
        if not there:
            return inline
        left, kept, waiting = [], [], list(inline)
        for number, group in enumerate(done.home):
            count = sum(part.at == "inline" for part in group.parts)
            own, waiting = waiting[:count], waiting[count:]
            if number not in there:
                left.append(group)
                kept += own
                continue
            why = "it has a secret's value in it"
            self.emit(Notice(text=f"{', '.join(group.names)} stayed in the container: {why}", level="warning"), id)
            done.stayed += [RemoteName(name=n, type="", why="not_asked", detail=why) for n in group.names]
        done.home = left
        return [*kept, *waiting]

    async def _take(self, done: CellDone, inline: Sequence[Buffer]) -> Taken:
        self._leaving.whole()
        try:
            if not done.home:
                return Taken()
            taken = await self._take_groups(done, inline)
            await self._site.exchange.publish(taken.blobs)
        except (CellburstError, OSError) as why:
            return Taken(refused=[(group, _info(why)) for group in done.home])
        finally:
            self._leaving.drop()
        return taken

    async def _take_groups(self, done: CellDone, inline: Sequence[Buffer]) -> Taken:
        blobs, out = self._site.exchange.folder, self._out_folder()
        if is_small(done.home, inline):
            return take(done.home, inline, blobs, out)
        return await asyncio.to_thread(take, done.home, inline, blobs, out, self._leaving.finish)

    async def _files(self) -> list[FileChange]:
        if self.layer is None:
            return []
        try:
            return await asyncio.to_thread(shown_files, self.layer, self.hiding)
        except (CellburstError, OSError) as why:
            what = {"container": self._container, "why": self.clear_text(str(why))}
            log.warning("the files of a session could not be listed", extra=what)
            return []

    def _executor_ended(self, ended: ExecutorEnded) -> None:
        call = self._calls.get(ended.call)
        ended.ended_by = EndReason.TIMEOUT if call is not None and call.limit.timed_out else None
        if ended.call and not self._calls.knows(ended.call):
            ended.call = ""
        self.last_executor_text = self.clear_text(ended.text)
        self._leaving.drop()
        if self.restoring:
            return
        self._ended(ended.call)
        self.emit(ended, ended.call)

    def _ended(self, id: str) -> None:
        call = self._calls.ended(id)
        if call is None or self.folder is None:
            return
        for hash in call.blobs:  # the executor has read them; the blob folder keeps its own name of each
            (self.folder / "var" / "in" / hash).unlink(missing_ok=True)

    def _out_folder(self) -> Path:
        assert self.folder is not None
        return self.folder / "var" / "out"

    # -- answers to questions --------------------------------------------------------------------------------------

    async def _side_reply(self, reply: SideReply, buffers: list[memoryview]) -> None:
        key = self.side_keys.pop(reply.id, None)
        if key is None:
            return
        kept: Sequence[Buffer] = buffers
        try:
            blobs, out = self._site.exchange.folder, self._out_folder()
            if reply.groups:
                if self.hiding is not None:
                    there = await asyncio.to_thread(self.hiding.held_back, reply.groups, buffers, out)
                    if there:
                        raise error(
                            ErrorCode.FORBIDDEN, "the value has a secret's value in it: it stays in the container"
                        )
                taken = await asyncio.to_thread(take, reply.groups, buffers, blobs, out)
                if taken.refused:
                    raise CellburstError(taken.refused[0][1])
                reply.groups, kept = taken.groups, taken.buffers
                await self._site.exchange.publish(taken.blobs)
            if reply.blob is not None:
                reply.blob = await asyncio.to_thread(take_blob, reply.blob, blobs, out)
                await self._site.exchange.publish([reply.blob.hash])
        except (CellburstError, OSError) as why:
            reply, kept = SideReply(id=reply.id, error=_info(why)), ()
        if self.hiding is not None and not reply.groups:
            kept = [self.hiding.data(buffer) for buffer in kept]  # of widgets
        reply.mac = mac.sign(key, f"side:{reply.id}", reply.groups) if key else ""
        self.answer(reply, kept)

    def answer(self, reply: SideReply | ValueComing, buffers: Sequence[Buffer] = ()) -> None:
        """Send an answer if the gateway is there; it asks again after a lost link."""
        if self.hiding is not None and isinstance(reply, SideReply):
            reply.content = self.hiding.content(reply.content)
            reply.error = self.hiding.error(reply.error) if reply.error is not None else None
        if self.stream is not None:
            try:
                self.stream.post(reply, buffers)
            except (CellburstError, FramingError) as why:
                log.info("an answer was not sent", extra={"container": self._container, "why": str(why)})


def _info(why: Exception) -> ErrorInfo:
    if isinstance(why, CellburstError):
        return why.info
    return ErrorInfo(
        code=ErrorCode.DISK_FULL, message=f"the worker could not keep a value: {why}", next="free some space there"
    )
