"""Schedules as time changes them: their instants recorded, their runs driven, told of and forgotten.

One tick several times a second takes what is due through `scheduler.decide` into the record, and starts runs: one at a time of
each schedule. What a run is doing is in its row and its session's log, so that a gateway that starts takes all of it up again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import shlex
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.schedules import (
    ACTIVE,
    RunReason,
    RunState,
    ScheduleSpec,
)

from . import schedule_times as times
from .month_budget import TOLD, MonthBudget, Over, told_text
from .notify import Notifier
from .run_driver import RunDriver
from .run_environment import Surroundings, packs_of
from .run_files import RunFiles
from .run_rules import again_after, detail_of
from .run_told import MissedSoFar, missed_before, missed_now, tell_budget, tell_end, tell_missed
from .scheduler import Planned, Standing, Watch, decide
from .store_schedules import RunRecord, ScheduleRecord

if TYPE_CHECKING:
    from .hub import Hub

DAY_SECONDS = 86400.0
SWEEP_SECONDS = 3600.0

log = logging.getLogger(__name__)


@dataclass
class Live:
    """A schedule in memory. `runs` have not ended, in the order in which they were due; `following` is its next instant."""

    record: ScheduleRecord
    spec: ScheduleSpec
    following: int | None = None
    runs: list[RunRecord] = field(default_factory=list)
    driver: RunDriver | None = None
    missed: MissedSoFar | None = None  # not told yet: more are to be looked at
    stats: tuple[RunRecord | None, Decimal, list[Decimal]] | None = (
        None  # newest run, cost, costs of those that succeeded
    )


class ScheduleRuns:
    """Time and runs; what people ask for is in `schedules.Schedules`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self.files = RunFiles(hub.config.data_folder)
        self.surroundings = Surroundings(self.files.frozen_path)
        self._watch = Watch()
        self._live: dict[str, Live] = {}
        self._notifier = Notifier(hub)
        self._budget = MonthBudget(hub)
        self._swept_at: float | None = None
        self._machine = socket.gethostname()
        hub.metrics.counter(
            "cellburst_runs_total", "Scheduled runs that ended, and instants at which none ran, by reason."
        )

    # -- start and tick --------------------------------------------------------------------------------------------

    def take_up(self) -> None:
        """At the gateway's start, when its sessions are known: go on with all runs that have not ended."""
        for record in self._hub.store.list_schedules():
            live = self._live[record.id] = Live(record, spec_of(record.spec))
            self._aim(live)
            live.missed = missed_before(self._hub.store.missed_untold(record.id), live.following)
        attempts: set[str] = set()
        for run in self._hub.store.active_runs():
            if run.schedule in self._live:
                self._live[run.schedule].runs.append(run)
                attempts.add(f"{run.id}.{run.attempt}")
        self.files.clear_others(attempts)

    def tick(self) -> None:
        """Record what is due, start what waits, tell who is to be told. Raises CellburstError when the record is not writable."""
        if self._hub.stopping:
            return
        wall = self._hub.clock.wall()
        jump = self._watch.look(wall, self._hub.clock.monotonic())
        if jump:
            log.warning("the clock jumped", extra={"seconds": round(jump, 1)})
        if self._record_due(wall):
            self._watch.caught_up()
        for live in list(self._live.values()):
            self._start_next(live, wall)
        self._notifier.look(wall)
        now = self._hub.clock.monotonic()
        if self._swept_at is None or now - self._swept_at >= SWEEP_SECONDS:
            self._swept_at = now
            for live in list(self._live.values()):
                self._forget_old(live)
            self._hub.spawn(asyncio.to_thread(self.files.sweep, self._wanted_hashes()))

    def _record_due(self, wall: float) -> bool:
        """Whether all that is due has its record now."""
        due = [live for live in self._live.values() if live.following is not None and live.following <= wall]
        if not due:
            return True
        made: list[tuple[Live, list[RunRecord], bool, MissedSoFar | None]] = []
        complete = True
        with self._hub.store.together():  # a hundred in one second are one commit
            for live in due:
                rows, ends_earlier, more, missed = self._note(live, wall)
                made.append((live, rows, ends_earlier, missed))
                complete = complete and not more
        for live, rows, ends_earlier, live.missed in made:
            record = self._hub.store.get_schedule(live.record.id)
            if record is not None:
                live.record = record
            self._aim(live)
            live.stats = None
            over = None
            if any(row.state in ACTIVE for row in rows):
                with self._later(live):
                    over = self._budget.over(live.record.owner.workspace)
            if ends_earlier and over is None:
                self._cancel_all(live, RunReason.REPLACED)
            for row in rows:
                if row.state in ACTIVE:
                    live.runs.append(row)
                    if over is not None:
                        with self._later(live):
                            self._skip(live, row, over, wall)
                else:
                    self._hub.metrics.add("cellburst_runs_total", reason=row.reason.value if row.reason else "")
            if live.following is None:
                self._done(live)
        self._notifier.next_look = 0.0
        return complete

    def _note(self, live: Live, wall: float) -> tuple[list[RunRecord], bool, bool, MissedSoFar | None]:
        spec, record = live.spec, live.record
        waiting = sum(run.state is RunState.QUEUED for run in live.runs)
        standing = Standing(
            following=lambda moment: times.following(spec.when, moment), seen=record.seen, overlap=spec.overlap,
            missed=spec.missed, window_seconds=spec.missed_window_seconds, active=len(live.runs), waiting=waiting,
        )  # fmt: skip
        decision = decide(standing, wall, self._watch.cause)
        planned: list[tuple[str, Planned]] = [(new_id("r"), one) for one in decision.planned]
        missed = missed_now(planned, live.missed)
        telling = tell_missed(missed, spec, new_id, wall) if missed is not None and not decision.more else None
        rows = self._hub.store.note_instants(
            record.id, seen_before=record.seen, seen=decision.seen, planned=planned, now=wall, telling=telling
        )
        kept = live.missed if rows is None else missed if decision.more else None
        return rows or [], decision.replace and bool(rows), decision.more, kept

    def _aim(self, live: Live) -> None:
        live.following = times.following(live.spec.when, live.record.seen) if live.record.state == "active" else None

    def _done(self, live: Live) -> None:
        if live.record.state == "active":
            live.record = self._hub.store.set_schedule_state(live.record.id, "done", now=self._hub.clock.wall())

    # -- runs ------------------------------------------------------------------------------------------------------

    def _start_next(self, live: Live, wall: float) -> None:
        if live.driver is not None or not live.runs or self._hub.stopping:
            return
        run = live.runs[0]
        if run.state is RunState.QUEUED and detail_of(run).not_before > wall:
            return
        if (
            run.state is RunState.QUEUED and run.attempt == 1 and not run.by_hand
        ):  # it waited, or an earlier gateway recorded it
            over = self._budget.over(run.owner.workspace)
            if over is not None:
                self._skip(live, run, over, wall)
                return
        if run.state is RunState.QUEUED:
            run = live.runs[0] = self._hub.store.move_run(
                run.id, RunState.STARTING, now=wall, spec=msgspec.json.encode(live.spec).decode()
            )
        driver = live.driver = RunDriver(self._hub, self.files, self.surroundings, run, spec_of(run.spec))
        log.info(
            "run starts", extra={"run": run.id, "attempt": run.attempt, "late_seconds": round(wall - run.instant, 3)}
        )
        self._hub.spawn(self._drive(live, driver))

    @contextlib.contextmanager
    def _later(self, live: Live) -> Iterator[None]:
        """A record that cannot be read or written now: the runs are in the record and in `live`, and are looked at again."""
        try:
            yield
        except CellburstError as why:
            log.warning("a budget could not be looked at", extra={"schedule": live.record.id, "why": why.info.message})

    def _skip(self, live: Live, run: RunRecord, over: Over, wall: float) -> None:
        """The month's budget is spent: the run is none. Who is to hear of that hears it once of each budget."""
        why = over.why(shlex.quote(live.spec.name))
        detail, owner = detail_of(run), live.record.owner
        with self._hub.store.together():
            known = self._budget.told(owner.workspace, over)
            detail.tell_jupyter, tell, told = tell_budget(run, live.spec, why, known, new_id, wall)
            self._hub.store.end_run(
                run.id, RunReason.MONTH_BUDGET, now=wall, error=why, detail=detail.text(), tell=tell
            )
            if told != known:
                self._hub.store.set_setting(owner, TOLD, told_text(over, told), now=wall)
        live.runs = [one for one in live.runs if one.id != run.id]
        live.stats = None
        self._notifier.next_look = 0.0
        self._hub.metrics.add("cellburst_runs_total", reason=RunReason.MONTH_BUDGET.value)
        log.info("run skipped: the month's budget is spent", extra={"run": run.id, "schedule": live.record.id})

    async def _drive(self, live: Live, driver: RunDriver) -> None:
        try:
            try:
                reason, why = await driver.drive()
            except Exception as problem:  # a defect must not keep the schedule from its next run
                log.exception("a run failed", extra={"run": driver.run.id})
                reason = RunReason.START_FAILED
                why = ErrorInfo(code=ErrorCode.INTERNAL, message=f"the gateway failed: {type(problem).__name__}")
                await driver.give_up()
            await self._over(live, driver, reason, why)
        finally:
            live.driver = None
        wall = self._hub.clock.wall()
        self._start_next(live, wall)
        self._forget_old(live)

    async def _over(self, live: Live, driver: RunDriver, reason: RunReason, why: ErrorInfo | None) -> None:
        """An attempt is over: another one, or the run's end. A record that cannot be written is tried again."""
        wall = self._hub.clock.wall()
        run, detail = driver.run, driver.detail
        again = again_after(
            reason, spec_of(run.spec), attempt=run.attempt, untouched=driver.untouched, free_starts=detail.free_starts
        )
        spent = Decimal(detail.spent_usd) + driver.cost_usd
        while True:
            try:
                if again is not None:
                    seconds, free = again
                    detail.not_before, detail.spent_usd = wall + seconds, format(spent, "f")
                    detail.free_starts += free
                    detail.cells_done = detail.cell = 0
                    detail.began_unix_seconds = 0.0
                    detail.environment = ""
                    detail.files = []
                    detail.note(
                        f"attempt {run.attempt} {reason.value.replace('_', ' ')}: {why.message if why else 'tried again'}"
                    )
                    moved = self._hub.store.move_run(
                        run.id, RunState.QUEUED, now=wall, session="", attempt=run.attempt + 1, detail=detail.text()
                    )
                    live.runs = [moved if one.id == run.id else one for one in live.runs]
                    return
                detail.tell_jupyter, tell = tell_end(run, live.spec, reason, why, spent, new_id, wall)
                self._hub.store.end_run(
                    run.id, reason, now=wall, error=why, cost_usd=spent, detail=detail.text(), tell=tell
                )
                break
            except CellburstError as problem:
                if problem.code is ErrorCode.NOT_FOUND:
                    # its schedule was deleted, and what was forgotten then has been written once more since
                    await asyncio.to_thread(self.files.forget, [run.id])
                    break
                log.error("a run's end could not be recorded: %s", problem.info.message, extra={"run": run.id})
                await asyncio.sleep(1.0)
        live.runs = [one for one in live.runs if one.id != run.id]
        live.stats = None
        self._notifier.next_look = 0.0
        self._hub.metrics.add("cellburst_runs_total", reason=reason.value)
        log.info("run ended", extra={"run": run.id, "reason": reason.value})

    def _cancel_all(self, live: Live, reason: RunReason) -> None:
        for run in list(live.runs):
            self._cancel(live, run, reason)

    def _cancel(self, live: Live, run: RunRecord, reason: RunReason) -> None:
        if live.driver is not None and live.driver.run.id == run.id:
            live.driver.cancel(reason)
            return
        detail, wall = detail_of(run), self._hub.clock.wall()
        spent = Decimal(detail.spent_usd)
        detail.tell_jupyter, tell = tell_end(run, live.spec, reason, None, spent, new_id, wall)
        self._hub.store.end_run(run.id, reason, now=wall, cost_usd=spent, detail=detail.text(), tell=tell)
        live.runs = [one for one in live.runs if one.id != run.id]
        live.stats = None
        self._notifier.next_look = 0.0

    def _forget_old(self, live: Live) -> None:
        spec = live.spec
        before = self._hub.clock.wall() - spec.keep_days * DAY_SECONDS if spec.keep_days else None
        gone = self._hub.store.runs_to_forget(live.record.id, keep=spec.keep_runs, ended_before=before)
        if gone:
            self._hub.store.delete_runs(gone)
            self._hub.spawn(asyncio.to_thread(self.files.forget, gone))
            live.stats = None

    def _wanted_hashes(self) -> set[str]:
        specs = [live.spec for live in self._live.values()]
        specs += [spec_of(run.spec) for live in self._live.values() for run in live.runs if run.spec]
        return {hash for spec in specs for hash in hashes_of(spec)}


def hashes_of(spec: ScheduleSpec) -> Iterable[str]:
    return [spec.notebook_hash, *(file.hash for file in spec.files), *packs_of(spec)]


def spec_of(text: str) -> ScheduleSpec:
    return msgspec.json.decode(text, type=ScheduleSpec)


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(8)}"
