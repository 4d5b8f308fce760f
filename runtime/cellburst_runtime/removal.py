"""Removing a container without a trace, the same way for a live one and for one whose worker is gone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cellburst_protocol.errors import ErrorCode, error

from .cgroups import Cgroups
from .mounts import mounts_below, unmount_below
from .proc import HELPER_MARK, descendants, is_same_process, kill_until_none, marked, process_stat, waiting_for_fuse
from .record import ContainerRecord
from .tools import run_command

HANGS_SECONDS = 3.0  # until a process that does not end by SIGKILL is taken to wait for its buckets
LOOK_SECONDS = 0.5  # between two looks at what waits: one that is seen waiting twice hangs
UPLOAD_SECONDS = 120.0  # of what a container of a dead worker closed last

log = logging.getLogger(__name__)


class NetworkRemover(Protocol):
    """What removal needs of `network.Networks`."""

    def remove(self, container_id: str) -> Awaitable[None]:
        """Remove a container's network namespace; nothing happens when there is none."""


@dataclass(frozen=True)
class Remover:
    """What removing needs of this machine. All methods may be repeated, and finish what an earlier one left."""

    cgroups: Cgroups
    networks: NetworkRemover | None = None

    async def end(self, record: ContainerRecord) -> None:
        """End every process of a container and the engine's own around it."""
        if not record.helpers:
            return await self._end(record)
        # A process that waits for a bucket whose server hangs cannot be ended before what shows the bucket is. Otherwise what
        # shows it goes on: it has uploads to finish, however long the rest takes (`BucketMount.close`).
        impatience = asyncio.create_task(self._end_helpers_in_the_way(record))
        try:
            await self._end(record)
        finally:
            impatience.cancel()
            await asyncio.gather(impatience, return_exceptions=True)

    async def _end_helpers_in_the_way(self, record: ContainerRecord) -> None:
        """End what shows its buckets when a process of the container hangs because of it."""
        list_pids = _pids_of(record)
        list_pids()  # they are found by their first one, while it lives
        await asyncio.sleep(HANGS_SECONDS)
        before: set[int] = set()
        while True:
            in_group = self.cgroups.group(record.cgroup).pids() if record.cgroup else []
            now = await asyncio.to_thread(waiting_for_fuse, {*list_pids(), *in_group})
            if before & now:
                log.warning("a bucket hangs: what shows it is ended", extra={"container": record.id})
                await _end_helpers(record.id, after_seconds=0)
                return
            before = now
            await asyncio.sleep(LOOK_SECONDS)

    async def _end(self, record: ContainerRecord) -> None:
        if record.cgroup:
            await self.cgroups.group(record.cgroup).kill()
        # Processes first: asked to delete a live container, runsc without root waits 5 s for it.
        list_pids = _pids_of(record)
        if not await kill_until_none(list_pids):
            raise error(
                ErrorCode.INTERNAL,
                f"container {record.id}: processes {list_pids()} do not end by SIGKILL",
                next="they wait in the kernel (see their state in ps); a reboot ends them",
            )
        if record.engine == "gvisor" and record.runsc:
            await self._end_runsc(record)

    async def _end_runsc(self, record: ContainerRecord) -> None:
        """Let runsc forget the container, and end a sandbox whose runsc in the foreground died without it.

        What is left of its state is deleted: the processes are gone.
        """
        root = Path(record.runsc_root)
        state = f"{record.id}_sandbox:{record.id}"
        # Asking runsc costs 0.1 s, and without root more than 1 s: only where there is still something to end.
        if _sandbox_lives(root / f"{state}.state"):
            flags = [f"--root={root}", *([] if os.geteuid() == 0 else ["--rootless"])]
            await run_command([record.runsc, *flags, "delete", "--force", record.id])
        for leftover in (*root.glob(f"{state}*"), root / f"runsc-{record.id}.sock"):
            leftover.unlink(missing_ok=True)

    async def clear(self, record: ContainerRecord, folder: Path) -> None:
        """Remove what an ended container leaves: network, groups, mounts, disk image, and its folder at last.

        Raises PlatformError (INTERNAL) naming what would not go; the folder then stays, for a later try.
        """
        left: list[str] = []
        if record.network and self.networks is not None:
            await self.networks.remove(record.id)
        left += await unmount_below(folder)
        if record.helpers:
            # Those of a dead worker: their folder is gone, and they end when what they were given is uploaded.
            left += await _end_helpers(record.id, after_seconds=UPLOAD_SECONDS)
        if record.store:
            Path(record.store).unlink(missing_ok=True)
        if record.cgroup:
            left += await self.cgroups.group(record.cgroup).remove()
        if left:
            raise error(ErrorCode.INTERNAL, f"container {record.id} is not removed entirely: {'; '.join(left)}")
        await asyncio.to_thread(remove_folder, folder)

    async def remove(self, record: ContainerRecord, folder: Path) -> None:
        """End and clear."""
        await self.end(record)
        await self.clear(record, folder)


async def _end_helpers(container_id: str, *, after_seconds: float) -> list[str]:
    """End what shows buckets to a container, by its mark: so also what its worker had no time to note. Returns what is left."""

    def list_pids() -> list[int]:
        return marked(container_id, HELPER_MARK)

    try:
        async with asyncio.timeout(after_seconds):
            while await asyncio.to_thread(list_pids):
                await asyncio.sleep(0.05)
    except TimeoutError:
        if after_seconds:
            log.warning(
                "uploads to a bucket were given up", extra={"container": container_id, "seconds": after_seconds}
            )
    return [] if await kill_until_none(list_pids) else [f"what shows its buckets ({list_pids()})"]


def remove_folder(folder: Path) -> None:
    """Delete a folder of ours. Refuses while anything is mounted in it: deleting would reach into the mount."""
    if not folder.exists():
        return
    if mounted := mounts_below(folder):
        raise error(ErrorCode.INTERNAL, f"{folder} is not deleted: {mounted[0]} is still mounted")
    shutil.rmtree(folder)


def _sandbox_lives(state: Path) -> bool:
    """Whether the sandbox named in runsc's state file runs; what cannot be read is taken to."""
    try:
        pid = int(json.loads(state.read_bytes())["sandbox"]["pid"])
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True
    stat = process_stat(pid)
    return stat is not None and stat.state not in "ZX"


def _pids_of(record: ContainerRecord) -> Callable[[], list[int]]:
    """Lists what lives of a container's tree. A process seen once is listed until it is gone, also when its parent went
    first and it belongs to nobody's tree any more."""
    seen: dict[int, int] = {}

    def list_pids() -> list[int]:
        if record.pid and is_same_process(record.pid, record.start_ticks):
            seen.update((stat.pid, stat.start_ticks) for stat in descendants(record.pid))
        if record.engine == "process":
            stats = [process_stat(pid) for pid in marked(record.id)]
            seen.update((stat.pid, stat.start_ticks) for stat in stats if stat is not None)
        return [pid for pid, start_ticks in seen.items() if is_same_process(pid, start_ticks)]

    return list_pids
