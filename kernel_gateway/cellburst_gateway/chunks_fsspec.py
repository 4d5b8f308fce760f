"""Chunks behind any fsspec URL: `s3://bucket/prefix` above all. Options (`[gateway.volumes_options]`) go to the file system.

An object is written in one request, so that it is whole or not there on object stores; elsewhere a torn one has another
length or hash, which the commit and each reader check. Which chunks are there is remembered, because each question is a
request: this gateway is the only one that removes any.
"""

from __future__ import annotations

import datetime
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .chunks import ChunkStore, StoredChunk, check_bytes, not_there, workspace_part

REQUESTS = 32  # at the same time: a request takes tens of milliseconds
MAX_REMEMBERED = 500_000
T = TypeVar("T")


class FsspecChunks(ChunkStore):
    """See the module. Raises RequestError (BAD_ARGUMENT) for a URL of which fsspec knows nothing."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        try:
            import fsspec.core
        except ImportError:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"gateway.volumes_url = {url!r} needs fsspec, which is not installed",
                next="pip install 'cellburst[s3]'",
            ) from None  # fmt: skip
        try:
            self._fs, root = fsspec.core.url_to_fs(url, use_listings_cache=False, **options)
        except (ImportError, ValueError, TypeError) as why:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"gateway.volumes_url = {url!r} cannot be used: {why}",
                next="for S3: pip install 'cellburst[s3]' and s3://BUCKET/PREFIX",
            ) from None  # fmt: skip
        self._root = root.rstrip("/")
        self._pool = ThreadPoolExecutor(REQUESTS, "cellburst-chunks")
        self._known: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, workspace: str, hash: str, data: bytes | memoryview) -> None:
        """See `ChunkStore`."""
        check_bytes(hash, data)
        path = self._path(workspace, hash)

        def write() -> None:
            # Object stores have no folders; where there are some, they must be.
            self._fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(path, bytes(data))

        self._try(write)
        self._remember(workspace, hash, len(data))

    def get(self, workspace: str, hash: str) -> bytes:
        """See `ChunkStore`."""
        try:
            found: bytes = self._try(lambda: self._fs.cat_file(self._path(workspace, hash)))
        except FileNotFoundError:
            self._forget(workspace, hash)
            raise not_there(hash) from None
        return found

    def sizes(self, workspace: str, hashes: Iterable[str]) -> dict[str, int]:
        """See `ChunkStore`."""
        wanted = list(dict.fromkeys(hashes))
        with self._lock:
            found = {hash: self._known[workspace, hash] for hash in wanted if (workspace, hash) in self._known}
        unknown = [hash for hash in wanted if hash not in found]
        for hash, size in zip(unknown, self._pool.map(lambda hash: self._size(workspace, hash), unknown), strict=True):
            if size:
                found[hash] = size
                self._remember(workspace, hash, size)
        return found

    def stored(self, workspace: str) -> Iterator[StoredChunk]:
        """See `ChunkStore`."""
        folder = f"{self._root}/{workspace_part(workspace)}"
        try:
            listed: dict[str, dict[str, Any]] = self._try(lambda: self._fs.find(folder, detail=True))
        except FileNotFoundError:
            return
        for path, info in listed.items():
            name = path.rpartition("/")[2]
            if len(name) == 64:
                yield StoredChunk(name, int(info.get("size") or 0), _changed(info))

    def remove(self, workspace: str, hash: str) -> None:
        """See `ChunkStore`."""
        self._forget(workspace, hash)
        try:
            self._try(lambda: self._fs.rm_file(self._path(workspace, hash)))
        except FileNotFoundError:
            pass

    def close(self) -> None:
        """See `ChunkStore`."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _path(self, workspace: str, hash: str) -> str:
        return f"{self._root}/{workspace_part(workspace)}/{hash[:2]}/{hash}"

    def _size(self, workspace: str, hash: str) -> int:
        try:
            return int(self._try(lambda: self._fs.info(self._path(workspace, hash)))["size"])
        except FileNotFoundError:
            return 0

    def _remember(self, workspace: str, hash: str, size_bytes: int) -> None:
        with self._lock:
            self._known[workspace, hash] = size_bytes
            while len(self._known) > MAX_REMEMBERED:
                self._known.popitem(last=False)

    def _forget(self, workspace: str, hash: str) -> None:
        with self._lock:
            self._known.pop((workspace, hash), None)

    def _try(self, action: Callable[[], T]) -> T:
        """Foreign errors as ours, but for FileNotFoundError."""
        try:
            return action()
        except (FileNotFoundError, CellburstError):
            raise
        except Exception as why:  # each file system has errors of its own: botocore's, aiohttp's, OSError
            first = (str(why).strip().splitlines() or [type(why).__name__])[0]
            raise error(
                ErrorCode.UNAVAILABLE, f"the place where volumes lie does not answer as it should: {first[:300]}",
                next="try again in a moment; the operator finds its address as volumes_url in the gateway's configuration",
            ) from why  # fmt: skip


def _changed(info: dict[str, Any]) -> float:
    """When an object was written, by whatever name its file system has for that; never old enough to go, when it does
    not say."""
    for key in ("LastModified", "mtime", "created", "updated"):
        value = info.get(key)
        if isinstance(value, datetime.datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return math.inf
