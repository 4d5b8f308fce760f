"""Why a call ended, and what its user is told: pure rules from reports to reason and error."""

from __future__ import annotations

import json
from signal import SIGKILL, Signals

from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.messages import CellDone, ExecutorEnded
from cellburst_protocol.states import EndReason

from .calls import Call
from .containers import ContainerHandle

CRASH_LINES = 12  # of a crashed thread's stack: the user's frames come first


def how_a_cell_ended(call: Call, done: CellDone, buffers: list[memoryview]) -> tuple[EndReason, ErrorInfo | None]:
    """The end of a call whose executor finished it."""
    ended_by = call.end_reason or done.ended_by
    if done.status == "ok":
        return EndReason.DONE, None
    if ended_by is not None:
        return ended_by, _stopped_error(call, ended_by)
    if done.error is not None:  # the cell was not passed on: none of its code ran
        return (EndReason.CANCELLED if done.status == "aborted" else EndReason.RAISED), done.error
    name, value = _raised(buffers)
    if done.status == "aborted":
        return (EndReason.INTERRUPTED if call.interrupted else EndReason.CANCELLED), None
    if call.interrupted and name == "KeyboardInterrupt":
        return EndReason.INTERRUPTED, None
    return EndReason.RAISED, ErrorInfo(
        code=ErrorCode.RAISED, message=f"{name}: {value}"[:500] if name else "the cell raised"
    )


def _raised(buffers: list[memoryview]) -> tuple[str, str]:
    """Name and text of the exception in an execute_reply's content; empty when it has none."""
    try:
        content = json.loads(bytes(buffers[0])) if buffers else {}
    except ValueError:
        content = {}
    if not isinstance(content, dict):
        return "", ""
    return str(content.get("ename", "")), str(content.get("evalue", ""))


def _stopped_error(call: Call, reason: EndReason) -> ErrorInfo | None:
    if reason is EndReason.TIMEOUT:
        limit = call.resources.timeout_seconds
        return ErrorInfo(
            code=ErrorCode.TIMEOUT, message=f"the cell ran longer than its timeout{f' of {limit:g} s' if limit else ''}",
            next="give a longer timeout=",
        )  # fmt: skip
    if reason is EndReason.BUDGET:
        return ErrorInfo(
            code=ErrorCode.BUDGET,
            message=f"the cell was stopped at its budget of ${call.resources.budget_usd}",
            next="give a larger budget=",
        )
    return None


def executor_end(call: Call, event: ExecutorEnded, handle: ContainerHandle) -> tuple[EndReason, ErrorInfo]:
    """The end of a call whose executor process went away under it."""
    ended_by = call.end_reason or event.ended_by
    mib = handle.detail.resources.memory_mib
    place = _crash_place(event.text)
    said = f"\n{place}" if place else ""
    if ended_by is EndReason.OUT_OF_MEMORY:
        return EndReason.OUT_OF_MEMORY, ErrorInfo(
            code=ErrorCode.OUT_OF_MEMORY, message=f"the code used more than its {mib} MiB of memory{said}",
            next="ask for more with memory=",
        )  # fmt: skip
    if ended_by is not None:
        return ended_by, _stopped_error(call, ended_by) or ErrorInfo(
            code=ErrorCode.EXITED, message=f"the cell was stopped{said}"
        )
    if event.killed_by_runner:
        return EndReason.KILLED, ErrorInfo(
            code=ErrorCode.INTERRUPTED, message=f"the code did not answer interrupts, so its process was killed{said}",
            next="its names there are gone; run the cells that made them again",
        )  # fmt: skip
    if event.signal is not None:
        hint = f"often that is too little memory: it had {mib} MiB" if event.signal == SIGKILL else ""
        return EndReason.EXITED, ErrorInfo(
            code=ErrorCode.EXITED,
            message=f"the code's process was ended by {_signal_name(event.signal)}{said}",
            next=hint or "see its output",
        )
    return EndReason.EXITED, ErrorInfo(
        code=ErrorCode.EXITED, message=f"the code ended its own process with exit code {event.exit_code}{said}",
        next="leave out exit() or os._exit(); names there are gone",
    )  # fmt: skip


def _signal_name(number: int) -> str:
    try:
        return f"{Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _crash_place(text: str) -> str:
    """The user's own lines of what faulthandler printed: those of the crashed thread above IPython's frames."""
    crashed = text[text.find("Current thread") :] if "Current thread" in text else text
    lines: list[str] = []
    for line in crashed.splitlines():
        if "/IPython/" in line or len(lines) >= CRASH_LINES:
            break
        lines.append(line.strip())
    return "\n".join(lines).strip()


def lost_error(
    call: Call, handle: ContainerHandle, reason: EndReason, why: ErrorInfo | None, now: float
) -> ErrorInfo | None:
    """What is told when a container ended under a call: how long its code ran, and what that may mean."""
    if call.end_reason is not None:
        return _stopped_error(call, call.end_reason)
    if reason in (EndReason.STOPPED, EndReason.SHUTDOWN):
        return None
    mib = handle.detail.resources.memory_mib
    ran = "it is not known whether its code had started"
    if call.started_at is not None:
        ran = f"its code ran for {now - call.started_at:.1f} s and may have had side effects"
    if reason is EndReason.OUT_OF_MEMORY:
        return why or ErrorInfo(
            code=ErrorCode.OUT_OF_MEMORY, message=f"the container used more than its {mib} MiB of memory; {ran}",
            next="ask for more with memory=",
        )  # fmt: skip
    code = ErrorCode.WORKER_LOST if reason is EndReason.WORKER_LOST else ErrorCode.CONTAINER_LOST
    first = why.message if why is not None else f"the container is gone ({reason.value})"
    return ErrorInfo(
        code=why.code if why is not None else code, message=f"{first}; {ran}", next=why.next if why is not None and why.next else
        "run the cell again: it gets a new container", detail=dict(why.detail) if why is not None else {},
    )  # fmt: skip
