"""What one container wrote to one volume, and publishing it: found, hashed, sent, committed; conflicts told or set aside.

`version` is what the next commit began from. It moves on with each commit of ours; what others changed on the way there is
kept in `foreign` until a reload, because this container has not seen it: writing such a path is a conflict as well.

A commit that a person asked for (`explicit`) raises VolumeConflict and publishes nothing. One that runs by itself loses
nothing either way: ours goes in beside theirs, as PATH.conflict-SESSION, and that is said once for each path.
Everything here blocks and is called in a thread, one call at a time.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
    MAX_FILE_BYTES,
    MAX_PART_BYTES,
    MAX_PATHS_PER_COMMIT,
    Chunk,
    CommitVolume,
    FileEntry,
    VolumeCommitted,
    VolumeFiles,
    VolumeMount,
    conflict_error,
    conflicts,
    same_content,
    shown,
)
from cellburst_runtime.volume_scan import Found, Scan, open_found, scan_folder, scan_upper

from .volume_gateway import BATCH_BYTES, GatewayVolumes

# A file that changes while it is read is left for the next look, every 5 s; after a minute of that it is published as it is
# read, so that a log that never rests is kept as well.
PATIENCE = 12
TRIES = 5  # of one commit against others that commit at the same time


class Known(msgspec.Struct, array_like=True):
    """What the gateway has of a path from us: the entry, and what the file was when it was read."""

    seen: tuple[int, int, int]
    entry: FileEntry


class VolumeState(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What must be known to go on after the session was parked. It lies beside what the session wrote."""

    version: int = 0
    shown_version: int = 0  # of the tree
    serial: int = 1
    known: dict[str, Known] = {}
    gone: list[str] = []  # deletions that are published
    foreign: dict[str, FileEntry] = {}
    aside: dict[str, str] = {}  # path -> where ours is published since it stood against another's


@dataclass
class Writer:
    """One volume in one container. `folder` is what is looked through: the overlay's upper folder over `tree`, or with `tree`
    None all files. `by` is shown to others; `tag` ends the names of what is set aside."""

    asked: VolumeMount
    gateway: GatewayVolumes
    folder: Path
    tree: Path | None
    by: str
    tag: str
    state: VolumeState = field(default_factory=VolumeState)
    notices: list[str] = field(default_factory=list)  # for the user, taken by the caller
    deleted_too: list[str] = field(default_factory=list)  # what is to be deleted besides, where no tree can tell
    _restless: Counter[str] = field(default_factory=Counter)
    _pending: CommitVolume | None = None  # sent, and no answer came: it goes first, as it was
    _pending_known: dict[str, Known] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)

    def know_all(self, entries: Iterable[FileEntry]) -> None:
        """Copies: what lies there now is what the gateway has."""
        there = scan_folder(self.folder).found
        self.state.known = {e.path: Known(there[e.path].seen, e) for e in entries if e.path in there}

    def commit(self, *, explicit: bool, patient: bool = True) -> int:
        """Publish what changed; the version after it. Not `patient`: also files that are being written.

        Raises RequestError (VOLUME_CONFLICT where `explicit`; NOT_FOUND: the volume was deleted), PlatformError
        (UNAVAILABLE), OSError.
        """
        if self.asked.read_only:
            raise error(
                ErrorCode.FORBIDDEN, f"volume {self.asked.name} is read-only here",
                next=f"volumes={self.asked.path}:{self.asked.name} without :ro",
            )  # fmt: skip
        if self._pending is not None:
            self._send(self._pending, self._pending_known, explicit=explicit)
        scan = self._scan()
        for path in sorted(scan.left_out.keys() - self._told):
            self._told.add(path)
            self.notices.append(f"volume {self.asked.name}: {shown(path)} is not published: {scan.left_out[path]}")
        changed, deleted = self._changes(scan)
        read = self._read(changed, patient=patient)
        for part, gone in _parts(read, deleted):
            self._publish(part, gone, explicit=explicit)
        return self.state.version

    def unpublished(self) -> tuple[dict[str, Found], list[str]]:
        """What is there and not published: changed paths, deleted paths."""
        return self._changes(self._scan())

    def _changes(self, scan: Scan) -> tuple[dict[str, Found], list[str]]:
        state = self.state
        state.gone = [path for path in state.gone if path not in scan.found]
        missing = scan.hidden | (state.known.keys() - scan.found.keys()) | set(self.deleted_too)
        changed = {p: f for p, f in scan.found.items() if p not in state.known or state.known[p].seen != f.seen}
        return changed, sorted(missing - set(state.gone) - scan.found.keys())

    def _scan(self) -> Scan:
        return scan_upper(self.folder, self.tree) if self.tree is not None else scan_folder(self.folder)

    # -- reading ---------------------------------------------------------------------------------------------------

    def _read(self, changed: Mapping[str, Found], *, patient: bool) -> dict[str, Known]:
        """What changed, hashed, and only what differs from what is published. Chunks that the gateway lacks are sent."""
        read: dict[str, Known] = {}
        for path, found in changed.items():
            entry = self._entry(path, found, patient=patient)
            if entry is None:
                continue
            before = self.state.known.get(path)
            if before is not None and _same(before.entry, entry):
                self.state.known[path] = Known(found.seen, before.entry)
            else:
                read[path] = Known(found.seen, entry)
        for path in self._send_chunks({path: one.entry for path, one in read.items()}):
            self._restless[path] += 1
            del read[path]  # it changed since: the next commit has it
        return read

    def _entry(self, path: str, found: Found, *, patient: bool) -> FileEntry | None:
        """None: it is gone, or does not rest."""
        if found.kind != "file":
            return FileEntry(path=path, kind=found.kind, mode=found.mode, target=found.target)
        try:
            fd = open_found(self.folder, path)
        except OSError:
            return None  # deleted or exchanged meanwhile
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return None
            if before.st_size > MAX_FILE_BYTES:
                self.notices.append(
                    f"volume {self.asked.name}: {shown(path)} is not published: it is larger than 1 TiB"
                )
                return None
            chunks = list(_hashed(fd, before.st_size))
            after = os.fstat(fd)
        finally:
            os.close(fd)
        rests = (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
            after.st_size, after.st_mtime_ns, after.st_ctime_ns,
        )  # fmt: skip
        if not rests and patient and self._restless[path] < PATIENCE:
            self._restless[path] += 1
            return None
        self._restless.pop(path, None)
        return FileEntry(
            path=path, size_bytes=sum(chunk.size_bytes for chunk in chunks), mode=found.mode, modified_ns=before.st_mtime_ns,
            chunks=chunks,
        )  # fmt: skip

    def _send_chunks(self, entries: Mapping[str, FileEntry]) -> list[str]:
        """Send what the gateway lacks; the paths whose files are not any more what was hashed."""
        hashes = list(dict.fromkeys(chunk.hash for entry in entries.values() for chunk in entry.chunks))
        lacking = self.gateway.missing(hashes) if hashes else set()
        changed: list[str] = []
        batch: list[tuple[str, bytes]] = []
        size = 0
        for path, entry in entries.items():
            if not any(chunk.hash in lacking for chunk in entry.chunks):
                continue
            for hash, data in _chunks_of(self.folder, path, entry, lacking):
                if data is None:
                    changed.append(path)
                    break
                if hash not in lacking:
                    continue
                lacking.discard(hash)
                batch.append((hash, data))
                size += len(data)
                if size >= BATCH_BYTES:
                    self.gateway.put(batch)
                    batch, size = [], 0
        if batch:
            self.gateway.put(batch)
        return changed

    # -- publishing ------------------------------------------------------------------------------------------------

    def _publish(self, read: dict[str, Known], deleted: list[str], *, explicit: bool) -> None:
        against = self._against(read, deleted, self.state.foreign)
        if against and explicit:
            raise conflict_error(self.asked.name, against)
        self._set_aside(against, read)
        commit = self._message(read, deleted)
        if commit.changes or commit.deleted:
            self._send(commit, read, explicit=explicit)
        for path in deleted:  # also those that stood against theirs: they are not tried again
            self.state.known.pop(path, None)
        self.state.gone = list(dict.fromkeys([*self.state.gone, *deleted]))

    def _message(self, read: Mapping[str, Known], deleted: Iterable[str]) -> CommitVolume:
        aside = self.state.aside
        changes = [
            msgspec.structs.replace(one.entry, path=aside[path]) if path in aside else one.entry
            for path, one in read.items()
        ]
        return CommitVolume(
            base=self.state.version, key=secrets.token_hex(16), by=self.by, changes=changes,
            deleted=[path for path in deleted if path not in aside], last_write_wins=self.asked.last_write_wins,
        )  # fmt: skip

    def _send(self, commit: CommitVolume, read: dict[str, Known], *, explicit: bool) -> None:
        for _ in range(TRIES):
            self._pending, self._pending_known = commit, read
            try:
                done = self.gateway.commit(self.asked.volume, commit)
            except CellburstError as why:
                if why.code is not ErrorCode.UNAVAILABLE:
                    self._pending = None
                if why.code is not ErrorCode.VOLUME_CONFLICT:
                    raise
                commit = self._after_conflict(commit, read, why, explicit=explicit)
                continue
            self._pending = None
            self._published(commit, read, done)
            return
        raise error(
            ErrorCode.UNAVAILABLE, f"volume {self.asked.name}: others commit all the time", next="it is tried again"
        )

    def _after_conflict(
        self, commit: CommitVolume, read: dict[str, Known], why: CellburstError, *, explicit: bool
    ) -> CommitVolume:
        """The commit to try instead."""
        news = self.gateway.files(self.asked.volume, self.state.version)
        current = {entry.path: entry for entry in news.entries}
        deleted = list(commit.deleted)
        against = [entry for entry in conflicts(commit, current) if not self._ours(entry)]
        if against and explicit:
            raise why
        self._learn(news, ())
        self._set_aside(against, read)
        return self._message(read, deleted)

    def _against(
        self, read: Mapping[str, Known], deleted: Iterable[str], current: dict[str, FileEntry]
    ) -> list[FileEntry]:
        if not current:
            return []
        probe = CommitVolume(
            base=0, key="", by="", changes=[one.entry for path, one in read.items() if path not in self.state.aside],
            deleted=list(deleted), last_write_wins=self.asked.last_write_wins,
        )  # fmt: skip
        return [entry for entry in conflicts(probe, current) if not self._ours(entry)]

    def _ours(self, entry: FileEntry) -> bool:
        """Whether this is what we published ourselves."""
        if entry.deleted:
            return entry.path in self.state.gone
        known = self.state.known.get(entry.path)
        return known is not None and entry.path not in self.state.aside and same_content(known.entry, entry)

    def _set_aside(self, against: Iterable[FileEntry], read: Mapping[str, Known]) -> None:
        """From now on ours goes beside theirs."""
        aside = self.state.aside
        for theirs in against:
            path = theirs.path
            if path in aside:
                # A name of ours that somebody else has: another one.
                aside[path] = _aside_name(path, f"{self.tag}-{secrets.token_hex(2)}")
                continue
            owner = next((mine for mine, other in aside.items() if other == path), "")
            if owner:
                aside[owner] = _aside_name(owner, f"{self.tag}-{secrets.token_hex(2)}")
                continue
            aside[path] = _aside_name(path, self.tag)
            did = "deleted" if theirs.deleted else "changed"
            whose = f"{shown(path)} was {did} by {theirs.by or 'somebody'} (version {theirs.version}) after it was read here"
            ours = f"yours is kept as {shown(aside[path])}" if path in read else "it was not deleted"
            self.notices.append(f"volume {self.asked.name}: {whose}; theirs stays, {ours}")

    def _published(self, commit: CommitVolume, read: Mapping[str, Known], done: VolumeCommitted) -> None:
        state = self.state
        state.known.update(read)
        for path in commit.deleted:
            state.known.pop(path, None)
        state.gone = list(dict.fromkeys([*state.gone, *commit.deleted]))
        if done.version == state.version + 1 and done.changed:
            state.version = done.version
        elif done.version != state.version:
            # Others committed since: what they changed, this container has not seen.
            mine = [*commit.changes, *(FileEntry(path=path, deleted=True) for path in commit.deleted)]
            self._learn(self.gateway.files(self.asked.volume, state.version), mine)

    def _learn(self, news: VolumeFiles, mine: Iterable[FileEntry]) -> None:
        ours = {entry.path: entry for entry in mine}
        for entry in news.entries:
            if news.whole and entry.version <= self.state.version:
                continue  # it was there when this container looked
            if not self._ours(entry) and not (entry.path in ours and same_content(ours[entry.path], entry)):
                self.state.foreign[entry.path] = entry
        self.state.version = max(self.state.version, news.version)


def _parts(read: dict[str, Known], deleted: list[str]) -> Iterator[tuple[dict[str, Known], list[str]]]:
    """Nearly always one. What is too much for one commit is published in several, each whole."""
    paths = list(read)
    while paths or deleted:
        now, paths = paths[:MAX_PATHS_PER_COMMIT], paths[MAX_PATHS_PER_COMMIT:]
        room = MAX_PATHS_PER_COMMIT - len(now)
        gone, deleted = deleted[:room], deleted[room:]
        yield {path: read[path] for path in now}, gone


def _hashed(fd: int, size_bytes: int) -> Iterator[Chunk]:
    """The chunks of a file's first bytes; fewer where it was cut off meanwhile."""
    done = 0
    while done < size_bytes:
        data = _read_at(fd, done, min(CHUNK_BYTES, size_bytes - done))
        if not data:
            return
        yield Chunk(blake3(data, max_threads=blake3.AUTO).hexdigest(), len(data))
        done += len(data)


def _chunks_of(folder: Path, path: str, entry: FileEntry, wanted: set[str]) -> Iterator[tuple[str, bytes | None]]:
    """The wanted chunks of a file, read again; None for one that is not what it was."""
    try:
        fd = open_found(folder, path)
    except OSError:
        yield "", None
        return
    try:
        offset = 0
        for chunk in entry.chunks:
            if chunk.hash in wanted:
                data = _read_at(fd, offset, chunk.size_bytes)
                same = len(data) == chunk.size_bytes and blake3(data).hexdigest() == chunk.hash
                yield chunk.hash, data if same else None
            offset += chunk.size_bytes
    finally:
        os.close(fd)


def _read_at(fd: int, offset: int, size_bytes: int) -> bytes:
    data = os.pread(fd, size_bytes, offset)
    while len(data) < size_bytes and (more := os.pread(fd, size_bytes - len(data), offset + len(data))):
        data += more
    return data


def _same(one: FileEntry, other: FileEntry) -> bool:
    times = one.kind != "file" or one.modified_ns == other.modified_ns
    return same_content(one, other) and one.mode == other.mode and times


def _aside_name(path: str, tag: str) -> str:
    folder, slash, name = path.rpartition("/")
    end = f".conflict-{tag}"
    kept = name.encode()[: MAX_PART_BYTES - len(end)].decode(errors="ignore")
    return f"{folder}{slash}{kept}{end}"
