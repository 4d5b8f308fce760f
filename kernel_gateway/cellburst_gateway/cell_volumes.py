"""Which volumes a cell's container has: names from the cell's line become ids, and a session keeps what it began with.

A bucket's secret is looked at when the cell is accepted, and opened for the worker that shows the bucket: each release is in the
record first. Its values never enter the container.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.bucket_endpoints import check_trusted
from cellburst_protocol.buckets import bucket_id, bucket_options, check_bucket, check_bucket_keys
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import RunCell
from cellburst_protocol.volume_mounts import (
    SHARED,
    check_mounts,
    same_mounts,
    shared_id,
    shared_mount,
    shared_name,
    text_of,
)
from cellburst_protocol.volumes import VolumeMount

from .container_link import outer_of
from .containers import ContainerHandle
from .session import Session

if TYPE_CHECKING:
    from .hub import Hub


def volumes_of(hub: Hub, session: Session, cell: RunCell) -> list[VolumeMount]:
    """What the cell's container has: as the session has it where the cell says nothing.

    Raises RequestError: NOT_FOUND (no such volume), BAD_ARGUMENT (they cannot stand together), CONFLICT (the session has a
    container, or is parked, with others).
    """
    asked = cell.volumes
    if asked is None:
        return session.volumes
    workspace = session.record.owner.workspace
    found = []
    for mount in asked:
        if mount.kind == "bucket":
            found.append(_bucket(hub, session, mount))
        elif mount.kind == "shared":
            name = shared_name(mount)
            hub.network_file_systems.check_there(workspace, name)
            found.append(shared_mount(name, mount.path, read_only=mount.read_only, workspace=workspace))
        else:
            record = hub.store.get_volume(workspace, mount.volume or mount.name, now=hub.clock.wall())
            found.append(msgspec.structs.replace(mount, volume=record.id, name=record.name))
    check_mounts(found, cell.image.notebook_folder if cell.image is not None else "")
    goes_on = session.container is not None or session.kept is not None
    if goes_on and not same_mounts(found, session.volumes):
        has = f"volumes={text_of(session.volumes)}" if session.volumes else "no volumes"
        raise error(
            ErrorCode.CONFLICT, f"session {session.record.name!r} has {has}, and a running session gets no others",
            next="`%modal restart` starts it anew with these (its names are lost); session=NAME uses one beside it; or leave"
            " volumes= out", volumes=text_of(found),
        )  # fmt: skip
    return found


async def check_bucket_secrets(hub: Hub, session: Session, cell: RunCell) -> None:
    """Whether the secrets of the cell's buckets are there, with the keys of a bucket. Raises RequestError (NOT_FOUND, FORBIDDEN),
    PlatformError (UNAVAILABLE)."""
    for mount in cell.volumes or []:
        if mount.bucket is not None and mount.bucket.secret:
            check_bucket_keys(mount.bucket, await hub.secret_desk.keys_for_mount(session, mount.bucket.secret))


async def bucket_keys(hub: Hub, session: Session, handle: ContainerHandle, call: str) -> dict[str, dict[str, str]]:
    """How a container's buckets are opened, by the mounts' ids: for its worker alone. Raises what `check_bucket_secrets` does.

    What was accepted earlier, and is parked or waits since, is looked at again: the operator may have changed his mind.
    """
    check_bucket_endpoints(hub, handle.detail.volumes)
    found = {}
    for mount in handle.detail.volumes:
        if mount.bucket is not None and mount.bucket.secret:
            values = await hub.secret_desk.open_for_mount(session, handle, call, mount.bucket.secret)
            check_bucket_keys(mount.bucket, values)
            found[mount.volume] = bucket_options(mount.bucket, values)
    return found


def check_bucket_endpoints(hub: Hub, mounts: Sequence[VolumeMount]) -> None:
    """Whether the operator trusts where the buckets are. Raises RequestError (BAD_ARGUMENT, FORBIDDEN)."""
    for mount in mounts:
        if mount.bucket is not None:
            check_trusted(check_bucket(mount.bucket), hub.config.bucket_endpoints)


def shared_folder(hub: Hub, session: Session, mounts: Sequence[VolumeMount]) -> str:
    """Where the network file systems of a container's session lie, for its worker; "" where it has none."""
    if not any(mount.kind == "shared" for mount in mounts):
        return ""
    return hub.network_file_systems.folder_text(session.record.owner.workspace)


def users_of_shared(hub: Hub, workspace: str, name: str) -> list[str]:
    """Sessions and schedules that use a network file system, in words for people."""
    schedules = hub.schedules.users_of(workspace, volume=f"{SHARED}{name}")
    return hub.volumes.users_of(shared_id(workspace, name)) + [f"schedule {one}" for one in schedules]


def _check_inner(hub: Hub, session: Session, mount: VolumeMount) -> None:
    """Code in a container shows in sessions of its own at most the buckets that its own session has, and writes to no more."""
    outer_id = outer_of(session.record.notebook)
    outer = hub.sessions.get(outer_id) if outer_id else None
    had = [one for one in outer.volumes if one.bucket is not None] if outer is not None else []
    if outer_id and not any(one.bucket == mount.bucket and one.read_only <= mount.read_only for one in had):
        raise error(
            ErrorCode.FORBIDDEN, f"bucket {mount.name} is not for this container's code",
            allowed=f"the buckets of its own session: {text_of(had) or 'none'}",
            next=f"name it in the cell outside: volumes={text_of([mount])}",
        )  # fmt: skip


def _bucket(hub: Hub, session: Session, mount: VolumeMount) -> VolumeMount:
    """As the gateway says it: ids and names of other sides are not taken."""
    if mount.bucket is None:
        raise error(ErrorCode.BAD_MESSAGE, f"a bucket at {mount.path[:80]!r} that is none")
    source = check_bucket(mount.bucket)
    check_bucket_endpoints(hub, [mount])
    made = VolumeMount(
        volume=bucket_id(source, mount.path), name=source.text, path=mount.path, read_only=mount.read_only, kind="bucket",
        bucket=source,
    )  # fmt: skip
    _check_inner(hub, session, made)
    return made
