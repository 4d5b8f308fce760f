"""Local files on their way into an image: listed, checked, and packed into one tar that is the same everywhere.

The tar holds names, kinds, whether a file may be executed, and contents; no owner and no time, so that the same files
give the same hash on every machine and after every checkout.
"""

from __future__ import annotations

import io
import os
import secrets
import stat
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import MAX_PACK_BYTES, FilePack

# One time for all files, after 1980: zip files, and so wheels, can hold none before.
TIME_SECONDS = 946_684_800
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class PackedFile:
    """One file of a pack: its name there, and where its content comes from: a local file, bytes, or a link's target."""

    name: str
    path: Path | None = None
    content: bytes = b""
    link: str = ""
    folder: bool = False
    executable: bool = False


class PackWriter:
    """Writes packs into a folder, each as `HASH.tar`. `files` has all that were written: hash -> path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[str, Path] = {}

    def write(self, entries: Iterable[PackedFile]) -> FilePack:
        """Pack the files, sorted by name. Raises RequestError for too much of it (TOO_LARGE) and for a file that cannot be
        read (NOT_FOUND)."""
        ordered = sorted({entry.name: entry for entry in entries}.values(), key=lambda entry: entry.name)
        _check_size(ordered)
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f"{secrets.token_hex(8)}.part"
        try:
            with open(draft, "xb") as raw:
                sink = _HashingFile(raw)
                with tarfile.open(fileobj=sink, mode="w|", format=tarfile.GNU_FORMAT) as archive:
                    for entry in ordered:
                        _add(archive, entry)
            name = sink.hashed.hexdigest()
            size_bytes = draft.stat().st_size
            target = self.folder / f"{name}.tar"
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        self.files[name] = target
        return FilePack(hash=name, size_bytes=size_bytes, files=sum(not entry.folder for entry in ordered))


class _HashingFile(io.RawIOBase):
    """A file that hashes what is written to it."""

    def __init__(self, target: IO[bytes]) -> None:
        self._target = target
        self.hashed = blake3()

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.hashed.update(data)
        return self._target.write(data)


def list_file(path: str | os.PathLike[str], name: str) -> PackedFile:
    """One local file, under a name. Raises RequestError (NOT_FOUND) when it is none."""
    source = Path(path).expanduser()
    if source.is_dir():
        raise error(ErrorCode.BAD_ARGUMENT, f"{str(path)!r} is a folder", next="use add_local_dir for folders")
    if not source.is_file():
        raise _missing(path, "file")
    return PackedFile(name, source.absolute(), executable=bool(source.stat().st_mode & stat.S_IXUSR))


def list_tree(path: str | os.PathLike[str], ignored: Callable[[Path], bool], prefix: str = "") -> list[PackedFile]:
    """A local folder's files, with `prefix` before their names.

    Links stay links when they lead to a place in the folder; one that leads out of it is refused (RequestError), since it
    would lead elsewhere in the image. Raises RequestError (NOT_FOUND) when there is no such folder.
    """
    root = Path(path).expanduser().absolute()
    if not root.is_dir():
        raise _missing(path, "folder")
    covers = getattr(ignored, "covers", None)
    real_root = root.resolve()
    found: list[PackedFile] = []
    waiting = [root]
    while waiting:
        for entry in sorted(waiting.pop().iterdir()):
            relative = entry.relative_to(root)
            name = prefix + relative.as_posix()
            if entry.is_symlink():
                if not ignored(relative):
                    found.append(_link(entry, name, root, real_root))
            elif entry.is_dir():
                if covers is not None and covers(relative):
                    continue
                waiting.append(entry)
                if not ignored(relative):
                    found.append(PackedFile(name, folder=True))
            elif entry.is_file() and not ignored(relative):
                found.append(PackedFile(name, entry, executable=bool(entry.stat().st_mode & stat.S_IXUSR)))
    return found


def _link(entry: Path, name: str, root: Path, real_root: Path) -> PackedFile:
    target = str(entry.readlink())
    outside = target.startswith("/") or not (entry.parent / target).resolve().is_relative_to(real_root)
    if outside:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"the link {str(entry)!r} leads out of {str(root)!r}, to {target!r}",
            allowed="relative links to places in the folder",
            next=f"leave it out with ignore=[{entry.relative_to(root).as_posix()!r}], or put a copy there",
        )  # fmt: skip
    return PackedFile(name, link=target)


def _check_size(entries: list[PackedFile]) -> None:
    sizes: list[tuple[int, str]] = []
    for entry in entries:
        if entry.path is not None:
            try:
                sizes.append((entry.path.stat().st_size, str(entry.path)))
            except OSError:
                raise _missing(entry.path, "file") from None
    total = sum(size for size, _ in sizes)
    if total > MAX_PACK_BYTES:
        largest, where = max(sizes)
        raise error(
            ErrorCode.TOO_LARGE, f"the files for one image step have {total / 2**30:.1f} GiB; the largest is {where} with "
            f"{largest / 2**30:.1f} GiB", allowed=f"{MAX_PACK_BYTES >> 30} GiB",
            next="leave files out with ignore=[...], or put the data into a volume",
        )  # fmt: skip


def _add(archive: tarfile.TarFile, entry: PackedFile) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mtime = TIME_SECONDS
    info.mode = 0o755 if entry.executable or entry.folder else 0o644
    if entry.folder:
        info.type = tarfile.DIRTYPE
        archive.addfile(info)
    elif entry.link:
        info.type, info.linkname = tarfile.SYMTYPE, entry.link
        archive.addfile(info)
    elif entry.path is None:
        info.size = len(entry.content)
        archive.addfile(info, io.BytesIO(entry.content))
    else:
        try:
            with open(entry.path, "rb") as file:
                info.size = os.fstat(file.fileno()).st_size
                archive.addfile(info, file)
        except OSError as why:
            raise error(
                ErrorCode.NOT_FOUND,
                f"{str(entry.path)!r} cannot be read: {why.strerror or 'it became shorter meanwhile'}",
            ) from None


def _missing(path: str | os.PathLike[str], what: str) -> CellburstError:
    place = Path(path).expanduser()
    here = "" if place.is_absolute() else f" (looked for in {str(Path.cwd())!r})"
    return error(ErrorCode.NOT_FOUND, f"there is no {what} {os.fspath(path)!r}{here}", next="check the path's spelling")
