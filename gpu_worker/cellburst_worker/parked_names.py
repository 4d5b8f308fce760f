"""The names of a parked session by value: taken from the container into its snapshot's folder, and shown to the next one.

NAMES/inline has the bytes of all inline parts in the order of the manifest, any other part lies as NAMES/<its hash>. What the
folder holds is sealed by the snapshot store; the container that gets it is the same session's.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import NameGroup, RemoteName

from .blobs import HASH, BlobFolder, Copied
from .blobs import _discard as discard
from .blobs import _open_regular as open_regular
from .direct_copy import copy_hashed
from .values import blob_parts, place, take

INLINE = "inline"


class NamesFolder(BlobFolder):
    """A flat folder of parts, with what `BlobFolder` can do for files that a container wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)

    def path(self, hash: str) -> Path:
        """Where the part lies. Raises PlatformError (INTEGRITY) for what is no hash."""
        if not HASH.fullmatch(hash):
            raise error(ErrorCode.INTEGRITY, f"{hash[:80]!r} is not a part's hash", allowed="64 hexadecimal digits")
        return self.folder / hash

    def temporary(self) -> Path:
        """A path for a part that is being written."""
        return self.folder / f"new-{secrets.token_hex(8)}"

    def _copy(self, source: Path, staged: Path, size_bytes: int) -> str:
        try:
            fd = open_regular(source, size_bytes, os.O_RDWR)
            try:
                copied_bytes, hash = copy_hashed(fd, staged)
            finally:
                os.close(fd)
        finally:
            discard(source)
        if copied_bytes != size_bytes:
            raise error(
                ErrorCode.INTEGRITY, f"a value file changed while it was read: {copied_bytes} bytes, not {size_bytes}"
            )
        return hash


def names_bytes(groups: Iterable[NameGroup]) -> int:
    """What the groups take on disk."""
    return sum(group.size_bytes for group in groups)


def known_hashes(groups: Iterable[NameGroup], folder: str) -> dict[str, str]:
    """The hash of each part's file, by its path as FOLDER/<hash>: `keep` has just read them."""
    return {f"{folder}/{part.hash}": part.hash for part in blob_parts(groups)}


def keep(
    groups: Sequence[NameGroup],
    buffers: Sequence[Buffer],
    out: Path,
    folder: Path,
    copied: Copied = lambda name, size, path: "",
) -> tuple[list[NameGroup], list[RemoteName]]:
    """Move what the runner saved (inline `buffers`, files in `out`) to `folder`. Returns the groups with their true hashes,
    and the names of those whose files were not what the runner said. `copied`: see `BlobFolder.take_file`. Blocks. Raises
    PlatformError, OSError."""
    taken = take(groups, buffers, NamesFolder(folder), out, copied)
    if taken.buffers:
        (folder / INLINE).write_bytes(b"".join(taken.buffers))
    lost = [
        RemoteName(name=name, type="", why="unpicklable", detail=why.message)
        for group, why in taken.refused
        for name in group.names
    ]
    return taken.groups, lost


def show(groups: Sequence[NameGroup], folder: Path, into: Path) -> list[bytes]:
    """Show the parts of kept groups to a container as INTO/<hash>; returns the inline parts' bytes, in order. Blocks.

    Raises PlatformError (INTEGRITY), OSError: the folder lacks a part.
    """
    place(blob_parts(groups), NamesFolder(folder), into)
    inline = any(part.at == "inline" for group in groups for part in group.parts)
    return cut((folder / INLINE).read_bytes() if inline else b"", groups)


def cut(data: bytes, groups: Iterable[NameGroup]) -> list[bytes]:
    """The inline parts of groups, in order, of the bytes that have them all. Raises PlatformError (INTEGRITY)."""
    inline = [part for group in groups for part in group.parts if part.at == "inline"]
    if len(data) != sum(part.size_bytes for part in inline):
        raise error(ErrorCode.INTEGRITY, "the parked names have another size than their list says")
    found, done = [], 0
    for part in inline:
        found.append(data[done : done + part.size_bytes])
        done += part.size_bytes
    return found


def lost_names(groups: Iterable[NameGroup], why: str) -> list[RemoteName]:
    """All names of the groups, as lost."""
    return [RemoteName(name=name, type="", why="unpicklable", detail=why) for group in groups for name in group.names]
