"""Volumes as the gateway serves them: the record's verbs and the chunk store, off the loop; expiry, and chunks nobody refers to.

A commit's chunks are pinned from before they are looked for until it is recorded, and a round of collection that has begun
leaves those pinned meanwhile alone: so a chunk that a commit was told is there stays. Everything else about a put under way
is time: a chunk goes when no live file has referred to it for an hour, seen by this gateway itself, and it is an hour old.
What was asked for (`missing`) begins its hour anew. A writer whose chunk went all the same is told which, and sends it again.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import (
    MAX_PACK_BYTES,
    CommitVolume,
    CreateVolume,
    VolumeCommitted,
    VolumeFiles,
    VolumeRow,
    check_hash,
    check_name,
    check_path,
    unpack_chunks,
)

from .chunks import ChunkStore, not_there
from .store_rows import Owner
from .store_volumes import VolumeRecord
from .volume_rules import checked_commit, chunks_of

if TYPE_CHECKING:
    from .hub import Hub

EPHEMERAL_SECONDS = 600.0
KEEP_SECONDS = 3600.0  # a chunk to which nothing refers: a put or a reader of the version before may be on its way
COLLECT_SECONDS = 1800.0
LOOK_SECONDS = 60.0
KEEP_COMMITS_SECONDS = 86400.0  # keys of commits: a writer that repeats one after a day has long failed
MAX_NAMED = 1000  # missing chunks in an error; the writer asks for the others with `missing`
THREADS = 8
BODIES = 16  # large bodies that are being taken: half a gigabyte of memory at most
ID_PREFIX = "v-"
T = TypeVar("T")


class Volumes:
    """All volumes. `users` are asked who uses a volume: they answer with words for people."""

    def __init__(self, hub: Hub, chunks: ChunkStore) -> None:
        self._hub = hub
        self.chunks = chunks
        self.users: list[Callable[[str], list[str]]] = [self._sessions_with]
        self._used: dict[str, frozenset[str]] = {}  # volumes by session
        self.room = asyncio.Semaphore(BODIES)
        self._threads = ThreadPoolExecutor(THREADS, "cellburst-volumes")
        self._lock = threading.Lock()
        self._round = threading.Lock()  # held while chunks are collected
        self._pins: Counter[tuple[str, str]] = Counter()
        self._kept: set[tuple[str, str]] | None = None  # pinned since the round of collection began
        self._unused_since: dict[tuple[str, str], float] = {}
        self._started = self._looked_at = self._collected_at = hub.clock.monotonic()
        self._collecting = False

    # -- volumes ---------------------------------------------------------------------------------------------------

    async def create(self, owner: Owner, asked: CreateVolume) -> tuple[VolumeRow, bool]:
        """Make one; whether it was made. Raises RequestError (BAD_ARGUMENT, CONFLICT)."""
        if asked.ephemeral and asked.name:
            raise error(ErrorCode.BAD_ARGUMENT, "an ephemeral volume has no name", next="leave out one of the two")
        if not asked.ephemeral:
            _check_new_name(asked.name)
        id = ID_PREFIX + secrets.token_hex(12)
        record, created = await self._off(
            lambda: self._hub.store.create_volume(
                id, owner, name=asked.name, now=self._hub.clock.wall(), if_missing=asked.if_missing,
                ephemeral=asked.ephemeral,
            )
        )  # fmt: skip
        return self._row(record), created

    async def get(self, workspace: str, name: str) -> VolumeRow:
        """One, by name or id; an ephemeral one lives on. Raises RequestError (NOT_FOUND)."""
        return self._row(await self._record(workspace, name))

    async def rows(self, workspace: str) -> list[VolumeRow]:
        """All of a workspace."""
        return [self._row(record) for record in await self._off(lambda: self._hub.store.list_volumes(workspace))]

    async def rename(self, workspace: str, old: str, new: str) -> VolumeRow:
        """Raises RequestError (NOT_FOUND, CONFLICT, BAD_ARGUMENT)."""
        check_name(old)
        _check_new_name(new)
        return self._row(await self._off(lambda: self._hub.store.rename_volume(workspace, old, name=new)))

    async def delete(self, workspace: str, name: str, *, used: bool = False) -> None:
        """Remove one. Raises RequestError: NOT_FOUND, CONFLICT naming what uses it unless `used`."""
        record = await self._record(workspace, name)
        users = self.users_of(record.id) + self._schedules_with(record)
        if users and not used:
            raise error(
                ErrorCode.CONFLICT, f"volume {name} is used by {', '.join(users)}",
                next="end them first; or delete it all the same: they keep what they see until they end",
            )  # fmt: skip
        await self._off(lambda: self._hub.store.delete_volume(workspace, record.id))

    def uses(self, session: str, volumes: Iterable[str]) -> None:
        """A session has these volumes (ids) and no others, until it ends: it is named when one is to be deleted."""
        self._used[session] = frozenset(volumes)

    # -- files and chunks ------------------------------------------------------------------------------------------

    async def files(self, workspace: str, name: str, since: int, prefix: str) -> VolumeFiles:
        """What changed after a version. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        record = await self._record(workspace, name)
        path = check_path(prefix) if prefix.strip("/") else ""
        return await self._off(lambda: self._files(record.id, since, path))

    async def commit(self, owner: Owner, name: str, asked: CommitVolume) -> VolumeCommitted:
        """Publish a commit. Raises RequestError: what `commit_volume` and `checked_commit` do, and NOT_FOUND with `missing`
        in its detail (hashes, one a line) when chunks of it are not there."""
        record = await self._record(owner.workspace, name)

        def work() -> VolumeCommitted:
            commit = checked_commit(asked)
            chunks = chunks_of(commit.changes)
            with self._pinned(owner.workspace, chunks):
                sizes = self.chunks.sizes(owner.workspace, chunks)
                lacking = [hash for hash, size in chunks.items() if sizes.get(hash) != size]
                if lacking:
                    raise error(
                        ErrorCode.NOT_FOUND, f"{len(lacking):,} of the commit's {len(chunks):,} chunks are not there",
                        next="send them, then commit again", missing="\n".join(lacking[:MAX_NAMED]),
                    )  # fmt: skip
                return self._hub.store.commit_volume(
                    owner.workspace, record.id, owner.principal, commit, now=self._hub.clock.wall()
                )[1]

        return await self._off(work)

    async def missing(self, workspace: str, hashes: Sequence[str]) -> list[str]:
        """Those that the workspace lacks. The others are kept for an hour from now."""
        for hash in hashes:
            check_hash(hash)

        def work() -> list[str]:
            found = self.chunks.sizes(workspace, hashes)
            with self._lock:
                for hash in found:
                    self._unused_since.pop((workspace, hash), None)
            return [hash for hash in dict.fromkeys(hashes) if hash not in found]

        return await self._off(work)

    async def take(self, workspace: str, body: bytes | bytearray) -> None:
        """Store packed chunks. Raises RequestError (BAD_MESSAGE, BAD_ARGUMENT), PlatformError (DISK_FULL, …)."""

        def work() -> None:
            for hash, data in unpack_chunks(memoryview(body)):
                self.chunks.put(workspace, hash, data)

        await self._off(work)

    async def give(self, workspace: str, hashes: Sequence[str]) -> AsyncIterator[tuple[str, bytes]]:
        """Chunks one after another, each read when the one before was taken. Raises RequestError (NOT_FOUND, TOO_LARGE) before
        the first."""
        for hash in hashes:
            check_hash(hash)
        sizes = await self._off(lambda: self.chunks.sizes(workspace, hashes))
        for hash in hashes:
            if hash not in sizes:
                raise not_there(hash)
        total = sum(sizes[hash] for hash in hashes)
        if total > MAX_PACK_BYTES:
            raise error(
                ErrorCode.TOO_LARGE,
                f"chunks of {total:,} bytes together",
                allowed=f"{MAX_PACK_BYTES:,}",
                next="ask in parts",
            )
        return self._each(workspace, hashes)

    async def _each(self, workspace: str, hashes: Sequence[str]) -> AsyncIterator[tuple[str, bytes]]:
        for hash in hashes:
            yield hash, await self._off(lambda hash=hash: self.chunks.get(workspace, hash))  # type: ignore[misc]

    # -- the regular look ------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Begin what is due. Called a few times a second."""
        now = self._hub.clock.monotonic()
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            self._hub.spawn(self._off(self.expire))
        if now - self._collected_at >= COLLECT_SECONDS and not self._collecting:
            self._collected_at = now
            self._collecting = True
            self._hub.spawn(self._off(self.collect))

    def expire(self) -> int:
        """Delete ephemeral volumes for which nobody asked for ten minutes; returns how many. Nobody could ask while no gateway
        was there: the time runs from its start at the earliest."""
        if self._hub.clock.monotonic() - self._started < EPHEMERAL_SECONDS:
            return 0
        store, now = self._hub.store, self._hub.clock.wall()
        idle = [v for v in store.idle_ephemeral_volumes(before=now - EPHEMERAL_SECONDS) if not self.users_of(v.id)]
        for volume in idle:
            store.delete_volume(volume.owner.workspace, volume.id)
        store.drop_old_commits(before=now - KEEP_COMMITS_SECONDS)
        return len(idle)

    def collect(self) -> int:
        """Remove chunks that nobody refers to (see the module); returns how many. Blocks for a look at all chunks."""
        with self._round:
            return self._collect_all()

    def _collect_all(self) -> int:
        removed = 0
        try:
            with self._lock:
                self._kept = set(self._pins)
            self.chunks.remove_stale(self._hub.clock.wall())
            seen: set[tuple[str, str]] = set()
            for workspace in self._hub.store.chunk_workspaces():
                removed += self._collect(workspace, seen)
            with self._lock:
                self._unused_since = {key: since for key, since in self._unused_since.items() if key in seen}
        finally:
            with self._lock:
                self._kept = None
            self._collecting = False
        return removed

    def _collect(self, workspace: str, seen: set[tuple[str, str]]) -> int:
        referred: set[str] = set()
        after: tuple[str, str] | None = ("", "")
        while after is not None:
            page, after = self._hub.store.chunks_page(workspace, after)
            referred |= page
        removed = 0
        for chunk in self.chunks.stored(workspace):
            key = (workspace, chunk.hash)
            if chunk.hash in referred:
                continue
            seen.add(key)
            now = self._hub.clock.monotonic()
            with self._lock:
                since = self._unused_since.setdefault(key, now)
                old = self._hub.clock.wall() - chunk.changed_unix_seconds >= KEEP_SECONDS
                assert self._kept is not None
                if now - since < KEEP_SECONDS or not old or key in self._pins or key in self._kept:
                    continue
                self.chunks.remove(workspace, chunk.hash)
                removed += 1
                seen.discard(key)
        return removed

    def close(self) -> None:
        """Wait for what is under way, and let go of the chunk store. Blocks."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self.chunks.close()

    # -- parts -----------------------------------------------------------------------------------------------------

    def _pinned(self, workspace: str, hashes: Iterable[str]) -> _Pins:
        return _Pins(self, [(workspace, hash) for hash in hashes])

    def pin(self, keys: Sequence[tuple[str, str]]) -> None:
        """These chunks stay until `unpin`."""
        with self._lock:
            self._pins.update(keys)
            if self._kept is not None:
                self._kept.update(keys)

    def unpin(self, keys: Sequence[tuple[str, str]]) -> None:
        """See `pin`."""
        with self._lock:
            self._pins.subtract(keys)
            for key in keys:
                if self._pins[key] <= 0:
                    del self._pins[key]

    async def _off(self, work: Callable[[], T]) -> T:
        """Run something that blocks off the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def _record(self, workspace: str, name: str) -> VolumeRecord:
        check_name(name)
        return await self._off(lambda: self._hub.store.get_volume(workspace, name, now=self._hub.clock.wall()))

    def _row(self, record: VolumeRecord) -> VolumeRow:
        return VolumeRow(
            id=record.id, name=record.name, version=record.version, files=record.files, size_bytes=record.size_bytes,
            created_unix_seconds=record.created, changed_unix_seconds=record.changed, ephemeral=record.ephemeral,
            used_by=self.users_of(record.id) + self._schedules_with(record),
        )  # fmt: skip

    def _files(self, id: str, since: int, path: str) -> VolumeFiles:
        store = self._hub.store
        with store.together():
            whole = 0 < since < store.volume_horizon(id)
            version, entries = store.volume_files(id, since=0 if whole else since, prefix=path)
        return VolumeFiles(id=id, version=version, entries=entries, whole=whole)

    def users_of(self, volume: str) -> list[str]:
        """What uses a volume, or what is shown as one (ids), in words for people."""
        return [words for ask in self.users for words in ask(volume)]

    def _schedules_with(self, record: VolumeRecord) -> list[str]:
        if not record.name:
            return []
        return [f"schedule {one}" for one in self._hub.schedules.users_of(record.owner.workspace, volume=record.name)]

    def _sessions_with(self, volume: str) -> list[str]:
        words = []
        for id, volumes in list(self._used.items()):
            session = self._hub.sessions.get(id)
            if session is None:
                self._used.pop(id, None)
            elif volume in volumes:
                words.append(f"session {session.record.name} of {session.record.notebook} ({session.state.value})")
        return words


class _Pins:
    def __init__(self, volumes: Volumes, keys: list[tuple[str, str]]) -> None:
        self._volumes, self._keys = volumes, keys

    def __enter__(self) -> None:
        self._volumes.pin(self._keys)

    def __exit__(self, *exc: object) -> None:
        self._volumes.unpin(self._keys)


def _check_new_name(name: str) -> None:
    check_name(name)
    if name.startswith(ID_PREFIX) and len(name) == len(ID_PREFIX) + 24:
        raise error(ErrorCode.BAD_ARGUMENT, f"{name!r} has the form of a volume's id", allowed="any other name")
