"""Where the bytes of volumes lie: chunks by content hash, those of each workspace apart.

`chunks_local.py` is a folder of this machine, `chunks_fsspec.py` anything that fsspec reaches (S3, GCS, a share). All methods
block and may be called from any thread at the same time; the gateway calls them off its loop. A hash was checked for its form
before. What is put is whole or not there. All raise PlatformError: DISK_FULL, UNAVAILABLE (try again), STORE.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error

if TYPE_CHECKING:
    from .config import GatewayConfig


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk that is there. `changed_unix_seconds` is when it was put, or last asked for where the store can note that."""

    hash: str
    size_bytes: int
    changed_unix_seconds: float


class ChunkStore(abc.ABC):
    """The seam. The gateway makes one at its start and closes it at its end."""

    @abc.abstractmethod
    def put(self, workspace: str, hash: str, data: bytes | memoryview) -> None:
        """Store a chunk; one that is there stays or is replaced by the same bytes. Raises RequestError (BAD_ARGUMENT) when the
        bytes have another hash: nothing is stored then."""

    @abc.abstractmethod
    def get(self, workspace: str, hash: str) -> bytes:
        """Its bytes, not checked: who uses them checks their hash. Raises RequestError (NOT_FOUND)."""

    @abc.abstractmethod
    def sizes(self, workspace: str, hashes: Iterable[str]) -> dict[str, int]:
        """The lengths of those that are there. They count as used now."""

    @abc.abstractmethod
    def stored(self, workspace: str) -> Iterator[StoredChunk]:
        """All chunks of a workspace, in any order. One that comes or goes meanwhile may be among them or not."""

    @abc.abstractmethod
    def remove(self, workspace: str, hash: str) -> None:
        """Delete one; nothing happens when it is gone already."""

    def folder(self, workspace: str) -> str:
        """The folder in which programs of this user on this machine find HASH[:2]/HASH and may add some the same way
        (draft in `tmp`, then rename); "" when there is none."""
        return ""

    def remove_stale(self, now_unix_seconds: float) -> int:
        """Remove drafts whose writers are gone; returns how many."""
        return 0

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of connections."""


def make_chunk_store(config: GatewayConfig) -> ChunkStore:
    """The store of the configuration: `[gateway] volumes_url`, else the data folder. Raises CellburstError: BAD_ARGUMENT for a
    URL that cannot be used."""
    if config.volumes_url:
        from .chunks_fsspec import FsspecChunks  # fsspec is an extra

        return FsspecChunks(config.volumes_url, config.volumes_options)
    from .chunks_local import LocalChunks

    return LocalChunks(config.data_folder / "chunks", sync=config.volumes_sync)


def workspace_part(workspace: str) -> str:
    """A workspace's name as a part of a path."""
    return blake3(workspace.encode()).hexdigest()[:32]


def check_bytes(hash: str, data: bytes | memoryview) -> None:
    """Raises RequestError (BAD_ARGUMENT) when the bytes have another hash."""
    found = blake3(data).hexdigest()
    if found != hash:
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"a chunk's bytes have the hash {found[:12]}…, not {hash[:12]}…",
            next="send it again",
        )


def not_there(hash: str) -> Exception:
    """RequestError (NOT_FOUND)."""
    return error(
        ErrorCode.NOT_FOUND,
        f"chunk {hash[:12]}… is not there (any more)",
        next="read the volume's files again",
        chunk=hash,
    )
