"""Finds layers of images that decayed on the disk: each is read once a day while the machine has nothing else to do.

What a worker finds is put aside by the runtime: the next build makes that layer anew. It is told in the worker's log, since
nobody asked.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from cellburst_protocol.errors import CellburstError
from cellburst_runtime.images import Images

EVERY_SECONDS = 86_400.0  # each layer at most once a day
LOOK_SECONDS = 300.0  # between two looks whether one is due; the first is that long after the start
LOAD_SHARE = 0.5  # of the processors: a machine whose load of the last minute is above it is busy

log = logging.getLogger(__name__)


def machine_is_busy() -> bool:
    """Whether programs, ours or others, kept more than half of the processors in the last minute."""
    return os.getloadavg()[0] > LOAD_SHARE * (os.cpu_count() or 1)


class ImageWatch:
    """`busy` says whether containers start, run cells or wait here; `damaged` is called after layers were put aside."""

    def __init__(
        self,
        images: Images,
        busy: Callable[[], bool],
        damaged: Callable[[], Awaitable[object]],
        *,
        look_seconds: float = LOOK_SECONDS,
        every_seconds: float = EVERY_SECONDS,
        machine_busy: Callable[[], bool] = machine_is_busy,
    ) -> None:
        self._images, self._busy, self._damaged, self._machine_busy = images, busy, damaged, machine_busy
        self._look_seconds, self._every_seconds = look_seconds, every_seconds

    async def run(self) -> None:
        """For ever: one layer at a time. Cancelling it ends a reading that is under way."""
        while True:
            await asyncio.sleep(self._look_seconds)
            while not self._busy() and not self._machine_busy() and await self._one():
                pass

    async def _one(self) -> bool:
        """Read the layer that is most overdue. Whether there was one. Nothing that it meets ends the watch, and so the worker."""
        try:
            return await self._read()
        except Exception:
            log.exception("looking after the layers failed")
            return False

    async def _read(self) -> bool:
        try:
            found = await self._images.verify_next(every_seconds=self._every_seconds)
        except (CellburstError, OSError) as why:
            log.warning("layers could not be compared with their checksums", extra={"why": str(why)})
            return False
        for layer in found.damaged:
            log.warning(
                "a layer of images is damaged on the disk; the next build makes it anew",
                extra={"layer": layer.key, "step": layer.step, "damage": "; ".join(layer.problems)},
            )
        if found.damaged:
            await self._damaged()
        return found.layers > 0
