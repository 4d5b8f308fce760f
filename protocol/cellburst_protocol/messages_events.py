"""Events: what a `Numbered` message carries.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

from typing import Literal

from .errors import ErrorInfo
from .messages_base import Base
from .messages_parts import ContainerInfo, FileChange, NameGroup, PhaseTime, RemoteName, StartKind
from .states import CallState, EndReason


class Phase(Base, kw_only=True, tag="phase"):
    """A phase of a start began (`seconds` None) or ended."""

    name: Literal["queue", "image", "restore", "boot", "enter", "values", "run"]
    seconds: float | None = None
    detail: str = ""


class Queued(Base, kw_only=True, tag="queued"):
    """The call waits: `position` 1 is next, `waiting_for` says in words what it needs and who has it."""

    position: int
    waiting_for: str


class ContainerStarted(Base, kw_only=True, tag="container_started"):
    """The session has a new container. `names_lost`: an earlier one is gone and its names with it. `start`: how it came
    up; "snapshot" and "names" mean that a parked session was resumed, `lost` then are the names that did not come back."""

    container: ContainerInfo
    phases: list[PhaseTime] = []
    names_lost: bool = False
    mirror_identity: str = ""
    start: StartKind = "boot"
    lost: list[RemoteName] = []


class CellStarted(Base, kw_only=True, tag="cell_started"):
    """User code starts now: from here on at most once."""


class IOPub(Base, kw_only=True, tag="iopub"):
    """A Jupyter message of the executor: buffer 0 is {"header", "parent_header", "metadata", "content"} in JSON, the rest
    are its buffers. `text_bytes` is the stream text it carries, for limits and logs."""

    msg_type: str
    text_bytes: int = 0


class StdinRequest(Base, kw_only=True, tag="stdin_request"):
    """The code called input() or getpass()."""

    prompt: str = ""
    password: bool = False


class NamesNeeded(Base, kw_only=True, tag="names_needed"):
    """The container lacks these groups (by hash) before it can run the cell."""

    groups: list[str]


class Notice(Base, kw_only=True, tag="notice"):
    """A line of the platform's own to be shown with the output ("48 MB of output dropped")."""

    text: str
    level: Literal["info", "warning"] = "info"


class CellDone(Base, kw_only=True, tag="cell_done"):
    """The executor has finished the cell. Buffer 0 is the execute_reply's content in JSON; then the inline parts of
    `home`, in order. `home` are names to write back, `stayed` those that stay, `gone` names the cell deleted, `missing`
    names the cell bound only on a path not taken."""

    status: Literal["ok", "error", "aborted"]
    home: list[NameGroup] = []
    stayed: list[RemoteName] = []
    changed_there: list[RemoteName] = []
    gone: list[str] = []
    files: list[FileChange] = []
    mac: str = ""
    run_seconds: float = 0.0
    imported: list[
        str
    ] = []  # modules imported since the last cell; the worker keeps them for the template, and not in the log
    ended_by: EndReason | None = None  # set by the worker when it stopped the call: TIMEOUT, CANCELLED
    error: ErrorInfo | None = (
        None  # set by the worker when it did not pass the cell on: values of a wrong seal, no blob
    )


class CallEnded(Base, kw_only=True, tag="call_ended"):
    """The last event of a call. `run_seconds` is how long user code ran; `phases` cover the whole call."""

    state: CallState
    reason: EndReason
    error: ErrorInfo | None = None
    run_seconds: float = 0.0
    phases: list[PhaseTime] = []
    cost_usd: str = "0"
    container: str = ""


class ContainerEnded(Base, kw_only=True, tag="container_ended"):
    """A container is gone and its names with it."""

    container: str
    reason: EndReason
    error: ErrorInfo | None = None
