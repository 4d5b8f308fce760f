"""A runtime for worker tests: the real runner as a plain child process, without images, limits or isolation.

It has what a worker uses of `cellburst_runtime.runtime.Runtime`, so that tests of the worker need neither root nor an
engine's self-test; the tests marked gvisor use the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, ErrorInfo, error
from cellburst_protocol.messages import EngineInfo, FileChange, GpuShown, GpuUsage, Inventory, StartContainer
from cellburst_runtime.assignment import Sources, Unlike
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine import CheckpointFailed, ContainerExit, ContainerSpec, Usage
from cellburst_runtime.fork_servers import ForkServers
from cellburst_runtime.image_build import BuiltImage, Files
from cellburst_runtime.image_equipment import BuildAids
from cellburst_runtime.image_logs import Log
from cellburst_runtime.image_secrets import BuildSecrets
from cellburst_runtime.images import Images, cannot_run
from cellburst_runtime.snapshots import LiveFile, SnapshotStore

RUNNER = Path(__file__).parents[2] / "runtime" / "cellburst_runner" / "__main__.py"
ENGINE = EngineInfo(name="plain", isolates=False, warning="isolates nothing")


class PlainContainer:
    """`engine.Container` over one process group."""

    def __init__(self, spec: ContainerSpec, process: asyncio.subprocess.Process) -> None:
        self.id, self.spec, self.process = spec.id, spec, process
        self.network, self.notes = "outbound", ["a note of the engine"]
        self.cause: str = "exit"
        self.removed = False
        self.dies_of_checkpoint = self.writes_checkpoint = False
        self.checkpoint_gate: asyncio.Event | None = None

    async def wait(self) -> ContainerExit:
        """Its end."""
        code = await self.process.wait()
        return ContainerExit(code if code >= 0 else None, -code if code < 0 else None, self.cause)  # type: ignore[arg-type]

    async def kill(self) -> None:
        """Its whole group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    async def remove(self) -> None:
        """Folder and all."""
        await self.kill()
        shutil.rmtree(self.spec.folder, ignore_errors=True)
        self.removed = True

    async def usage(self) -> Usage:
        """Fixed figures."""
        return Usage(1.0, 64 << 20, 128 << 20)

    def spare_memory(self, more_mib: int) -> None:
        """There are no limits."""

    async def checkpoint(self, folder: Path) -> None:
        """What the runtime says: a plain process cannot be written to disk. Or what a test says."""
        if self.checkpoint_gate is not None:
            await self.checkpoint_gate.wait()
        if self.writes_checkpoint:
            (folder / "pages").write_bytes(b"memory")
            await self.kill()
            return
        if self.dies_of_checkpoint:
            await self.kill()
        raise CheckpointFailed(
            ErrorInfo(code=ErrorCode.UNAVAILABLE, message="no checkpoint of a plain process"),
            still_running=not self.dies_of_checkpoint,
        )


class FolderLayer:
    """Files of a plain folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def look_again(self) -> None:
        """It is the folder itself."""

    def file_list(self) -> list[FileChange]:
        """All files."""
        return [
            FileChange(path=p.name, size_bytes=p.stat().st_size) for p in sorted(self.folder.iterdir()) if p.is_file()
        ]

    def file_get(self, path: str) -> Path:
        """The file."""
        if not (self.folder / path).is_file():
            raise error(ErrorCode.NOT_FOUND, f"there is no file {path!r}")
        return self.folder / path

    def file_put(self, path: str, source: Path) -> None:
        """A copy."""
        shutil.copyfile(source, self.folder / path)


@dataclass
class PlainRunning:
    """`site.Running`."""

    container: PlainContainer
    working_folder: str
    layer: FolderLayer
    python: list[str] = field(default_factory=lambda: [sys.executable])
    environment: dict[str, str] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    network: str = "outbound"
    engine: EngineInfo = ENGINE
    forked: bool = False

    def live_files(self, paths: Iterable[str]) -> list[LiveFile]:
        """None: nothing is restored."""
        return []

    async def keep_store(self, destination: Path) -> str:
        """There is none."""
        return ""


class PlainPrepared:
    """`site.Prepared`. `key` is what a test says: with one, a checkpoint is tried."""

    def __init__(self, runtime: PlainRuntime, request: StartContainer, folder: Path) -> None:
        self._runtime, self._request, self.folder = runtime, request, folder
        self.socket_path = folder / "var" / "ctl" / "s"
        self.snapshot_key = self.parked_key = runtime.key
        self.fork_key = self.boot_key = ""
        self.warm_key = runtime.key
        self.key_parts = self.parked_parts = {"engine": runtime.key} if runtime.key else {}
        self.parked_sizes_mib = 0
        self.layer_keys: list[str] = []

    def take_sizes(self, sizes_mib: int) -> None:
        """Nothing is restored."""

    def sources(self) -> dict[str, tuple[int, int]]:
        """No mounts."""
        return {}

    async def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def start(self, checkpoint: Path | None = None) -> PlainRunning:
        """Start the runner. A restore fails, after `restore_gate`."""
        if checkpoint is not None:
            self._runtime.restores.append(checkpoint)
            if self._runtime.restore_gate is not None:
                await self._runtime.restore_gate.wait()
            raise error(ErrorCode.START_FAILED, "a plain process cannot be restored")
        if self._runtime.start_gate is not None:
            await self._runtime.start_gate.wait()
        work = self.folder / "work"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "MPL"))}
        environment |= {"CELLBURST_VAR": str(self.folder / "var"), "CELLBURST_CONTAINER": self._request.container}
        environment |= {"HOME": str(work), "IPYTHONDIR": str(self.folder / "ipython")}
        process = await asyncio.create_subprocess_exec(
            *(self._runtime.command or [sys.executable, str(RUNNER)]), env=environment, start_new_session=True
        )
        resources = self._request.resources
        spec = ContainerSpec(
            id=self._request.container, folder=self.folder, arguments=(), environment={}, working_folder=str(work), mounts=(),
            links={}, root_files={}, cpu=resources.cpu, memory_mib=resources.memory_mib,
        )  # fmt: skip
        container = PlainContainer(spec, process)
        self._runtime.containers[spec.id] = container
        return PlainRunning(container, str(work), FolderLayer(work))


class PlainRuntime:
    """`site.RuntimeLike`. `command` replaces the runner; `start_gate` holds starts back until it is set."""

    def __init__(self, run_folder: Path, gpus: Sequence[str] = ()) -> None:
        self.run_folder = run_folder
        self.containers: dict[str, PlainContainer] = {}
        self.command: list[str] = []
        self.start_gate: asyncio.Event | None = None
        self.key = ""
        self.restores: list[Path] = []
        self.restore_gate: asyncio.Event | None = None
        self.fork_servers = ForkServers()
        self.snapshots = SnapshotStore(run_folder.parent / "data" / "snapshots")
        self.images = Images(run_folder.parent / "data", [], Cgroups(), self.snapshots)
        self._gpus = [
            GpuShown(index=i, uuid=uuid, type="A100-80GB", name="simulated", simulated=True)
            for i, uuid in enumerate(gpus)
        ]

    def inventory(self) -> Inventory:
        """A small machine."""
        return Inventory(hostname="test", cpu_cores=4, memory_mib=16384, gpus=self._gpus, engines=[ENGINE])

    def gpu_usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """Fixed figures."""
        return [GpuUsage(uuid=uuid, utilization_ratio=0.5, simulated=True) for uuid in uuids]

    async def build_image(
        self, request: StartContainer, files: Files, log: Log, secrets: BuildSecrets | None = None,
        aids: BuildAids | None = None,
    ) -> BuiltImage | None:  # fmt: skip
        """The runtime's refusal: a plain process has no image."""
        if request.recipe is None:
            return None
        raise cannot_run("the engine plain")

    async def prepare(
        self, request: StartContainer, *, store_image: Path | None = None, image: BuiltImage | None = None
    ) -> PlainPrepared:
        """Make the folders."""
        folder = self.run_folder / request.container
        for name in ("var/ctl", "var/in", "var/out", "work", "ipython"):
            (folder / name).mkdir(parents=True)
        return PlainPrepared(self, request, folder)

    async def assign(
        self, prepared: object, running: object, request: StartContainer, *, sources: Sources,
        image: BuiltImage | None = None,
    ) -> tuple[PlainPrepared, PlainRunning]:  # fmt: skip
        """Nothing here was made beforehand."""
        raise Unlike

    async def collect_garbage(self, keep: Sequence[str] = ()) -> None:
        """Nothing outlives a test."""
