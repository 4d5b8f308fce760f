"""Entry of the runtime: which engines and GPUs this machine has, and containers from their request to their removal.

request ── prepare: folder, mirror plan, layer, GPUs ──▶ PreparedContainer (the worker listens on its socket)
        ── start:   spec, engine ──▶ RunningContainer ── container.remove() ──▶ nothing left
"""

from __future__ import annotations

import asyncio
import os
import platform
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import EngineInfo, GpuShown, GpuUsage, Inventory, StartContainer

from .devices import Devices, no_gpus
from .devices_nvidia import NvidiaDevices
from .devices_simulated import BIN, SimulatedDevices
from .engine import Container, ContainerSpec, DeviceGrant, Engine, Mount
from .engine_base import finish
from .engines import Choice, find_engines
from .layer import Layer
from .layer_make import MadeLayer, make_layer
from .mirror import MirrorPlan, machine_id, plan_mirror
from .network import Networks
from .record import ContainerRecord, load_record
from .removal import Remover, remove_folder

CONTAINERS = "containers"  # below the run folder: one folder for each container
STORES = "stores"  # below the data folder: disk images of layers, which must not lie in a memory file system
RUNNER = "/cellburst/runner"
VAR = "/cellburst/var"
SOCKET_PATH_BYTES = 107  # sun_path of a Unix socket without its final NUL, unix(7)
# A forked executor costs a sandbox up to 16 MiB (measured): with more processes than this a fork bomb would end the
# container by its memory limit, instead of getting EAGAIN.
PIDS, MIB_PER_PID, LEAST_PIDS = 1024, 24, 64
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

    @property
    def socket_path(self) -> Path:
        """Where the worker listens before `start`, and the runner dials."""
        return self.folder / "var" / "ctl" / "s"

    async def start(self) -> RunningContainer:
        """Start the engine. Raises what `Engine.start` raises; the folder and all else is removed then."""
        if self.socket_path.exists():
            self.socket_path.chmod(0o666)  # for the container's uid; other users cannot reach into the folder
        spec = self._spec()
        try:
            container = await self.engine.start(spec)
        except BaseException:
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
        )

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
        return ContainerSpec(
            id=self.request.container,
            folder=self.folder,
            arguments=(*plan.python, "-I", "-S", "-B", f"{runner}/cellburst_runner/__main__.py"),
            environment=environment,
            working_folder=plan.working_folder,
            mounts=(*plan.mounts, *self.made.mounts, runner_mount),
            links=plan.links,
            root_files=plan.root_files,
            cpu=resources.cpu,
            memory_mib=resources.memory_mib,
            pids=max(LEAST_PIDS, min(PIDS, resources.memory_mib // MIB_PER_PID)),
            uid=plan.uid,
            gid=plan.gid,
            network="none" if resources.network == "none" else "outbound",
            devices=self.grant,
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
    ) -> None:
        self.run_folder = run_folder
        self.data_folder = data_folder
        self.engines = [engine.info for engine in choice.engines]
        self._choice = choice
        self._real = real
        self._simulated = simulated
        self._networks = networks
        self._remover = Remover(choice.cgroups, networks)

    @classmethod
    async def create(cls, *, run_folder: Path, data_folder: Path, simulate_gpus: str = "", engine: str = "") -> Runtime:
        """Find this machine's tools, engines (`engine`: only the one of that name) and GPUs.

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
        return cls(run_folder, data_folder, choice, real, simulated, networks)

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

    async def prepare(self, request: StartContainer, *, folder_name: str = "") -> PreparedContainer:
        """Make the container's folder, mirror plan, layer and GPU grant. Raises the error tree; leaves nothing then."""
        folder = self.run_folder / CONTAINERS / (folder_name or request.container)
        if len(os.fsencode(folder / "var" / "ctl" / "s")) > SOCKET_PATH_BYTES:
            raise error(
                ErrorCode.START_FAILED, f"the run folder's path is too long for a Unix socket: {folder}",
                allowed=f"{SOCKET_PATH_BYTES} bytes with the socket's name", next="set CELLBURST_RUN to a shorter path",
            )  # fmt: skip
        gpus = await asyncio.to_thread(self._leased, request.gpus)
        engine, notes = self._engine_for(request, gpus)
        shared = not request.image.machine_id or request.image.machine_id == machine_id()
        plan = await asyncio.to_thread(
            plan_mirror, request.image, shared_machine=shared, cpu=request.resources.cpu,
            private_folders=(self.run_folder, self.data_folder), cache_folder=self.data_folder / "caches",
        )  # fmt: skip
        folder.mkdir(mode=0o700)
        record = ContainerRecord(id=request.container, engine=engine.info.name)
        try:
            record.save(folder)
            made = await make_layer(
                request.image, record, folder, engine=engine.info.name, overlay=os.geteuid() == 0,
                owner=(plan.uid, plan.gid), memory_mib=request.resources.memory_mib, store_folder=self.data_folder / STORES,
                destination=plan.working_folder,
            )  # fmt: skip
            grant = await asyncio.to_thread(self._grant, gpus, folder, engine.info.name)
        except BaseException as problem:
            await finish(self._remover.remove(record, folder))
            if isinstance(problem, OSError):
                code = ErrorCode.DISK_FULL if problem.errno == 28 else ErrorCode.START_FAILED
                raise error(code, f"container {request.container} could not be prepared: {problem}") from problem
            raise
        return PreparedContainer(request, folder, engine, plan, made, grant, self._remover, notes)

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
        await self._networks.collect_garbage(kept)
        for image in (self.data_folder / STORES).glob("*.img"):
            if image.stem not in kept:
                image.unlink()
        return removed

    async def close(self) -> None:
        """Let go of what this process holds. Containers are not ended: remove them first."""
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
