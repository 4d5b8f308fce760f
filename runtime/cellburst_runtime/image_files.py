"""Files going into an image from outside: packs, other images. Nothing of the image runs meanwhile.

An image's links were made by whoever made its layers, so a path in it is resolved as the image itself would: an absolute
link starts at the image's root, and `..` ends there. Nobody writes in the root while this works, so that look and use
cannot differ.
"""

from __future__ import annotations

import fnmatch
import os
import posixpath
import shutil
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import FilePack

MAX_LINKS = 40  # as the kernel's own limit (path_resolution(7))
_COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Ownership:
    """Who copied files belong to, and their mode where one is given. `keeps`: to whom they belong in the image they come from."""

    uid: int = 0
    gid: int = 0
    mode: int | None = None
    keeps: bool = False

    def of(self, status: os.stat_result) -> tuple[int, int]:
        """(uid, gid) of the copy of a file in another image."""
        return (status.st_uid, status.st_gid) if self.keeps else (self.uid, self.gid)


def in_root(root: Path, path: str, *, follow_last: bool = True) -> Path:
    """The host's path of an image's `path`, every link on the way followed inside the image. It need not exist.

    Raises RequestError (BAD_ARGUMENT) for links in a circle.
    """
    waiting = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            done = done[:-1]
            continue
        here = root.joinpath(*done, part)
        if (waiting or follow_last) and here.is_symlink():
            links += 1
            if links > MAX_LINKS:
                raise error(ErrorCode.BAD_ARGUMENT, f"{path!r}: links in a circle in the image")
            target = str(here.readlink())
            if target.startswith("/"):
                done = []
            waiting.extend(p for p in reversed(target.split("/")) if p not in ("", "."))
            continue
        done.append(part)
    return root.joinpath(*done)


def make_folder(root: Path, path: str, owner: Ownership | None = None) -> Path:
    """The folder `path` of the image, made with its parents (root's, or `owner`'s) where it is missing. Its host path.

    Raises RequestError (BAD_ARGUMENT) when a file is in the way.
    """
    owner = owner or Ownership()
    current = ""
    here = root
    for part in [p for p in posixpath.normpath(path).split("/") if p]:
        current = f"{current}/{part}"
        here = in_root(root, current)
        if not here.exists():
            here.mkdir(mode=0o755, parents=True)
            os.chown(here, owner.uid, owner.gid)
        elif not here.is_dir():
            raise error(ErrorCode.BAD_ARGUMENT, f"{current} in the image is a file, and a folder is wanted there")
    return here


def check_pack(path: Path, pack: FilePack) -> None:
    """Raise PlatformError (INTEGRITY) unless the file's bytes are the pack's."""
    hashed = blake3()
    with open(path, "rb") as file:
        while data := file.read(_COPY_BYTES):
            hashed.update(data)
    if hashed.hexdigest() != pack.hash:
        raise error(
            ErrorCode.INTEGRITY, f"the files of an image step ({pack.hash[:12]}…) arrived damaged", next="build again"
        )


def place_pack(root: Path, tar: Path, destination: str, *, single: bool, owner: Ownership) -> int:
    """Put a pack's files into the image: below folder `destination`, or with `single` its one file at `destination`
    (into it, where that is a folder). Returns how many. Raises RequestError for a pack that is none, OSError."""
    count = 0
    try:
        with tarfile.open(tar, "r:") as archive:
            for member in archive:
                place = _member_place(destination, member.name, single=single, root=root)
                _put_member(root, archive, member, place, owner)
                count += not member.isdir()
    except tarfile.TarError as problem:
        raise error(ErrorCode.BAD_ARGUMENT, f"the files of an image step cannot be read: {problem}") from None
    return count


def unpack(tar: Path, folder: Path) -> None:
    """Put a pack's files below an empty folder of the host."""
    place_pack(folder, tar, "/", single=False, owner=Ownership())


def _member_place(destination: str, name: str, *, single: bool, root: Path) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"an image step's files hold the path {name!r}", allowed="relative paths without .."
        )
    if not single:
        return posixpath.join(destination, name)
    if destination.endswith("/") or in_root(root, destination).is_dir():
        return posixpath.join(destination, name)
    return destination


def _put_member(root: Path, archive: tarfile.TarFile, member: tarfile.TarInfo, place: str, owner: Ownership) -> None:
    if member.isdir():
        is_new = not in_root(root, place).exists()
        made = make_folder(root, place, owner)
        if is_new and owner.mode is None:  # a folder that the image has keeps its mode
            made.chmod(member.mode & 0o777)
        return
    if not (member.isfile() or member.issym()):
        raise error(ErrorCode.BAD_ARGUMENT, f"{member.name!r} is neither a file, a folder nor a link")
    parent = make_folder(root, posixpath.dirname(place), owner)
    # A link that ends the path is replaced when it leads nowhere, else written through, as cp and Docker do.
    target = in_root(root, place)
    if member.issym() or not target.exists():
        target = parent / posixpath.basename(place)
    if target.is_dir() and not target.is_symlink():
        raise error(ErrorCode.BAD_ARGUMENT, f"{place} in the image is a folder, and a file is wanted there")
    _remove(target)
    if member.issym():
        target.symlink_to(member.linkname)
        os.chown(target, owner.uid, owner.gid, follow_symlinks=False)
        return
    source = archive.extractfile(member)
    assert source is not None
    with source, open(target, "xb") as file:
        shutil.copyfileobj(source, file, _COPY_BYTES)
    os.chown(target, owner.uid, owner.gid)
    target.chmod(
        owner.mode if owner.mode is not None else member.mode & 0o777
    )  # after chown, which takes set-uid bits off
    os.utime(target, (member.mtime, member.mtime))


def _remove(target: Path) -> None:
    if target.is_symlink() or target.exists():
        target.unlink()


def copy_between(source_root: Path, patterns: list[str], root: Path, destination: str, owner: Ownership) -> int:
    """`COPY --from`: what the patterns match in one image, into another. A folder gives what is in it. Returns how many."""
    matched = [(pattern, found) for pattern in patterns for found in _matches(source_root, pattern)]
    if not matched or any(not _matches(source_root, pattern) for pattern in patterns):
        raise error(ErrorCode.BAD_ARGUMENT, f"COPY --from: {', '.join(patterns)} is not in that stage")
    many = len(matched) > 1
    if many and not destination.endswith("/"):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"COPY --from: {len(matched)} sources for {destination!r}",
            next="end the destination with /",
        )  # fmt: skip
    count = 0
    for _, path in matched:
        place = in_root(source_root, path)
        if place.is_dir():
            make_folder(root, destination, owner)
            count += _copy_tree(place, root, destination, owner)
        else:
            into = destination.endswith("/") or in_root(root, destination).is_dir()
            count += _copy_one(
                place, root, posixpath.join(destination, posixpath.basename(path)) if into else destination, owner
            )
    return count


def _matches(root: Path, pattern: str) -> list[str]:
    """Paths of an image that a pattern with `*` and `?` (not across /) matches, sorted."""
    found = [""]
    for part in [p for p in pattern.split("/") if p not in ("", ".")]:
        following = []
        for base in found:
            folder = in_root(root, base)
            if any(char in part for char in "*?["):
                names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
                following += [f"{base}/{name}" for name in names if fnmatch.fnmatchcase(name, part)]
            elif os.path.lexists(folder / part):
                following.append(f"{base}/{part}")
        found = following
    return found


def _copy_tree(source: Path, root: Path, destination: str, owner: Ownership) -> int:
    count = 0
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        place = posixpath.join(destination, entry.name)
        if entry.is_dir(follow_symlinks=False):
            is_new, status = not in_root(root, place).exists(), entry.stat(follow_symlinks=False)
            made = make_folder(root, place, owner)
            if is_new:
                os.chown(made, *owner.of(status))
            if is_new and owner.mode is None:
                made.chmod(status.st_mode & 0o7777)
            count += _copy_tree(Path(entry.path), root, place, owner)
        else:
            count += _copy_one(Path(entry.path), root, place, owner)
    return count


def _copy_one(source: Path, root: Path, place: str, owner: Ownership) -> int:
    status = source.lstat()
    parent = make_folder(root, posixpath.dirname(place), owner)
    target = parent / posixpath.basename(place)
    if target.is_dir() and not target.is_symlink():
        raise error(ErrorCode.BAD_ARGUMENT, f"{place} in the image is a folder, and a file is wanted there")
    if stat.S_ISLNK(status.st_mode):
        _remove(target)
        target.symlink_to(source.readlink())
        os.chown(target, *owner.of(status), follow_symlinks=False)
    elif stat.S_ISREG(status.st_mode):
        _remove(target)
        shutil.copyfile(source, target)
        os.chown(target, *owner.of(status))
        target.chmod(owner.mode if owner.mode is not None else status.st_mode & 0o7777)
        os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        return 0  # a device, pipe or socket
    return 1


def settle_links(upper: Path, place: str, stores: list[Path]) -> None:
    """Replace the links that uv left in a layer to its cache, which is at `place` in the image, by the files themselves.

    They become hard links: a layer and the cache hold one copy, and nothing is copied (in the sandbox that took most of
    the time). `stores` are the host's folders with the cache's files, the first that has one wins. Nobody writes into
    such a file later: layers are read-only, and what builds without trust gets the cache below an overlay.
    """
    waiting = [os.fspath(upper)]
    while waiting:
        for entry in list(os.scandir(waiting.pop())):
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif entry.is_symlink() and (target := str(Path(entry.path).readlink())).startswith(f"{place}/"):
                _settle(Path(entry.path), target.removeprefix(f"{place}/"), stores)


def _settle(link: Path, name: str, stores: list[Path]) -> None:
    for store in stores:
        source = in_root(store, name)  # a link in the cache leads nowhere else
        if source.is_file():
            link.unlink()
            try:
                link.hardlink_to(source)
            except OSError:  # another file system, or too many links
                shutil.copy2(source, link)
            return
    raise error(ErrorCode.INTERNAL, f"uv's cache has no {name}", next="build again")


def ownership(root: Path, owner: str, mode: str) -> Ownership:
    """From "USER[:GROUP]" (names of the image, or numbers) and an octal mode; empty ones are root's and the files' own. A number
    alone is the group's too (Dockerfile reference, "COPY --chown")."""
    uid, gid = find_user(root, f"{owner}:{owner}" if owner.isdigit() else owner)[:2]
    try:
        return Ownership(uid, gid, int(mode, 8) & 0o7777 if mode else None)
    except ValueError:
        raise error(ErrorCode.BAD_ARGUMENT, f"{mode!r} is no mode", allowed="octal digits such as 755") from None


def find_user(root: Path, text: str) -> tuple[int, int, str]:
    """(uid, gid, home folder) of "USER[:GROUP]" by the image's own /etc/passwd and /etc/group.

    Raises RequestError (BAD_ARGUMENT) for a name that the image does not have.
    """
    if not text:
        return 0, 0, "/root"
    user, _, group = text.partition(":")
    people = _table(root, "/etc/passwd", 6)
    found = next((line for line in people if user in (line[0], line[2])), None)
    if found is None and not user.isdigit():
        raise _unknown("user", user, [line[0] for line in people])
    uid, gid, home = (int(found[2]), int(found[3]), found[5]) if found else (int(user), 0, "/")
    if group:
        groups = _table(root, "/etc/group", 3)
        named = next((line for line in groups if group in (line[0], line[2])), None)
        if named is None and not group.isdigit():
            raise _unknown("group", group, [line[0] for line in groups])
        gid = int(named[2]) if named else int(group)
    return uid, gid, home


def _table(root: Path, path: str, fields: int) -> list[list[str]]:
    try:
        lines = in_root(root, path).read_text(errors="replace").splitlines()
    except OSError:
        return []
    rows = [line.split(":") for line in lines]
    return [row for row in rows if len(row) >= fields and all(row[n].isdigit() for n in (2, 3) if n < fields)]


def _unknown(what: str, name: str, known: list[str]) -> CellburstError:
    return error(
        ErrorCode.BAD_ARGUMENT, f"the image has no {what} {name!r}", allowed=", ".join(known[:20]) or "a number",
        next=f"make it first, as with `RUN {what}add {name}`",
    )  # fmt: skip


def find_in_path(root: Path, names: list[str], path: str) -> str:
    """The first of the programs that a PATH finds in the image; "" when there is none."""
    for name in names:
        for folder in path.split(":"):
            place = posixpath.join(folder or "/", name)
            here = in_root(root, place)
            if here.is_file() and os.access(here, os.X_OK):
                return place
    return ""
