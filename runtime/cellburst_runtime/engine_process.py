"""The `process` engine: a container is a plain child process of the worker. It isolates nothing, and says so.

The mounts of a spec are not possible: the program sees the host as it is, as the worker's own user. Where groups can be
made (root) memory, CPU and processes are limited all the same. There are no snapshots; a fork server starts a container as
fast as a template would (`fork_servers.py`).
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import EngineInfo

from .cgroups import Cgroup, Cgroups, Limits
from .engine import Container, ContainerSpec
from .engine_base import ContainerBase, finish
from .engine_child import Child, EngineChild
from .fork_servers import ForkServers
from .proc import MARK
from .record import ContainerRecord, load_record
from .removal import Remover

WARNING = "The process engine isolates nothing: code runs as a plain process of your user on this machine."
_NO_LIMITS = "Memory, CPU and process limits do not hold here: that needs root and control groups."


class ProcessEngine:
    """See `engine.Engine`. `no_limits` says why groups cannot be made, "" where they can."""

    def __init__(self, cgroups: Cgroups, *, no_limits: str = "") -> None:
        self._cgroups = cgroups
        self._no_limits = no_limits
        self._remover = Remover(cgroups)
        self.fork_servers = ForkServers()
        self.info = EngineInfo(
            name="process", isolates=False, network=True, gpu=True, unprivileged=os.geteuid() != 0,
            version=".".join(map(str, sys.version_info[:3])), warning=WARNING,
        )  # fmt: skip

    def snapshot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """See `engine.Engine.snapshot_parts`: a plain process cannot be restored."""
        return {}

    def boot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """See `engine.Engine.boot_parts`: fork servers are faster."""
        return {}

    async def start(self, spec: ContainerSpec, checkpoint: Path | None = None) -> Container:
        """See `engine.Engine.start`."""
        if checkpoint is not None:
            raise error(
                ErrorCode.START_FAILED, f"container {spec.id}: the process engine cannot restore {checkpoint}",
                next="start it without a checkpoint",
            )  # fmt: skip
        record = load_record(spec.folder) or ContainerRecord(id=spec.id)
        record.engine = "process"
        record.cgroup = "" if self._no_limits else spec.id
        try:
            return await self._start(spec, record)
        except BaseException as problem:
            await finish(self._undo(record))
            if isinstance(problem, OSError):
                raise error(
                    ErrorCode.START_FAILED, f"container {spec.id} could not be started: {problem}",
                    next="cellburst status shows the worker's notes",
                ) from problem  # fmt: skip
            raise

    async def collect_garbage(self, folder: Path) -> None:
        """See `engine.Engine.collect_garbage`."""
        record = load_record(folder)
        if record is not None:
            await self._remover.remove(record, folder)

    async def _start(self, spec: ContainerSpec, record: ContainerRecord) -> Container:
        record.save(spec.folder)
        cgroup: Cgroup | None = None
        if record.cgroup:
            cgroup = self._cgroups.group(record.cgroup)
            cgroup.create(Limits(spec.memory_mib, spec.cpu, spec.pids))
        environment = {**spec.environment, **spec.devices.environment, MARK: spec.id}
        folder = Path(spec.working_folder) if Path(spec.working_folder).is_dir() else spec.folder
        forked = await self._fork(spec, cgroup, environment, folder)
        child: EngineChild = forked or await Child.start(_command(spec, cgroup), environment=environment, folder=folder)
        record.pid, record.start_ticks = child.pid, child.start_ticks
        record.save(spec.folder)
        container = ContainerBase(spec, record, self._remover, child, cgroup)
        container.forked = forked is not None
        container.network = "outbound"
        container.notes = [WARNING]
        if self._no_limits:
            container.notes.append(_NO_LIMITS)
        if spec.network == "none":
            container.notes.append("network=none does not hold: the process engine cannot take the network away.")
        return container

    async def _fork(
        self, spec: ContainerSpec, cgroup: Cgroup | None, environment: dict[str, str], folder: Path
    ) -> EngineChild | None:
        if not spec.fork_key:
            return None
        groups = cgroup.procs_files() if cgroup is not None else []
        return await self.fork_servers.fork(spec.fork_key, environment, folder, groups)

    async def _undo(self, record: ContainerRecord) -> None:
        await self._remover.end(record)
        if record.cgroup:
            await self._cgroups.group(record.cgroup).remove()


def _command(spec: ContainerSpec, cgroup: Cgroup | None) -> list[str]:
    """The runner behind a shell that enters the group and sets limits first, so that no moment is without them."""
    enter = [f"echo 0 > {shlex.quote(str(path))}" for path in cgroup.procs_files()] if cgroup is not None else []
    return ["sh", "-c", " && ".join([*enter, "ulimit -c 0", 'exec "$@"']), "sh", *spec.arguments]
