"""One attempt of a run: a session of its own, the frozen notebook's cells in it one by one, the executed notebook on disk.

The driver is to the gateway what a kernel is: it opens a session, sends `RunCell` (`run_calls`), reads numbered events
(`run_log`). It does so from within, and keeps nothing that is not in the run's row and the session's log: a gateway that was
killed starts a driver again, which reads the log from its beginning, makes the same notebook of it, and goes on. A cell's call
has an id that follows from run, attempt and cell, so that sending it again is the same call. Where the session is gone, so is
what the cells before had bound: the attempt is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from cellburst_protocol import notebooks
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EngineInfo, MirrorSpec, SessionStream
from cellburst_protocol.schedules import RunReason, RunState, ScheduleSpec
from cellburst_protocol.states import EndReason, SessionState

from .notebook_out import NotebookOut
from .placer import LOCAL_WORKER_SECONDS, RUNS
from .run_calls import Ended, RunCalls, why_gone
from .run_environment import Surroundings, chosen, differs, machine_id, packs_of
from .run_inside import NO_MACHINES, begin_code, wants_machines
from .run_kept import KeptFiles
from .run_log import RunLog
from .run_rules import RunDetail, detail_of, explained, reason_of
from .session import Session
from .store_schedules import RunRecord

if TYPE_CHECKING:
    from .hub import Hub
    from .run_files import RunFiles

KERNEL_ID = "schedule"
LOOK_SECONDS = 0.1  # for the worker of this machine
WRITE_SECONDS = (
    2.0  # between two writes of a notebook while one cell prints; at the end of each cell it is written anyway
)

log = logging.getLogger(__name__)


class RunDriver:
    """Drives one attempt. `drive` returns when it is over; `cancel` makes that soon."""

    def __init__(
        self, hub: Hub, files: RunFiles, surroundings: Surroundings, run: RunRecord, spec: ScheduleSpec
    ) -> None:  # fmt: skip
        self._hub, self._files, self._surroundings, self._spec = hub, files, surroundings, spec
        self.run = run
        self.detail: RunDetail = detail_of(run)
        self._cancelled: RunReason | None = None
        self._out = NotebookOut({"cells": [], "metadata": {}})
        self._kept = KeptFiles(hub, files, run.id, self.attempt_name)
        self._calls: RunCalls | None = None  # from when it has a session
        self._notebook: dict[str, Any] = {"cells": []}  # ready to run: with its parameters, without outputs
        self._cells: list[notebooks.CodeCell] = []
        self._log = self._new_log()
        self._written_at = -WRITE_SECONDS

    @property
    def attempt_name(self) -> str:
        """The attempt's own name: of its session, its folder and its calls."""
        return f"{self.run.id}.{self.run.attempt}"

    @property
    def untouched(self) -> bool:
        """Whether no container was ever started for it."""
        return self._log.untouched

    @property
    def cost_usd(self) -> Decimal:
        """What the attempt cost so far."""
        return self._calls.cost_usd if self._calls is not None else Decimal(0)

    def cancel(self, reason: RunReason) -> None:
        """End it: now what runs, then the attempt."""
        if self._cancelled is not None:
            return
        self._cancelled = reason
        if self._calls is not None:
            self._calls.cancelled = reason
            self._calls.wake()
            self._hub.sessions.end(self._calls.session, EndReason.STOPPED)

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
            if problem.code is ErrorCode.INTEGRITY or self._calls is None:
                reason = RunReason.NOTEBOOK
        if self._cancelled is not None and reason is not RunReason.DONE:
            reason, why = self._cancelled, None
        try:
            await self._finish(reason, why)
        except Exception as problem:  # its cells ran as they ran: that must not run them once more
            log.exception("a run's end was not put away", extra={"run": self.run.id})
            self.detail.note(f"what the run left could not be put away: {type(problem).__name__}")
            await self.give_up()
        return reason, self._explained(reason, why) if reason is not RunReason.DONE else None

    def _explained(self, reason: RunReason, why: ErrorInfo | None) -> ErrorInfo | None:
        told = explained(reason, self._spec, self.detail.cell, why)
        if told is not None and self.detail.environment == "frozen" and told.code is ErrorCode.IMAGE_BUILD:
            name = shlex.quote(self._spec.name)
            then = f"`cellburst schedule update {name}` takes the environment over as it is now"
            return msgspec.structs.replace(told, next=f"{then}; `--environment live` always uses the live one")
        return told

    async def give_up(self) -> None:
        """After a defect: nothing of it goes on and costs, whatever else was left. Tried until it is so."""
        if self._calls is None:
            return
        session = self._calls.session
        with contextlib.suppress(CellburstError):
            self._calls.leave()
        while session.state is not SessionState.ENDED and not self._hub.stopping:
            try:
                self._hub.sessions.end(session, EndReason.STOPPED)
            except CellburstError as why:
                log.error("a run's session could not be ended: %s", why.info.message, extra={"run": self.run.id})
                await asyncio.sleep(1.0)

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
        self._notebook = ready
        self._out = NotebookOut(ready)
        self._log = self._new_log()
        self.detail.cells_count = len(self._cells)
        self._out.note(
            run=self.run.id, schedule=self._spec.name, notebook=self._spec.notebook, due_unix_seconds=self.run.instant,
            attempt=self.run.attempt, state="starting",
        )  # fmt: skip
        recipe = await self._environment()
        session = self._open()
        session.inner_secrets = frozenset(self._spec.cell_secrets)
        self._calls = RunCalls(
            self._hub, session, self._spec, self.attempt_name, self._log, self._kept, self.detail,
            lambda: self._write(soon=True), recipe,
        )  # fmt: skip
        self._calls.cancelled = self._cancelled
        if self.run.session != session.id:
            self.run = self._hub.store.move_run(
                self.run.id, self.run.state, now=self._hub.clock.wall(), session=session.id, detail=self.detail.text()
            )
        await self._write()

    async def _environment(self) -> ImageRecipe | None:
        """What its session runs in, None for the live mirror; decided once in an attempt, and said in its record."""
        spec, detail = self._spec, self.detail
        if not detail.environment:
            changes = await asyncio.to_thread(self._surroundings.changes, spec)
            if spec.frozen is not None and differs(changes):
                await self._wait_for_home()
            detail.environment, line = chosen(spec, changes, self._home_engines())
            if line:
                detail.note(line)
                self._out.note(environment_changes=line)
        self._out.note(environment=detail.environment)
        if detail.environment == "live":
            return None
        await asyncio.to_thread(self._files.offer, self._hub.blobs, self.run.owner.workspace, packs_of(spec))
        return spec.recipe if detail.environment == "image" or spec.frozen is None else spec.frozen.recipe

    def _home_engines(self) -> list[EngineInfo]:
        """What the workers of this machine, where its folder is, would run it in."""
        mine, here = self.run.owner.workspace, machine_id()
        workers = [w for w in self._hub.fleet.workers.values() if w.reachable and w.owner.workspace == mine]
        home = [worker for worker in workers if worker.machine_id in ("", here)]
        return [worker.inventory.engines[0] for worker in home if worker.inventory.engines]

    async def _wait_for_home(self) -> None:
        """Right after a gateway's start its worker has not dialled yet; what it can run decides the environment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOCAL_WORKER_SECONDS):
                while not self._home_engines() and self._cancelled is None:
                    await asyncio.sleep(LOOK_SECONDS)

    def _new_log(self) -> RunLog:
        """The log of its cells; before they are known, of none."""
        may_raise = {self._call_id(cell) for cell in self._cells if cell.may_raise} | {self._begin_id}
        return RunLog(
            self._hub.logs, self._out, cells={self._call_id(cell): cell.index for cell in self._cells}, may_raise=may_raise,
            on_started=self._started, note=self.detail.note,
        )  # fmt: skip

    def _open(self) -> Session:
        """The attempt's session: the one it has, or a new one. Raises Ended when it had one that is gone."""
        if not self.run.session:
            asked = SessionStream(notebook=f"{RUNS}{self.run.schedule}", name=self.attempt_name, kernel_id=KERNEL_ID)
            return self._hub.sessions.open(self.run.owner, asked)
        session = self._hub.sessions.get(self.run.session)
        if session is None:
            self._log.read(self.run.session)
            done = [cell for cell in self._cells if self._log.went_well(self._call_id(cell))]
            self.detail.cells_done = len(done)
            left = self._cells[len(done) :]
            self.detail.cell = left[0].number if left else 0
            raise Ended(why_gone(self._hub, self._log, self.run.session))
        return session

    # -- cells -----------------------------------------------------------------------------------------------------

    async def _run_cells(self) -> None:
        calls = self._calls
        assert calls is not None
        image = await self._image()
        self._log.read(calls.session.id)
        if wants_machines(self._spec, self._cells):
            await self._begin(calls, image)
        self._tell_skipped()
        for number, cell in enumerate(self._cells, 1):
            self.detail.cell = cell.number
            call = self._call_id(cell)
            self._out.began(cell.index, number)
            ended = await calls.run(call, cell.code, number, image)
            self._out.ended(cell.index)
            if not self._log.went_well(call):
                raise Ended(reason_of(ended), ended.error)
            self.detail.cells_done = number
            self._note_progress()
            await self._write()
        self.detail.cell = 0

    async def _begin(self, calls: RunCalls, image: MirrorSpec) -> None:
        """Before the first cell: let `%%modal` work in the run's session. Where it cannot, its cells run there like all
        others."""
        calls.machines = True  # its container is to have a link, whatever comes of it
        ended = await calls.run(self._begin_id, begin_code(self._spec, self._notebook), 0, image)
        if ended.reason is EndReason.DONE:
            self._cells = notebooks.code_cells(self._notebook, own_machines=True)
            return
        if ended.reason is not EndReason.RAISED:
            raise Ended(reason_of(ended), ended.error)
        calls.machines = False
        why = ended.error.message if ended.error is not None else "its environment has no cellburst"
        self.detail.note(f"{NO_MACHINES}: {why}")

    def _tell_skipped(self) -> None:
        for cell in self._cells:
            self._out.skipped(cell.index, list(cell.notes))
            for note in cell.notes:
                self.detail.note(f"cell {cell.number}: {note}")

    async def _image(self) -> MirrorSpec:
        """The notebook's environment, with the frozen folder in place of the notebook's own."""
        folder = await asyncio.to_thread(self._files.lay_out, self.run.id, self.run.attempt, self._spec.files)
        image = self._spec.image
        assert image is not None
        own = image.notebook_folder
        return msgspec.structs.replace(
            image, notebook_folder=str(folder), notebook_mode="folder", notebook_note="",
            machine_id=machine_id() if image.machine_id else "",  # this machine's: another one since it was last started
            sys_path=[path for path in image.sys_path if path != own], extra_paths=[p for p in image.extra_paths if p != own],
        )  # fmt: skip

    @property
    def _begin_id(self) -> str:
        return f"{self.attempt_name}.begin"

    def _call_id(self, cell: notebooks.CodeCell) -> str:
        return f"{self.attempt_name}.{cell.index}"

    def _note_progress(self) -> None:
        self.run = self._hub.store.move_run(
            self.run.id, self.run.state, now=self._hub.clock.wall(), detail=self.detail.text()
        )

    def _started(self) -> None:
        """The code of a cell has started."""
        if self.run.state is RunState.STARTING:
            now = self.detail.began_unix_seconds = self._hub.clock.wall()
            self.run = self._hub.store.move_run(self.run.id, RunState.RUNNING, now=now, detail=self.detail.text())
            self._out.note(state="running")

    # -- after -----------------------------------------------------------------------------------------------------

    async def _finish(self, reason: RunReason, why: ErrorInfo | None) -> None:
        calls = self._calls
        if calls is not None:
            session = calls.session
            self._log.read(session.id)
            with contextlib.suppress(CellburstError):
                self._hub.write_now()
            calls.cost()
            if reason in (RunReason.DONE, RunReason.RAISED) and session.state is not SessionState.ENDED:
                await self._kept.keep(session, self._log.changed.values(), self.detail)
            calls.leave()
            if session.state is not SessionState.ENDED:
                calls.cost()
                self._hub.sessions.end(session, EndReason.DONE if reason is RunReason.DONE else EndReason.STOPPED)
            self._hub.logs.ack(session.id, self._log.last)
            self._hub.logs.release(session.id)
        self._out.note(state=reason.value, cost_usd=format(self.cost_usd, "f"))
        cell = next((c for c in self._cells if c.number == self.detail.cell), None)
        if reason is not RunReason.DONE and cell is not None:
            self._out.ended(cell.index)
            if reason is not RunReason.RAISED or why is None or not why.message or not self._has_error(cell.index):
                told = self._explained(reason, why)
                self._out.failed(
                    cell.index, f"Run{reason.value.title().replace('_', '')}", told.text() if told else reason.value
                )
        self._log.dirty = True
        if self._cells or self.detail.has_notebook:
            await self._write()
        await asyncio.to_thread(self._files.clear, self.run.id, self.run.attempt)

    def _has_error(self, index: int) -> bool:
        return any(output["output_type"] == "error" for output in self._out.notebook["cells"][index]["outputs"])

    async def _write(self, *, soon: bool = False) -> None:
        """Write the notebook. `soon`: only if there is something new, and the last time is a while ago."""
        now = self._hub.clock.monotonic()
        if soon and (not self._log.dirty or now - self._written_at < WRITE_SECONDS):
            return
        self._log.dirty = False
        try:
            data = msgspec.json.format(msgspec.json.encode(self._out.notebook), indent=1)
            await asyncio.to_thread(self._files.replace_notebook, self.run.id, data)
            self.detail.has_notebook = True
        except CellburstError as why:
            self.detail.note(f"the executed notebook could not be written: {why.info.message}")
            log.error("a run's notebook could not be written: %s", why.info.message, extra={"run": self.run.id})
        self._written_at = self._hub.clock.monotonic()
