"""Which volumes a cell's container has: names from the cell's line become ids, and a session keeps what it began with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import RunCell
from cellburst_protocol.volume_mounts import check_mounts, same_mounts, text_of
from cellburst_protocol.volumes import VolumeMount

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
