"""What the record's verbs give back: one frozen class for each table, free of SQL.

Times are unix seconds as the caller passed them in, durations are seconds, money is Decimal US dollars. `detail` is
JSON text of the gateway's own that the record keeps and never reads. Every row says whose it is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from decimal import Decimal

from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.states import CallState, ContainerState, EndReason, SessionState, WorkerState

BUILDS = "image builds"  # in place of a notebook, where an image was built without a cell


class Role(enum.StrEnum):
    """What a token may do: run things, be a worker, only look, or everything."""

    USER = "user"
    WORKER = "worker"
    VIEWER = "viewer"
    ADMIN = "admin"
    CONTAINER = "container"  # made by `container_link.py`, never recorded


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a row is: the workspace, and the principal who asked."""

    workspace: str
    principal: str


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """A bearer token; only its SHA-256 is kept. `expires` and `revoked` are None where they do not apply."""

    id: str
    name: str
    role: Role
    owner: Owner
    created: float
    expires: float | None
    revoked: float | None


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session. `live` means that it holds its (workspace, notebook, name), which at most one session does.

    A superseded one is not live and may still have a container; `generation` counts from 1 per name. `container` is the
    current one's id or "". `parking` (what is under way) and `parked` (what a worker keeps) are JSON of the gateway's own; the
    record reads only whether they are empty.
    """

    id: str
    owner: Owner
    notebook: str
    name: str
    generation: int
    kernel_id: str
    state: SessionState
    live: bool
    container: str
    reason: EndReason | None
    created: float
    last_used: float
    ended: float | None
    detail: str
    parking: str = ""
    parked: str = ""


@dataclass(frozen=True, slots=True)
class CallRecord:
    """A call. `started` is when user code was reported started, `run_seconds` how long it ran."""

    id: str
    owner: Owner
    session: str
    container: str
    kind: str
    state: CallState
    attempt: int
    reason: EndReason | None
    error: ErrorInfo | None
    created: float
    started: float | None
    ended: float | None
    run_seconds: float
    cost_usd: Decimal
    detail: str


@dataclass(frozen=True, slots=True)
class ContainerRecord:
    """A container as the gateway placed it. `lease` and `epoch` are what the worker was given with it."""

    id: str
    owner: Owner
    session: str
    worker: str
    lease: str
    epoch: int
    state: ContainerState
    reason: EndReason | None
    created: float
    ready: float | None
    ended: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The right of a container to hardware, and what is billed for it: `billed_seconds` x `usd_per_second`."""

    id: str
    owner: Owner
    session: str
    container: str
    worker: str
    epoch: int
    gpus: tuple[str, ...]
    cpu: float
    memory_mib: int
    usd_per_second: Decimal
    price_note: str
    opened: float
    closed: float | None
    billed_seconds: float
    reason: EndReason | None

    @property
    def open(self) -> bool:
        """Whether it still holds its hardware."""
        return self.closed is None


@dataclass(frozen=True, slots=True)
class WorkerRecord:
    """A worker as it last joined. `inventory` is the JSON of `messages.Inventory`."""

    id: str
    owner: Owner
    state: WorkerState
    instance: str
    hostname: str
    pid: int
    inventory: str
    joined: float
    last_seen: float


@dataclass(frozen=True, slots=True)
class SessionCost:
    """What one session cost so far, summed over its leases. `running` when a lease of it is open, `usd_per_second` the
    rate of the open ones together; `detail` is its newest container's JSON, which has the hardware as it was."""

    session: str
    owner: Owner
    notebook: str
    name: str
    seconds: float
    usd: Decimal
    running: bool
    usd_per_second: Decimal
    price_note: str
    detail: str = ""
