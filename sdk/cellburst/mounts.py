"""What `volumes={path: …}` of a program means to a container: volumes, buckets and network file systems."""

from __future__ import annotations

import os
from collections.abc import Mapping

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volume_mounts import check_mounts
from cellburst_protocol.volumes import VolumeMount

from .cloud_bucket_mount import CloudBucketMount
from .network_file_system import NetworkFileSystem
from .volume import Volume

Mountable = Volume | CloudBucketMount | NetworkFileSystem


async def mounts_of(volumes: Mapping[str | os.PathLike[str], Mountable]) -> list[VolumeMount]:
    """The mounts of a container, by path. Volumes and network file systems with `create_if_missing` are made, secrets of values
    sent. Raises RequestError: BAD_ARGUMENT (what is no volume, paths that cannot stand together), NOT_FOUND."""
    found = []
    for path, what in volumes.items():
        place = os.fspath(path)
        if not isinstance(what, Volume | CloudBucketMount | NetworkFileSystem):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{repr(what)[:80]} at {place[:80]!r} is no volume",
                allowed="Volume, CloudBucketMount, NetworkFileSystem", next='volumes={"/data": Volume.from_name("data")}',
            )  # fmt: skip
        found.append(await what.mount(place.rstrip("/") or place))
    check_mounts(found)
    return found
