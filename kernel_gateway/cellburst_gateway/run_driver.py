"""One attempt of a run: a session of its own, the frozen notebook's cells in it one by one, the executed notebook on disk.

The driver is to the gateway what a kernel is: it opens a session, sends `RunCell`, reads numbered events. It does so from
within, and keeps nothing that is not in the run's row and the session's log: a gateway that was killed starts a driver again,
which reads the log from its beginning, makes the same notebook of it, and goes on. A cell's call has an id that follows from run,
attempt and cell, so that sending it again is the same call. Where the session is gone, so is what the cells before had bound: the
attempt is lost.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from cellburst_protocol import notebooks
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.framing import Buffer
from cellburst_protocol.mac import value_key
from cellburst_protocol.messages import (
    CallEnded,
    CellDone,
    CellRefused,
    CellStarted,
    ContainerStarted,
    FileChange,
    IOPub,
    Message,
    MirrorSpec,
    Notice,
    RunCell,
    SessionStream,
    SideReply,
    SideRequest,
    decode,
)
from cellburst_protocol.schedules import (
    MAX_RUN_FILES,
    MAX_RUN_FILES_BYTES,
    RunReason,
    RunState,
    ScheduleSpec,
)
from cellburst_protocol.states import EndReason, SessionState

from .notebook_out import NotebookOut
from .run_rules import RunDetail, detail_of, explained, limits, reason_of, reason_of_refusal
from .session import Session
from .store_schedules import RunRecord

if TYPE_CHECKING:
    from .hub import Hub
    from .run_files import RunFiles

KERNEL_ID = "schedule"
LOOK_SECONDS = (
    1.0  # a wake-up that was lost costs at most this; also how often the clock is looked at while a cell runs
)
WRITE_SECONDS = (
    2.0  # between two writes of a notebook while one cell prints; at the end of each cell it is written anyway
)
READ_BYTES = 4 * 1024**2  # of the log at a time
FILE_SECONDS = 300.0
JOIN_SECONDS = 60.0  # after a gateway's start, within which its workers are back
CAPACITY_SECONDS = 600.0  # to wait for any worker, or a place in the queue

log = logging.getLogger(__name__)


class Ended(Exception):
    """The attempt is over."""

    def __init__(self, reason: RunReason, why: ErrorInfo | None = None) -> None:
        super().__init__(reason.value)
        self.reason, self.why = reason, why


class RunDriver:
    """Drives one attempt. `drive` returns when it is over; `cancel` makes that soon."""

    def __init__(self, hub: Hub, files: RunFiles, run: RunRecord, spec: ScheduleSpec) -> None:
        self._hub, self._files, self._spec = hub, files, spec
        self.run = run
        self.detail: RunDetail = detail_of(run)
        self.untouched = True  # no container was ever started for it
        self.cost_usd = Decimal(0)
        self._cancelled: RunReason | None = None
        self._session: Session | None = None
        self._out = NotebookOut({"cells": [], "metadata": {}})
        self._cells: list[notebooks.CodeCell] = []
        self._index_of: dict[str, int] = {}  # of a call's cell in the notebook
        self._ended: dict[str, CallEnded] = {}
        self._read = 0
        self._wakeup = asyncio.Event()
        self._refused: ErrorInfo | None = None
        self._replies: dict[str, asyncio.Future[tuple[SideReply, list[bytes]]]] = {}
        self._changed: dict[str, FileChange] = {}
        self._dirty = False
        self._written_at = -WRITE_SECONDS
        self._container = ""
        self._names_lost = False

    @property
    def attempt_name(self) -> str:
        """The attempt's own name: of its session, its folder and its calls."""
        return f"{self.run.id}.{self.run.attempt}"

    def cancel(self, reason: RunReason) -> None:
        """End it: now what runs, then the attempt."""
        if self._cancelled is not None:
            return
        self._cancelled = reason
        self._wakeup.set()
        if self._session is not None:
            self._hub.sessions.end(self._session, EndReason.STOPPED)

    async def drive(self) -> tuple[RunReason, ErrorInfo | None]:
        """Run it to its end. Only a cancelled task comes out otherwise, which leaves everything for the next gateway."""
        try:
            await self._prepare()
            await self._run_cells()
            reason, why = RunReason.DONE, None
        except Ended as ended:
            reason, why = ended.reason, ended.why
        except CellburstError as problem:
            reason, why = RunReason.START_FAILED, problem.info
            if problem.code is ErrorCode.INTEGRITY or self._session is None:
                reason = RunReason.NOTEBOOK
        if self._cancelled is not None and reason is not RunReason.DONE:
            reason, why = self._cancelled, None
        await self._finish(reason, why)
        return reason, explained(reason, self._spec, self.detail.cell, why) if reason is not RunReason.DONE else None

    # -- before ----------------------------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        if self._cancelled is not None:
            raise Ended(self._cancelled)
        data = await asyncio.to_thread(self._files.frozen, self._spec.notebook_hash)
        try:
            plain = notebooks.read(data, "the frozen notebook")
            ready = notebooks.with_parameters(plain, self._spec.parameters)
            self._cells = notebooks.code_cells(ready)
        except CellburstError as problem:
            raise Ended(RunReason.NOTEBOOK, problem.info) from None
        self._out = NotebookOut(ready)
        for cell in self._cells:
            self._index_of[self._call_id(cell)] = cell.index
            self._out.skipped(cell.index, list(cell.notes))
            for note in cell.notes:
                self.detail.note(f"cell {cell.number}: {note}")
        self.detail.cells_count = len(self._cells)
        self._out.note(
            run=self.run.id, schedule=self._spec.name, notebook=self._spec.notebook, due_unix_seconds=self.run.instant,
            attempt=self.run.attempt, state="starting",
        )  # fmt: skip
        self._session = self._open()
        self._session.subscriber = self
        self._session.kernel_left_at = None
        if self.run.session != self._session.id:
            self.run = self._hub.store.move_run(
                self.run.id,
                self.run.state,
                now=self._hub.clock.wall(),
                session=self._session.id,
                detail=self.detail.text(),
            )
        await self._write()

    def _open(self) -> Session:
        """The attempt's session: the one it has, or a new one. Raises Ended when it had one that is gone."""
        if self.run.session:
            session = self._hub.sessions.get(self.run.session)
            if session is None:
                self._read_log(self.run.session)
                done = [cell for cell in self._cells if self._done(cell)]
                self.detail.cells_done = len(done)
                left = self._cells[len(done) :]
                self.detail.cell = left[0].number if left else 0
                raise Ended(self._why_gone(self.run.session))
            return session
        asked = SessionStream(notebook=f"schedule:{self.run.schedule}", name=self.attempt_name, kernel_id=KERNEL_ID)
        return self._hub.sessions.open(self.run.owner, asked)

    def _why_gone(self, session: str) -> RunReason:
        for cell in self._cells:
            ended = self._ended.get(self._call_id(cell))
            if ended is not None and ended.reason is not EndReason.DONE:
                return reason_of(ended)
        try:
            reason = self._hub.store.get_session(session).reason
        except CellburstError:
            reason = None
        return RunReason.GATEWAY_STOPPED if reason is EndReason.SHUTDOWN else RunReason.CONTAINER_LOST

    # -- cells -----------------------------------------------------------------------------------------------------

    async def _run_cells(self) -> None:
        assert self._session is not None
        image = await self._image()
        self._read_log(self._session.id)
        for number, cell in enumerate(self._cells, 1):
            self.detail.cell = cell.number
            call = self._call_id(cell)
            if call not in self._ended:
                await self._send(cell, call, number, image)
                await self._wait_for(call)
            self._out.ended(cell.index)
            if not self._done(cell):
                raise Ended(reason_of(self._ended[call]), self._ended[call].error)
            self.detail.cells_done = number
            self._note_progress()
            await self._write()
        self.detail.cell = 0

    def _done(self, cell: notebooks.CodeCell) -> bool:
        """Whether the cell has ended so that the next one may run."""
        ended = self._ended.get(self._call_id(cell))
        if ended is None:
            return False
        return ended.reason is EndReason.DONE or (cell.may_raise and ended.reason is EndReason.RAISED)

    async def _image(self) -> MirrorSpec:
        """The notebook's environment, with the frozen folder in place of the notebook's own."""
        folder = await asyncio.to_thread(self._files.lay_out, self.run.id, self.run.attempt, self._spec.files)
        image = self._spec.image
        assert image is not None
        own = image.notebook_folder
        return msgspec.structs.replace(
            image, notebook_folder=str(folder), notebook_mode="folder", notebook_note="",
            sys_path=[path for path in image.sys_path if path != own], extra_paths=[p for p in image.extra_paths if p != own],
        )  # fmt: skip

    async def _send(self, cell: notebooks.CodeCell, call: str, number: int, image: MirrorSpec) -> None:
        session = self._session
        assert session is not None
        self._check_alive(number)
        if session.call is not None and session.call.id == call:
            return  # of before the gateway was started again
        resources, spent = limits(
            self._spec,
            ran_seconds=self._ran_seconds(),
            spent_usd=self._cost(),
            max_seconds=self._hub.config.max_timeout_seconds,
        )
        if spent is not None:
            raise Ended(spent)
        self._out.began(cell.index, number)
        request = RunCell(
            call=call, code=cell.code, resources=resources, image=image, recipe=self._spec.recipe, keep_image=number > 1,
            header={"msg_id": call, "msg_type": "execute_request", "session": self.attempt_name, "username": "schedule",
                    "version": "5.3"},
            execution_count=number, allow_stdin=False, volumes=self._spec.volumes or None if number == 1 else None,
            secrets=self._spec.secrets or None if number == 1 else None,
        )  # fmt: skip
        began = self._hub.clock.monotonic()
        while (refused := await self._ask(session, request)) is not None:
            waited = self._hub.clock.monotonic() - began
            if not self._may_wait(refused, waited):
                raise Ended(reason_of_refusal(refused), refused)
            await asyncio.sleep(LOOK_SECONDS)
            self._check_alive(number)

    async def _ask(self, session: Session, request: RunCell) -> ErrorInfo | None:
        """Send a cell; why it was not accepted, or None."""
        self._refused = None
        session.subscriber = self  # whoever looked at the session beside may have gone with it
        await self._hub.cells.run(session, request, [])
        return self._refused

    def _may_wait(self, refused: ErrorInfo, waited: float) -> bool:
        """Whether what was refused may be had later: workers come back one by one after a gateway was started, and at night
        nobody is there to press a button again."""
        up = self._hub.clock.monotonic() - self._hub.started_monotonic
        if refused.code is ErrorCode.NO_SUCH_HARDWARE:
            return up < JOIN_SECONDS
        return refused.code in (ErrorCode.NO_WORKER, ErrorCode.QUEUE_FULL) and waited < CAPACITY_SECONDS

    def _check_alive(self, number: int) -> None:
        session = self._session
        assert session is not None
        if self._cancelled is not None:
            raise Ended(self._cancelled)
        if session.state is SessionState.ENDED:
            raise Ended(self._why_gone(session.id))
        if number > 1 and (
            self._names_lost or (session.container is None and session.kept is None and session.park is None)
        ):
            raise Ended(RunReason.CONTAINER_LOST)

    async def _wait_for(self, call: str) -> None:
        session = self._session
        assert session is not None
        while call not in self._ended:
            self._wakeup.clear()
            self._read_log(session.id)
            if call in self._ended:
                return
            if self._names_lost:  # its code runs without the names of the cells before
                self._hub.sessions.end(session, EndReason.CONTAINER_LOST)
                raise Ended(RunReason.CONTAINER_LOST)
            if session.state is SessionState.ENDED and session.call is None:
                raise Ended(self._why_gone(session.id))
            if session.call is None or session.call.id != call:
                self._ended_unseen(call)
                continue
            await self._write(soon=True)
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wakeup.wait()
            except TimeoutError:
                pass

    def _ended_unseen(self, call: str) -> None:
        """The call is over and its end is not in the log: the oldest of the log was dropped for want of room."""
        self._hub.write_now()
        record = self._hub.store.get_call(call)
        if record is None or record.reason is None:
            raise Ended(RunReason.CONTAINER_LOST)
        self._ended[call] = CallEnded(
            state=record.state, reason=record.reason, error=record.error, run_seconds=record.run_seconds
        )

    def _call_id(self, cell: notebooks.CodeCell) -> str:
        return f"{self.attempt_name}.{cell.index}"

    def _ran_seconds(self) -> float:
        began = self.detail.began_unix_seconds
        return max(0.0, self._hub.clock.wall() - began) if began else 0.0

    def _cost(self) -> Decimal:
        """What the attempts cost so far."""
        container = self._session.container if self._session is not None else None
        now = container.cost(self._hub.clock.monotonic()) if container is not None else Decimal(0)
        self.cost_usd = max(self.cost_usd, now)
        return Decimal(self.detail.spent_usd) + self.cost_usd

    def _note_progress(self) -> None:
        self.run = self._hub.store.move_run(
            self.run.id, self.run.state, now=self._hub.clock.wall(), detail=self.detail.text()
        )

    # -- events ----------------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """As the session's subscriber: there are new events in its log."""
        self._wakeup.set()

    def post(self, message: Message, buffers: Sequence[Buffer] = ()) -> None:
        """As the session's subscriber: what is said beside events."""
        if isinstance(message, CellRefused):
            self._refused = message.error
        elif isinstance(message, SideReply):
            waiting = self._replies.pop(message.id, None)
            if waiting is not None and not waiting.done():
                waiting.set_result((message, [bytes(buffer) for buffer in buffers]))

    def post_live(self, message: Message) -> None:
        """As the session's subscriber: live figures, which nobody looks at here."""

    def close(self, why: str) -> None:
        """As the session's subscriber: another stream took the session. The log is read on, once a second."""

    def _read_log(self, session: str) -> None:
        while True:
            last = self._read
            for event in self._hub.logs.read(session, self._read, READ_BYTES):
                self._read = event.sequence
                try:
                    message = decode(event.head)
                except CellburstError:
                    continue  # of a newer gateway
                self._take(message, event.call, event.buffers)
            if self._read == last:
                return

    def _take(self, message: Message, call: str, buffers: list[bytes]) -> None:
        index = self._index_of.get(call)
        match message:
            case ContainerStarted():
                self.untouched = False
                if self._container and message.start != "snapshot":
                    self._names_lost = True
                self._container = message.container.id
                for note in message.container.notes:
                    self.detail.note(note)
            case CellStarted():
                self.untouched = False
                if self.run.state is RunState.STARTING:
                    now = self.detail.began_unix_seconds = self._hub.clock.wall()
                    self.run = self._hub.store.move_run(
                        self.run.id, RunState.RUNNING, now=now, detail=self.detail.text()
                    )
                    self._out.note(state="running")
            case CellDone():
                self._changed |= {file.path: file for file in message.files}
            case CallEnded() if index is not None:
                self._ended[call] = message
                self._dirty = True
            case Notice() if index is not None:
                self._out.say(index, message.text)
                self._dirty = True
            case IOPub() if index is not None and buffers:
                try:
                    plain: Any = json.loads(buffers[0])
                except ValueError:
                    return
                if isinstance(plain, dict) and self._out.message(index, message.msg_type, plain):
                    self._dirty = True

    # -- after -----------------------------------------------------------------------------------------------------

    async def _finish(self, reason: RunReason, why: ErrorInfo | None) -> None:
        session = self._session
        if session is not None:
            self._read_log(session.id)
            self._cost()
            if reason in (RunReason.DONE, RunReason.RAISED) and session.state is not SessionState.ENDED:
                await self._keep_files(session)
            if session.subscriber is self:
                session.subscriber = None
            if session.state is not SessionState.ENDED:
                self._cost()
                self._hub.sessions.end(session, EndReason.DONE if reason is RunReason.DONE else EndReason.STOPPED)
            self._hub.logs.ack(session.id, self._read)
            self._hub.logs.release(session.id)
        self._out.note(state=reason.value, cost_usd=format(self.cost_usd, "f"))
        cell = next((c for c in self._cells if c.number == self.detail.cell), None)
        if reason is not RunReason.DONE and cell is not None:
            self._out.ended(cell.index)
            if reason is not RunReason.RAISED or why is None or not why.message or not self._has_error(cell.index):
                told = explained(reason, self._spec, cell.number, why)
                self._out.failed(
                    cell.index, f"Run{reason.value.title().replace('_', '')}", told.text() if told else reason.value
                )
        self._dirty = True
        if self._cells or self.detail.has_notebook:
            await self._write()
        await asyncio.to_thread(self._files.clear, self.run.id, self.run.attempt)

    def _has_error(self, index: int) -> bool:
        return any(output["output_type"] == "error" for output in self._out.notebook["cells"][index]["outputs"])

    async def _write(self, *, soon: bool = False) -> None:
        """Write the notebook. `soon`: only if there is something new, and the last time is a while ago."""
        now = self._hub.clock.monotonic()
        if soon and (not self._dirty or now - self._written_at < WRITE_SECONDS):
            return
        self._dirty = False
        try:
            data = msgspec.json.format(msgspec.json.encode(self._out.notebook), indent=1)
            await asyncio.to_thread(self._files.replace_notebook, self.run.id, data)
            self.detail.has_notebook = True
        except CellburstError as why:
            self.detail.note(f"the executed notebook could not be written: {why.info.message}")
            log.error("a run's notebook could not be written: %s", why.info.message, extra={"run": self.run.id})
        self._written_at = self._hub.clock.monotonic()

    async def _keep_files(self, session: Session) -> None:
        """Bring the files that the run wrote out of its container."""
        total = 0
        for file in sorted(self._changed.values(), key=lambda one: one.path):
            if file.deleted:
                continue
            if len(self.detail.files) >= MAX_RUN_FILES or total + file.size_bytes > MAX_RUN_FILES_BYTES:
                most = f"{MAX_RUN_FILES}, {MAX_RUN_FILES_BYTES // 1024**2} MiB together"
                self.detail.note(f"not all files that it wrote are kept: at most {most}; write results into a volume")
                return
            try:
                size = await self._keep_file(session, file.path, len(self.detail.files))
            except (CellburstError, TimeoutError) as why:
                text = why.info.message if isinstance(why, CellburstError) else "its worker did not answer"
                self.detail.note(f"{file.path} could not be kept: {text}")
                continue
            total += size
            self.detail.files.append(FileChange(path=file.path, size_bytes=size))

    async def _keep_file(self, session: Session, path: str, number: int) -> int:
        container = session.container
        if container is None:
            raise CellburstError(ErrorInfo(code=ErrorCode.CONTAINER_LOST, message="the container is gone"))
        question = f"{self.attempt_name}.file.{number}"
        key = value_key(self._hub.secrets.master_key, f"side:{session.id}:{question}")
        session.sides[question] = key
        waiting = self._replies[question] = asyncio.get_running_loop().create_future()
        try:
            await container.send(SideRequest(id=question, kind="file_get", content={"path": path}, value_key=key))
            async with asyncio.timeout(FILE_SECONDS):
                reply, buffers = await waiting
        finally:
            self._replies.pop(question, None)
            session.sides.pop(question, None)
        if reply.error is not None:
            raise CellburstError(reply.error)
        if reply.blob is None:
            raise CellburstError(ErrorInfo(code=ErrorCode.NOT_FOUND, message="it is not there any more"))
        source: Path | bytes = buffers[0] if reply.blob.at == "inline" else self._hub.blobs.path(reply.blob.hash)
        size: int = reply.blob.size_bytes
        await asyncio.to_thread(self._files.keep_file, self.run.id, number, source)
        return size
