"""Buckets and network file systems in a container: what is written there is there at once, and nothing is versioned.

Both are mounted before the container starts, at the places of volumes. When its processes are gone (it ended, or was parked) a
bucket's last uploads are waited for, and they are taken away; a parked session gets them again, as they are then, before it is
restored: a file that it had open is opened again by its path.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import StartContainer
from cellburst_protocol.volume_mounts import shared_name
from cellburst_protocol.volumes import VolumeMount
from cellburst_runtime.bucket_mount import Bucket, BucketMount
from cellburst_runtime.engine_base import finish
from cellburst_runtime.mounts import mount
from cellburst_runtime.record import ContainerRecord, load_record
from cellburst_runtime.volume_mount import VolumePlaces

from .volume_desk import VolumeDesk

BUCKETS = "buckets"  # below the container's store


class LiveMounts:
    """Those of one container. `tell` shows a line under the cell that runs, else under the next one."""

    def __init__(self, desk: VolumeDesk, request: StartContainer, tell: Callable[[str], None]) -> None:
        self._desk, self._request, self._tell = desk, request, tell
        self._buckets: list[BucketMount] = []

    async def show(self, places: VolumePlaces, asked: VolumeMount) -> None:
        """Have one in a container that is prepared and not started. Raises the error tree, OSError."""
        if places.isolated and not places.overlay:
            raise error(
                ErrorCode.START_FAILED, f"{asked.name} cannot be shown: that takes gVisor as root, or the engine `process`",
                next="start the worker as root",
            )  # fmt: skip
        if asked.bucket is not None:
            await self._show_bucket(places, asked)
        else:
            await self._show_shared(places, asked)

    async def close(self, *, flush: bool) -> None:
        """Take all away; with `flush`, when the container's processes are gone, let uploads end first. Idempotent."""
        buckets, self._buckets = self._buckets, []
        if buckets:
            await finish(_close(buckets, flush=flush))

    async def _show_bucket(self, places: VolumePlaces, asked: VolumeMount) -> None:
        assert asked.bucket is not None
        bucket = Bucket(asked.bucket, asked.read_only, self._request.bucket_keys.get(asked.volume, {}))
        record = load_record(places.folder) or ContainerRecord(id=self._request.container)
        if not record.helpers:
            # Before anything that would have to be ended is there.
            await asyncio.to_thread(msgspec.structs.replace(record, helpers=True).save, places.folder)
        cache = places.folder / ("layer" if places.overlay else "engine") / BUCKETS / asked.volume
        made = BucketMount(bucket, places.live_place(asked), cache, self._tell)
        self._buckets.append(made)
        await made.start(self._request.container, places.owner)
        places.link(asked, made.place.name)

    async def _show_shared(self, places: VolumePlaces, asked: VolumeMount) -> None:
        name = shared_name(asked)
        if not self._desk.beside_gateway or not self._request.shared_folder:
            raise error(
                ErrorCode.START_FAILED, f"{asked.name} is on the gateway's machine, and this worker is not",
                next=f"use a volume (volumes={asked.path}:{name}), or a worker on the gateway's machine",
            )  # fmt: skip
        source = Path(self._request.shared_folder) / name
        if not await asyncio.to_thread(source.is_dir):
            raise error(ErrorCode.NOT_FOUND, f"there is no {asked.name} any more", next=f"cellburst nfs create {name}")
        if not places.overlay:
            places.link(asked, str(source))
            if asked.read_only:
                self._tell(f"{asked.name} can be written here: without gVisor as root read-only is not enforced")
            return
        place: Path = places.live_place(asked)
        place.mkdir(exist_ok=True)
        access = "ro," if asked.read_only else ""
        await mount(os.fspath(source), place, options=f"bind,{access}nosuid,nodev")
        places.link(asked, place.name)


async def _close(buckets: list[BucketMount], *, flush: bool) -> None:
    await asyncio.gather(*(bucket.close(flush=flush) for bucket in buckets))
