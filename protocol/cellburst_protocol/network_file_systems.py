"""Network file systems: the bodies of the gateway's routes for live-shared folders. No I/O.

Routes, JSON but for a file's bytes (tokens of users and workers; a viewer's may only list):

    GET    /nfs                                 -> SharedList
    POST   /nfs                  CreateShared   -> SharedRow      CONFLICT, unless if_missing
    DELETE /nfs/NAME?used=1                     -> {}             CONFLICT names what uses it, unless `used`
    GET    /nfs/NAME/size                       -> SharedSize
    GET    /nfs/NAME/entries?path=P&recursive=1 -> SharedEntries
    GET    /nfs/NAME/file?path=P                -> bytes
    PUT    /nfs/NAME/file?path=P  bytes         -> {}             in place of what is there, whole or not at all
    DELETE /nfs/NAME/file?path=P&recursive=1    -> {}

Names and paths follow the rules of volumes (`check_name`, `check_path`).
"""

from __future__ import annotations

import msgspec

MAX_ENTRIES = 100_000  # of one answer
MAX_DEPTH = 200  # folders in one another: of a path that is made from outside, and of one recursive list
MAX_FILE_BYTES = 1024**4
MAX_SIZED = 200_000  # entries that are looked at for a size: about a second


class SharedRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A network file system in a list. `used_by` are running or parked sessions and schedules, as words for people."""

    name: str
    changed_unix_seconds: float = 0.0
    used_by: list[str] = []


class SharedList(msgspec.Struct, kw_only=True, omit_defaults=True):
    """All of the workspace, by name."""

    rows: list[SharedRow] = []


class CreateShared(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Make one. With `if_missing` an existing one is the answer."""

    name: str
    if_missing: bool = False


class SharedSize(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What its files hold together, links not counted. Not `whole`: there are so many that these are only some of them."""

    size_bytes: int = 0
    files: int = 0
    whole: bool = True


class SharedEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A path in one, relative. `kind` is "file", "folder", "link" or "other" (a socket, a pipe)."""

    path: str
    kind: str = "file"
    size_bytes: int = 0
    modified_unix_seconds: float = 0.0


class SharedEntries(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Entries by path."""

    entries: list[SharedEntry] = []
