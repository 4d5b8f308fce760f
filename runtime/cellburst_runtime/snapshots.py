"""Snapshots on this machine's disk: templates, which many containers start from, and parked sessions.

    DATA/snapshots/templates/KEY/    checkpoint/  the engine's image           manifest.json  (see `snapshot_manifest`)
    DATA/snapshots/sessions/ID/      names/       values, a file each          seal.json      (see `snapshot_seal`)
                                     store.img    what the session wrote
    DATA/snapshots/drafts/           being made; locked by the process that makes it, so what is unlocked is garbage
    DATA/snapshots/failures.json     what failed to be restored (see `snapshot_failures`)
    DATA/snapshot-key                the key of the seals (0600)

A snapshot is made as a draft, sealed, and put in its place by one rename: it is there whole or not at all. One worker
uses a store; all calls block, so it makes them in a thread. They may be made from several threads.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import SnapshotUsage

from .live_files import changed
from .snapshot_failures import Failures
from .snapshot_manifest import CHECKPOINT, MANIFEST, NAMES, STORE, LiveFile, Manifest, SnapshotKind, SnapshotUnusable
from .snapshot_seal import ImageHash, check_contents, check_sizes, flush_folder, image_blocks, load_key, load_seal, seal

__all__ = ["Draft", "LiveFile", "Manifest", "SnapshotKind", "SnapshotStore", "SnapshotUnusable"]

DISK_RESERVE_BYTES = 256 << 20  # never taken: the record, the logs and other programs need some
DEFAULT_LIMIT_SHARE = 0.5  # of what the disk has left, where nothing is configured
READ_AGAIN_SECONDS = (
    600.0  # a template's bytes are compared with its seal that often; they are cached by the kernel meanwhile
)
DEFAULT_LIMIT_BYTES = 50 << 30
_FOLDERS: dict[SnapshotKind, str] = {"template": "templates", "session": "sessions"}
_DRAFTS, _FAILURES, _LOCK = "drafts", "failures.json", ".lock"


class Draft:
    """A snapshot being made. `folder` is empty and private; fill it, then `commit` or `abandon`. All calls block."""

    def __init__(self, store: SnapshotStore, kind: SnapshotKind, snapshot_id: str, expected_bytes: int) -> None:
        self.kind, self.id, self.expected_bytes = kind, snapshot_id, expected_bytes
        self._store = store
        self._outer = store.folder / _DRAFTS / secrets.token_hex(8)
        self._outer.mkdir(mode=0o700)
        self._lock = _locked(self._outer / _LOCK)
        self.folder = self._outer / "snapshot"
        self.folder.mkdir(mode=0o700)

    def commit(self, manifest: Manifest, known: Mapping[str, str] | None = None) -> Manifest:
        """Seal it and put it in its place; one of the same kind and id is replaced. Returns the manifest with its size.
        `known` are BLAKE3 hashes in hex of files that the caller wrote, by path in the folder: they are not read again.

        Raises PlatformError (DISK_FULL): the draft stays, to be made smaller and committed again, or abandoned; and ValueError
        for a manifest of another kind or id.
        """
        try:
            sealed = self._commit(manifest, known)
        except OSError as problem:
            raise _disk_error(problem, f"snapshot {self.id} could not be kept") from problem
        self.abandon()
        return sealed

    def _commit(self, manifest: Manifest, known: Mapping[str, str] | None) -> Manifest:
        if (manifest.kind, manifest.id) != (self.kind, self.id):
            raise ValueError(f"the manifest is of {manifest.kind} {manifest.id}, the draft of {self.kind} {self.id}")
        place = self._store.path(manifest)
        sealed = msgspec.structs.replace(manifest, size_bytes=_size_on_disk(self.folder))
        (self.folder / MANIFEST).write_bytes(msgspec.json.encode(sealed))
        seal(self.folder, self._store.key(), known or {})
        with self._store.lock:
            self._store.remove(self.kind, self.id)
            self.folder.rename(place)
            flush_folder(place.parent)
        return sealed

    def abandon(self) -> None:
        """Remove it. Nothing happens after a commit."""
        if self._lock >= 0:
            shutil.rmtree(self._outer, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1
            self._store.drafts.pop(self, None)


class SnapshotStore:
    """See the module. `limit_bytes` bounds templates and parked sessions together; None chooses by the disk.

    Templates are dropped least recently used first when there is no room; parked sessions never are.
    """

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.drafts: dict[Draft, int] = {}  # -> bytes that it may take
        for name in (*_FOLDERS.values(), _DRAFTS):
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read: dict[
            Path, tuple[float, tuple[object, ...]]
        ] = {}  # -> when its files were read, and which they were
        self._known: dict[Path, tuple[int, Manifest]] = {}  # -> the inode of its file, which is never written twice
        self.failures = Failures(folder / _FAILURES)
        self.limit_bytes = 0
        if limit_bytes is None:
            used = sum(found.size_bytes for kind in _FOLDERS for found in self._all(kind))
            free = shutil.disk_usage(folder).free
            limit_bytes = min(DEFAULT_LIMIT_BYTES, used + int(free * DEFAULT_LIMIT_SHARE))
        self.limit_bytes = limit_bytes

    def template(self, key: str) -> Manifest | None:
        """The template of this key; None where there is none, or restoring it failed too often."""
        return self._load("template", key) if key and not self.disabled(key) else None

    def disabled(self, key: str) -> bool:
        """Whether restoring templates of this key failed too often: another one is not worth making."""
        return self.failures.too_many("template", key)

    def parked(self, parked_id: str) -> Manifest | None:
        """The parked session of this id; None where there is none, or nothing of it can be read."""
        return self._load("session", parked_id)

    def parked_all(self) -> list[Manifest]:
        """Every parked session, oldest first."""
        return sorted(self._all("session"), key=lambda found: (found.parked_unix_seconds, found.id))

    def templates(self) -> list[Manifest]:
        """Every template."""
        return self._all("template")

    def layers(self, *kinds: SnapshotKind) -> set[str]:
        """The keys of the image layers that snapshots stand on; of these kinds, or of all."""
        return {key for kind in kinds or tuple(_FOLDERS) for found in self._all(kind) for key in found.layers}

    def path(self, manifest: Manifest) -> Path:
        """The snapshot's folder. What is in it is not to be changed."""
        return self._place(manifest.kind, manifest.id)

    def checkpoint(self, manifest: Manifest) -> Path | None:
        """The engine's image, for `PreparedContainer.start`; None where only names were kept."""
        folder = self.path(manifest) / CHECKPOINT
        return folder if folder.is_dir() else None

    def checkpoint_bytes(self, manifest: Manifest) -> int:
        """How much memory its processes held, about: what the engine's image takes on disk."""
        folder = self.checkpoint(manifest)
        return _size_on_disk(folder) if folder is not None else 0

    def draft(self, kind: SnapshotKind, snapshot_id: str, expected_bytes: int, *, spare: bool = False) -> Draft:
        """Begin a snapshot of about so many bytes.

        Raises PlatformError (DISK_FULL) before anything is written when the disk or the limit has no room for it, also
        after dropping templates that nobody used lately; `spare`: without dropping any.
        """
        self._place(kind, snapshot_id)
        with self.lock:
            try:
                self._make_room(expected_bytes, spare=spare)
                draft = Draft(self, kind, snapshot_id, expected_bytes)
            except OSError as problem:
                raise _disk_error(problem, f"snapshot {snapshot_id} could not be begun") from problem
            self.drafts[draft] = expected_bytes
            return draft

    def check(self, manifest: Manifest, *, checkpoint: bool) -> None:
        """Whether it can be restored: its seal, and with `checkpoint` that no live file under it has changed.

        Without, only the values of its names are looked at. Raises SnapshotUnusable.
        """
        folder = self.path(manifest)
        files = load_seal(folder, self.key())
        if checkpoint:
            if not any(name.startswith(f"{CHECKPOINT}/") for name in files):
                raise SnapshotUnusable("it has no checkpoint: only names were kept")
            if why := next((why for file in manifest.live_files if (why := changed(file))), ""):
                raise SnapshotUnusable(why)
        # What the session wrote is looked at when it is copied.
        part = f"{CHECKPOINT if checkpoint else NAMES}/"
        wanted = {name: sealed for name, sealed in files.items() if name == MANIFEST or name.startswith(part)}
        check_sizes(folder, wanted)
        if manifest.kind == "session" or not self._read_lately(folder, wanted):
            check_contents(folder, wanted)
            self._read[folder] = (time.monotonic(), _fingerprint(folder, wanted))

    def _read_lately(self, folder: Path, files: Iterable[str]) -> bool:
        """Whether these very files were read and found good a short while ago: many containers start from one template."""
        when, seen = self._read.get(folder, (0.0, ()))
        return bool(seen) and time.monotonic() - when < READ_AGAIN_SECONDS and seen == _fingerprint(folder, files)

    def has_store(self, manifest: Manifest) -> bool:
        """Whether what the session wrote is kept, or was and is damaged. Blocks for milliseconds."""
        try:
            return STORE in load_seal(self.path(manifest), self.key())
        except SnapshotUnusable:
            return True

    def store_copy(self, manifest: Manifest, folder: Path) -> Path | None:
        """A copy of what the session wrote (`store.img`), made in `folder`, for `Runtime.prepare`; None where there is none.

        Takes as long and as much disk as what was written: the parked one stays as it is until the resumed session is safe.
        Raises SnapshotUnusable where it is damaged, PlatformError (DISK_FULL).
        """
        source = self.path(manifest) / STORE
        sealed = load_seal(self.path(manifest), self.key()).get(STORE)
        if sealed is None:
            return None
        copy = folder / f"{secrets.token_hex(8)}.copy.img"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with open(source, "rb") as image, open(copy, "xb") as target:
                size_bytes, seen = os.fstat(image.fileno()).st_size, ImageHash()
                os.truncate(target.fileno(), size_bytes)
                for position, block in image_blocks(image.fileno()):
                    seen.add(position, block)
                    os.pwrite(target.fileno(), block, position)
            if (size_bytes, seen.result(size_bytes)) == tuple(sealed):
                return copy
        except OSError as problem:
            copy.unlink(missing_ok=True)
            if isinstance(problem, FileNotFoundError):
                raise SnapshotUnusable(f"its file {STORE} is gone") from None
            raise _disk_error(problem, f"the files of parked session {manifest.id} could not be copied") from problem
        except BaseException:
            copy.unlink(missing_ok=True)
            raise
        copy.unlink()
        raise SnapshotUnusable(f"its file {STORE} is damaged")

    def used(self, key: str) -> None:
        """The template of this key was restored: forget its failures, and that it is used now."""
        self.failures.succeeded("template", key)
        now = time.time_ns()
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._place("template", key), ns=(now, now))

    def remove(self, kind: SnapshotKind, snapshot_id: str) -> None:
        """Remove one; nothing happens if it is not there."""
        place = self._place(kind, snapshot_id)
        with self.lock:
            aside = self.folder / _DRAFTS / f"gone-{secrets.token_hex(8)}"  # half removed, it must not look whole
            try:
                place.rename(aside)
            except FileNotFoundError:
                return
        shutil.rmtree(aside, ignore_errors=True)  # gigabytes take a while, and nobody is to wait for that

    def usage(self) -> SnapshotUsage:
        """What is kept, and the limit."""
        templates, parked = self._all("template"), self._all("session")
        return SnapshotUsage(
            template_count=len(templates), template_bytes=sum(t.size_bytes for t in templates), parked_count=len(parked),
            parked_bytes=sum(p.size_bytes for p in parked), limit_bytes=self.limit_bytes,
        )  # fmt: skip

    def collect_garbage(self) -> None:
        """Remove drafts whose process has ended, and what was being removed. Drafts in use stay."""
        with self.lock:
            for entry in list((self.folder / _DRAFTS).iterdir()):
                try:
                    lock = _locked(entry / _LOCK, make=False)
                except BlockingIOError:
                    continue  # somebody is making it
                except OSError:
                    lock = -1  # killed before it was locked, or while it was removed
                shutil.rmtree(entry, ignore_errors=True)
                if lock >= 0:
                    os.close(lock)

    def key(self) -> bytes:
        """The key of the seals."""
        return load_key(self.folder.parent / "snapshot-key")

    def _place(self, kind: SnapshotKind, snapshot_id: str) -> Path:
        if not snapshot_id or snapshot_id.startswith(".") or "/" in snapshot_id or "\0" in snapshot_id:
            raise ValueError(f"{snapshot_id!r} is no id of a snapshot")
        return self.folder / _FOLDERS[kind] / snapshot_id

    def _load(self, kind: SnapshotKind, snapshot_id: str) -> Manifest | None:
        path = self._place(kind, snapshot_id) / MANIFEST
        try:
            with open(path, "rb") as file:
                inode = os.fstat(file.fileno()).st_ino
                known = self._known.get(path)
                if known is not None and known[0] == inode:
                    return known[1]
                found = msgspec.json.decode(file.read(), type=Manifest)
        except (OSError, msgspec.MsgspecError):
            self._known.pop(path, None)
            return None
        if (found.kind, found.id) != (kind, snapshot_id):
            return None
        self._known[path] = (inode, found)
        return found

    def _all(self, kind: SnapshotKind) -> list[Manifest]:
        names = sorted(entry.name for entry in os.scandir(self.folder / _FOLDERS[kind]))
        return [found for name in names if (found := self._load(kind, name)) is not None]

    def _make_room(self, expected_bytes: int, *, spare: bool) -> None:
        """Drop templates until there is room. Raises PlatformError (DISK_FULL), and drops none if that would not help."""
        templates = sorted(self._all("template"), key=self._last_used)
        kept = sum(t.size_bytes for t in templates) + sum(p.size_bytes for p in self._all("session"))
        promised = sum(self.drafts.values())
        free = shutil.disk_usage(self.folder).free - DISK_RESERVE_BYTES
        missing = expected_bytes + promised - min(free, self.limit_bytes - kept)
        dropped: list[Manifest] = []
        while templates and missing > 0 and not spare:
            dropped.append(templates.pop(0))
            missing -= dropped[-1].size_bytes
        if missing > 0:
            raise error(
                ErrorCode.DISK_FULL,
                f"no room for a snapshot of {expected_bytes >> 20} MiB: {max(0, free) >> 20} MiB of disk are free, snapshots"
                f" take {kept >> 20} MiB",
                allowed=f"{self.limit_bytes >> 20} MiB of snapshots, with {DISK_RESERVE_BYTES >> 20} MiB of disk left free",
                next="end parked sessions that are not needed, or free disk space on the worker's machine",
            )
        for template in dropped:
            self.remove("template", template.id)

    def _last_used(self, template: Manifest) -> int:
        try:
            return self.path(template).stat().st_mtime_ns
        except FileNotFoundError:
            return 0


def _locked(path: Path, *, make: bool = True) -> int:
    """An open, locked descriptor; the kernel unlocks it when the process ends. Raises BlockingIOError when it is locked."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0), 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _fingerprint(folder: Path, files: Iterable[str]) -> tuple[object, ...]:
    """What changes when somebody writes to or replaces one of the files."""
    found = [(folder / name).stat() for name in sorted(files)]
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in found)


def _size_on_disk(folder: Path) -> int:
    """Bytes that a folder's files take, without holes."""
    return sum(p.stat().st_blocks * 512 for p in folder.rglob("*") if p.is_file())


def _disk_error(problem: OSError, what: str) -> CellburstError:
    full = problem.errno in (28, 122)  # ENOSPC, EDQUOT
    return error(
        ErrorCode.DISK_FULL if full else ErrorCode.STORE, f"{what}: {problem.strerror}",
        next="free disk space on the worker's machine" if full else "see the worker's log",
    )  # fmt: skip
