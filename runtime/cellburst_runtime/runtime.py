"""Entry of the runtime: which engines and GPUs this machine has, and containers from their request to their removal.

request ── prepare: folder, mirror plan, layer, GPUs ──▶ PreparedContainer (the worker listens on its socket)
        ── start:   spec, engine (from a checkpoint) ──▶ RunningContainer ── container.remove() ──▶ nothing left
        ── assign:  a RunningContainer that was made beforehand becomes another request's

Longer than a file should be: a container's three states and what makes them are read together.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import EngineInfo, GpuShown, GpuUsage, Inventory, MirrorSpec, StartContainer

from .assignment import Sources, Unlike, check_layer, check_sources, sources_of
from .bundle import SHOWN, Bundle, bundle_for_image, bundle_for_mirror
from .devices import Devices, no_gpus
from .devices_nvidia import NvidiaDevices
from .devices_simulated import BIN, SimulatedDevices
from .engine import Container, ContainerSpec, DeviceGrant, Engine, Mount
from .engine_base import ContainerBase, finish
from .engine_process import ProcessEngine
from .engines import Choice, find_engines
from .fork_plan import fork_key, fork_plan
from .fork_servers import ForkServers
from .image_build import BuiltImage, Files, Log
from .image_plan import plan_image, recipe_of, shown_spec
from .images import Images, cannot_run, runs_images
from .layer import Layer, OverlayLayer
from .layer_keep import keep_store
from .layer_make import MadeLayer, make_layer
from .live_files import live_files
from .mirror import MirrorPlan, machine_id, plan_mirror
from .network import Networks
from .oci import host_limits, memory_class_mib
from .record import ContainerRecord, load_record
from .removal import Remover, remove_folder
from .snapshot_key import built_image_parts, image_parts, snapshot_key
from .snapshots import LiveFile, SnapshotStore

CONTAINERS = "containers"  # below the run folder: one folder for each container
STORES = "stores"  # below the data folder: disk images of layers, which must not lie in a memory file system
SNAPSHOTS = "snapshots"  # below the data folder
RUNNER = "/cellburst/runner"
VAR = "/cellburst/var"
SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket without its final NUL, unix(7)
# A forked executor costs a sandbox up to 16 MiB (measured): with more processes than this a fork bomb would end the
# container by its memory limit, instead of getting EAGAIN.
PIDS, MIB_PER_PID, LEAST_PIDS = 1024, 24, 64
_PACKAGES = Path(__file__).resolve().parents[1]
_NO_DRIVER = "The driver's libraries of this machine are not shown in containers of images yet: CUDA finds no GPU."


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
    image: BuiltImage | None = None  # None for a mirror; whoever built it holds it until the container is removed

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
            links={},
            working_folder=self.plan.working_folder,
            notes=list(dict.fromkeys([*self.notes, *self.plan.notes, *self.made.layer.notes, *container.notes])),
            network=container.network,
            engine=self.engine.info,
            layer=self.made.layer,
            forked=isinstance(container, ContainerBase) and container.forked,
        )

    def set_key(self) -> None:
        """Set `key_parts`, `snapshot_key` and `fork_key`. Blocks for milliseconds."""
        if isinstance(self.engine, ProcessEngine):
            self.fork_key = fork_key(self.request.image, self.plan, self.bundle, _PACKAGES)
        parts = self.engine.snapshot_parts(self._spec())
        if parts:
            image = image_parts(self.request.image, _PACKAGES)
            if self.image is not None:
                image = built_image_parts(self.image.id, self.image.instance, self.plan.environment, _PACKAGES)
            memory = memory_class_mib(self.request.resources.memory_mib)
            self.key_parts = {**parts, **image, "memory": f"{memory} MiB or more, less than {2 * memory}"}
            if self.bundle is not None:
                self.key_parts["bundle"] = self.bundle.packages.name
            self.snapshot_key = snapshot_key(self.key_parts)

    def sources(self) -> Sources:
        """What lies at its mounts' sources now, for `Runtime.assign`. Blocks for milliseconds."""
        return sources_of(self._spec().mounts)

    @property
    def layer_keys(self) -> list[str]:
        """The keys of the image's layers, for what is kept of this container."""
        return list(self.image.keys) if self.image is not None else []

    async def remove(self) -> None:
        """Remove it without having started it. Idempotent."""
        await self.remover.remove(load_record(self.folder) or ContainerRecord(id=self.request.container), self.folder)

    def _spec(self) -> ContainerSpec:
        resources, plan = self.request.resources, self.plan
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
        bundle_mounts = []
        if self.bundle is not None:
            shown = f"{SHOWN}/{self.bundle.minor}" if isolated else str(self.bundle.packages)
            environment["CELLBURST_BUNDLE"] = shown
            bundle_mounts = [Mount(shown, str(self.bundle.packages))]
        # Also without GPUs: one template then serves containers with and without.
        bin_mounts = [Mount(BIN, str(self.folder / "bin"))] if isolated else []
        return ContainerSpec(
            id=self.request.container,
            folder=self.folder,
            arguments=(*plan.python, "-I", "-S", "-B", f"{runner}/cellburst_runner/__main__.py"),
            environment=environment,
            working_folder=plan.working_folder,
            mounts=(*plan.mounts, *self.made.mounts, runner_mount, *bundle_mounts, *bin_mounts),
            links=plan.links,
            root_files=plan.root_files,
            cpu=resources.cpu,
            memory_mib=resources.memory_mib,
            pids=max(LEAST_PIDS, min(PIDS, memory_class_mib(resources.memory_mib) // MIB_PER_PID)),
            uid=plan.uid,
            gid=plan.gid,
            fork_key=self.fork_key,
            network="none" if resources.network == "none" else "outbound",
            devices=self.grant,
            layers=tuple(self.image.layers) if self.image is not None else (),
            own_folders=plan.own_folders,
        )


class Runtime:
    """The containers of one machine. One worker has one; make it with `Runtime.create`."""

    def __init__(
        self,
        run_folder: Path,
        data_folder: Path,
        choice: Choice,
        real: NvidiaDevices,
        simulated: SimulatedDevices,
        networks: Networks,
        snapshots: SnapshotStore,
    ) -> None:
        self.snapshots = snapshots
        self.images = Images(data_folder, choice.engines, choice.cgroups, snapshots)
        self.run_folder = run_folder
        self.data_folder = data_folder
        self.engines = [engine.info for engine in choice.engines]
        self._choice = choice
        self._real = real
        self._simulated = simulated
        self._networks = networks
        self._remover = Remover(choice.cgroups, networks)
        # in place of templates, for `PreparedContainer.fork_key`; empty where the process engine is not used
        self.fork_servers = next(
            (engine.fork_servers for engine in choice.engines if isinstance(engine, ProcessEngine)), ForkServers()
        )

    @classmethod
    async def create(
        cls, *, run_folder: Path, data_folder: Path, simulate_gpus: str = "", engine: str = "",
        snapshot_limit_bytes: int | None = None,
    ) -> Runtime:  # fmt: skip
        """Find this machine's tools, engines (`engine`: only the one of that name) and GPUs.

        `snapshot_limit_bytes` bounds what `snapshots` keeps on disk; None chooses by the disk.

        Raises RequestError for an engine that is not here (BAD_ARGUMENT) and for `simulate_gpus` (UNKNOWN_GPU).
        """
        (run_folder / CONTAINERS).mkdir(parents=True, exist_ok=True, mode=0o700)
        data_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        real = await asyncio.to_thread(NvidiaDevices)
        shown = await asyncio.to_thread(real.gpus)
        simulated = SimulatedDevices(simulate_gpus, first_index=len(shown), machine_id=machine_id())
        networks = Networks(run_folder)
        choice = await find_engines(
            run_folder=run_folder,
            data_folder=data_folder,
            networks=networks,
            only=engine,
            driver_version=real.driver_version,
        )
        snapshots = await asyncio.to_thread(SnapshotStore, data_folder / SNAPSHOTS, snapshot_limit_bytes)
        return cls(run_folder, data_folder, choice, real, simulated, networks, snapshots)

    def inventory(self) -> Inventory:
        """What there is to lease now. Blocks for milliseconds (NVML)."""
        gpus = [*self._real.gpus(), *self._simulated.gpus()]
        notes = [*self._choice.notes, *self._real.notes]
        if any(not gpu.simulated for gpu in gpus) and not self.engines[0].gpu:
            other = next((info for info in self.engines if info.gpu), None)
            notes.append(
                f"Containers with a GPU use the engine {other.name}: {self.engines[0].name} cannot give this GPU to a container."
                if other is not None
                else f"The engine {self.engines[0].name} cannot give this machine's GPUs to a container."
            )
        return Inventory(
            hostname=socket.gethostname(),
            cpu_cores=float(len(os.sched_getaffinity(0))),
            memory_mib=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (1024 * 1024),
            gpus=gpus,
            engines=list(self.engines),
            python_versions=[platform.python_version()],
            notes=notes,
        )

    def gpu_usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """Live figures of the GPUs, in no order; unknown ones are left out. Blocks for milliseconds: call it in a thread."""
        return [*self._real.usage(uuids), *self._simulated.usage(uuids)]

    async def build_image(self, request: StartContainer, files: Files, log: Log) -> BuiltImage | None:
        """Build and hold the image of a container, for `prepare`; None where it is a mirror. Release it when the container is
        removed. `files` and `log` as for `ImageBuilder.build`. Raises the error tree; before any work where the engine that
        the container would have cannot run it (NOT_YET)."""
        recipe = recipe_of(request)
        if recipe is None:
            return None
        gpus = await asyncio.to_thread(self._leased, request.gpus)
        engine, _ = self._engine_for(request, gpus)
        if not runs_images(engine.info):
            raise cannot_run(f"the engine {engine.info.name}")
        return await self.images.build(recipe, files, log)

    async def prepare(
        self, request: StartContainer, *, folder_name: str = "", store_image: Path | None = None,
        image: BuiltImage | None = None,
    ) -> PreparedContainer:  # fmt: skip
        """Make the container's folder, mirror plan, layer and GPU grant. Raises the error tree; leaves nothing then.

        `image` is what `build_image` gave for this request; it stays the caller's, to be released after the container.

        `store_image`, on the data folder's disk, is what `keep_store` left of an earlier container (`SnapshotStore.store_copy`
        makes one): it is moved in as this one's store and goes with it. Where the container has no store of that kind, or
        something fails before that, it stays where it is.
        """
        folder = self.run_folder / CONTAINERS / (folder_name or request.container)
        if len(os.fsencode(folder / "var" / "ctl" / "s")) > SOCKET_PATH_BYTES:
            raise error(
                ErrorCode.START_FAILED, f"the run folder's path is too long for a Unix socket: {folder}",
                allowed=f"{SOCKET_PATH_BYTES} bytes with the socket's name", next="set CELLBURST_RUN to a shorter path",
            )  # fmt: skip
        gpus = await asyncio.to_thread(self._leased, request.gpus)
        engine, notes = self._engine_for(request, gpus)
        if image is None and recipe_of(request) is not None:
            raise ValueError("the image of this request is not built")
        spec, plan, bundle = await self._plan(request, image)
        folder.mkdir(mode=0o700)
        record = ContainerRecord(id=request.container, engine=engine.info.name)
        try:
            record.save(folder)
            made = await make_layer(
                spec, record, folder, engine=engine.info.name, overlay=os.geteuid() == 0,
                owner=(plan.uid, plan.gid), memory_mib=request.resources.memory_mib, store_folder=self.data_folder / STORES,
                destination=plan.working_folder, store_image=store_image,
            )  # fmt: skip
            grant = await asyncio.to_thread(self._grant, gpus, folder, engine.info.name)
        except BaseException as problem:
            await finish(self._remover.remove(record, folder))
            if isinstance(problem, OSError):
                code = ErrorCode.DISK_FULL if problem.errno == 28 else ErrorCode.START_FAILED
                raise error(code, f"container {request.container} could not be prepared: {problem}") from problem
            raise
        notes += [_NO_DRIVER] if image is not None and any(not gpu.simulated for gpu in gpus) else []
        prepared = PreparedContainer(
            request, folder, engine, plan, made, grant, self._remover, notes, bundle, image=image
        )  # fmt: skip
        try:
            await asyncio.to_thread(prepared.set_key)
        except BaseException:
            await finish(prepared.remove())
            raise
        return prepared

    async def assign(
        self, prepared: PreparedContainer, running: RunningContainer, request: StartContainer, *, sources: Sources,
        image: BuiltImage | None = None,
    ) -> tuple[PreparedContainer, RunningContainer]:  # fmt: skip
        """Make a container that was restored from a template and given to nobody this request's: its limits, GPUs and what its
        runner is told. Folder, layer, network, group and id on the host stay as they are. `sources` is what
        `prepared.sources()` was when it was made.

        Raises `Unlike` where its key is not the request's: it is untouched then. Raises the error tree (CONFLICT: what it
        shows is out of date): then it is of no use to anyone.
        """
        gpus = await asyncio.to_thread(self._leased, request.gpus)
        engine, notes = self._engine_for(request, gpus)
        if engine is not prepared.engine or any(not gpu.simulated for gpu in gpus):
            raise Unlike
        spec, plan, bundle = await self._plan(request, image)
        taken = replace(
            prepared, request=request, plan=plan, grant=no_gpus(), notes=notes, bundle=bundle, image=image, key_parts={},
            snapshot_key="",
        )  # fmt: skip
        await asyncio.to_thread(taken.set_key)
        if not taken.snapshot_key or taken.snapshot_key != prepared.snapshot_key:
            raise Unlike
        await asyncio.to_thread(check_sources, sources, taken._spec().mounts)
        await asyncio.to_thread(check_layer, prepared.made.layer, prepared.folder, spec)
        if gpus:
            taken.grant = await asyncio.to_thread(self._grant, gpus, prepared.folder, engine.info.name)
        given, container = taken._spec(), running.container
        if isinstance(container, ContainerBase):
            await asyncio.to_thread(container.limit, host_limits(given))
        told = dict.fromkeys([*notes, *plan.notes, *prepared.made.layer.notes])
        return taken, replace(
            running, python=list(plan.python), environment=dict(given.environment), working_folder=plan.working_folder,
            notes=list(told),
        )  # fmt: skip

    async def _plan(
        self, request: StartContainer, image: BuiltImage | None
    ) -> tuple[MirrorSpec, MirrorPlan, Bundle | None]:
        """What the container shows, what of it is the kernel's machine's, and the packages its executor lacks."""
        private, caches = (self.run_folder, self.data_folder), self.data_folder / "caches"
        if image is None:
            shared = not request.image.machine_id or request.image.machine_id == machine_id()
            plan = await asyncio.to_thread(
                plan_mirror, request.image, shared_machine=shared, cpu=request.resources.cpu, private_folders=private,
                cache_folder=caches,
            )  # fmt: skip
            return request.image, plan, await bundle_for_mirror(request.image, self.data_folder)
        spec, notes = shown_spec(request.image)
        plan = await asyncio.to_thread(
            plan_image, spec, image, cpu=request.resources.cpu, private_folders=private, cache_folder=caches
        )
        plan.notes.extend(notes)
        return spec, plan, await bundle_for_image(image, self.data_folder)

    async def start(self, request: StartContainer, *, folder_name: str = "") -> RunningContainer:
        """Prepare and start at once, for a container that nobody has to listen to."""
        return await (await self.prepare(request, folder_name=folder_name)).start()

    async def collect_garbage(self, keep: Sequence[str] | set[str] = ()) -> list[str]:
        """End and remove every container of this run folder whose id is not in `keep`; returns the ids removed.

        Called at a worker's start, before any container is started: also finds what a killed worker left half made.
        """
        removed: list[str] = []
        kept = set(keep)
        for folder in sorted((self.run_folder / CONTAINERS).iterdir()):
            record = load_record(folder) or ContainerRecord(id=folder.name)
            if record.id in kept or folder.name in kept:
                kept.add(record.id)
                continue
            await self._remover.remove(record, folder)
            removed.append(record.id)
        await self.images.collect_garbage()
        await self._networks.collect_garbage(kept)
        await asyncio.to_thread(self.snapshots.collect_garbage)
        for image in (self.data_folder / STORES).glob("*.img"):
            if image.stem not in kept:
                image.unlink()
        return removed

    async def close(self) -> None:
        """Let go of what this process holds. Containers are not ended: remove them first."""
        await self.fork_servers.close()
        await asyncio.to_thread(self._real.close)
        if not any((self.run_folder / CONTAINERS).iterdir()):
            await self._networks.close()
            await asyncio.to_thread(remove_folder, self.run_folder / "runsc")

    def _leased(self, uuids: Sequence[str]) -> list[GpuShown]:
        known = {gpu.uuid: gpu for gpu in (*self._real.gpus(), *self._simulated.gpus())}
        if missing := [uuid for uuid in uuids if uuid not in known]:
            raise error(
                ErrorCode.NO_SUCH_HARDWARE, f"this machine has no GPU {', '.join(missing)}",
                allowed=", ".join(known) or "no GPU", next="run the cell again: it is placed anew",
            )  # fmt: skip
        return [known[uuid] for uuid in uuids]

    def _engine_for(self, request: StartContainer, gpus: Sequence[GpuShown]) -> tuple[Engine, list[str]]:
        """The engine asked for, else the first that can do it. A real GPU needs one that can give it to a container."""
        real_gpu = any(not gpu.simulated for gpu in gpus)
        for engine in self._choice.engines:
            if request.engine not in ("", engine.info.name) or (real_gpu and not engine.info.gpu):
                continue
            first = self._choice.engines[0]
            if request.engine:
                return engine, []
            if engine is first:
                return engine, [self._choice.fallback] if self._choice.fallback else []
            return engine, [f"The engine is {engine.info.name}: {first.info.name} cannot give this GPU to a container."]
        names = ", ".join(info.name + (" (no GPU)" if real_gpu and not info.gpu else "") for info in self.engines)
        raise error(
            ErrorCode.NO_SUCH_HARDWARE,
            f"no engine of this machine can start it: engine={request.engine or 'any'}",
            allowed=names,
            next="ask for another engine, or for no GPU",
        )

    def _grant(self, gpus: Sequence[GpuShown], folder: Path, engine: str) -> DeviceGrant:
        if not gpus:
            return no_gpus()
        devices: Devices = self._simulated if gpus[0].simulated else self._real
        return devices.grant(gpus, folder, engine=engine)
