"""What the containers of one worker share of volumes: the files on its disk, the gateway, what waits to be published."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import Welcome
from cellburst_protocol.volumes import FileEntry, VolumeFiles, VolumeMount
from cellburst_runtime.engine_base import finish
from cellburst_runtime.volume_tree import Owner, VolumeStore

from .volume_gateway import GatewayVolumes, fetch_files
from .volume_outbox import Outbox

DELIVER_SECONDS = 5.0  # until what could not be published is tried again
TOLD_FROM_BYTES = 64 * 1024**2  # less is fetched before anyone has read the line

log = logging.getLogger(__name__)


@dataclass
class VolumeDesk:
    """What the containers of one worker share. `parked`: whether a parked session is still kept here."""

    store: VolumeStore
    gateway: GatewayVolumes
    outbox: Outbox
    parked: Callable[[str], bool] = lambda id: True
    beside_gateway: bool = False  # on one machine with it: network file systems are folders here
    _delivering: asyncio.Task[None] | None = None
    _locks: defaultdict[tuple[str, Owner], asyncio.Lock] = field(default_factory=lambda: defaultdict(asyncio.Lock))

    def welcomed(self, welcome: Welcome, shared: bool) -> None:
        """A gateway is there; `shared`: on this machine."""
        folder = str(getattr(welcome, "chunk_folder", ""))
        self.gateway.chunk_folder = Path(folder) if shared and folder else None
        self.beside_gateway = shared

    async def newest(self, volume: str) -> VolumeFiles:
        """What the volume has now. Raises the gateway's error (NOT_FOUND), PlatformError (UNAVAILABLE)."""
        return await asyncio.to_thread(self._newest, volume)

    async def tree(
        self, asked: VolumeMount, files: VolumeFiles, owner: Owner, tell: Callable[[str], None]
    ) -> Path:  # fmt: skip
        """The tree of a version, with all its files here, pinned. Raises the error tree (DISK_FULL before anything is
        fetched), OSError."""
        async with self._locks[asked.volume, owner]:
            missing = await asyncio.to_thread(self.store.missing, files.entries, owner)
            if missing:
                size = sum(entry.size_bytes for entry in missing)
                await asyncio.to_thread(self.store.make_room, size, f"volume {asked.name}", self.parked)
                if size >= TOLD_FROM_BYTES:
                    tell(f"volume {asked.name}: {_size(size)} to fetch")
                await self._fetch(missing, owner)
            return await finish(asyncio.to_thread(self.store.tree, asked.volume, files, owner))

    def deliver(self) -> None:
        """Publish in the background what waits in the outbox. Called once a second while there is a gateway."""
        if (self._delivering is None or self._delivering.done()) and self.outbox.waiting:
            self._delivering = asyncio.create_task(self._deliver())

    async def close(self) -> None:
        """End what is under way."""
        if self._delivering is not None:
            await asyncio.gather(self._delivering, return_exceptions=True)

    async def _deliver(self) -> None:
        try:
            await asyncio.to_thread(self.outbox.deliver)
        except (CellburstError, OSError) as why:
            log.warning("kept changes of volumes were not published", extra={"why": str(why)})
        if self.outbox.waiting:
            await asyncio.sleep(DELIVER_SECONDS)

    async def _fetch(self, entries: Sequence[FileEntry], owner: Owner) -> None:
        stop = threading.Event()
        work = asyncio.ensure_future(
            asyncio.to_thread(fetch_files, self.gateway, self.store, entries, owner, stop.is_set)
        )
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            await asyncio.wait({work})
            raise

    def _newest(self, volume: str) -> VolumeFiles:
        before = self.store.known(volume)
        return self.store.learn(volume, before, self.gateway.files(volume, before.version))


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"
