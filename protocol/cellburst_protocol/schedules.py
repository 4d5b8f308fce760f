"""Notebooks on a schedule: what one is, its runs and their states, and the rules that every side checks alike. No I/O.

A schedule has instants (whole unix seconds). Each instant gets exactly one record, a run: it ran (and how that ended), was
skipped (overlap) or missed (nobody was there to start it), with the reason. A row of missed ones may stand for a range of
instants (`until_unix_seconds`, `instants_count`). A paused schedule has no instants.
"""

from __future__ import annotations

import difflib
import enum
import math
import re
from collections.abc import Iterable
from typing import Literal

import msgspec

from .errors import ErrorCode, ErrorInfo, error
from .images import ImageRecipe
from .messages_parts import FileChange, MirrorSpec
from .resources import Resources, parse_usd
from .states import advance as _advance
from .volumes import VolumeMount

MIN_EVERY_SECONDS = 10  # a container's start and end take about one; more often is a loop in a notebook
MAX_EVERY_SECONDS = 366 * 86400
MAX_MISSED_WINDOW_SECONDS = 7 * 86400.0
MAX_RETRIES = 20
MAX_NOTIFY = 20
MAX_PARAMETERS_BYTES = 64 * 1024
MAX_FOLDER_FILES = 10_000  # beside the notebook, frozen with it
MAX_FOLDER_BYTES = 512 * 1024**2
MAX_RUN_FILES = 200  # that a run wrote, kept after it
MAX_RUN_FILES_BYTES = 1024**3
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_EMAIL = re.compile(r"[^@\s,;<>\"]{1,64}@[A-Za-z0-9.-]{1,190}")
_HASH = re.compile(r"[0-9a-f]{64}")

Parameter = bool | int | float | str | list[object] | dict[str, object] | None


class When(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The instants: `once` at one, `every` so many seconds from `at_unix_seconds` on (0: from when it is saved), or `cron`, five
    fields read in the IANA `timezone`."""

    kind: Literal["once", "every", "cron"]
    at_unix_seconds: int = 0
    every_seconds: int = 0
    cron: str = ""
    timezone: str = "UTC"


class Notify(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom to tell when a run has ended. `target` is the webhook's URL or the address; of `jupyter` it is empty."""

    channel: Literal["jupyter", "webhook", "email"]
    target: str = ""
    on_success: bool = True
    on_failure: bool = True


class FrozenFile(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A file beside the notebook as it was when it was scheduled; `hash` is BLAKE3 of a blob that the gateway has."""

    path: str
    hash: str
    size_bytes: int
    executable: bool = False


class FrozenEnvironment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The environment as it was when it was scheduled, to be built again: the steps of its mirror, with every package's version
    and the sources of what is installed as editable. `roots` are the folders that those came from; the pack `sources` (its hash)
    has them as `0/`, `1/` ... Our own packages are in it too, and in none of `roots`: an update of ours changes nothing."""

    recipe: ImageRecipe
    roots: list[str] = []
    sources: str = ""


class ScheduleSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a run needs, and when. `notebook` is the path on its owner's machine, which a run never touches;
    `notebook_hash` the blob of the notebook as it was scheduled; `with_folder` says that the files beside it go along.

    `timeout_seconds` is of a whole run, from its first cell; `budget_usd` of each run. `retries` are further attempts after
    one that failed, was lost or ran out of time. `missed` says what happens to instants at which nobody was there, no older than
    `missed_window_seconds`. `keep_runs` and `keep_days` bound what is kept of ended runs (0: no bound).

    `modal_cells`: cells that begin with `%%modal` have sessions of their own, with what their lines ask for ("own"), or run with
    all others in the run's own session ("same"). `resources`, `secrets` and `volumes` are of the run's own session;
    `cell_secrets` and `cell_volumes` name what the lines ask for beside: their cells get no other secret.

    `recipe` is the image that the run's own session has; `image_name` is how its owner said it. Without one it has the
    notebook's environment: with `environment` "frozen" as it was, which is the live one (`image`) while that has not changed,
    else one that is built from `frozen`; with "live" whatever is there, as where it could not be kept (`frozen` is None).
    """

    name: str
    notebook: str
    when: When
    notebook_hash: str = ""
    notebook_size_bytes: int = 0
    files: list[FrozenFile] = []
    with_folder: bool = True
    resources: Resources = Resources()
    modal_cells: Literal["own", "same"] = "own"
    image: MirrorSpec | None = None
    recipe: ImageRecipe | None = None
    image_name: str = ""
    environment: Literal["frozen", "live"] = "frozen"
    frozen: FrozenEnvironment | None = None
    secrets: list[str] = []
    volumes: list[VolumeMount] = []
    cell_secrets: list[str] = []
    cell_volumes: list[str] = []
    parameters: dict[str, Parameter] = {}
    timeout_seconds: float | None = None
    retries: int = 0
    budget_usd: str | None = None
    overlap: Literal["skip", "queue", "replace"] = "skip"
    missed: Literal["skip", "latest", "all"] = "latest"
    missed_window_seconds: float = 600.0
    keep_runs: int = 50
    keep_days: float = 30.0
    notify: list[Notify] = []


class RunState(enum.StrEnum):
    """A run, from its record to its end. User code can have run only from RUNNING on."""

    QUEUED = "queued"  # due, and in the record; waits for an earlier run of its schedule, or for a retry's turn
    STARTING = "starting"  # its session is being made, or its first cell waits for a container
    RUNNING = "running"  # a cell's code has started
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    LOST = "lost"  # what became of it is not known, and it was not run again
    SKIPPED = "skipped"
    MISSED = "missed"


RUN_TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    # Skipped: the month's budget is spent when its turn comes.
    RunState.QUEUED: frozenset({RunState.STARTING, RunState.FAILED, RunState.CANCELLED, RunState.SKIPPED}),
    RunState.STARTING: frozenset(
        {RunState.QUEUED, RunState.RUNNING, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.LOST}
    ),
    # Back to the queue: only because the schedule asks for retries.
    RunState.RUNNING: frozenset(
        {RunState.QUEUED, RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED, RunState.LOST}
    ),
    RunState.SUCCEEDED: frozenset(),
    RunState.FAILED: frozenset(),
    RunState.CANCELLED: frozenset(),
    RunState.LOST: frozenset(),
    RunState.SKIPPED: frozenset(),
    RunState.MISSED: frozenset(),
}


class RunReason(enum.StrEnum):
    """Why a run ended, or was none."""

    DONE = "done"
    RAISED = "raised"
    TIMEOUT = "timeout"
    BUDGET = "budget"
    START_FAILED = "start_failed"  # no such hardware, no image, a secret that is not there: no code ran
    NOTEBOOK = "notebook"  # the frozen notebook or its folder cannot be read
    STOPPED = "stopped"  # its session was stopped under it
    CANCELLED = "cancelled"
    REPLACED = "replaced"  # by the next one of its schedule
    DELETED = "deleted"
    WORKER_LOST = "worker_lost"
    CONTAINER_LOST = "container_lost"
    GATEWAY_STOPPED = "gateway_stopped"
    OVERLAP = "overlap"  # skipped: an earlier one still ran
    QUEUE_FULL = "queue_full"  # skipped: too many waited already
    MONTH_BUDGET = "month_budget"  # skipped: what the workspace means to spend in this month is spent
    GATEWAY_DOWN = "gateway_down"  # missed: no gateway ran then
    CLOCK = "clock"  # missed: the machine slept, or its clock was set forward
    LATE = "late"  # missed: noticed too late for another reason
    NEWER = "newer"  # missed: a later instant ran instead


# Which state each end is: total, so that a new reason cannot be forgotten.
RUN_END_STATE: dict[RunReason, RunState] = {
    RunReason.DONE: RunState.SUCCEEDED, RunReason.RAISED: RunState.FAILED, RunReason.TIMEOUT: RunState.FAILED,
    RunReason.BUDGET: RunState.FAILED, RunReason.START_FAILED: RunState.FAILED, RunReason.NOTEBOOK: RunState.FAILED,
    RunReason.STOPPED: RunState.CANCELLED, RunReason.CANCELLED: RunState.CANCELLED, RunReason.REPLACED: RunState.CANCELLED,
    RunReason.DELETED: RunState.CANCELLED, RunReason.WORKER_LOST: RunState.LOST, RunReason.CONTAINER_LOST: RunState.LOST,
    RunReason.GATEWAY_STOPPED: RunState.LOST, RunReason.OVERLAP: RunState.SKIPPED, RunReason.QUEUE_FULL: RunState.SKIPPED,
    RunReason.MONTH_BUDGET: RunState.SKIPPED,
    RunReason.GATEWAY_DOWN: RunState.MISSED, RunReason.CLOCK: RunState.MISSED, RunReason.LATE: RunState.MISSED,
    RunReason.NEWER: RunState.MISSED,
}  # fmt: skip
# After which another attempt is made, where retries are left. A budget that is spent would only be spent again.
RETRIED = frozenset(
    {RunReason.RAISED, RunReason.TIMEOUT, RunReason.START_FAILED, RunReason.WORKER_LOST, RunReason.CONTAINER_LOST,
     RunReason.GATEWAY_STOPPED}
)  # fmt: skip
ACTIVE = frozenset({RunState.QUEUED, RunState.STARTING, RunState.RUNNING})


def advance(state: RunState, to: RunState, run: str) -> RunState:
    """`to`, if a run in `state` can become that. Raises TransitionError."""
    return _advance(RUN_TRANSITIONS, state, to, f"run {run}")


class RunRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A run in a list. `instant_unix_seconds` is when it was due; of a run that somebody asked for, when that was (`trigger`).

    `cells_done_count` of `cells_count` have ended; `cell` is the number (from 1, over all cells) of the one that runs or failed.
    `files` are those that it wrote and that are kept. `tell_jupyter`: the schedule asks that JupyterLab says how it ended.
    `environment` is what its own session has: this machine's as it is ("live"), one that was built from what was kept ("frozen"),
    or the schedule's image; "" until that is known.
    """

    id: str
    schedule: str
    name: str
    trigger: Literal["time", "person"] = "time"
    instant_unix_seconds: int
    until_unix_seconds: int = 0
    instants_count: int = 1
    state: RunState
    reason: RunReason | None = None
    error: ErrorInfo | None = None
    attempt: int = 1
    session: str = ""
    created_unix_seconds: float = 0.0
    started_unix_seconds: float | None = None
    ended_unix_seconds: float | None = None
    cost_usd: str = "0"
    cells_count: int = 0
    cells_done_count: int = 0
    cell: int = 0
    notes: list[str] = []
    files: list[FileChange] = []
    has_notebook: bool = False
    tell_jupyter: bool = False
    environment: Literal["", "live", "frozen", "image"] = ""


class Forecast(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What runs will cost, from the last ones that succeeded. `runs_count` of them (0: there is none yet, and nothing is told);
    `run_usd` is their mean, `month_usd` that times the `month_instants_count` of the next 30 days."""

    runs_count: int = 0
    run_usd: str = ""
    month_instants_count: int = 0
    month_usd: str = ""


class ScheduleRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A schedule in a list. `revision` is what an edit has to name. `state` "done": it has no further instant. `words` reads its
    times for people; `machine` must be on for them; `cost_usd` is of all runs that are kept."""

    id: str
    name: str
    notebook: str
    notebook_hash: str = ""
    revision: int
    state: Literal["active", "paused", "done"]
    when: When
    words: str = ""
    machine: str = ""
    next_unix_seconds: int | None = None
    last: RunRow | None = None
    running: str = ""
    cost_usd: str = "0"
    mean_cost_usd: str = ""  # of the last five runs that succeeded
    forecast: Forecast = Forecast()
    created_unix_seconds: float = 0.0
    changed_unix_seconds: float = 0.0
    secrets: list[str] = []
    volumes: list[str] = []


def check_spec(spec: ScheduleSpec) -> None:
    """What can be told without a clock or a notebook. Raises RequestError (BAD_ARGUMENT)."""
    if not _NAME.fullmatch(spec.name.strip()) or spec.name != spec.name.strip():
        raise bad(f"{spec.name[:80]!r} is no name for a schedule", "1 to 200 characters on one line")
    if not spec.notebook or len(spec.notebook) > 4096:
        raise bad("a schedule needs a notebook", "its path", "for example `cellburst schedule create report.ipynb`")
    if not _HASH.fullmatch(spec.notebook_hash):
        raise bad("the notebook's hash is missing", "64 hexadecimal digits of the blob that was sent")
    if spec.timeout_seconds is not None and not 1 <= spec.timeout_seconds <= 30 * 86400:
        raise bad(f"timeout={spec.timeout_seconds:g}s of a run", "1 second to 30 days")
    if not 0 <= spec.retries <= MAX_RETRIES:
        raise bad(f"retries={spec.retries}", f"0 to {MAX_RETRIES}")
    if spec.budget_usd is not None:
        parse_usd(spec.budget_usd)
    if not 0 <= spec.missed_window_seconds <= MAX_MISSED_WINDOW_SECONDS:
        raise bad(f"a missed window of {spec.missed_window_seconds:g} s", "0 to 7 days")
    if not 0 <= spec.keep_runs <= 100_000 or not 0 <= spec.keep_days <= 36500:
        raise bad(
            f"keep {spec.keep_runs} runs, {spec.keep_days:g} days", "0 to 100000 runs, 0 to 36500 days; 0 is no bound"
        )
    if spec.image is None:
        raise bad("the schedule does not say what environment it runs in", "the notebook's own (`image`)")
    if len(spec.image_name) > 4096:
        raise bad("an image with a name that long", "the name of a variable, or FILE.py:NAME")
    _check_files(spec.files)
    for one in spec.notify:
        _check_notify(one)
    if len(spec.notify) > MAX_NOTIFY:
        raise bad(f"{len(spec.notify)} to be told", f"at most {MAX_NOTIFY}")
    if len(msgspec.json.encode(spec.parameters)) > MAX_PARAMETERS_BYTES:
        raise bad(
            "parameters that large", f"{MAX_PARAMETERS_BYTES // 1024} KiB as JSON", "put data into a file or a volume"
        )


def check_times(when: When) -> None:
    """`once` and `every`; cron is for whoever has the time zones. Raises RequestError (BAD_ARGUMENT)."""
    if when.kind == "every" and not MIN_EVERY_SECONDS <= when.every_seconds <= MAX_EVERY_SECONDS:
        what = f"a run every {when.every_seconds} s is not possible"
        raise bad(what, f"{MIN_EVERY_SECONDS} seconds to 366 days", "for example every 15m")
    if when.kind == "once" and not 0 < when.at_unix_seconds < 253402300800:
        raise bad("a time that is none", "a moment between 1970 and 9999", "for example 2026-12-24T18:00")


def near_timezone(name: str, known: Iterable[str]) -> ErrorInfo:
    """What is said of a timezone that is not known: the nearest names."""
    names = list(known)
    last = {one.rpartition("/")[2].casefold(): one for one in names}
    key = name.strip().replace(" ", "_")
    found = [last[hit] for hit in difflib.get_close_matches(key.rpartition("/")[2].casefold(), last, n=3, cutoff=0.6)]
    found = list(dict.fromkeys([*difflib.get_close_matches(key, names, n=2, cutoff=0.7), *found]))
    return ErrorInfo(
        code=ErrorCode.BAD_ARGUMENT, message=f"there is no timezone {name[:80]!r}",
        allowed="names of the IANA database, such as Europe/Berlin or UTC",
        next=f"did you mean {' or '.join(found[:3])}?" if found else "give the nearest large city: Continent/City",
    )  # fmt: skip


def _check_files(files: list[FrozenFile]) -> None:
    if len(files) > MAX_FOLDER_FILES or sum(file.size_bytes for file in files) > MAX_FOLDER_BYTES:
        raise bad(
            f"a folder of {len(files)} files and {sum(file.size_bytes for file in files) / 1e6:.0f} MB beside the notebook",
            f"{MAX_FOLDER_FILES} files and {MAX_FOLDER_BYTES // 1024**2} MiB", "put data into a volume",
        )  # fmt: skip
    seen: set[str] = set()
    for file in files:
        parts = file.path.split("/")
        if not file.path or "\0" in file.path or any(p in ("", ".", "..") for p in parts) or file.path in seen:
            raise bad(f"{file.path[:80]!r} is no path below the notebook's folder", "relative, each once, without ..")
        if not _HASH.fullmatch(file.hash) or file.size_bytes < 0:
            raise bad(f"{file.path[:80]!r} has no hash", "64 hexadecimal digits")
        seen.add(file.path)


def _check_notify(one: Notify) -> None:
    if one.channel == "webhook" and not one.target.startswith(("http://", "https://")):
        raise bad(f"{one.target[:80]!r} is no webhook", "an http:// or https:// URL")
    if one.channel == "email" and not _EMAIL.fullmatch(one.target):
        raise bad(f"{one.target[:80]!r} is no e-mail address", "one address, such as ann@example.org")
    if len(one.target) > 2000:
        raise bad("an address that long", "2000 characters")


def bad(what: str, allowed: str, then: str = "") -> Exception:
    """A refusal of an argument."""
    return error(ErrorCode.BAD_ARGUMENT, what, allowed=allowed, next=then)


def is_finite(value: object) -> bool:
    """Whether a parameter is of the kinds that travel: JSON's, numbers finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return all(is_finite(one) for one in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_finite(one) for key, one in value.items())
    return value is None or isinstance(value, bool | int | str)
