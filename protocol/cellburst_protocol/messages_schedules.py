"""Control requests about schedules and their runs.

Import these from `messages`, which names them all; what they are about is `schedules.py`. A run's executed notebook and the files
it wrote come by HTTP: `GET /runs/ID/notebook` and `GET /runs/ID/files/PATH`.
"""

from __future__ import annotations

from .errors import ErrorInfo
from .messages_base import Base
from .messages_control import EndedThing
from .schedules import Forecast, RunRow, ScheduleRow, ScheduleSpec, When


class PutSchedule(Base, kw_only=True, tag="put_schedule"):
    """Make a schedule, or with `schedule` (its id) change one that has the `revision` which its editor saw: CONFLICT if another
    was faster. The notebook's and the files' blobs are there before (NOT_FOUND else, hashes in `detail.missing`); with
    `keep_frozen` those of the schedule as it is are kept. Answered with ScheduleInfo."""

    spec: ScheduleSpec
    schedule: str = ""
    revision: int = 0
    keep_frozen: bool = False


class ScheduleInfo(Base, kw_only=True, tag="schedule_info"):
    """A schedule as it is now. `environment_changes`: what is installed differently in its environment than when it was
    scheduled, a line each ("numpy 2.2.3 -> 2.3.0"), as far as the gateway's machine can see. `missing`: secrets and
    volumes that it names and that are not there now, and the mail server where mail is asked for. Both are filled in for
    GetSchedule, `missing` also for PutSchedule."""

    row: ScheduleRow
    spec: ScheduleSpec
    next_unix_seconds: list[int] = []
    environment_changes: list[str] = []
    missing: list[str] = []


class ListSchedules(Base, kw_only=True, tag="list_schedules"):
    """Ask for ScheduleList; of one notebook where that is given."""

    notebook: str = ""


class ScheduleList(Base, kw_only=True, tag="schedule_list"):
    """Schedules by name."""

    rows: list[ScheduleRow] = []


class GetSchedule(Base, kw_only=True, tag="get_schedule"):
    """Ask for ScheduleInfo, by id, by the start of it, or by name."""

    schedule: str


class PauseSchedule(Base, kw_only=True, tag="pause_schedule"):
    """Give a schedule no instants, or (`paused` false) again from now on. What runs goes on. Answered with ScheduleInfo."""

    schedule: str
    paused: bool = True


class RunSchedule(Base, kw_only=True, tag="run_schedule"):
    """Run it now, behind what runs of it already. Answered with RunInfo."""

    schedule: str


class RunInfo(Base, kw_only=True, tag="run_info"):
    """A run as it is now."""

    row: RunRow


class DeleteSchedule(Base, kw_only=True, tag="delete_schedule"):
    """Delete a schedule, its runs, and what is kept of them; what runs is cancelled."""

    schedule: str


class ListRuns(Base, kw_only=True, tag="list_runs"):
    """Ask for RunList: of a schedule, or of all; or one run by its id, or the start of it."""

    schedule: str = ""
    run: str = ""
    after_unix_seconds: float = 0.0
    count: int = 50


class RunList(Base, kw_only=True, tag="run_list"):
    """Runs, newest first. `after_unix_seconds` of the question leaves out those that ended before."""

    rows: list[RunRow] = []


class TakeEnds(Base, kw_only=True, tag="take_ends"):
    """A window's request for what it is to tell; `shown` are ids of ends that it has told. Answered with Ends."""

    window: str
    shown: list[str] = []


class Ends(Base, kw_only=True, tag="ends"):
    """What ended in the last day and was not told to whoever asks, the oldest first, at most some of each kind: ask again when
    they are shown. They are this window's for a moment; those that it does not name in `shown` by then are told by another."""

    things: list[EndedThing] = []
    runs: list[RunRow] = []


class CancelRun(Base, kw_only=True, tag="cancel_run"):
    """End a run. Nothing happens to one that has ended."""

    run: str


class PreviewSchedule(Base, kw_only=True, tag="preview_schedule"):
    """Ask for SchedulePreview of times that are being typed; of `schedule` (its id), where that is given, are the runs that the
    forecast is made from."""

    when: When
    schedule: str = ""


class SchedulePreview(Base, kw_only=True, tag="schedule_preview"):
    """Times in words, the next five instants, with the local time of each in the schedule's zone; or what is wrong."""

    words: str = ""
    next_unix_seconds: list[int] = []
    next_local: list[str] = []
    problem: ErrorInfo | None = None
    machine: str = ""
    forecast: Forecast = Forecast()
