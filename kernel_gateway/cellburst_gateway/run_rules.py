"""A run's rules: how the end of a cell ends it, what is tried again, what its record keeps. Pure."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

import msgspec

from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.messages import CallEnded, FileChange
from cellburst_protocol.resources import Resources
from cellburst_protocol.schedules import RETRIED, RunReason, RunRow, ScheduleSpec
from cellburst_protocol.states import EndReason

from .store_schedules import RunRecord

FREE_STARTS = 3  # of a run none of whose code had started when it was lost
FIRST_RETRY_SECONDS = 5.0
LONGEST_RETRY_SECONDS = 600.0
MAX_NOTES = 50


class RunDetail(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a run's row keeps as JSON beside its columns. `not_before`: a retry waits until then. `free_starts` were used up.
    `began_unix_seconds`: the attempt's first code started. `spent_usd`: by earlier attempts."""

    cells_count: int = 0
    cells_done: int = 0
    cell: int = 0
    notes: list[str] = []
    files: list[FileChange] = []
    has_notebook: bool = False
    tell_jupyter: bool = False
    not_before: float = 0.0
    free_starts: int = 0
    began_unix_seconds: float = 0.0
    spent_usd: str = "0"
    environment: Literal["", "live", "frozen", "image"] = ""  # of this attempt's session

    def note(self, text: str) -> None:
        """Add a line, once."""
        if text not in self.notes and len(self.notes) < MAX_NOTES:
            self.notes.append(text)

    def text(self) -> str:
        """As the record has it."""
        return msgspec.json.encode(self).decode()


TELLS_JUPYTER = RunDetail(tell_jupyter=True).text()[1:-1]
"""What a detail's text has where JupyterLab is to say how the run ended, and only there: quotes in its values are escaped."""


def detail_of(run: RunRecord) -> RunDetail:
    """The detail of a row."""
    return msgspec.json.decode(run.detail, type=RunDetail) if run.detail else RunDetail()


def row_of_run(run: RunRecord, name: str) -> RunRow:
    """What lists show."""
    detail = detail_of(run)
    return RunRow(
        id=run.id,
        schedule=run.schedule, name=name, trigger="person" if run.by_hand else "time", instant_unix_seconds=run.instant,
        until_unix_seconds=run.until, instants_count=run.instants, state=run.state, reason=run.reason, error=run.error,
        attempt=run.attempt, session=run.session, created_unix_seconds=run.created, started_unix_seconds=run.started,
        ended_unix_seconds=run.ended, cost_usd=format(run.cost_usd, "f"), cells_count=detail.cells_count,
        cells_done_count=detail.cells_done, cell=detail.cell, notes=detail.notes, files=detail.files,
        has_notebook=detail.has_notebook, tell_jupyter=detail.tell_jupyter, environment=detail.environment,
    )  # fmt: skip


# Every end that is not the code's own doing, and what it makes of a run; everything else is the code's.
_BY_END = {
    EndReason.DONE: RunReason.DONE, EndReason.TIMEOUT: RunReason.TIMEOUT, EndReason.BUDGET: RunReason.BUDGET,
    EndReason.START_FAILED: RunReason.START_FAILED, EndReason.NO_CAPACITY: RunReason.START_FAILED,
    EndReason.WORKER_LOST: RunReason.WORKER_LOST, EndReason.CONTAINER_LOST: RunReason.CONTAINER_LOST,
    EndReason.SHUTDOWN: RunReason.GATEWAY_STOPPED, EndReason.INTERRUPTED: RunReason.STOPPED,
    EndReason.CANCELLED: RunReason.STOPPED, EndReason.STOPPED: RunReason.STOPPED, EndReason.IDLE: RunReason.CONTAINER_LOST,
    EndReason.KERNEL_GONE: RunReason.CONTAINER_LOST, EndReason.SUPERSEDED: RunReason.STOPPED,
    EndReason.EVICTED: RunReason.CONTAINER_LOST, EndReason.EXPIRED: RunReason.CONTAINER_LOST,
    EndReason.PARKED: RunReason.CONTAINER_LOST,
}  # fmt: skip


def reason_of(ended: CallEnded) -> RunReason:
    """What a cell's end makes of the run."""
    return _BY_END.get(ended.reason, RunReason.RAISED)


def reason_of_refusal(why: ErrorInfo) -> RunReason:
    """What it makes of the run that a cell was not accepted."""
    if why.code is ErrorCode.BUDGET:
        return RunReason.BUDGET
    return RunReason.GATEWAY_STOPPED if why.code is ErrorCode.UNAVAILABLE else RunReason.START_FAILED


def again_after(
    reason: RunReason, spec: ScheduleSpec, *, attempt: int, untouched: bool, free_starts: int
) -> tuple[float, bool] | None:
    """Seconds until another attempt, and whether it is a free one; None: there is none.

    What was lost before it had a container (`untouched`) is tried again whatever the schedule says; else none of its code is
    run twice unless the schedule asks for that.
    """
    if untouched and reason in _LOST and free_starts < FREE_STARTS:
        return 0.0, True
    used = attempt - 1 - free_starts
    if reason in RETRIED and used < spec.retries:
        return min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2**used), False
    return None


_LOST = frozenset({RunReason.WORKER_LOST, RunReason.CONTAINER_LOST, RunReason.GATEWAY_STOPPED})


def limits(
    spec: ScheduleSpec, *, ran_seconds: float, spent_usd: Decimal, max_seconds: float
) -> tuple[Resources, RunReason | None]:
    """What the next cell may use of time and money, or why there is none left."""
    resources = spec.resources
    seconds = max_seconds
    if spec.timeout_seconds is not None:
        left = spec.timeout_seconds - ran_seconds
        if left <= 0:
            return resources, RunReason.TIMEOUT
        seconds = min(seconds, max(0.1, left))
    if resources.timeout_seconds is not None:
        seconds = min(seconds, resources.timeout_seconds)
    budget = spec.budget_usd
    if budget is not None:
        money = Decimal(budget) - spent_usd
        if money <= 0:
            return resources, RunReason.BUDGET
        budget = format(money, "f")
    return msgspec.structs.replace(resources, timeout_seconds=seconds, budget_usd=budget), None


def explained(reason: RunReason, spec: ScheduleSpec, cell: int, why: ErrorInfo | None) -> ErrorInfo | None:
    """What is told of a run that ended before its last cell."""
    place = f"cell {cell}" if cell else "before its first cell"
    if reason is RunReason.TIMEOUT:
        limit = f" of {spec.timeout_seconds:g} s" if spec.timeout_seconds is not None else ""
        return ErrorInfo(
            code=ErrorCode.TIMEOUT,
            message=f"the run reached its timeout{limit} in {place}",
            next="give the schedule a longer timeout",
        )
    if reason is RunReason.BUDGET:
        return ErrorInfo(
            code=ErrorCode.BUDGET, message=f"the run was stopped at its budget of ${spec.budget_usd} in {place}",
            next="give the schedule a larger budget, or a cheaper gpu",
        )  # fmt: skip
    if why is not None:
        return msgspec.structs.replace(why, message=f"{place}: {why.message}")
    words = _WORDS.get(reason)
    return ErrorInfo(code=words[0], message=f"{words[1]} ({place})", next=words[2]) if words is not None else None


_WORDS = {
    RunReason.GATEWAY_STOPPED: (
        ErrorCode.UNAVAILABLE, "the gateway was stopped while it ran; its code may have had side effects",
        "run it again, or give the schedule retries",
    ),
    RunReason.CONTAINER_LOST: (
        ErrorCode.CONTAINER_LOST, "its container is gone, and with it the names of the cells before",
        "run it again, or give the schedule retries",
    ),
    RunReason.WORKER_LOST: (
        ErrorCode.WORKER_LOST, "its worker is gone; its code may have had side effects",
        "run it again, or give the schedule retries",
    ),
    RunReason.STOPPED: (ErrorCode.INTERRUPTED, "its session was stopped", ""),
    RunReason.CANCELLED: (ErrorCode.INTERRUPTED, "it was cancelled", ""),
    RunReason.REPLACED: (ErrorCode.INTERRUPTED, "the next run of its schedule took its place", ""),
    RunReason.DELETED: (ErrorCode.INTERRUPTED, "its schedule was deleted", ""),
}  # fmt: skip
