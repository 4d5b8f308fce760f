"""Between gateway and worker.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

import msgspec

from .messages_base import Base
from .messages_parts import ContainerUsage, EngineInfo, GpuUsage, Inventory, MirrorSpec, PhaseTime
from .resources import Resources
from .states import ContainerState, EndReason


class ContainerReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A container that a joining worker has: `last_sequence` is the last event in its spool."""

    container: str
    lease: str
    epoch: int
    state: ContainerState
    uptime_seconds: float
    running_call: str = ""
    last_sequence: int = 0


class JoinWorker(Base, kw_only=True, tag="join_worker"):
    """A worker's request after Hello. Answered with Joined."""

    worker: str
    inventory: Inventory
    containers: list[ContainerReport] = []
    pid: int = 0


class Joined(Base, kw_only=True, tag="joined"):
    """What the gateway has recorded of the worker's containers: last sequence of each that it adopts; those in `stop`
    are not (or no longer) the gateway's and are ended. The worker then opens a ContainerStream for each adopted one."""

    adopted: dict[str, int] = {}
    stop: list[str] = []


class StartContainer(Base, kw_only=True, tag="start_container"):
    """Gateway -> worker, control request. Answered with Done when accepted; its progress are events on the container's
    stream, which the worker opens at once."""

    container: str
    lease: str
    epoch: int
    session: str
    notebook: str
    resources: Resources
    gpus: list[str]  # uuids from the inventory
    image: MirrorSpec
    engine: str = ""  # "" is the worker's preferred one
    prepare_call: str = ""  # phases are reported as events of this call


class StopContainer(Base, kw_only=True, tag="stop_container"):
    """Gateway -> worker. The container ends with this reason, by SIGKILL after the grace."""

    container: str
    reason: EndReason
    grace_seconds: float = 2.0


class ContainerStream(Base, kw_only=True, tag="container_stream"):
    """The worker opens this for every container it starts or has. Worker -> gateway: Numbered, SideReply. Gateway ->
    worker: RunCell, NamesData, StdinReply, CommMessage, SideRequest, Ack."""

    container: str
    from_sequence: int = 0


class ContainerReady(Base, kw_only=True, tag="container_ready"):
    """Event: the runner's executor is up."""

    engine: EngineInfo
    network: str
    phases: list[PhaseTime] = []
    notes: list[str] = []
    python_version: str = ""


class Heartbeat(Base, kw_only=True, tag="heartbeat"):
    """Worker -> gateway once a second, with usage. The gateway counts a worker as unreachable after 8 s without one."""

    worker: str
    usage: list[ContainerUsage] = []
    gpus: list[GpuUsage] = []
