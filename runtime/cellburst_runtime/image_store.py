"""The layers of images on disk: found, held while used, made whole or not at all, checked, and evicted.

    IMAGES/layers/KEY/fs          the layer: an overlayfs upper folder (changes over the layers below, with whiteouts)
    IMAGES/layers/KEY/meta.json   LayerMeta; its time is when the layer was last used
    IMAGES/layers/KEY/manifest.json   what `fs` holds (image_manifest)
    IMAGES/layers/KEY/verified    its time is when every byte was last compared with that; without it, when the layer was made
    IMAGES/drafts/ID/             a layer being made; ID.lock beside it is held by whoever makes it
    IMAGES/locks/KEY.build        held (exclusive) by the one process that makes the layer
    IMAGES/locks/KEY.use          held shared by every user of the layer, exclusive to delete it
    IMAGES/scaffold/              the lowest folder of every root: mount points, so that no layer has to hold them

Files appear in `layers/` only by renaming a finished draft. A draft whose lock is free is a dead process's and is removed,
with its sandbox, group, network and mounts, by the next build. A layer names the instance of the layer that it was made
over: steps are not reproducible to the byte, so one that was made over another instance of its parent is made again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .engine_base import finish
from .file_lock import FileLock, lock, try_lock
from .image_config import ImageConfig
from .image_index import MOST_FOLDERS
from .image_manifest import Damage, find_damage, scan
from .image_secrets import Hider
from .mounts import mounts_below
from .record import ContainerRecord, load_record
from .removal import Remover


class LayerMeta(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`meta.json` of a layer. `parent` is the key of the layer below, "" for a base; `instance` is random."""

    key: str
    instance: str
    parent: str = ""
    parent_instance: str = ""
    step: str = ""
    size_bytes: int = 0
    manifest_hash: str = ""
    made_unix_seconds: float = 0.0
    config: ImageConfig = ImageConfig()


@dataclass(frozen=True)
class Draft:
    """A layer being made. `upper` becomes the layer; `root` is where it is mounted over those below. `hiding` makes what
    takes the values of its secrets out of a program's output."""

    id: str
    folder: Path
    upper: Path
    work: Path
    root: Path
    record: ContainerRecord
    hiding: Callable[[], Hider] | None = None


@dataclass(frozen=True)
class HeldLayer:
    """A layer that stays until its lock is released."""

    meta: LayerMeta
    files: Path
    lock: FileLock


class ImageStore:
    """One store; any number of processes may use the same folder. Methods that are not coroutines block on the disk."""

    def __init__(
        self, folder: Path, remover: Remover, on_damage: Callable[[Damage], Awaitable[None]] | None = None
    ) -> None:
        """`on_damage` is told what is wrong with a layer, before that is made again."""
        self.folder = folder
        self._on_damage = on_damage
        self.layers = folder / "layers"
        self._drafts, self._locks = folder / "drafts", folder / "locks"
        self._remover = remover
        self._checked: dict[str, str] = {}  # key -> instance, of layers that this process has looked at
        self._verified: dict[str, tuple[str, float]] = {}  # key -> instance and time, where the disk would not take it
        for place in (self.layers, self._drafts, self._locks):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.scaffold = _scaffold(folder)

    async def building(self, key: str, *, waiting: Callable[[], None] | None = None) -> FileLock:
        """The right to make a layer, when no other process is at it. `waiting` is called once if one is."""
        return await lock(self._locks / f"{key}.build", waiting=waiting)

    async def hold(self, key: str, parent: LayerMeta | None) -> HeldLayer | None:
        """The layer if it is here, whole and made over this very parent; else None. Bytes are not read here, which would take as
        long as copying the layer: `image_verify` does, from time to time."""
        meta_file = self.layers / key / "meta.json"
        if not meta_file.exists():
            return None
        taken = await lock(self._locks / f"{key}.use", shared=True)
        try:
            meta = self._load(key)
            if meta is not None and meta.parent_instance == (parent.instance if parent else ""):
                if self._checked.get(key) != meta.instance:
                    if damage := await asyncio.to_thread(self.damage, meta, deep=False):
                        meta = None
                        await self.damaged(damage)
                    else:
                        self._checked[key] = meta.instance
                if meta is not None:
                    os.utime(meta_file)
                    return HeldLayer(meta, self.layers / key / "fs", taken)
        except FileNotFoundError:
            pass  # deleted before the lock was ours
        except BaseException:
            taken.release()
            raise
        taken.release()
        return None

    def hold_now(self, meta: LayerMeta) -> HeldLayer | None:
        """Hold this very layer without waiting; None where it is gone, was made anew, or is being deleted."""
        taken = try_lock(self._locks / f"{meta.key}.use", shared=True)
        if taken is None:
            return None
        now = self._load(meta.key)
        if now is None or now.instance != meta.instance:
            taken.release()
            return None
        return HeldLayer(now, self.layers / meta.key / "fs", taken)

    async def damaged(self, damage: Damage) -> None:
        """Tell whoever keeps copies of a layer's files what is wrong with them."""
        if self._on_damage is not None:
            await self._on_damage(damage)

    def damage(self, meta: LayerMeta, *, deep: bool) -> Damage:
        """What is wrong with a layer's files; `deep` reads every byte."""
        return find_damage(self.layers / meta.key, meta.manifest_hash, deep=deep)

    def list_layers(self) -> list[tuple[LayerMeta, float]]:
        """Every layer with the time (Unix seconds) of its last use, oldest use first."""
        found = []
        for folder in self.layers.iterdir():
            with contextlib.suppress(OSError):  # deleted meanwhile
                meta = self._load(folder.name)
                if meta is not None:
                    found.append((meta, (folder / "meta.json").stat().st_mtime))
        return sorted(found, key=lambda pair: pair[1])

    @asynccontextmanager
    async def draft(self) -> AsyncIterator[Draft]:
        """A new draft; at the end everything of it that was not committed is removed, also after an error."""
        held = None
        while held is None:  # somebody who looks for dead drafts may get the new lock first, and deletes it then
            name = f"build-{secrets.token_hex(6)}"
            held = try_lock(self._drafts / f"{name}.lock")
        folder = self._drafts / name
        record = ContainerRecord(id=name)
        try:
            for place in ("layer/fs", "work", "root"):
                (folder / place).mkdir(parents=True)
            (folder / "layer/fs").chmod(0o755)
            record.save(folder)
            yield Draft(name, folder, folder / "layer/fs", folder / "work", folder / "root", record)
        except OSError as problem:
            raise _disk_error(problem) from problem
        finally:
            await finish(self._remover.remove(record, folder))
            held.remove()

    def commit(self, draft: Draft, meta: LayerMeta) -> LayerMeta:
        """Make the draft's `upper` the layer `meta.key`. Nothing may be mounted over it. Raises OSError.

        The list of files is on the disk before the name appears. The files themselves need not be: those that a loss of
        power cuts short are found by the look at the next use (waiting for them cost more than installing pandas).
        """
        if mounts_below(draft.root):
            raise error(ErrorCode.INTERNAL, f"{draft.root} is still mounted")
        manifest = scan(draft.upper)
        data = msgspec.json.encode(manifest)
        meta.size_bytes = manifest.size_bytes
        meta.manifest_hash = blake3(data).hexdigest()
        layer = draft.folder / "layer"
        _write_synced(layer / "manifest.json", data)
        _write_synced(layer / "meta.json", msgspec.json.encode(meta))
        _sync_folder(layer)
        self.put_aside(meta.key)
        layer.rename(self.layers / meta.key)
        _sync_folder(self.layers)
        self._checked[meta.key] = meta.instance
        return meta

    def verified_at(self, meta: LayerMeta) -> float:
        """When (Unix seconds) every byte of the layer was last compared; when it was made, if never since."""
        instance, at = self._verified.get(meta.key, ("", 0.0))
        known = at if instance == meta.instance else 0.0
        try:
            return max(known, (self.layers / meta.key / "verified").stat().st_mtime)
        except OSError:
            return max(known, meta.made_unix_seconds)

    def verified(self, meta: LayerMeta) -> None:
        """Every byte was compared now."""
        try:
            (self.layers / meta.key / "verified").touch()
            self._verified.pop(meta.key, None)
        except OSError:  # deleted meanwhile; or the disk is full, and the same layer must not be the next again
            self._verified[meta.key] = (meta.instance, time.time())

    async def drop(self, meta: LayerMeta) -> bool:
        """Put this very layer aside, unless it was deleted or made anew meanwhile. Whether it was."""
        with await self.building(meta.key):
            now = self._load(meta.key)
            if now is None or now.instance != meta.instance:
                return False
            await asyncio.to_thread(self.put_aside, meta.key)
            return True

    def put_aside(self, key: str) -> None:
        """Take a layer's name away: it is damaged, or of another parent. Containers that use it keep its files until the
        next eviction that finds it unused."""
        if (self.layers / key).exists():
            (self.layers / key).rename(self.layers / f"{key}.{secrets.token_hex(4)}.old")

    async def remove_dead_drafts(self) -> list[str]:
        """Remove what processes that ended in the middle have left. The ids of what was removed."""
        removed = []
        for lock_file in sorted(self._drafts.glob("*.lock")):
            held = try_lock(lock_file)
            if held is None:
                continue
            with held:
                folder = self._drafts / lock_file.stem
                try:
                    if folder.exists():
                        record = load_record(folder) or ContainerRecord(id=lock_file.stem)
                        await finish(self._remover.remove(record, folder))
                        removed.append(lock_file.stem)
                except CellburstError:
                    continue  # something of it does not end yet: it stays for the next time, and keeps nobody from building
                held.remove()
        return removed

    async def prune(self, *, max_bytes: int, keep: Collection[str] = ()) -> list[LayerMeta]:
        """Delete layers, least recently used first and never under another one, until at most `max_bytes` are left.

        Those in use by any process and those in `keep` (keys of snapshots' layers) stay. Returns what was deleted.
        """
        return await asyncio.to_thread(self._prune, max_bytes, frozenset(keep))

    def _prune(self, max_bytes: int, keep: frozenset[str]) -> list[LayerMeta]:
        self._delete_old()
        layers = self.list_layers()
        total = sum(meta.size_bytes for meta, _ in layers)
        deleted: list[LayerMeta] = []
        waiting = [meta for meta, _ in layers if meta.key not in keep]
        while waiting and (total > max_bytes or max_bytes == 0):  # 0: also what takes no space
            parents = {meta.parent for meta, _ in layers}
            for meta in waiting:
                if meta.key not in parents and self._delete(meta.key):
                    break
            else:
                break  # what is left is used
            waiting.remove(meta)
            layers = [(other, used) for other, used in layers if other.key != meta.key]
            total -= meta.size_bytes
            deleted.append(meta)
        return deleted

    def _delete(self, key: str) -> bool:
        with _exclusive(self._locks / f"{key}.build") as building, _exclusive(self._locks / f"{key}.use") as use:
            if building is None or use is None:
                return False
            doomed = self.layers / f"{key}.{secrets.token_hex(4)}.old"
            try:
                (self.layers / key).rename(doomed)
            except FileNotFoundError:
                return True
            self._checked.pop(key, None)
            self._verified.pop(key, None)
            shutil.rmtree(doomed)
            use.remove()
            building.remove()
            return True

    def _delete_old(self) -> None:
        for folder in self.layers.glob("*.old"):
            with _exclusive(self._locks / f"{folder.name.partition('.')[0]}.use") as use:
                if use is not None:
                    shutil.rmtree(folder, ignore_errors=True)  # another process may be at it too

    def _load(self, key: str) -> LayerMeta | None:
        return load_meta(self.layers, key)


def load_meta(layers: Path, key: str) -> LayerMeta | None:
    """What a layer says of itself; None where there is no such layer."""
    try:
        meta = msgspec.json.decode((layers / key / "meta.json").read_bytes(), type=LayerMeta)
    except (OSError, msgspec.MsgspecError):
        return None
    return meta if meta.key == key else None


def _scaffold(folder: Path) -> Path:
    """Empty folders and files below every image, where the engine and the build mount: never part of a layer.

    /tmp holds a file because runsc mounts a memory file system over an empty one, and what a step writes there would go.
    """
    scaffold = folder / "scaffold"
    for name in ("proc", "sys", "dev", "etc", "run", "tmp", "root", "cellburst/build", "cellburst/bin"):
        (scaffold / name).mkdir(parents=True, exist_ok=True)
    for name in (
        "cache",
        "input",
        "function",
        "secrets",
        "tmp",
        *(f"index/{number}" for number in range(MOST_FOLDERS)),
    ):
        (scaffold / "cellburst/build" / name).mkdir(parents=True, exist_ok=True)
    for name in ("uv", "uv.toml", "certificates.crt"):
        (scaffold / "cellburst/build" / name).touch()
    for name in ("etc/resolv.conf", "etc/hosts", "tmp/.cellburst"):
        (scaffold / name).touch()
    (scaffold / "tmp").chmod(0o1777)
    (scaffold / "root").chmod(0o700)
    return scaffold


@contextmanager
def _exclusive(path: Path) -> Iterator[FileLock | None]:
    held = try_lock(path)
    try:
        yield held
    finally:
        if held is not None:
            held.release()


def _write_synced(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _disk_error(problem: OSError) -> CellburstError:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT):
        return error(
            ErrorCode.DISK_FULL, f"the disk is full: {problem}",
            next="free space, or delete unused layers with `cellburst image prune`",
        )  # fmt: skip
    return error(ErrorCode.STORE, f"the image store failed: {problem}", next="see the message's path on that machine")
