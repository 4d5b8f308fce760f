"""Between gateway and worker.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

import msgspec

from .errors import ErrorInfo
from .images import ImageRecipe
from .messages_base import Base
from .messages_parts import (
    BuildSecret,
    ContainerUsage,
    EngineInfo,
    GpuUsage,
    Inventory,
    MirrorSpec,
    NameGroup,
    ParkedInfo,
    PhaseTime,
    RemoteName,
    SnapshotUsage,
    StartKind,
    ValuePart,
)
from .resources import Resources
from .states import ContainerState, EndReason
from .volumes import VolumeMount


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
    parked: list[ParkedInfo] = []
    pid: int = 0


class Joined(Base, kw_only=True, tag="joined"):
    """What the gateway has recorded of the worker's containers: last sequence of each that it adopts; those in `stop`
    are not (or no longer) the gateway's and are ended, parked sessions in `forget` are removed. The worker then opens a
    ContainerStream for each adopted one."""

    adopted: dict[str, int] = {}
    stop: list[str] = []
    forget: list[str] = []


class SendParked(Base, kw_only=True, tag="send_parked"):
    """Gateway -> worker, control request: let the gateway have the names of this parked session as blobs, for another worker.
    Answered with ParkedNames. The session stays parked here until it is told to forget it."""

    parked: str


class ParkedNames(Base, kw_only=True, tag="parked_names"):
    """Answer to SendParked, and part of StartContainer: the names by value, those that are not among them, and the blob that has
    all inline parts in order (None where there are none)."""

    groups: list[NameGroup] = []
    lost: list[RemoteName] = []
    inline: ValuePart | None = None


class StartContainer(Base, kw_only=True, tag="start_container"):
    """Gateway -> worker, control request. Answered with Done when accepted; its progress are events on the container's
    stream, which the worker opens at once. `parked` is the id of the session's parked bytes, to be resumed; if they
    cannot be (gone, corrupt, another engine) the container boots and its ContainerReady says what is missing. With a
    `recipe` the container is made from that image, which the worker builds where it is not there (events BuildLog); of
    `image` then only the notebook's folder, its mode and note, mounts, user, home and environment are used."""

    container: str
    lease: str
    epoch: int
    session: str
    notebook: str
    resources: Resources
    gpus: list[str]  # uuids from the inventory
    image: MirrorSpec
    recipe: ImageRecipe | None = None
    engine: str = ""  # "" is the worker's preferred one
    prepare_call: str = ""  # phases are reported as events of this call
    parked: str = ""
    park_key: str = ""  # hex; what opens `parked` where the session had secrets
    names: ParkedNames | None = None  # of the session as it was parked on another worker, in place of `parked`
    volumes: list[VolumeMount] = []
    bucket_keys: dict[
        str, dict[str, str]
    ] = {}  # how buckets of `volumes` are opened, by their ids; never kept or logged
    shared_folder: str = ""  # where those of kind "shared" lie, for a worker on the gateway's machine; "": it has none
    build_secrets: dict[str, BuildSecret] = {}  # those that steps of `recipe` use, by name; never kept or logged
    build_volumes: dict[str, str] = {}  # ids of the volumes that steps of `recipe` use, by name
    link_token: str = ""  # its code may use the gateway with this token, through a socket that the worker passes on


class StopContainer(Base, kw_only=True, tag="stop_container"):
    """Gateway -> worker. The container ends with this reason, by SIGKILL after the grace."""

    container: str
    reason: EndReason
    grace_seconds: float = 2.0


class ParkContainer(Base, kw_only=True, tag="park_container"):
    """Gateway -> worker, control request: put the container's session away under the id `parked`. Answered with Done when
    it has begun. Then either the event ContainerParked and the container's end with EndReason.PARKED, or the event
    ParkFailed and the container goes on as if nothing had been asked. Names are saved by value up to `names_limit_bytes`.
    Refused (BUSY) while a cell runs; the same `parked` again is the same request."""

    container: str
    parked: str
    names_limit_bytes: int = 1_000_000_000
    park_key: str = ""  # hex; the session had secrets: what is kept is encrypted with it, and the key stays in memory


class ForgetParked(Base, kw_only=True, tag="forget_parked"):
    """Gateway -> worker: these parked sessions have ended or expired; their bytes are removed. Unknown ones are no error."""

    parked: list[str]


class Waiting(Base, kw_only=True, tag="waiting"):
    """Gateway -> worker: `count` requests wait for this machine's hardware now, `memory_mib` is what they ask for together. Told
    when it changes; a worker that has joined anew has none until it is told."""

    count: int = 0
    memory_mib: int = 0


class ContainerParked(Base, kw_only=True, tag="container_parked"):
    """Event: the session is safe on the worker's disk; the container ends next. `seconds` is how long it took."""

    parked: ParkedInfo
    seconds: float = 0.0
    notes: list[str] = []


class ParkFailed(Base, kw_only=True, tag="park_failed"):
    """Event: the session could not be put away and lives on in its container."""

    parked: str
    error: ErrorInfo


class ContainerStream(Base, kw_only=True, tag="container_stream"):
    """The worker opens this for every container it starts or has. Worker -> gateway: Numbered, SideReply. Gateway ->
    worker: RunCell, NamesData, StdinReply, CommMessage, SideRequest, Ack."""

    container: str
    from_sequence: int = 0


class ContainerReady(Base, kw_only=True, tag="container_ready"):
    """Event: the runner's executor is up. `start` is the rung it came up by; `lost` are names of a parked session that
    did not come back, with the reason in `detail`. `image_id` is the built image's, "" for a mirror."""

    engine: EngineInfo
    network: str
    phases: list[PhaseTime] = []
    notes: list[str] = []
    python_version: str = ""
    start: StartKind = "boot"
    lost: list[RemoteName] = []
    image_id: str = ""


class Heartbeat(Base, kw_only=True, tag="heartbeat"):
    """Worker -> gateway once a second, with usage. The gateway counts a worker as unreachable after 8 s without one."""

    worker: str
    usage: list[ContainerUsage] = []
    gpus: list[GpuUsage] = []
    snapshots: SnapshotUsage | None = None
