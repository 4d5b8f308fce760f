"""A Dockerfile's `ADD` of a tar archive: unpacked into the image by the host, as nothing of the image's runs meanwhile.

Owners, modes, times and links are the archive's, also with `--chown`, as Docker and buildah have it. Paths are resolved inside
the image (`image_files`): neither a name of the archive nor a link in it or in the image leads out.
"""

from __future__ import annotations

import lzma
import os
import posixpath
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import MAX_PACK_BYTES

from .image_files import Ownership, in_root, make_folder

_COPY_BYTES = 1 << 20
_BROKEN = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)


def place_archive(root: Path, pack: Path, destination: str, *, owner: Ownership) -> int:
    """Unpack the archive that is a pack's one file below the image's folder `destination`, which is `owner`'s where it has to be
    made. Returns how many entries. Raises RequestError (BAD_ARGUMENT, TOO_LARGE), OSError."""
    count = size_bytes = 0
    make_folder(root, destination, owner)
    try:
        with tarfile.open(pack, "r:") as outer:
            inner = outer.extractfile(outer.getmembers()[0])
            assert inner is not None
            with inner, tarfile.open(fileobj=inner) as archive:
                for member in archive:
                    size_bytes += member.size
                    if size_bytes > MAX_PACK_BYTES:
                        raise error(
                            ErrorCode.TOO_LARGE, "the archive of an image step holds more than is allowed",
                            allowed=f"{MAX_PACK_BYTES >> 30} GiB", next="put it on a volume, or fetch it with RUN",
                        )  # fmt: skip
                    _put(root, archive, member, destination)
                    count += 1
    except _BROKEN as problem:
        raise _wrong(f"it cannot be read: {problem}") from None
    return count


def _put(root: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, destination: str) -> None:
    name = posixpath.normpath(member.name.lstrip("/") or ".")
    if name == ".." or name.startswith("../"):
        raise _wrong(f"it holds the path {member.name!r}")
    uid, gid, mode = member.uid, member.gid, member.mode & 0o7777
    if member.isdir():
        folder = make_folder(root, posixpath.join(destination, name))
        os.chown(folder, uid, gid)
        folder.chmod(mode)
        return
    target = make_folder(root, posixpath.join(destination, posixpath.dirname(name))) / posixpath.basename(name)
    if target.is_dir() and not target.is_symlink():
        raise _wrong(f"{name} is a folder in the image")
    if member.islnk():
        source = in_root(root, posixpath.join(destination, member.linkname.lstrip("/")), follow_last=False)
        if not source.is_file() or source.is_symlink():
            raise _wrong(f"{name} is a link to {member.linkname!r}, which it does not hold")
        _remove(target)
        target.hardlink_to(source)
        return
    _remove(target)
    if member.issym():
        target.symlink_to(member.linkname)
        os.chown(target, uid, gid, follow_symlinks=False)
    elif member.isfile():
        content = archive.extractfile(member)
        assert content is not None
        _write(content, target)
        os.chown(target, uid, gid)
        target.chmod(mode)  # after chown, which takes set-uid bits off
        os.utime(target, (member.mtime, member.mtime))
    else:
        raise _wrong(f"{name} is neither a file, a folder nor a link")


def _write(content: IO[bytes], target: Path) -> None:
    with content, open(target, "xb") as file:
        shutil.copyfileobj(content, file, _COPY_BYTES)


def _remove(target: Path) -> None:
    if target.is_symlink() or target.exists():
        target.unlink()


def _wrong(why: str) -> CellburstError:
    return error(ErrorCode.BAD_ARGUMENT, f"the archive of an ADD: {why}", next="COPY it and unpack it with RUN tar -xf")
