"""The built images of one machine, for its worker: made, held, listed, and never evicted under a snapshot."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import EngineInfo

from .cgroups import Cgroups
from .engine import Engine
from .engine_gvisor import GvisorEngine
from .image_build import BuiltImage, Files, ImageBuilder
from .image_equipment import BuildAids, Grant
from .image_logs import Log
from .image_records import ImageRecord
from .image_sandbox import BuildMachine
from .image_secrets import BuildSecrets
from .image_verify import Verified
from .snapshots import SnapshotStore

FOLDER = "images"  # below the data folder
UV_CACHE = "uv-cache"  # below the data folder
MEMORY_MIB, MEMORY_SHARE = 4096, 0.5  # what a step may use: this, or the share of a smaller machine's memory


def runs_images(info: EngineInfo) -> bool:
    """Whether containers of an engine can be made from images: they need mounts on the host, so root."""
    return info.name == "gvisor" and not info.unprivileged


class Images:
    """`engines` are those that work here. `max_bytes` bounds what images take (`image_room.Room`). `grant` shows leased GPUs to a
    step. Making this costs nothing: the store is made at its first use."""

    def __init__(
        self, data_folder: Path, engines: Sequence[Engine], cgroups: Cgroups, snapshots: SnapshotStore,
        max_bytes: int | None = None, grant: Grant | None = None,
    ) -> None:  # fmt: skip
        self._grant = grant
        self._data_folder, self._cgroups, self._snapshots = data_folder, cgroups, snapshots
        self._max_bytes = max_bytes
        capable = [engine for engine in engines if isinstance(engine, GvisorEngine) and runs_images(engine.info)]
        self._engine = capable[0] if capable else None
        self._builder: ImageBuilder | None = None

    async def build(
        self, recipe: ImageRecipe, files: Files, log: Log, secrets: BuildSecrets | None = None,
        aids: BuildAids | None = None,
    ) -> BuiltImage:  # fmt: skip
        """See `ImageBuilder.build`. The caller releases it. Raises RequestError (NOT_YET) where no engine can."""
        return await (await asyncio.to_thread(self._made)).build(recipe, files, log, secrets, aids)

    async def share(self, image: BuiltImage) -> BuiltImage:
        """Hold an image once more. Raises PlatformError (STORE) when it is not whole any more."""
        builder = await asyncio.to_thread(self._made)
        held = await asyncio.to_thread(builder.share, image)
        if held is None:
            raise error(ErrorCode.STORE, f"image {image.id[:12]} was deleted", next="build it again")
        return held

    def list(self) -> list[ImageRecord]:
        """The images whose layers are all here, last used first. Blocks."""
        return self._made().ls() if self._there() else []

    def size_bytes(self) -> int:
        """What all layers and the downloads kept for builds take on disk. Blocks."""
        return self._made().room.size_bytes() if self._there() else 0

    async def prune(self, max_bytes: int = 0) -> int:
        """Delete layers that no container and no parked session uses, least recently used first, until at most `max_bytes`
        are left, and downloads as `Room` says; templates of images that are gone go as well. Returns the bytes freed."""
        if not await asyncio.to_thread(self._there):
            return 0
        builder = await asyncio.to_thread(self._made)
        parked = await asyncio.to_thread(self._snapshots.layers, "session")
        freed = await builder.prune(max_bytes=max_bytes, keep=parked)
        await asyncio.to_thread(self._drop_templates, builder)
        return freed

    async def verify(self) -> Verified:
        """Compare every byte of every layer with its checksums. Damaged layers are put aside: the next build makes them anew,
        what runs goes on. Templates of their images go. Raises OSError."""
        if not await asyncio.to_thread(self._there):
            return Verified()
        builder = await asyncio.to_thread(self._made)
        return await self._verified(builder, await builder.verify())

    async def verify_next(self, *, every_seconds: float) -> Verified:
        """The same of one layer, slowly, if one was not compared for `every_seconds`; of none otherwise. Raises OSError."""
        if not await asyncio.to_thread(self._there):
            return Verified()
        builder = await asyncio.to_thread(self._made)
        return await self._verified(builder, await builder.verify_next(every_seconds=every_seconds))

    async def _verified(self, builder: ImageBuilder, found: Verified) -> Verified:
        if found.damaged:
            await asyncio.to_thread(self._drop_templates, builder)
        return found

    def logs(self, image: str) -> str:
        """The log of the last build of an image, by its id or the beginning of it. Blocks. Raises RequestError (NOT_FOUND)."""
        if not self._there():
            raise error(ErrorCode.NOT_FOUND, f"no build of an image {image!r}", next="`cellburst image ls` lists them")
        return self._made().logs(image)

    async def collect_garbage(self) -> None:
        """Remove what builds of processes that are gone have left, with their sandboxes."""
        if await asyncio.to_thread(self._there):
            await (await asyncio.to_thread(self._made)).store.remove_dead_drafts()

    def _there(self) -> bool:
        return self._engine is not None and (self._data_folder / FOLDER).is_dir()

    def _made(self) -> ImageBuilder:
        if self._engine is None:
            raise cannot_run("this worker's machine")
        if self._builder is None:
            networks, no_network = self._engine.networks
            total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
            machine = BuildMachine(
                self._engine.settings, self._cgroups, networks, no_network,
                memory_mib=min(MEMORY_MIB, int(total_mib * MEMORY_SHARE)), most_memory_mib=total_mib, grant=self._grant,
            )  # fmt: skip
            folder = self._data_folder / FOLDER
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._builder = ImageBuilder(
                folder, machine, uv_cache=self._data_folder / UV_CACHE, max_cache_bytes=self._max_bytes,
                keep=self._snapshots.layers,
            )  # fmt: skip
        return self._builder

    def _drop_templates(self, builder: ImageBuilder) -> None:
        here = {meta.key for meta, _ in builder.store.list_layers()}
        for template in self._snapshots.templates():
            if not set(template.layers) <= here:
                self._snapshots.remove("template", template.id)


def cannot_run(who: str) -> CellburstError:
    """The refusal of an engine or a machine that has no images."""
    return error(
        ErrorCode.NOT_YET, f"{who} cannot run a container from an image", allowed="the engine gvisor, as root",
        next="start the worker as root with gVisor's runsc (`cellburst status` shows its engines), or run without image=",
    )  # fmt: skip
