"""Schedules as people change them: made, edited, paused, run, deleted, listed. Time and runs are in `schedule_runs.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import msgspec

from cellburst_protocol import notebooks
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import secrets_of as secrets_of_steps
from cellburst_protocol.images import volumes_of as volumes_of_steps
from cellburst_protocol.messages import (
    PreviewSchedule,
    PutSchedule,
    ScheduleInfo,
    SchedulePreview,
)
from cellburst_protocol.modal_lines import asked_beside, notebook_uses
from cellburst_protocol.schedules import (
    Forecast,
    RunReason,
    RunRow,
    RunState,
    ScheduleRow,
    ScheduleSpec,
    When,
    check_spec,
)
from cellburst_protocol.volume_mounts import SHARED

from . import cron, cron_words
from . import schedule_times as times
from .cell_volumes import check_bucket_endpoints
from .images import checked
from .notify import NO_MAIL
from .run_environment import machine_id
from .run_rules import row_of_run
from .schedule_forecast import MEAN_OF, forecast
from .schedule_runs import Live, ScheduleRuns, hashes_of, new_id
from .store_rows import Owner
from .store_schedules import RunRecord

SHOWN_INSTANTS = 5


class Schedules(ScheduleRuns):
    """All schedules of this gateway."""

    async def put(self, owner: Owner, asked: PutSchedule) -> ScheduleInfo:
        """Make or change a schedule. Raises RequestError: BAD_ARGUMENT, NOT_FOUND, CONFLICT, NOT_YET."""
        spec, before = asked.spec, None
        if asked.schedule:
            before = self._find(owner.workspace, asked.schedule)
            if asked.keep_frozen:
                old = before.spec
                spec = msgspec.structs.replace(
                    spec, notebook_hash=old.notebook_hash, notebook_size_bytes=old.notebook_size_bytes, files=old.files,
                    with_folder=old.with_folder, image=spec.image or old.image, frozen=old.frozen,
                )  # fmt: skip
        wall = self._hub.clock.wall()
        check_spec(spec)
        same_times = before is not None and before.spec.when == spec.when
        spec = msgspec.structs.replace(spec, when=times.checked_when(spec.when, 0 if same_times else wall))
        if (
            before is None or spec.image != before.spec.image
        ):  # its own was checked, before this machine was started again
            self._check_machine(spec)
        _check_recipes(spec)
        notebook = await asyncio.to_thread(self._freeze, owner.workspace, spec)
        spec = _with_cells(spec, notebook)
        check_bucket_endpoints(self._hub, spec.volumes)
        text = msgspec.json.encode(spec).decode()
        new = before is None
        record = self._hub.store.put_schedule(
            before.record.id if before is not None else new_id("sch"), owner, name=spec.name, notebook=spec.notebook, spec=text,
            now=wall, revision=0 if new else asked.revision, seen=None if same_times else int(wall),
            state="active" if new or (not same_times and before is not None and before.record.state == "done") else None,
        )  # fmt: skip
        live = before or Live(record, spec)
        live.record, live.spec = record, spec
        self._live[record.id] = live
        self._aim(live)
        return await self._with_missing(owner.workspace, self.info(live))

    def _freeze(self, workspace: str, spec: ScheduleSpec) -> dict[str, Any]:
        mine = [live.spec for live in self._live.values() if live.record.owner.workspace == workspace]
        kept = {hash for other in mine for hash in hashes_of(other)}
        missing = self.files.missing(self._hub.blobs, workspace, hashes_of(spec), kept)
        if missing:
            raise error(
                ErrorCode.NOT_FOUND, f"{len(missing)} of the schedule's files were not sent",
                next="send them, then save it again",
                missing="\n".join(missing[:1000]),
            )  # fmt: skip
        self.files.freeze(self._hub.blobs, hashes_of(spec))
        notebook = notebooks.read(self.files.frozen(spec.notebook_hash), Path(spec.notebook).name)
        notebooks.check_parameters(notebook, spec.parameters)
        if not notebooks.code_cells(notebook):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{Path(spec.notebook).name} has no code cell: nothing would run",
                next="write a cell, save the notebook, and schedule it again",
            )  # fmt: skip
        return notebook

    def _check_machine(self, spec: ScheduleSpec) -> None:
        theirs = spec.image.machine_id if spec.image is not None else ""
        if theirs and theirs != machine_id():
            raise error(
                ErrorCode.NOT_YET, f"the notebook's environment is not on the gateway's machine ({self._machine})",
                next="schedule it from a kernel or a command line on that machine: others are not in this version",
            )  # fmt: skip

    def infos(self, workspace: str, notebook: str = "") -> list[ScheduleRow]:
        """Schedules of a workspace as lists show them, by name."""
        found = [live for live in self._live.values() if live.record.owner.workspace == workspace]
        rows = [self.row(live) for live in found if notebook in ("", live.record.notebook)]
        return sorted(rows, key=lambda row: (row.name, row.id))

    def get(self, workspace: str, wanted: str) -> ScheduleInfo:
        """A schedule by id, the start of it, or name. Raises RequestError (NOT_FOUND)."""
        return self.info(self._find(workspace, wanted))

    async def looked_at(self, workspace: str, wanted: str) -> ScheduleInfo:
        """`get`, with what is installed differently now."""
        info = self.get(workspace, wanted)
        info.environment_changes = await asyncio.to_thread(self.surroundings.changes, info.spec)
        return await self._with_missing(workspace, info)

    async def _with_missing(self, workspace: str, info: ScheduleInfo) -> ScheduleInfo:
        """With what its runs would lack now. They may still be made before the next one."""
        for name in secrets_of(info.spec):
            if not await self._hub.secret_desk.is_there(workspace, name):
                info.missing.append(f"secret {name!r} is not there: `cellburst secret create {name}` makes it")
        for name in volumes_of(info.spec):
            if "://" in name:
                continue  # a bucket or a network file system, no volume
            try:
                self._hub.store.get_volume(workspace, name)
            except CellburstError as why:
                info.missing.append(
                    f"volume {name!r} is not there: {why.info.next}" if why.info.next else why.info.message
                )
        mails = [one.target for one in info.spec.notify if one.channel == "email"]
        if mails and self._notifier.mail is None:
            info.missing.append(f"no mail can be sent to {', '.join(mails)}: {NO_MAIL}")
        return info

    def info(self, live: Live) -> ScheduleInfo:
        """A schedule, whole, with its next instants."""
        return ScheduleInfo(row=self.row(live), spec=live.spec, next_unix_seconds=self._instants(live, SHOWN_INSTANTS))

    def row(self, live: Live) -> ScheduleRow:
        """A schedule as lists show it."""
        record, spec = live.record, live.spec
        last, cost, done = self._stats(live)
        mean = format(sum(done[:MEAN_OF], Decimal(0)) / len(done[:MEAN_OF]), "f") if done else ""
        running = next((run.id for run in live.runs if run.state is not RunState.QUEUED), "")
        following = self._instants(live, 1)
        return ScheduleRow(
            id=record.id, name=record.name, notebook=record.notebook, notebook_hash=spec.notebook_hash, revision=record.revision,
            state=_state(record.state), when=spec.when, words=cron_words.words(spec.when), machine=self._machine,
            next_unix_seconds=following[0] if following else None, last=self.row_of(last) if last is not None else None,
            running=running, cost_usd=format(cost, "f"), mean_cost_usd=mean, created_unix_seconds=record.created,
            changed_unix_seconds=record.changed, secrets=secrets_of(spec), volumes=volumes_of(spec),
            forecast=self._forecast(live, spec.when if record.state == "active" else None),
        )  # fmt: skip

    def _stats(self, live: Live) -> tuple[RunRecord | None, Decimal, list[Decimal]]:
        """The newest run, what all that are kept cost, and what each of the last ones that succeeded cost, newest first."""
        if live.stats is None:
            store = self._hub.store
            newest = store.list_runs(live.record.owner.workspace, schedule=live.record.id, limit=1)
            live.stats = newest[0] if newest else None, *store.run_costs(live.record.id, succeeded=MEAN_OF)
        last, cost, done = live.stats
        if last is not None:  # what runs changes all the time
            last = live.driver.run if live.driver is not None and live.driver.run.id == last.id else last
        return last, cost, done

    def _forecast(self, live: Live, when: When | None) -> Forecast:
        return forecast(self._stats(live)[2], when, self._hub.clock.wall())

    def _instants(self, live: Live, count: int) -> list[int]:
        if live.record.state != "active":
            return []
        return times.instants(live.spec.when, max(live.record.seen, int(self._hub.clock.wall())), count)

    def pause(self, workspace: str, wanted: str, paused: bool) -> ScheduleInfo:
        """Give it no instants, or again from now on."""
        live = self._find(workspace, wanted)
        wall = self._hub.clock.wall()
        if live.record.state != "done" and (live.record.state == "paused") != paused:
            live.record = self._hub.store.set_schedule_state(
                live.record.id, "paused" if paused else "active", now=wall, seen=int(wall) if not paused else None
            )
            self._aim(live)
            if not paused and live.following is None:
                self._done(live)
        return self.info(live)

    def run_now(self, workspace: str, wanted: str) -> RunRow:
        """A run at once, behind those of it that have not ended."""
        live = self._find(workspace, wanted)
        wall = self._hub.clock.wall()
        run = self._hub.store.add_run(new_id("r"), live.record.id, now=wall)
        live.runs.append(run)
        live.stats = None
        self._start_next(live, wall)
        return self.row_of(next(one for one in live.runs if one.id == run.id))

    def delete(self, workspace: str, wanted: str) -> None:
        """Delete it with its runs; what runs is cancelled."""
        live = self._find(workspace, wanted)
        del self._live[live.record.id]
        live.runs = live.runs[:1] if live.driver is not None else []
        if live.driver is not None:
            live.driver.cancel(RunReason.DELETED)
        gone = self._hub.store.delete_schedule(live.record.id)
        live.runs = []
        self._hub.spawn(asyncio.to_thread(self.files.forget, gone))

    def cancel(self, workspace: str, run_id: str) -> None:
        """End a run that has not ended. Raises RequestError (NOT_FOUND)."""
        run = self.run_of(workspace, run_id)
        live = self._live.get(run.schedule)
        if live is not None:
            for one in live.runs:
                if one.id == run.id:
                    self._cancel(live, one, RunReason.CANCELLED)
                    return

    def runs(self, workspace: str, schedule: str, run: str, after: float, count: int) -> list[RunRow]:
        """Runs, newest first."""
        if run:
            record = self.run_of(workspace, run)
            row = self.row_of(record)
            for told in self._hub.store.deliveries_of(record.id):
                state = "was told" if told.state == "sent" else f"was not told: {told.error or 'not tried yet'}"
                row.notes = [*row.notes, f"{told.target} {state}"]
            return [row]
        wanted = self._find(workspace, schedule).record.id if schedule else None
        found = self._hub.store.list_runs(
            workspace, schedule=wanted, ended_after=after or None, limit=max(1, min(count, 1000))
        )
        return [self.row_of(self._current(one)) for one in found]

    def run_of(self, workspace: str, wanted: str) -> RunRecord:
        """A run by its id, or the start of it. Raises RequestError (NOT_FOUND)."""
        found = self._hub.store.find_runs(workspace, wanted) if wanted else []
        exact = [run for run in found if run.id == wanted]
        if len(exact or found) != 1:
            what = "is the start of several runs" if found else "is no run"
            raise error(ErrorCode.NOT_FOUND, f"{wanted[:80]!r} {what}", next="`cellburst schedule history` lists them")
        return self._current((exact or found)[0])

    def _current(self, run: RunRecord) -> RunRecord:
        """With how far it is, which the record hears of at the end of each cell."""
        live = self._live.get(run.schedule)
        if live is None or live.driver is None or live.driver.run.id != run.id or run.ended is not None:
            return run
        return replace(run, detail=live.driver.detail.text())

    def row_of(self, run: RunRecord) -> RunRow:
        """A run as lists show it."""
        live = self._live.get(run.schedule)
        return row_of_run(run, live.record.name if live is not None else "")

    def preview(self, workspace: str, asked: PreviewSchedule) -> SchedulePreview:
        """Times that are being typed: in words, with the next instants, or what is wrong."""
        wall = self._hub.clock.wall()
        try:
            when = times.checked_when(asked.when, wall)
        except CellburstError as problem:
            return SchedulePreview(problem=problem.info, machine=self._machine)
        found = times.instants(when, int(wall), SHOWN_INSTANTS)
        zone = cron.zone(when.timezone)
        return SchedulePreview(
            words=cron_words.words(when), next_unix_seconds=found, next_local=[cron_words.local(one, zone) for one in found],
            machine=self._machine, forecast=self._forecast_of(workspace, asked.schedule, when),
        )  # fmt: skip

    def _forecast_of(self, workspace: str, schedule: str, when: When) -> Forecast:
        if not schedule:
            return forecast([], when, self._hub.clock.wall())
        return self._forecast(self._find(workspace, schedule), when)

    def users_of(self, workspace: str, *, secret: str = "", volume: str = "") -> list[str]:
        """Names of the schedules that use a secret or a volume."""
        return sorted(
            live.record.name for live in list(self._live.values())  # also asked from threads
            if live.record.owner.workspace == workspace
            and (secret in secrets_of(live.spec) if secret else volume in volumes_of(live.spec))
        )  # fmt: skip

    def _find(self, workspace: str, wanted: str) -> Live:
        mine = [live for live in self._live.values() if live.record.owner.workspace == workspace]
        found = [live for live in mine if wanted in (live.record.id, live.record.name)]
        found = found or [live for live in mine if wanted and live.record.id.startswith(wanted)]
        if len(found) != 1:
            what = "is the start of several schedules' ids" if found else "is no schedule"
            known = ", ".join(sorted(live.record.name for live in mine)[:20])
            raise error(
                ErrorCode.NOT_FOUND,
                f"{wanted[:80]!r} {what}",
                allowed=known,
                next="`cellburst schedule list` shows them",
            )
        return found[0]


def _with_cells(spec: ScheduleSpec, notebook: Mapping[str, Any]) -> ScheduleSpec:
    """With all that its `%%modal` cells will ask for, whatever its editor knew of the notebook."""
    if spec.modal_cells != "own":
        return msgspec.structs.replace(spec, cell_secrets=[], cell_volumes=[])
    lines = [cell.asked for cell in notebooks.code_cells(notebook) if cell.asked is not None]
    secrets, volumes = asked_beside(lines, notebook_uses(notebook))
    return msgspec.structs.replace(
        spec, cell_secrets=sorted({*secrets, *spec.cell_secrets}), cell_volumes=sorted({*volumes, *spec.cell_volumes})
    )


def _check_recipes(spec: ScheduleSpec) -> None:
    """Raises RequestError (BAD_ARGUMENT, TOO_LARGE) for an image that can be none."""
    checked(spec.recipe)
    if spec.frozen is not None:
        checked(spec.frozen.recipe)


def secrets_of(spec: ScheduleSpec) -> list[str]:
    """Names of the secrets that a run, one of its cells, or a step of its image is given."""
    built = secrets_of_steps(spec.recipe.steps) if spec.recipe is not None else []
    return sorted({use.partition(":")[0] for use in (*spec.secrets, *spec.cell_secrets, *built)})


def volumes_of(spec: ScheduleSpec) -> list[str]:
    """Names of the volumes that a run, one of its cells, or a step of its image has."""
    built = volumes_of_steps(spec.recipe.steps) if spec.recipe is not None else []
    names = {f"{SHARED}{one.name}" if one.kind == "shared" else one.name for one in built if not one.create}
    return sorted({*(mount.name for mount in spec.volumes), *spec.cell_volumes, *names} - {""})


def _state(text: str) -> Literal["active", "paused", "done"]:
    return "paused" if text == "paused" else "done" if text == "done" else "active"
