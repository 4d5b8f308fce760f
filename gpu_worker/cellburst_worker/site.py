"""What every container of a worker shares: the runtime, the clock, where values and spools lie, the limits.

The runtime is named here by what a worker needs of it; `cellburst_runtime.runtime.Runtime` is the real one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cellburst_protocol.clock import Clock
from cellburst_protocol.messages import EngineInfo, FileChange, GpuUsage, Inventory, StartContainer
from cellburst_runtime.assignment import Sources
from cellburst_runtime.engine import Container
from cellburst_runtime.fork_servers import ForkServers
from cellburst_runtime.image_build import BuiltImage, Files
from cellburst_runtime.image_equipment import BuildAids
from cellburst_runtime.image_logs import Log
from cellburst_runtime.image_secrets import BuildSecrets
from cellburst_runtime.images import Images
from cellburst_runtime.snapshot_manifest import LiveFile
from cellburst_runtime.snapshots import SnapshotStore
from cellburst_runtime.volume_mount import VolumePlaces

from .build_aids import GpuDesk
from .exchange import Exchange
from .imports import Imports
from .rungs import RESTORE_SECONDS

if TYPE_CHECKING:
    from .volume_desk import VolumeDesk


class Layer(Protocol):
    """What a session wrote over the notebook's folder. All calls block and are made in a thread."""

    def look_again(self) -> None:
        """Have a container that is up list what the host's folder got since."""

    def file_list(self) -> list[FileChange]:
        """Files written or deleted."""

    def file_get(self, path: str) -> Path:
        """The host path of a file as the session sees it. Raises RequestError (NOT_FOUND, FORBIDDEN)."""

    def file_put(self, path: str, source: Path) -> None:
        """Copy a host file into the layer. Raises RequestError or PlatformError."""


class Running(Protocol):
    """A container that was started, with what its runner is told."""

    @property
    def container(self) -> Container:
        """What the engine started."""

    @property
    def python(self) -> list[str]:
        """The executor's interpreter."""

    @property
    def environment(self) -> dict[str, str]:
        """What the runner sets."""

    @property
    def links(self) -> dict[str, str]:
        """What the runner links."""

    @property
    def working_folder(self) -> str:
        """Where cells run."""

    @property
    def notes(self) -> list[str]:
        """Lesser modes, for the user."""

    @property
    def network(self) -> str:
        """What it really has."""

    @property
    def engine(self) -> EngineInfo:
        """What isolates it."""

    @property
    def layer(self) -> Layer:
        """What the session writes."""

    @property
    def forked(self) -> bool:
        """Whether it came out of a fork server, with its imports made."""

    def live_files(self, paths: list[str]) -> list[LiveFile]:
        """The host's files behind these paths of the container, where a live mount shows them. Blocks."""

    def keep_store(self, destination: Path) -> Awaitable[object]:
        """After its end and before `remove`: move the layer's disk image to `destination`; nothing where it has none.
        Raises PlatformError, OSError."""


class Prepared(Protocol):
    """A container whose folder is there and whose engine was not started."""

    @property
    def socket_path(self) -> Path:
        """Where the worker listens."""

    @property
    def folder(self) -> Path:
        """The container's folder on the host."""

    @property
    def snapshot_key(self) -> str:
        """What a snapshot must have been taken with to be restored here, and one of this container has; "" for none."""

    @property
    def key_parts(self) -> dict[str, str]:
        """What the key is made of, to explain a mismatch."""

    @property
    def parked_key(self) -> str:
        """The key of a checkpoint that is taken of it: `snapshot_key`, but for what `take_sizes` said."""

    @property
    def parked_parts(self) -> dict[str, str]:
        """What that key is made of."""

    @property
    def parked_sizes_mib(self) -> int:
        """The memory that its sizes inside are shares of."""

    def take_sizes(self, sizes_mib: int) -> None:
        """Before `start`: have the sizes inside of a parked session; 0 for its own. Blocks for milliseconds."""

    @property
    def fork_key(self) -> str:
        """What a fork server must have been made with to make this container; "" where the engine has none."""

    @property
    def boot_key(self) -> str:
        """What a container booted beforehand must be like to become this one; "" where the engine has something faster."""

    @property
    def warm_key(self) -> str:
        """The key of those that may wait for its request: `snapshot_key`, else `boot_key`."""

    @property
    def layer_keys(self) -> list[str]:
        """The layers of the image that it is made of; none for a mirror."""

    def volume_places(self) -> VolumePlaces:
        """Where its volumes are shown, to be filled before `start`."""

    def show_volumes(self, root_links: dict[str, str], runner_links: dict[str, str], door: str) -> None:
        """How they are reached: see `volume_mount.ShownVolumes`."""

    def sources(self) -> Sources:
        """What lies at its mounts' sources now, for `RuntimeLike.assign`. Blocks for milliseconds."""

    def remove(self) -> Awaitable[object]:
        """Remove the folder of a container that was never started. Idempotent."""

    def start(self, checkpoint: Path | None = None) -> Awaitable[Running]:
        """Start the engine, from a checkpoint's folder instead of by booting; the runner then dials `socket_path`."""


class RuntimeLike(Protocol):
    """The machine's containers, GPUs and engines."""

    @property
    def snapshots(self) -> SnapshotStore:
        """Templates and parked sessions on this machine's disk."""

    @property
    def fork_servers(self) -> ForkServers:
        """In place of templates, where the engine has no snapshots."""

    def inventory(self) -> Inventory:
        """What there is to lease."""

    def gpu_usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """Live figures. Blocks."""

    @property
    def images(self) -> Images:
        """The built images of this machine."""

    def build_image(
        self, request: StartContainer, files: Files, log: Log, secrets: BuildSecrets | None = None,
        aids: BuildAids | None = None,
    ) -> Awaitable[BuiltImage | None]:  # fmt: skip
        """Build and hold the container's image, for `prepare`; None for a mirror. Raises the error tree."""

    def prepare(
        self, request: StartContainer, *, store_image: Path | None = None, image: BuiltImage | None = None
    ) -> Awaitable[Prepared]:
        """Make the folder and plan the mounts. `store_image` becomes the layer's store: it is moved, not copied."""

    def assign(
        self, prepared: Any, running: Any, request: StartContainer, *, sources: Sources, image: BuiltImage | None = None
    ) -> Awaitable[tuple[Prepared, Running]]:
        """Make a container that waited and was given to nobody this request's. Raises `Unlike`: it is untouched, and not of its
        kind; the error tree, OSError: it is of no use to anyone. `prepared` and `running` are this runtime's own."""

    def collect_garbage(self, keep: Sequence[str] = ()) -> Awaitable[object]:
        """End and remove containers of workers that are gone."""


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds. Each with the reason in its name's place of use."""

    hello_seconds: float = 60.0  # engine start to the runner's hello: a loaded machine's cold start, ten times over
    ready_seconds: float = 120.0  # the executor's imports from a cold disk
    drain_seconds: float = 5.0  # what an ended container's socket still holds is read within this
    keep_seconds: float = 600.0  # how long an ended container's events wait for a gateway
    ping_seconds: float = 1.0
    restore_seconds: float = RESTORE_SECONDS  # and what the size of the snapshot takes


@dataclass(frozen=True)
class Site:
    """One worker's machine, as its containers see it."""

    runtime: RuntimeLike
    clock: Clock
    exchange: Exchange
    spool_folder: Path
    imports: Imports
    limits: Limits = Limits()
    takes_templates: bool = True
    keeps_warm: bool = True  # containers restored, or booted, beforehand
    volumes: VolumeDesk | None = None
    gateway: str = ""  # its address as the worker dials it, for containers whose code may use it
    gpu_desk: GpuDesk = field(default_factory=GpuDesk)  # for steps of builds; the worker's
