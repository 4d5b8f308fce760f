"""Volumes on a worker's disk: whole files by content, and a tree of each version that is shown to containers.

    FOLDER/files/ab/<key>            a file, under a hash of what it is: chunks, mode, time, owner
    FOLDER/trees/VOLUME/<version>.<uid>.<gid>    a version as containers of that user see it: hard links to files
    FOLDER/lists/VOLUME.json         what the gateway last said of the volume, so that only what is new is asked for
    FOLDER/pins/<parked id>.json     trees that a parked session goes on with
    FOLDER/drafts/                   what is being made; emptied at the start

A tree is never written after it was renamed into place: sessions write in overlays above it, each in its own. The cache is
bounded: what no container and no parked session uses goes first, the longest unused before others. Everything blocks.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import blake3
import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.volumes import FileEntry, VolumeFiles, check_path, shown

SHARE_OF_DISK = 0.5  # of what is free and what it has already: the sessions' own stores and images need the rest
KEEP_FREE_BYTES = 256 * 1024**2
YOUNG_SECONDS = 600.0  # a pin younger than this may be of a parking under way
KNOWN_BY_BYTES = 1024**2  # smaller files are fetched again rather than looked for under another mode or time
_EDITABLE = 0o600  # the owner may always read and write: a file of mode 0 would be of no use to who wrote it elsewhere

Owner = tuple[int, int]


class VolumeStore:
    """The volumes of one worker. `limit_bytes` None: a share of the disk. Safe to use from several threads."""

    def __init__(self, folder: Path, limit_bytes: int | None = None) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._pinned: Counter[Path] = Counter()
        self._lock = threading.RLock()
        self._ready = False

    # -- what is there ---------------------------------------------------------------------------------------------

    def known(self, volume: str) -> VolumeFiles:
        """What is known of the volume; version 0 where nothing is."""
        try:
            return msgspec.json.decode(self._list_path(volume).read_bytes(), type=VolumeFiles)
        except (OSError, msgspec.MsgspecError):
            return VolumeFiles(version=0)

    def learn(self, volume: str, before: VolumeFiles, news: VolumeFiles) -> VolumeFiles:
        """Keep and return what is known of the volume after `news`, the changes since `before`."""
        if news.version == before.version and before.version:
            return before
        files = {} if news.whole else {entry.path: entry for entry in before.entries}
        for entry in news.entries:
            if entry.deleted:
                files.pop(entry.path, None)
            else:
                files[entry.path] = entry
        now = VolumeFiles(version=news.version, entries=[files[path] for path in sorted(files)])
        self._prepare()
        draft = self._draft()
        draft.write_bytes(msgspec.json.encode(now))
        draft.replace(self._list_path(volume))
        return now

    def tree_path(self, volume: str, version: int, owner: Owner) -> Path:
        """Where the tree of a version is, or would be."""
        return self.folder / "trees" / volume / f"{version}.{owner[0]}.{owner[1]}"

    def missing(self, entries: Iterable[FileEntry], owner: Owner) -> list[FileEntry]:
        """The files whose bytes are not here, each content once."""
        found: dict[Path, FileEntry] = {}
        for entry in entries:
            if entry.kind == "file" and not (path := self._file(entry, owner)).exists():
                found[path] = entry
        return list(found.values())

    # -- filling ---------------------------------------------------------------------------------------------------

    def make_room(self, size_bytes: int, what: str, parked: Callable[[str], bool] = lambda id: True) -> None:
        """Have space for so many more bytes, before any is fetched. `parked`: whether a parked session is still there.
        Raises PlatformError (DISK_FULL): says how much there could be."""
        self._prepare()
        with self._lock:
            free, has = shutil.disk_usage(self.folder).free, self.size_bytes()
            limit = self._limit_bytes if self._limit_bytes is not None else int((free + has) * SHARE_OF_DISK)
            over = max(has + size_bytes - limit, size_bytes + KEEP_FREE_BYTES - free)
            for freed in self._evict(parked) if over > 0 else ():
                over -= freed
                if over <= 0:
                    return
        if over > 0:
            raise error(
                ErrorCode.DISK_FULL,
                f"{what} needs {_mib(size_bytes)} on the worker's disk, {_mib(over)} more than volumes may have there",
                allowed=f"{_mib(limit)} together, for what running and parked sessions use",
                next="end sessions that use other volumes, or free space on the worker's disk",
            )  # fmt: skip

    def draft(self) -> Path:
        """A path for a file that is being fetched: `adopt` it or delete it."""
        self._prepare()
        return self._draft()

    def adopt(self, draft: Path, entry: FileEntry, owner: Owner) -> None:
        """Keep a fetched file, whose bytes were checked, as what the entry says."""
        draft.chmod((entry.mode & 0o777) | _EDITABLE)
        if os.geteuid() == 0:
            os.chown(draft, *owner)
        os.utime(draft, ns=(entry.modified_ns, entry.modified_ns))
        path = self._file(entry, owner)
        try:
            draft.replace(path)
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)  # the first of its 256
            draft.replace(path)

    def copy_of(self, entry: FileEntry, owner: Owner) -> Path | None:
        """Another file here with the same bytes (of another mode, time or owner), or None. Small ones are not known."""
        if entry.size_bytes < KNOWN_BY_BYTES:
            return None
        folder = self.folder / "content" / _content(entry)
        try:
            for name in [marker.name for marker in folder.iterdir()]:
                target = self.folder / "files" / name[:2] / name
                if target.exists():
                    return target
                (folder / name).unlink(missing_ok=True)
        except OSError:
            pass
        return None

    def remember(self, entry: FileEntry, owner: Owner) -> None:
        """Note by its bytes a file that is here, for `copy_of`."""
        if entry.size_bytes < KNOWN_BY_BYTES:
            return
        folder = self.folder / "content" / _content(entry)
        folder.mkdir(exist_ok=True)
        (folder / self._file(entry, owner).name).touch()

    # -- trees -----------------------------------------------------------------------------------------------------

    def tree(self, volume: str, files: VolumeFiles, owner: Owner) -> Path:
        """The tree of a version, pinned until `unpin`; it is made where it is not there, from files that are all here.

        Raises PlatformError (INTEGRITY) for entries that cannot stand together, OSError.
        """
        self._prepare()
        path = self.tree_path(volume, files.version, owner)
        with self._lock:
            self._pinned[path] += 1
        try:
            if not path.is_dir():
                self._build(path, files.entries, owner)
            self._touch(path)
        except BaseException:
            self.unpin(path)
            raise
        return path

    def pin(self, tree: Path) -> bool:
        """Keep a tree that is there. False: it is not."""
        with self._lock:
            if not tree.is_dir():
                return False
            self._pinned[tree] += 1
        self._touch(tree)
        return True

    def unpin(self, tree: Path) -> None:
        """One user less."""
        with self._lock:
            self._pinned[tree] -= 1
            if self._pinned[tree] <= 0:
                del self._pinned[tree]

    def keep_parked(self, parked: str, trees: Sequence[Path]) -> None:
        """Keep these trees as long as this session is parked."""
        self._prepare()
        draft = self._draft()
        draft.write_bytes(msgspec.json.encode([str(tree.relative_to(self.folder)) for tree in trees]))
        draft.replace(self.folder / "pins" / f"{parked}.json")

    def copy_file(self, entry: FileEntry, owner: Owner, target: Path) -> None:
        """Put a file that is here at `target` as a file of its own."""
        draft = target.with_name(f".{secrets.token_hex(8)}")
        try:
            _copy(self._file(entry, owner), draft)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """What all files here take on disk."""
        return sum(status.st_blocks * 512 for _, status in self._files())

    # -- inside ----------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        with self._lock:
            if self._ready:
                return
            for name in ("files", "trees", "lists", "pins", "content", "drafts"):
                (self.folder / name).mkdir(parents=True, exist_ok=True, mode=0o755)
            self.folder.chmod(0o700)
            for left in (self.folder / "drafts").iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            self._ready = True

    def _draft(self) -> Path:
        return Path(f"{self.folder}/drafts/{secrets.token_hex(12)}")

    def _list_path(self, volume: str) -> Path:
        return self.folder / "lists" / f"{volume}.json"

    def _file(self, entry: FileEntry, owner: Owner) -> Path:
        what = [[c.hash for c in entry.chunks], entry.size_bytes, entry.mode & 0o777, entry.modified_ns, *owner]
        key = blake3.blake3(msgspec.json.encode(what)).hexdigest()
        return Path(f"{self.folder}/files/{key[:2]}/{key}")  # at once: a volume has 10,000 of them

    def _build(self, path: Path, entries: Sequence[FileEntry], owner: Owner) -> None:
        path.parent.mkdir(exist_ok=True)
        draft = self._draft()
        draft.mkdir(mode=0o755)
        try:
            _own(draft, owner)
            made = {""}
            taken: set[str] = set()  # a link or file there: nothing may lie below it
            for entry in entries:
                try:
                    self._place(draft, entry, owner, made, taken)
                except CellburstError:
                    raise
                except OSError as why:
                    if why.errno != errno.ENOENT:
                        raise
                    raise error(
                        ErrorCode.INTEGRITY, f"the bytes of {shown(entry.path)} are not on this worker any more",
                        next="run the cell again",
                    ) from None  # fmt: skip
            try:
                draft.rename(path)
            except OSError:
                if not path.is_dir():  # else it was made meanwhile, of the same files
                    raise
        finally:
            shutil.rmtree(draft, ignore_errors=True)

    def _place(self, root: Path, entry: FileEntry, owner: Owner, made: set[str], taken: set[str]) -> None:
        text = check_path(entry.path)
        parent, _, _ = text.rpartition("/")
        if parent not in made:
            place = ""
            for part in parent.split("/"):
                place = f"{place}/{part}" if place else part
                if place in taken:
                    raise error(ErrorCode.INTEGRITY, f"{shown(text)} lies below {shown(place)}, which is no folder")
                if place not in made:
                    (root / place).mkdir(mode=0o755)
                    _own(root / place, owner)
                    made.add(place)
        target = root / text
        if entry.kind == "folder":
            if text not in made:
                target.mkdir()
                target.chmod((entry.mode & 0o777) | 0o700)
                _own(target, owner)
                made.add(text)
            return
        if text in made:
            raise error(ErrorCode.INTEGRITY, f"{shown(text)} is a folder and a {entry.kind} at once")
        taken.add(text)
        if entry.kind == "link":
            target.symlink_to(entry.target)
            _own(target, owner)
            return
        source = self._file(entry, owner)
        try:
            os.link(source, target)
        except OSError as why:
            if why.errno not in (errno.EMLINK, errno.EPERM, errno.EXDEV):
                raise
            _copy(source, target)

    def _touch(self, tree: Path) -> None:
        tree.with_name(tree.name + ".used").touch()

    def _evict(self, parked: Callable[[str], bool]) -> Iterator[int]:
        """Remove what nobody uses, the longest unused first, and tell how many bytes each freed."""
        used = {*self._pinned, *self._parked(parked)}
        trees = [
            (mark.stat().st_mtime, mark.with_suffix(""))
            for mark in (self.folder / "trees").glob("*/*.used")
            if mark.with_suffix("") not in used
        ]
        for _, tree in sorted(trees):
            tree.with_name(tree.name + ".used").unlink(missing_ok=True)
            aside = self._draft()
            if tree.is_dir():
                tree.rename(aside)  # at once, for whoever looks
                shutil.rmtree(aside)
            for path, status in sorted(self._files(), key=lambda file: file[1].st_ctime):
                if status.st_nlink == 1:  # in no tree; unlinking it from one was its last change
                    path.unlink(missing_ok=True)
                    yield status.st_blocks * 512
        for path, status in sorted(self._files(), key=lambda file: file[1].st_ctime):
            if status.st_nlink == 1:
                path.unlink(missing_ok=True)
                yield status.st_blocks * 512

    def _parked(self, parked: Callable[[str], bool]) -> Collection[Path]:
        kept: set[Path] = set()
        for pin in (self.folder / "pins").glob("*.json"):
            try:
                names, age = msgspec.json.decode(pin.read_bytes(), type=list[str]), _age(pin)
            except (OSError, msgspec.MsgspecError):
                continue
            if age > YOUNG_SECONDS and not parked(pin.stem):
                pin.unlink(missing_ok=True)
            else:
                kept.update(self.folder / name for name in names)
        return kept

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        for place in sorted((self.folder / "files").glob("*")):
            for entry in os.scandir(place):
                try:
                    yield Path(entry.path), entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue


def _content(entry: FileEntry) -> str:
    return blake3.blake3(msgspec.json.encode([[c.hash for c in entry.chunks], entry.size_bytes])).hexdigest()


def _own(path: Path, owner: Owner) -> None:
    if os.geteuid() == 0:
        os.chown(path, *owner, follow_symlinks=False)


def _copy(source: Path, target: Path) -> None:
    shutil.copy2(source, target)
    status = source.stat()
    if os.geteuid() == 0:
        os.chown(target, status.st_uid, status.st_gid)


def _age(path: Path) -> float:
    # Against the disk's own clock, by a file made now: nothing of ours reads the time by itself.
    probe = path.with_name(f".{secrets.token_hex(6)}")
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()


def _mib(size_bytes: int) -> str:
    mib = max(size_bytes, 0) / 1024**2
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.1f} MiB"
