"""Lifecycles: for each thing one enum of states and one transition table; a second enum says why something ended.

A terminal state has an empty row, so that "nothing may follow" is written down. `advance` refuses every pair that is
not in a table, names the thing, its state and the event, and changes nothing.
"""

from __future__ import annotations

import enum
from typing import TypeVar


class CallState(enum.StrEnum):
    """A call, from its record to its end. User code can have run only from RUNNING on."""

    CREATED = "created"  # durable in the record
    QUEUED = "queued"  # waits for capacity or for its session
    STARTING = "starting"  # its container is being started
    SENT = "sent"  # handed to a worker; the code has not been reported started
    RUNNING = "running"  # user code has started: at most once from here on
    UNREACHABLE = "unreachable"  # its worker cannot be reached; no end
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class SessionState(enum.StrEnum):
    """A session: the notebook's remote names."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    PARKING = "parking"  # idle, and being put away; a cell that comes now waits for that and resumes it
    PARKED = "parked"  # put away: no container, no lease, no cost; the next cell brings it back
    SUPERSEDED = "superseded"  # its kernel was restarted and another took the name; kept for a while
    ENDED = "ended"


class ContainerState(enum.StrEnum):
    """A container, as gateway and worker both see it."""

    PLACED = "placed"
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    ENDED = "ended"


class WorkerState(enum.StrEnum):
    """A worker, as the gateway sees it."""

    JOINED = "joined"
    UNREACHABLE = "unreachable"
    LOST = "lost"


class EndReason(enum.StrEnum):
    """Why a call, container or session ended."""

    DONE = "done"
    RAISED = "raised"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    STOPPED = "stopped"  # the user said so
    EXITED = "exited"  # user code ended the interpreter
    KILLED = "killed"  # the executor was killed after ignored interrupts
    OUT_OF_MEMORY = "out_of_memory"
    PIDS_LIMIT = "pids_limit"
    TIMEOUT = "timeout"
    BUDGET = "budget"
    IDLE = "idle"
    PARKED = "parked"  # of a container: its session was put away
    KERNEL_GONE = "kernel_gone"
    SUPERSEDED = "superseded"
    EVICTED = "evicted"
    EXPIRED = "expired"  # of a session: it was parked and nobody came back for it
    WORKER_LOST = "worker_lost"
    CONTAINER_LOST = "container_lost"
    START_FAILED = "start_failed"
    NO_CAPACITY = "no_capacity"
    SHUTDOWN = "shutdown"


_S = TypeVar("_S", bound=enum.StrEnum)

CALL_TRANSITIONS: dict[CallState, frozenset[CallState]] = {
    CallState.CREATED: frozenset(
        {CallState.QUEUED, CallState.STARTING, CallState.SENT, CallState.FAILED, CallState.CANCELLED}
    ),
    CallState.QUEUED: frozenset({CallState.STARTING, CallState.SENT, CallState.FAILED, CallState.CANCELLED}),
    CallState.STARTING: frozenset({CallState.QUEUED, CallState.SENT, CallState.FAILED, CallState.CANCELLED}),
    CallState.SENT: frozenset(
        {
            CallState.QUEUED,
            CallState.RUNNING,
            CallState.SUCCEEDED,
            CallState.FAILED,
            CallState.CANCELLED,
            CallState.UNREACHABLE,
        }
    ),
    CallState.RUNNING: frozenset({CallState.SUCCEEDED, CallState.FAILED, CallState.CANCELLED, CallState.UNREACHABLE}),
    CallState.UNREACHABLE: frozenset(
        {CallState.SENT, CallState.RUNNING, CallState.SUCCEEDED, CallState.FAILED, CallState.CANCELLED}
    ),
    CallState.SUCCEEDED: frozenset(),
    CallState.FAILED: frozenset(),
    CallState.CANCELLED: frozenset(),
}

SESSION_TRANSITIONS: dict[SessionState, frozenset[SessionState]] = {
    SessionState.STARTING: frozenset(
        {
            SessionState.IDLE,
            SessionState.BUSY,
            SessionState.PARKED,
            SessionState.SUPERSEDED,
            SessionState.ENDED,
        }
    ),
    SessionState.IDLE: frozenset(
        {
            SessionState.STARTING,
            SessionState.BUSY,
            SessionState.PARKING,
            SessionState.SUPERSEDED,
            SessionState.ENDED,
        }
    ),
    SessionState.PARKING: frozenset(
        {SessionState.PARKED, SessionState.IDLE, SessionState.SUPERSEDED, SessionState.ENDED}
    ),
    SessionState.PARKED: frozenset({SessionState.STARTING, SessionState.SUPERSEDED, SessionState.ENDED}),
    SessionState.BUSY: frozenset({SessionState.IDLE, SessionState.SUPERSEDED, SessionState.ENDED}),
    SessionState.SUPERSEDED: frozenset({SessionState.IDLE, SessionState.BUSY, SessionState.PARKED, SessionState.ENDED}),
    SessionState.ENDED: frozenset(),
}

CONTAINER_TRANSITIONS: dict[ContainerState, frozenset[ContainerState]] = {
    ContainerState.PLACED: frozenset({ContainerState.STARTING, ContainerState.ENDED}),
    ContainerState.STARTING: frozenset({ContainerState.READY, ContainerState.STOPPING, ContainerState.ENDED}),
    ContainerState.READY: frozenset({ContainerState.STOPPING, ContainerState.ENDED}),
    ContainerState.STOPPING: frozenset({ContainerState.ENDED}),
    ContainerState.ENDED: frozenset(),
}

WORKER_TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.JOINED: frozenset({WorkerState.UNREACHABLE, WorkerState.LOST}),
    WorkerState.UNREACHABLE: frozenset({WorkerState.JOINED, WorkerState.LOST}),
    WorkerState.LOST: frozenset(),
}


class TransitionError(Exception):
    """A move that its table does not have; nothing was changed."""


def advance(table: dict[_S, frozenset[_S]], state: _S, to: _S, what: str) -> _S:
    """Return `to` if the table has the move from `state`, else raise TransitionError naming `what`, state and move."""
    if to not in table[state]:
        raise TransitionError(f"{what} is {state.value} and cannot become {to.value}")
    return to


def is_terminal(table: dict[_S, frozenset[_S]], state: _S) -> bool:
    """Whether nothing may follow `state`."""
    return not table[state]


# Why a call ended, and which final state that is: total, so that a new reason cannot be forgotten.
CALL_END_STATE: dict[EndReason, CallState] = {
    reason: (
        CallState.SUCCEEDED
        if reason is EndReason.DONE
        else CallState.CANCELLED
        if reason in {EndReason.INTERRUPTED, EndReason.CANCELLED, EndReason.STOPPED}
        else CallState.FAILED
    )
    for reason in EndReason
}
