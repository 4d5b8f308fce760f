"""The engine seam: how a worker isolates a container on this machine.

Files of the family: `engine.py` (this), `engine_gvisor.py`, `engine_checkpoint.py`, `engine_process.py`;
`cellburst_runtime.runtime` chooses.
All methods are coroutines called on the worker's event loop; none may block it. Nothing here knows the gateway.

The container's host folder (0700, made by the caller, removed by `Container.remove`):

    FOLDER/var/ctl/s     Unix socket of the worker; the runner dials it            (bound to /cellburst/var/ctl)
    FOLDER/var/in/       blobs for the executor, read-only to it: root-owned       (bound to /cellburst/var/in)
    FOLDER/var/out/      large values the executor hands out                       (bound to /cellburst/var/out)
    FOLDER/layer/        the store of stated size for what the session writes      (see layer.py)
    FOLDER/merged/       the notebook's folder as the session has it; masks/, shown/ and fetched/ belong to it
    FOLDER/bin/          programs on PATH in the container: the stand-in nvidia-smi (bound to /cellburst/bin)
    FOLDER/volumes/      the session's volumes (see volume_mount.py)               (bound to /cellburst/volumes)
    FOLDER/engine/       the engine's own files
    FOLDER/container.json   what garbage collection needs to end and remove it without this process's memory

Inside every container `/cellburst/runner` is the read-only folder that holds the package `cellburst_runner`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from cellburst_protocol.errors import ErrorInfo, PlatformError
from cellburst_protocol.messages import EngineInfo


@dataclass(frozen=True)
class Mount:
    """One place in the container's file system.

    `bind` shows host path `source`; `tmpfs` is an empty memory file system of at most `size_bytes`. Destinations are the
    same for every container of an image.
    """

    destination: str
    source: str = ""
    kind: Literal["bind", "tmpfs"] = "bind"
    read_only: bool = True
    size_bytes: int = 0
    mode: int = 0o755
    own_handles: bool = False  # a bind: a file is closed on the host when the program closes it, as a bucket must know


@dataclass(frozen=True)
class DeviceGrant:
    """What a lease of GPUs adds to a container (from the devices seam): nodes, mounts, environment, engine flags."""

    nodes: tuple[str, ...] = ()
    mounts: tuple[Mount, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    engine_flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class ContainerSpec:
    """Everything an engine needs to start one container.

    `arguments` is the runner's command line, constant per image. `links` are symbolic links of the root file system
    (path -> target). `root_files` are small files of the root file system (path -> bytes), `/etc` among them. `uid` and
    `gid` are the ordinary user that runs everything inside. `fork_key` names the fork servers that may make it, "" for none
    (the `process` engine's; `fork_servers.py`). `folder` is the host folder described above.

    `sizes_mib` is the memory that the sizes of memory file systems inside are shares of, 0 for that of `memory_mib`'s class: a
    checkpoint has its sizes with it, while `memory_mib` is the limit on the host.

    `volume_links` are links of the root file system as well, but of this container alone: no snapshot's key has them.

    `layers` (top first) are an image's, and the root file system lies over them; with none the root holds only what is named
    here. `own_folders` are then folders of that root which the user may write in.
    """

    id: str
    folder: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    working_folder: str
    mounts: tuple[Mount, ...]
    links: dict[str, str]
    root_files: dict[str, bytes]
    cpu: float
    memory_mib: int
    sizes_mib: int = 0
    pids: int = 1024
    most_pids: int = 1024
    uid: int = 1000
    gid: int = 1000
    fork_key: str = ""
    hostname: str = "cellburst"
    network: Literal["outbound", "none"] = "outbound"
    devices: DeviceGrant = field(default_factory=DeviceGrant)
    layers: tuple[Path, ...] = ()
    own_folders: tuple[str, ...] = ()
    volume_links: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ContainerExit:
    """How a container ended. `cause` is "oom" or "pids" when a limit ended it, "checkpointed" when `Container.checkpoint`
    did, else "exit"."""

    exit_code: int | None
    signal: int | None
    cause: Literal["exit", "oom", "pids", "killed", "checkpointed"]
    detail: str = ""


@dataclass(frozen=True)
class Usage:
    """What the container has used: CPU seconds since its start, bytes of memory now, and its limit."""

    cpu_seconds: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None


class CheckpointFailed(PlatformError):
    """A container could not be checkpointed. `still_running`: it goes on as if nothing had been asked; else it has ended."""

    def __init__(self, info: ErrorInfo, *, still_running: bool) -> None:
        super().__init__(info)
        self.still_running = still_running


class Container(Protocol):
    """A running container. The worker that started it calls these; each is safe after it is gone."""

    id: str
    spec: ContainerSpec
    network: str  # what it really has: "outbound" or "none"
    notes: list[str]  # lesser modes, to be told to the user once

    async def wait(self) -> ContainerExit:
        """Return when the container has ended, for whatever reason; at once if it already has. Many may wait."""

    async def kill(self) -> None:
        """End every process in it by SIGKILL. Returns when they are gone. Nothing happens if they already are."""

    async def remove(self) -> None:
        """Kill it and remove every trace: processes, cgroup, network namespace, mounts, folder. Idempotent, and finishes
        what an earlier, interrupted remove left."""

    async def usage(self) -> Usage:
        """Usage now; fields are None where this machine does not tell, or the container is gone."""

    def spare_memory(self, more_mib: int) -> None:
        """Let it use so much more memory on the host than its limit, until it is called again (0: its limit alone). Nothing where
        there are no limits. Blocks for less than a millisecond. Raises OSError: it uses more already, or is gone."""

    async def checkpoint(self, folder: Path) -> None:
        """Write its processes to an empty host folder and end it: `wait` then tells the cause "checkpointed".

        No socket to the host may be open inside. Raises CheckpointFailed; `still_running` says whether it lives on.
        """


class Engine(Protocol):
    """One way to isolate. Made by `runtime.engines()`, which only returns engines that passed their self-test here."""

    info: EngineInfo

    async def start(self, spec: ContainerSpec, checkpoint: Path | None = None) -> Container:
        """Start the container and return when its first process runs (it dials FOLDER/var/ctl/s, which must be listening).

        With `checkpoint`, a folder that `Container.checkpoint` filled, its processes go on from there instead: `arguments`
        and `environment` of the spec are then those of the checkpoint. After a failure it may be started again.

        Raises PlatformError (START_FAILED, with the engine's own last lines; DISK_FULL) and leaves nothing behind then.
        If the task is cancelled, what was started is removed before CancelledError is raised.
        """

    def snapshot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """All that must be equal for a checkpoint of one container to be restored in another, by name; {} where this engine
        has no snapshots, or not for this container. Blocks for milliseconds."""

    def boot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """All that must be equal for a container that was booted beforehand to become another request's, by name; {} where this
        engine has something faster (snapshots, fork servers), or not for this container. Blocks for milliseconds."""

    async def collect_garbage(self, folder: Path) -> None:
        """End and remove the container whose FOLDER this is and whose worker is gone. Idempotent."""
