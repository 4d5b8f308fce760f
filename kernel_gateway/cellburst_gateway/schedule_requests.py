"""Control requests about schedules: which they are, which of them act, and their answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cellburst_protocol.messages import (
    CancelRun,
    DeleteSchedule,
    GetSchedule,
    ListRuns,
    ListSchedules,
    Message,
    PauseSchedule,
    PreviewSchedule,
    PutSchedule,
    RunInfo,
    RunList,
    RunSchedule,
    ScheduleList,
)

from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub

ACTS = (PutSchedule, PauseSchedule, RunSchedule, DeleteSchedule, CancelRun)
LOOKS = (ListSchedules, GetSchedule, ListRuns, PreviewSchedule)


def is_one(message: Message) -> bool:
    """Whether it is about schedules."""
    return isinstance(message, (*ACTS, *LOOKS))


def acts(message: Message) -> bool:
    """Whether it changes something."""
    return isinstance(message, ACTS)


async def answer(hub: Hub, owner: Owner, message: Message) -> Message | None:
    """The answer; None is Done. Raises CellburstError."""
    schedules, workspace = hub.schedules, owner.workspace
    match message:
        case PutSchedule():
            return await schedules.put(owner, message)
        case ListSchedules():
            return ScheduleList(rows=schedules.infos(workspace, message.notebook))
        case GetSchedule():
            return await schedules.looked_at(workspace, message.schedule)
        case PauseSchedule():
            return schedules.pause(workspace, message.schedule, message.paused)
        case RunSchedule():
            return RunInfo(row=schedules.run_now(workspace, message.schedule))
        case DeleteSchedule():
            schedules.delete(workspace, message.schedule)
        case CancelRun():
            schedules.cancel(workspace, message.run)
        case ListRuns():
            found = schedules.runs(workspace, message.schedule, message.run, message.after_unix_seconds, message.count)
            return RunList(rows=found)
        case PreviewSchedule():
            return schedules.preview(workspace, message)
    return None
