"""`container.json`: what is needed to end and remove a container without the memory of the process that made it.

Written before anything that would have to be removed is made, and rewritten (by rename) whenever that grows.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

FILE_NAME = "container.json"
CONTAINERS = "containers"  # below the run folder: one folder for each container


class ContainerRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Everything of one container that lies outside its folder. Empty fields were not made.

    `pid` and `start_ticks` name the engine's or the container's first process; `store` is the disk image of its layer; with
    `helpers` processes of ours with its mark show it buckets.
    """

    id: str
    engine: str = ""
    runsc: str = ""
    runsc_root: str = ""
    cgroup: str = ""
    network: bool = False
    pid: int = 0
    start_ticks: int = 0
    store: str = ""
    helpers: bool = False

    def save(self, folder: Path) -> None:
        """Write it to the container's folder, whole or not at all."""
        draft = folder / f"{FILE_NAME}.new"
        draft.write_bytes(msgspec.json.encode(self))
        draft.replace(folder / FILE_NAME)


def load_record(folder: Path) -> ContainerRecord | None:
    """The record of a container's folder; None where there is none or it cannot be read."""
    try:
        return msgspec.json.decode((folder / FILE_NAME).read_bytes(), type=ContainerRecord)
    except (OSError, msgspec.MsgspecError):
        return None
