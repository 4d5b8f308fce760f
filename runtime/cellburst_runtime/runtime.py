"""Entry of the runtime: which engines and GPUs this machine has, and containers from their request to their removal.

request ── prepare: folder, mirror plan, layer, GPUs ──▶ PreparedContainer (the worker listens on its socket)
        ── start:   spec, engine (from a checkpoint) ──▶ RunningContainer ── container.remove() ──▶ nothing left
        ── assign:  a RunningContainer that was made beforehand becomes another request's

The containers themselves are in `prepared`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import GpuShown, GpuUsage, Inventory, MirrorSpec, StartContainer

from .assignment import Sources, Unlike, check_layer, check_sources
from .brought_folders import BroughtFolders
from .bundle import Bundle, bundle_for_image, bundle_for_mirror
from .devices import Devices, no_gpus
from .devices_nvidia import NvidiaDevices
from .devices_simulated import SimulatedDevices
from .engine import DeviceGrant, Engine
from .engine_base import ContainerBase, finish
from .engine_gvisor import GvisorEngine
from .engine_process import ProcessEngine
from .engines import Choice, find_engines
from .fork_servers import ForkServers
from .image_build import BuiltImage, Files
from .image_equipment import BuildAids
from .image_logs import Log
from .image_plan import plan_image, recipe_of, shown_spec
from .image_secrets import BuildSecrets
from .images import Images, cannot_run, runs_images
from .layer_make import make_layer, make_store
from .mirror import MirrorPlan, machine_id, plan_mirror
from .network import Networks
from .oci import host_limits
from .prepared import PreparedContainer, RunningContainer
from .record import CONTAINERS, ContainerRecord, load_record
from .removal import Remover, remove_folder
from .snapshots import SnapshotStore
from .together import both

__all__ = ["PreparedContainer", "RunningContainer", "Runtime"]

STORES = "stores"  # below the data folder: disk images of layers, which must not lie in a memory file system
SNAPSHOTS = "snapshots"  # below the data folder
FOLDERS = "folders"  # below the data folder: notebooks' folders of other machines
SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket without its final NUL, unix(7)
_NO_DRIVER = "The driver's libraries of this machine are not shown in containers of images yet: CUDA finds no GPU."


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
        image_limit_bytes: int | None = None,
    ) -> None:
        self.snapshots = snapshots
        self.images = Images(
            data_folder, choice.engines, choice.cgroups, snapshots, image_limit_bytes, self._grant_to_build
        )  # fmt: skip
        self.run_folder = run_folder
        self.data_folder = data_folder
        self._folders = BroughtFolders(data_folder / FOLDERS)
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
        snapshot_limit_bytes: int | None = None, image_limit_bytes: int | None = None,
    ) -> Runtime:  # fmt: skip
        """Find this machine's tools, engines (`engine`: only the one of that name) and GPUs.

        `snapshot_limit_bytes` bounds what `snapshots` keeps on disk, `image_limit_bytes` what `images` does; None chooses by
        the disk.

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
        return cls(run_folder, data_folder, choice, real, simulated, networks, snapshots, image_limit_bytes)

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

    async def build_image(
        self, request: StartContainer, files: Files, log: Log, secrets: BuildSecrets | None = None,
        aids: BuildAids | None = None,
    ) -> BuiltImage | None:  # fmt: skip
        """Build and hold the image of a container, for `prepare`; None where it is a mirror. Release it when the container is
        removed. `files`, `log`, `secrets` and `aids` as for `ImageBuilder.build`. Raises the error tree; before any work where
        the engine that the container would have cannot run it (NOT_YET)."""
        recipe = recipe_of(request)
        if recipe is None:
            return None
        gpus = await asyncio.to_thread(self._leased, request.gpus)
        engine, _ = self._engine_for(request, gpus)
        if not runs_images(engine.info):
            raise cannot_run(f"the engine {engine.info.name}")
        image = await self.images.build(recipe, files, log, secrets, aids)
        try:
            if recipe.folder is not None:
                await self._folders.bring(recipe.folder, files)
        except BaseException:
            image.release()
            raise
        return image

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
        folder.mkdir(mode=0o700)
        record, overlay = ContainerRecord(id=request.container, engine=engine.info.name), os.geteuid() == 0
        try:
            record.network = isinstance(engine, GvisorEngine) and request.resources.network != "none"
            record.save(folder)
            if isinstance(engine, GvisorEngine):
                engine.begin(request.container, network=record.network)
            # Neither needs the other, and each is as long.
            (spec, plan, bundle), _ = await both(
                self._plan(request, image),
                make_store(
                    record, folder, overlay=overlay, memory_mib=request.resources.memory_mib,
                    store_folder=self.data_folder / STORES, store_image=store_image,
                ),
            )  # fmt: skip
            made = await make_layer(
                spec, folder, engine=engine.info.name, overlay=overlay, owner=(plan.uid, plan.gid),
                destination=plan.working_folder,
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
        """Make a container that was made beforehand and given to nobody this request's: its limits, GPUs and what its runner
        is told. Folder, layer, network, group and id on the host stay as they are. `sources` is what
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
            snapshot_key="", boot_key="",
        )  # fmt: skip
        await asyncio.to_thread(taken.set_key)
        if not taken.warm_key or taken.warm_key != prepared.warm_key:
            raise Unlike
        await asyncio.to_thread(check_sources, sources, taken._spec().mounts)
        await asyncio.to_thread(check_layer, prepared.made, prepared.folder, spec, plan.working_folder)
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
        await asyncio.to_thread(self._folders.show_empty)
        spec, notes = shown_spec(request, self._folders.path)
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
        left: list[tuple[ContainerRecord, Path]] = []
        kept = set(keep)
        for folder in sorted((self.run_folder / CONTAINERS).iterdir()):
            record = load_record(folder) or ContainerRecord(id=folder.name)
            if record.id in kept or folder.name in kept:
                kept.add(record.id)
                continue
            left.append((record, folder))
        # At the same time: each may wait for uploads to a bucket whose server hangs.
        ends = await asyncio.gather(*(self._remover.remove(*one) for one in left), return_exceptions=True)
        for failed in ends:
            if failed is not None:
                raise failed
        await self.images.collect_garbage()
        await self._networks.collect_garbage(kept)
        await asyncio.to_thread(self.snapshots.collect_garbage)
        await asyncio.to_thread(self._folders.collect_garbage)
        for image in (self.data_folder / STORES).glob("*.img"):
            if image.stem not in kept:
                image.unlink()
        return [record.id for record, _ in left]

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

    def _grant_to_build(self, uuids: Sequence[str], folder: Path) -> DeviceGrant:
        """What a build's step gets to use GPUs, which it does in gVisor."""
        gpus = self._leased(uuids)
        real = any(not gpu.simulated for gpu in gpus)
        if real and not any(info.name == "gvisor" and info.gpu for info in self.engines):
            raise error(
                ErrorCode.NO_SUCH_HARDWARE, "gVisor cannot give this machine's GPUs to a build's step",
                next="`cellburst status` says why; build it on another worker, or without gpu=",
            )  # fmt: skip
        return self._grant(gpus, folder, "gvisor")

    def _grant(self, gpus: Sequence[GpuShown], folder: Path, engine: str) -> DeviceGrant:
        if not gpus:
            return no_gpus()
        devices: Devices = self._simulated if gpus[0].simulated else self._real
        return devices.grant(gpus, folder, engine=engine)
