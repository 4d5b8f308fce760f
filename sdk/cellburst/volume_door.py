"""Commit and reload a volume from code in a container. Standard library only: this file also works by itself, copied.

    from cellburst.volume_door import commit, reload
    commit("datasets")        # publish what was written to it; returns the version
    reload("datasets")        # see what others have committed; returns the version

`$CELLBURST_VOLUME_DOOR` is the worker's socket: a line of JSON there and one back. `Volume.commit` and `.reload` come here.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

VARIABLE = "CELLBURST_VOLUME_DOOR"
_MOST_SHOWN = 3


class DoorError(Exception):
    """The worker's refusal. `info` has its `code`, `message`, `next` and `detail`, as ErrorInfo does."""

    def __init__(self, info: dict[str, Any]) -> None:
        super().__init__("; ".join(str(info[key]) for key in ("message", "next") if info.get(key)))
        self.info = info


def inside() -> bool:
    """Whether this is a container with volumes."""
    return bool(os.environ.get(VARIABLE))


def commit(volume: str) -> int:
    """Publish what this container wrote to a volume (its name or id): all of it or nothing. Returns the version.

    Raises DoorError: `request.volume_conflict` where somebody else changed the same file meanwhile.
    """
    return _ask("commit", volume)


def reload(volume: str) -> int:
    """See the newest version. What this container wrote is committed first; where that stands against another's change, ours
    is kept beside theirs as PATH.conflict-SESSION. Returns the version.

    Raises DoorError: `request.busy` while this container has files of the volume open, or works in a folder of it.
    """
    if opened := open_files(volume):
        more = f" and {len(opened) - _MOST_SHOWN} more" if len(opened) > _MOST_SHOWN else ""
        raise DoorError({
            "code": "request.busy",
            "message": f"volume {volume}: there are open files preventing the operation:"
            f" {', '.join(opened[:_MOST_SHOWN])}{more}",
            "next": "close them (also folders that a program works in), then reload again",
        })  # fmt: skip
    return _ask("reload", volume)


def folder(volume: str) -> str:
    """Where the files of a volume really are now."""
    var = Path(_door()).parent.parent  # VAR/ctl/volumes
    return os.path.realpath(var.parent / "volumes" / volume)


def open_files(volume: str) -> list[str]:
    """Files and folders of the volume that processes of this container have open, mapped, or work in."""
    place = folder(volume)
    found: set[str] = set()
    for pid in _entries("/proc"):
        if not pid.isdigit():
            continue
        found.update(_target(f"/proc/{pid}/fd/{number}") for number in _entries(f"/proc/{pid}/fd"))
        found.add(_target(f"/proc/{pid}/cwd"))
        found.update(_mapped(f"/proc/{pid}/maps"))
    return sorted(path for path in found if path == place or path.startswith(place + "/"))


def _ask(operation: str, volume: str) -> int:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(_door())
            connection.sendall(json.dumps({"op": operation, "volume": volume}).encode() + b"\n")
            with connection.makefile("rb") as replies:
                line = replies.readline()
    except OSError as why:
        raise DoorError({"code": "platform.unavailable", "message": f"the worker cannot be reached: {why}"}) from None
    if not line:
        raise DoorError({
            "code": "platform.unavailable", "message": f"the worker gave no answer to {operation} of {volume}",
            "next": "try again",
        })  # fmt: skip
    reply = json.loads(line)
    if "error" in reply:
        raise DoorError(reply["error"])
    return int(reply["version"])


def _door() -> str:
    path = os.environ.get(VARIABLE, "")
    if not path:
        raise DoorError({
            "code": "request.bad_argument", "message": "commit and reload work in a container that has the volume",
            "next": "run it in a %%modal cell with volumes=/data:NAME",
        })  # fmt: skip
    return path


def _entries(folder: str) -> list[str]:
    try:
        return [entry.name for entry in Path(folder).iterdir()]
    except OSError:
        return []  # gone meanwhile, or another user's


def _target(link: str) -> str:
    try:
        return str(Path(link).readlink())
    except OSError:
        return ""


def _mapped(maps: str) -> list[str]:
    try:
        with open(maps) as file:
            return [line.split(None, 5)[5].rstrip("\n") for line in file if len(line.split(None, 5)) > 5]
    except (OSError, UnicodeDecodeError):
        return []
