"""How much disk images take: layers and downloads together, bounded.

Layers go least recently used first, none in use and none below another. Of the bound downloads (`image_downloads`) get a
quarter: without them a build takes longer, without layers it has to run.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Collection

from .image_downloads import Downloads
from .image_store import ImageStore

MAX_CACHE_BYTES = 50 << 30  # of images, unless configured otherwise
SHARE_OF_DISK = 0.5  # of what is free without them: sessions' stores and snapshots need room too
DOWNLOADS_SHARE = 0.25


class Room:
    """`max_bytes` None: MAX_CACHE_BYTES, or half of what would be free without images where that is less. `reserve_bytes` is what
    a step must leave free on the disk."""

    def __init__(
        self, store: ImageStore, downloads: Downloads, max_bytes: int | None = None, reserve_bytes: int = 0
    ) -> None:
        self.max_bytes = max_bytes
        self._store, self._downloads, self._reserve = store, downloads, reserve_bytes
        self._downloads_bytes: int | None = None  # when they were last looked at

    def bound_bytes(self) -> int:
        """What images may take now. Blocks briefly."""
        return self._bound(self._layers_bytes() + (self._downloads_bytes or 0))

    async def before_layer(self, keep: Collection[str]) -> None:
        """Make room where the bound is reached, or the disk is so full that a step would fail. Layers in `keep` stay."""
        max_bytes = await asyncio.to_thread(self._before_layer)
        if max_bytes is not None:
            await self._store.prune(max_bytes=max_bytes, keep=keep)

    async def keep_to_bound(self, keep: Collection[str], *, downloaded: bool) -> None:
        """After a build. `downloaded`: it may have, so downloads are looked at."""
        await self._fit(await asyncio.to_thread(self.bound_bytes), keep, look=downloaded)

    async def prune(self, max_bytes: int, keep: Collection[str]) -> int:
        """Delete until at most `max_bytes` are left; 0: all that nothing uses. Returns the bytes freed."""
        before = await asyncio.to_thread(self.size_bytes)
        await self._fit(max_bytes, keep, look=True)
        return max(0, before - await asyncio.to_thread(self.size_bytes))

    def size_bytes(self) -> int:
        """What layers and downloads take. Blocks, about 10 µs for each downloaded file."""
        return self._layers_bytes() + self._downloads.size_bytes()

    async def _fit(self, max_bytes: int, keep: Collection[str], *, look: bool) -> None:
        if look:
            self._downloads_bytes = await self._downloads.bound(int(max_bytes * DOWNLOADS_SHARE))
        left = max(1, max_bytes - (self._downloads_bytes or 0)) if max_bytes else 0  # 0 stands for all of them
        if await self._store.prune(max_bytes=left, keep=keep):
            # Files that a layer had too are downloads only, now.
            self._downloads_bytes = await self._downloads.bound(int(max_bytes * DOWNLOADS_SHARE))

    def _layers_bytes(self) -> int:
        return sum(meta.size_bytes for meta, _ in self._store.list_layers())

    def _bound(self, taken_bytes: int) -> int:
        if self.max_bytes is not None:
            return self.max_bytes
        return min(MAX_CACHE_BYTES, int((self._free_bytes() + taken_bytes) * SHARE_OF_DISK))

    def _free_bytes(self) -> int:
        return shutil.disk_usage(self._store.folder).free

    def _before_layer(self) -> int | None:
        layers, downloads = self._layers_bytes(), self._downloads_bytes or 0
        # Twice what a step leaves: the layer that comes needs some as well.
        missing = 2 * self._reserve - self._free_bytes()
        least = min(layers - missing, self._bound(layers + downloads) - downloads)
        return max(1, least) if least < layers else None
