"""What the containers of all engines share: one end told to many, limits read from the group, a removal that finishes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from cellburst_protocol.errors import ErrorCode, ErrorInfo

from .cgroups import Cgroup, Limits
from .engine import CheckpointFailed, ContainerExit, ContainerSpec, Usage
from .engine_child import EngineChild
from .proc import ProcessStat, descendants, marked, process_stat
from .record import ContainerRecord
from .removal import Remover

OOM_LOOK_SECONDS = 0.5  # one small file a container; a person waits no longer than that for the reason

_T = TypeVar("_T")


async def finish(work: Coroutine[object, object, _T]) -> _T:
    """Do the work to its end even if this task is cancelled meanwhile; the cancellation is raised afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as problem:
            if task.cancelled():
                raise
            cancelled = problem
        except Exception:
            break  # raised again by result()
    if cancelled is not None:
        task.exception()  # marked as seen: the cancellation is what the caller asked for
        raise cancelled
    return task.result()


class ContainerBase:
    """A started container, of any engine."""

    def __init__(
        self, spec: ContainerSpec, record: ContainerRecord, remover: Remover, child: EngineChild, cgroup: Cgroup | None
    ) -> None:
        self.id = spec.id
        self.spec = spec
        self.network = "none"
        self.notes: list[str] = []
        self.forked = False  # out of a fork server, not by a boot
        self._record = record
        self._remover = remover
        self._child = child
        self._cgroup = cgroup
        self._killed = False
        self._checkpointed = False
        self._removed = False
        self._lock = asyncio.Lock()
        self._end = asyncio.create_task(self._watch(), name=f"end of container {spec.id}")

    async def wait(self) -> ContainerExit:
        """See `engine.Container.wait`."""
        return await asyncio.shield(self._end)

    async def kill(self) -> None:
        """See `engine.Container.kill`."""
        await finish(self._kill())

    async def remove(self) -> None:
        """See `engine.Container.remove`."""
        await finish(self._remove())

    async def usage(self) -> Usage:
        """See `engine.Container.usage`. From the group, else summed over the process tree: CPU time of processes that have
        ended is then missing."""
        if self._removed:
            return Usage(None, None, None)
        if self._cgroup is not None:
            group = self._cgroup
            return Usage(group.cpu_seconds(), group.memory_bytes(), group.memory_limit_bytes())
        stats = await asyncio.to_thread(self._tree)
        if not stats:
            return Usage(None, None, None)
        return Usage(sum(stat.cpu_seconds for stat in stats), sum(stat.resident_bytes for stat in stats), None)

    def limit(self, limits: Limits) -> None:
        """Have other limits on the host from now on; nothing where there are none. Blocks. Raises OSError: it uses more."""
        if self._cgroup is not None:
            self._cgroup.limit(limits)
        self.spec = replace(self.spec, memory_mib=limits.memory_mib, cpu=limits.cpu)

    def spare_memory(self, more_mib: int) -> None:
        """See `engine.Container.spare_memory`."""
        if self._cgroup is not None and not self._removed:
            self._cgroup.limit_memory(self.spec.memory_mib + more_mib)

    async def checkpoint(self, folder: Path) -> None:
        """See `engine.Container.checkpoint`: not with this engine."""
        raise CheckpointFailed(
            ErrorInfo(
                code=ErrorCode.UNAVAILABLE,
                message=f"the engine {self._record.engine} cannot write container {self.id} to {folder}",
                allowed="the engine gvisor as root",
            ),
            still_running=True,
        )

    def _tree(self) -> list[ProcessStat]:
        pids = {stat.pid for stat in descendants(self._child.pid)}
        if self._record.engine == "process":
            pids.update(marked(self.id))
        found = [process_stat(pid) for pid in pids]
        return [stat for stat in found if stat is not None and stat.state not in "ZX"]

    async def abandon(self) -> None:
        """After a failed start: end it and stop reading its output; the engine removes the rest."""
        await self._kill()
        await self._child.close()

    async def _kill(self) -> None:
        async with self._lock:
            if self._removed:
                return
            self._killed = self._killed or not self._child.ended
            await self._remover.end(self._record)
            await asyncio.wait({self._end}, timeout=10)

    async def _remove(self) -> None:
        await self._kill()
        async with self._lock:
            if self._removed:
                return
            await self._child.close()
            await self._remover.clear(self._record, self.spec.folder)
            self._removed = True

    async def _broken_by_memory(self, ended: asyncio.Task[int]) -> None:
        """End a sandbox of which the kernel has killed a part.

        Out of memory, Linux may choose one of gVisor's stub processes instead of its kernel; the sandbox then neither
        works nor ends.
        """
        while not ended.done() and self._cgroup is not None and self._record.engine == "gvisor":
            await asyncio.wait({ended}, timeout=OOM_LOOK_SECONDS)
            if not ended.done() and not self._killed and self._cgroup.oom_kills() > 0:
                await self._remover.end(self._record)
                return

    async def _watch(self) -> ContainerExit:
        ended = asyncio.ensure_future(self._child.wait())
        await self._broken_by_memory(ended)
        return_code = await ended
        output = await self._child.output()
        exit_code = return_code if return_code >= 0 else None
        signal = -return_code if return_code < 0 else None
        if self._checkpointed:
            return ContainerExit(exit_code, signal, "checkpointed", output)
        if self._killed:
            return ContainerExit(exit_code, signal, "killed", output)
        if self._cgroup is not None and self._cgroup.oom_kills() > 0 and return_code != 0:
            return ContainerExit(exit_code, signal, "oom", output)
        if self._cgroup is not None and self._cgroup.pids_refused() > 0 and return_code != 0:
            return ContainerExit(exit_code, signal, "pids", output)
        return ContainerExit(exit_code, signal, "exit", output)
