"""Parked sessions that had a secret: encrypted on the disk, their processes only, opened into memory.

Names are not kept by value beside them (large values would lie in plain files on their way), so what cannot be kept with its
processes is not put away. The key comes with each request and stays in memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_runtime import sealed_files
from cellburst_runtime.snapshot_manifest import STORE, Manifest, SnapshotUnusable

HIDDEN = "cellburst-hidden.json"  # beside the engine's files of an opened checkpoint, and encrypted as they are
MEMORY_SPARE_BYTES = 256 << 20  # left to the machine beside a checkpoint in memory


def only_whole(engine: str, whole: bool, notes: list[str]) -> None:
    """Refuse to keep anything but the processes. Raises PlatformError (UNAVAILABLE); the session lives on."""
    if not whole:
        why = notes[-1] if notes else f"the engine {engine} takes no snapshot of it"
        raise error(
            ErrorCode.UNAVAILABLE, f"this session had secrets and is put away with its processes or not at all: {why}",
            next="`%modal stop` ends it; it lives on until then",
        )  # fmt: skip


def check_memory(size_bytes: int) -> None:
    """Refuse a checkpoint that has no room in memory. Raises PlatformError (UNAVAILABLE)."""
    from .templates import free_bytes  # it imports parking.py, which imports this

    free = free_bytes() - MEMORY_SPARE_BYTES
    if size_bytes > free:
        raise error(
            ErrorCode.UNAVAILABLE,
            f"this session had secrets: to encrypt it {size_bytes >> 20} MiB of memory are needed beside it, "
            f"{max(0, free) >> 20} MiB are free", next="`%modal stop` ends it; it lives on until then",
        )  # fmt: skip


async def checkpoint(
    container: Path, target: Path, key: str, size_bytes: int, hidden: Sequence[tuple[str, str]],
    take: Callable[[Path], Awaitable[object]],
) -> None:  # fmt: skip
    """Have `take` write a checkpoint into memory, and encrypt it into the folder `target`, with the values that are hidden in
    what the session shows (`Hiding.given`). Raises what `take` does, OSError."""
    folder = await sealed_files.memory_folder(container, size_bytes)
    try:
        await take(folder)
        _write_hidden(folder, hidden)
        await asyncio.to_thread(sealed_files.seal_folder, folder, target, sealed_files.key_of(key))
    finally:
        await sealed_files.forget_memory_folder(container)


def seal_store(folder: Path, key: str) -> None:
    """Encrypt what the session wrote, in its place. Blocks. Raises OSError."""
    plain, sealed = folder / STORE, folder / f"{STORE}.sealed"
    if plain.exists():
        sealed_files.seal_file(plain, sealed, sealed_files.key_of(key), STORE)
        sealed.replace(plain)


def open_store(copy: Path, key: str) -> Path:
    """Decrypt a copy of it, for a container's layer. The copy is removed. Blocks. Raises SnapshotUnusable, OSError."""
    plain = copy.with_name(f"{copy.name}.open")
    try:
        sealed_files.open_file(copy, plain, sealed_files.key_of(key), STORE)
    finally:
        copy.unlink()
    return plain


async def open_checkpoint(
    manifest: Manifest, sealed: Path, container: Path, key: str
) -> tuple[Path, list[tuple[str, str]]]:
    """Decrypt a checkpoint into memory below the container's folder. Returns where, and the values that were hidden in what the
    session showed: its memory has them, also those that were replaced since. Raises SnapshotUnusable, PlatformError, OSError."""
    if not key:
        raise SnapshotUnusable("it is encrypted, and its key did not come")
    size_bytes = sum(path.stat().st_size for path in sealed.iterdir())
    # Runs of zeros take no room in the sealed files: they are holes of the opened ones.
    folder = await sealed_files.memory_folder(container, size_bytes)
    await asyncio.to_thread(sealed_files.open_folder, sealed, folder, sealed_files.key_of(key))
    return folder, await asyncio.to_thread(_take_hidden, folder)


def _write_hidden(folder: Path, hidden: Sequence[tuple[str, str]]) -> None:
    path = folder / HIDDEN
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(hidden))


def _take_hidden(folder: Path) -> list[tuple[str, str]]:
    path = folder / HIDDEN
    try:
        hidden = msgspec.json.decode(path.read_bytes(), type=list[tuple[str, str]])
    except FileNotFoundError:
        return []  # put away by an earlier version
    path.unlink()
    return hidden


async def opened(container: Path) -> None:
    """The processes are up: what they came from leaves the memory."""
    await sealed_files.forget_memory_folder(container)
