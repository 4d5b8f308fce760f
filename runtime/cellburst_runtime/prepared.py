"""A container before and after its engine was started: what was made for it, what its runner is told, what it stands on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.messages import EngineInfo, StartContainer

from .assignment import Sources, sources_of
from .bundle import SHOWN, Bundle
from .devices_simulated import BIN
from .engine import Container, ContainerSpec, DeviceGrant, Engine, Mount
from .engine_base import ContainerBase, finish
from .engine_process import ProcessEngine
from .fork_plan import fork_key, fork_plan
from .image_build import BuiltImage
from .layer import Layer, OverlayLayer
from .layer_keep import keep_store
from .layer_make import MadeLayer
from .live_files import live_files
from .mirror import MirrorPlan
from .oci import all_mounts, memory_class_mib
from .record import ContainerRecord, load_record
from .removal import Remover
from .snapshot_key import built_image_parts, image_parts, snapshot_key
from .snapshots import LiveFile
from .volume_mount import SHOWN as VOLUMES_SHOWN
from .volume_mount import VOLUMES, ShownVolumes, VolumePlaces

RUNNER = "/cellburst/runner"
VAR = "/cellburst/var"
# A forked executor costs a sandbox 26 MiB (measured: it copies what is written by 2 MiB): with more processes than this a
# fork bomb would end the container by its memory limit, instead of getting EAGAIN. Threads count as well and cost next to
# nothing: code that wants more of them raises its own limit (`resource.setrlimit`), up to PIDS.
PIDS, MIB_PER_PID, LEAST_PIDS = 1024, 32, 64
_PACKAGES = Path(__file__).resolve().parents[1]


@dataclass
class RunningContainer:
    """A started container, with what its runner is told. `network` is what it really has; `notes` are for the user."""

    container: Container
    folder: Path
    socket_path: Path
    python: list[str]
    environment: dict[str, str]
    links: dict[str, str]
    working_folder: str
    notes: list[str]
    network: str
    engine: EngineInfo
    layer: Layer
    forked: bool = False  # out of a fork server, not by a boot

    def live_files(self, paths: Iterable[str]) -> list[LiveFile]:
        """The files of live mounts among paths of the container, as they are now: see `live_files.live_files`. Blocks."""
        layer = self.layer if isinstance(self.layer, OverlayLayer) else None
        return live_files(
            paths, self.container.spec, upper=layer.upper if layer else None, source=layer.source if layer else None
        )

    async def keep_store(self, destination: Path) -> str:
        """After the container has ended, and before it is removed: move the disk image with all that the session wrote
        to `destination`, a file on the same disk as the data folder. Returns its path, or "" where there is no image.

        Raises PlatformError (STORE); the container can then still be removed as usual.
        """
        await self.container.kill()
        if isinstance(self.layer, OverlayLayer):
            await asyncio.to_thread(self.layer.save_put)
        return await keep_store(self.folder, destination)


@dataclass
class PreparedContainer:
    """A container whose folder, layer and GPUs are ready and whose engine was not started.

    Listen on `socket_path`, then `start`. Or `remove`.
    """

    request: StartContainer
    folder: Path
    engine: Engine
    plan: MirrorPlan
    made: MadeLayer
    grant: DeviceGrant
    remover: Remover
    notes: list[str] = field(default_factory=list)
    bundle: Bundle | None = None  # of ipykernel, where the mirror has none
    key_parts: dict[str, str] = field(default_factory=dict)  # what `snapshot_key` is made of, for telling a mismatch
    snapshot_key: str = ""  # a checkpoint of an equal key can be restored in it; "" where none can
    fork_key: str = ""  # a fork server of an equal key can make it; "" where its engine has none
    boot_key: str = ""  # one of an equal key, booted beforehand, can become it; "" where none is kept
    image: BuiltImage | None = None  # None for a mirror; whoever built it holds it until the container is removed
    volumes: ShownVolumes = field(default_factory=ShownVolumes)
    sizes_mib: int = 0  # see `ContainerSpec`; other than 0: those of the parked session that is to be restored in it
    parked_key: str = ""  # of a checkpoint taken of it: `snapshot_key`, but for `sizes_mib`
    parked_parts: dict[str, str] = field(default_factory=dict)

    @property
    def socket_path(self) -> Path:
        """Where the worker listens before `start`, and the runner dials."""
        return self.folder / "var" / "ctl" / "s"

    async def start(self, checkpoint: Path | None = None) -> RunningContainer:
        """Start the engine, with the `checkpoint` of a container of the same key in place of a boot.

        Raises what `Engine.start` raises. After a failed boot the folder and all else is removed; after a failed restore it
        is as it was, to be started again or removed.
        """
        if self.socket_path.exists():
            self.socket_path.chmod(0o666)  # for the container's uid; other users cannot reach into the folder
        spec = self._spec()
        if self.fork_key and isinstance(self.engine, ProcessEngine):
            place = (spec.arguments[-1], spec.working_folder, self.folder.parent)
            self.engine.fork_servers.note(fork_plan(self.fork_key, self.plan, self.bundle, *place))
        try:
            container = await self.engine.start(spec, checkpoint)
        except BaseException:
            if checkpoint is None:
                await finish(self.remove())
            raise
        return RunningContainer(
            container=container,
            folder=self.folder,
            socket_path=self.socket_path,
            python=list(self.plan.python),
            environment=dict(spec.environment),
            links=dict(self.volumes.runner_links),
            working_folder=self.plan.working_folder,
            notes=list(dict.fromkeys([*self.notes, *self.plan.notes, *self.made.layer.notes, *container.notes])),
            network=container.network,
            engine=self.engine.info,
            layer=self.made.layer,
            forked=isinstance(container, ContainerBase) and container.forked,
        )

    @property
    def warm_key(self) -> str:
        """What a container that waits in a warm pool must be like to be given to this request; "" where none waits."""
        return self.snapshot_key or self.boot_key

    def set_key(self) -> None:
        """Set `key_parts` and the keys. Blocks for milliseconds."""
        if isinstance(self.engine, ProcessEngine):
            self.fork_key = fork_key(self.request.image, self.plan, self.bundle, _PACKAGES)
        self.sizes_mib = 0
        spec = self._spec()
        if parts := self.engine.snapshot_parts(spec):
            self.parked_parts = self.key_parts = self._key_parts(parts)
            self.parked_key = self.snapshot_key = snapshot_key(self.key_parts)
        elif parts := self.engine.boot_parts(spec):
            self.boot_key = snapshot_key(self._key_parts(parts))

    def take_sizes(self, sizes_mib: int) -> None:
        """Before `start`: have the sizes inside that a parked session has, whatever memory is asked for now; 0 for those of its
        own memory. `parked_key` is then what that session's is, if all else is as it was. Blocks for milliseconds."""
        if sizes_mib == self.sizes_mib:
            return
        self.sizes_mib = sizes_mib
        self.parked_parts = self._key_parts(self.engine.snapshot_parts(self._spec())) if self.snapshot_key else {}
        self.parked_key = snapshot_key(self.parked_parts)

    @property
    def parked_sizes_mib(self) -> int:
        """The `sizes_mib` that a checkpoint of it has."""
        return self.sizes_mib or memory_class_mib(self.request.resources.memory_mib)

    def _key_parts(self, engine_parts: dict[str, str]) -> dict[str, str]:
        image = image_parts(self.request.image, _PACKAGES)
        if self.image is not None:
            image = built_image_parts(self.image.id, self.image.instance, self.plan.environment, _PACKAGES)
        memory = self.sizes_mib or memory_class_mib(self.request.resources.memory_mib)
        parts = {**engine_parts, **image, "memory": f"{memory} MiB or more, less than {2 * memory}"}
        if self.bundle is not None:
            parts["bundle"] = self.bundle.packages.name
        return parts

    def sources(self) -> Sources:
        """What lies at its mounts' sources now, for `Runtime.assign`. Blocks for milliseconds."""
        return sources_of(self._spec().mounts)

    @property
    def layer_keys(self) -> list[str]:
        """The keys of the image's layers, for what is kept of this container."""
        return list(self.image.keys) if self.image is not None else []

    def volume_places(self) -> VolumePlaces:
        """Where its volumes are shown: fill it before `start`, and say with `show_volumes` how they are reached."""
        info, root = self.engine.info, os.geteuid() == 0
        return VolumePlaces(
            self.folder, (self.plan.uid, self.plan.gid), root and info.name == "gvisor", info.isolates,
            tuple(all_mounts(self._spec())) if info.isolates else (),
        )  # fmt: skip

    def show_volumes(self, root_links: dict[str, str], runner_links: dict[str, str], door: str) -> None:
        """See `ShownVolumes`."""
        self.volumes = ShownVolumes(root_links, runner_links, door)

    async def remove(self) -> None:
        """Remove it without having started it. Idempotent."""
        await self.remover.remove(load_record(self.folder) or ContainerRecord(id=self.request.container), self.folder)

    def _spec(self) -> ContainerSpec:
        resources, plan = self.request.resources, self.plan
        sizes_mib = self.sizes_mib or memory_class_mib(resources.memory_mib)
        isolated = self.engine.info.isolates
        runner = RUNNER if isolated else str(_PACKAGES)
        runner_mount = Mount(f"{RUNNER}/cellburst_runner", str(_PACKAGES / "cellburst_runner"))
        bin_folder = BIN if isolated else str(self.folder / "bin")
        environment = {
            **plan.environment,
            **self.grant.environment,
            "PATH": f"{bin_folder}:{plan.environment.get('PATH', os.defpath)}",
            "CELLBURST_VAR": VAR if isolated else str(self.folder / "var"),
            "CELLBURST_CONTAINER": self.request.container,
        }
        if self.volumes.door:
            environment["CELLBURST_VOLUME_DOOR"] = self.volumes.door
        bundle_mounts = []
        if self.bundle is not None:
            shown = f"{SHOWN}/{self.bundle.minor}" if isolated else str(self.bundle.packages)
            environment["CELLBURST_BUNDLE"] = shown
            bundle_mounts = [Mount(shown, str(self.bundle.packages))]
        # Also without GPUs: one template then serves containers with and without.
        bin_mounts = [Mount(BIN, str(self.folder / "bin"))] if isolated else []
        volumes = Mount(VOLUMES_SHOWN, str(self.folder / VOLUMES), read_only=False, own_handles=True)
        return ContainerSpec(
            id=self.request.container,
            folder=self.folder,
            arguments=(*plan.python, "-I", "-S", "-B", f"{runner}/cellburst_runner/__main__.py"),
            environment=environment,
            working_folder=plan.working_folder,
            mounts=(
                *plan.mounts,
                *self.made.mounts,
                runner_mount,
                *bundle_mounts,
                *bin_mounts,
                *([volumes] if isolated else []),
            ),
            links=plan.links,
            root_files=plan.root_files,
            cpu=resources.cpu,
            memory_mib=resources.memory_mib,
            sizes_mib=sizes_mib,
            pids=max(LEAST_PIDS, min(PIDS, sizes_mib // MIB_PER_PID)),
            most_pids=PIDS,
            uid=plan.uid,
            gid=plan.gid,
            fork_key=self.fork_key,
            network="none" if resources.network == "none" else "outbound",
            devices=self.grant,
            layers=tuple(self.image.layers) if self.image is not None else (),
            own_folders=plan.own_folders,
            volume_links=self.volumes.root_links if isolated else {},
        )
