"""Opening a link, and control requests of kernels and the command.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from .messages_base import Base
from .messages_parts import ContainerInfo, ContainerUsage, GpuUsage, Inventory, ParkedInfo, SnapshotUsage
from .states import EndReason, SessionState, WorkerState
from .volumes import VolumeMount


class Done(Base, kw_only=True, tag="done"):
    """The answer of a request that has nothing more to say."""


class Hello(Base, kw_only=True, tag="hello"):
    """First control request of whoever dials. `instance` is new for each process; a worker's `machine_id` is as in `MirrorSpec`:
    who has the same one sees the same files."""

    role: Literal["kernel", "cli", "worker"]
    protocol: tuple[int, int]
    software: str
    instance: str
    pid: int = 0
    hostname: str = ""
    machine_id: str = ""


class Welcome(Base, kw_only=True, tag="welcome"):
    """Answer to Hello. If the file `blob_proof_path` can be read and holds `blob_proof`, both are on one machine and
    `blob_folder` may be used directly; else blobs go by HTTP (`PUT` and `GET /blobs/HASH`)."""

    protocol: tuple[int, int]
    software: str
    gateway_instance: str
    epoch: int
    workspace: str
    principal: str
    blob_folder: str = ""
    blob_proof_path: str = ""
    blob_proof: str = ""
    chunk_folder: str = ""  # of volumes, likewise; chunks lie as HASH[:2]/HASH, drafts in tmp. "": they go by HTTP
    heartbeat_seconds: float = 1.0
    disconnect_grace_seconds: float = 600.0
    max_timeout_seconds: float = 86400.0
    gpu_types: list[str] = []


class Interrupt(Base, kw_only=True, tag="interrupt"):
    """Stop what a call runs. Level 1 is SIGINT; 2 SIGINT again, then SIGKILL to the executor after 2 s; 3 SIGKILL now.
    Before user code started any level cancels the call. Relayed to worker and runner."""

    session: str = ""
    container: str = ""
    call: str = ""
    level: int = 1


class StopSession(Base, kw_only=True, tag="stop_session"):
    """End a session (by id, or by notebook and name) and its container."""

    session: str = ""
    notebook: str = ""
    name: str = ""
    reason: EndReason = EndReason.STOPPED


class ParkSession(Base, kw_only=True, tag="park_session"):
    """Put an idle session away now (by id, or by notebook and name). Answered with SessionParked when it is safe on disk,
    else an error (BUSY while a cell runs; NOT_FOUND; START_FAILED with the worker's reason: it lives on then)."""

    session: str = ""
    notebook: str = ""
    name: str = ""


class SessionParked(Base, kw_only=True, tag="session_parked"):
    """The session is parked: nothing runs, nothing costs. The next cell brings it back."""

    parked: ParkedInfo
    seconds: float = 0.0
    notes: list[str] = []


class GetStatus(Base, kw_only=True, tag="get_status"):
    """Ask for Status."""


class SessionRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A session in a list."""

    id: str
    notebook: str
    name: str
    state: SessionState
    kernel_id: str = ""
    container: ContainerInfo | None = None
    running_call: str = ""
    created_unix_seconds: float = 0.0
    last_used_unix_seconds: float = 0.0
    cost_usd: str = "0"
    names: list[str] = []
    parked: ParkedInfo | None = None
    usage: ContainerUsage | None = None  # over the last second that its worker told of
    volumes: list[VolumeMount] = []  # what it has at which path; buckets without any credential


class WorkerRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A worker in a list."""

    id: str
    state: WorkerState
    inventory: Inventory
    pid: int = 0
    free_gpus: list[str] = []
    last_seen_seconds: float = 0.0
    snapshots: SnapshotUsage | None = None
    gpu_usage: list[GpuUsage] = []  # of all its GPUs, over the last second that it told of


class EndedThing(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Something that ended and that nobody may have watched. `title` is a notebook's path, or what was built; `problem` says in
    words why it failed, "" if it did not."""

    id: str
    kind: Literal["cell", "build"]
    title: str
    session: str = ""
    problem: str = ""
    seconds: float = 0.0
    ended_unix_seconds: float = 0.0


class Status(Base, kw_only=True, tag="status"):
    """The whole picture, for `cellburst status`, `ps` and the panel. `gpu_usd_per_second` is the reference price of each GPU type
    that the workers have, as decimal text; `ended` the last detached cells and long builds."""

    gateway_pid: int
    gateway_url: str
    version: str
    uptime_seconds: float
    data_folder: str
    workers: list[WorkerRow] = []
    sessions: list[SessionRow] = []
    queue: list[str] = []
    gpu_usd_per_second: dict[str, str] = {}
    ended: list[EndedThing] = []


class GetLogs(Base, kw_only=True, tag="get_logs"):
    """Ask for the text that a session printed, at most `max_bytes` of its end. Answered with Logs."""

    session: str = ""
    notebook: str = ""
    name: str = ""
    max_bytes: int = 262144


class Logs(Base, kw_only=True, tag="logs"):
    """Text of streams and errors, in order, without escape sequences other than SGR colours."""

    text: str
    truncated: bool = False


class GetCost(Base, kw_only=True, tag="get_cost"):
    """Ask for CostReport: of a notebook's sessions, or of everything."""

    notebook: str = ""
    session: str = ""


class CostLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Cost of one session, summed over its leases. `what` is the hardware of its newest container, also of one that ended."""

    session: str
    notebook: str
    name: str
    seconds: float
    usd: str
    running: bool = False
    usd_per_second: str = "0"
    what: str = ""
    parked: bool = False


class CostReport(Base, kw_only=True, tag="cost_report"):
    """What was spent, at reference prices."""

    total_usd: str
    lines: list[CostLine] = []
    price_note: str = ""


class FindSession(Base, kw_only=True, tag="find_session"):
    """Which live session, if any, has this notebook and name? Answered with SessionFound."""

    notebook: str
    name: str = "default"


class SessionFound(Base, kw_only=True, tag="session_found"):
    """The answer to FindSession, newest generation first; empty when there is none."""

    sessions: list[SessionRow] = []


class Shutdown(Base, kw_only=True, tag="shutdown"):
    """`cellburst down`: end all containers, then the worker this gateway started, then the gateway."""
