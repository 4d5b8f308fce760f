"""Names of a parked session on their way to another machine: as blobs, through the gateway's store.

    SendParked  ──▶ the worker that keeps it: parts to its blob folder, published ──▶ ParkedNames
    StartContainer {names} ──▶ the other: blobs brought, shown to the container, loaded like parked names

Only what is kept by value can go; a session that had secrets has none, and is not moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import ParkedNames, ValuePart
from cellburst_runtime.snapshot_manifest import NAMES, Manifest, SnapshotUnusable

from .blobs import BlobFolder
from .parked_names import INLINE, cut
from .site import Site
from .values import blob_parts, place


async def send_out(site: Site, parked: str) -> ParkedNames:
    """Let the gateway have the names of a parked session; they stay here as well.

    Raises RequestError (NOT_FOUND), PlatformError (UNAVAILABLE: it had secrets; INTEGRITY: they are damaged; DISK_FULL), OSError.
    """
    snapshots = site.runtime.snapshots
    manifest = await asyncio.to_thread(snapshots.parked, parked)
    if manifest is None:
        raise error(
            ErrorCode.NOT_FOUND, f"the parked session {parked[:80]!r} is not on this machine",
            next="`%modal restart` starts it anew (its names are lost)",
        )  # fmt: skip
    if manifest.encrypted:
        raise error(
            ErrorCode.UNAVAILABLE, "this session had secrets: its names are not kept by value, and cannot move",
            next="ask for hardware of its own machine, or `%modal restart` (its names are lost)",
        )  # fmt: skip
    try:
        await asyncio.to_thread(snapshots.check, manifest, checkpoint=False)
    except SnapshotUnusable as why:
        raise error(ErrorCode.INTEGRITY, f"the parked names cannot be used: {why.reason}") from why
    folder = site.exchange.folder
    inline, hashes = await asyncio.to_thread(_copy, manifest, snapshots.path(manifest) / NAMES, folder)
    await site.exchange.publish(hashes)
    if not site.exchange.shared:
        await asyncio.to_thread(_discard, hashes, folder)  # the gateway has them, and nobody here needs them
    return ParkedNames(groups=manifest.names, lost=list(manifest.lost), inline=inline)


async def bring(site: Site, names: ParkedNames, into: Path) -> list[bytes]:
    """Show the parts to a container as INTO/<hash>; returns the inline ones, in order. Raises PlatformError, OSError."""
    parts = blob_parts(names.groups)
    await site.exchange.bring([*parts, *([names.inline] if names.inline is not None else [])])
    return await asyncio.to_thread(_show, site.exchange.folder, names, parts, into)


def _copy(manifest: Manifest, folder: Path, blobs: BlobFolder) -> tuple[ValuePart | None, list[str]]:
    kept = [blobs.keep_copy(folder / part.hash) for part in blob_parts(manifest.names)]
    inline = blobs.keep_copy(folder / INLINE) if (folder / INLINE).exists() else None
    return inline, list(dict.fromkeys(part.hash for part in [*kept, *([inline] if inline is not None else [])]))


def _discard(hashes: Sequence[str], blobs: BlobFolder) -> None:
    for hash in hashes:
        blobs.path(hash).unlink(missing_ok=True)


def _show(blobs: BlobFolder, names: ParkedNames, parts: Sequence[ValuePart], into: Path) -> list[bytes]:
    place(parts, blobs, into)
    data = blobs.path(names.inline.hash).read_bytes() if names.inline is not None else b""
    return cut(data, names.groups)
