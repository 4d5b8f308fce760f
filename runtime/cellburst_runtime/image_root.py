"""The root file system of a container that is made from an image: our mount points and small files over the image's layers.

    FOLDER/engine/top      what we add, the uppermost lower: mount points, `/etc` files; folders that the image has as well
                           keep the image's owner and mode
    FOLDER/engine/layers   links to the layers, so that their names are short: all stand in one mount option
    FOLDER/layer/root      what the container writes into its root, in its store of stated size; most of the root belongs to
                           uid 0, so that is what lies in the image's working folder
    FOLDER/engine/rootfs   all of it, as one tree

Layers are never written. Their links were made by whoever made the image: no path in one is followed on the host.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from cellburst_protocol.errors import ErrorCode, error

from .beneath import parent_folder
from .engine import ContainerSpec
from .image_files import in_root
from .masks import is_whiteout
from .mounts import unmount_below
from .tools import find_program, run_command

TOP, LINKS, ROOT = "top", "layers", "rootfs"
UPPER, WORK = "root", "rootwork"  # below FOLDER/layer
# A folder of ours in place of one of these links would hide every program of the image.
_PROGRAMS = frozenset({"bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr"})
_OPEN_TO_ALL = "root"  # where local Python source goes: the container's uid must be able to read it
MOST_READ_BYTES = 1 << 20
MOST_NAMES_BYTES = 2048  # of layers in a mount option: mount(2) takes 4096, in which two more paths must stand


async def clear_image_root(bundle: Path) -> None:
    """Take away what an earlier, failed start has mounted and written."""
    await unmount_below(bundle / ROOT)
    for name in (TOP, LINKS):
        await asyncio.to_thread(shutil.rmtree, bundle / name, ignore_errors=True)


async def mount_image_root(spec: ContainerSpec, bundle: Path) -> None:
    """Mount `bundle/rootfs`: `bundle/top`, which is written already, over `spec.layers`. Removal unmounts it.

    Raises PlatformError (START_FAILED), RequestError (BAD_ARGUMENT) for an image that leaves no place for what must be shown.
    """
    root, top, links = bundle / ROOT, bundle / TOP, bundle / LINKS
    for folder in (root, links):
        folder.mkdir(exist_ok=True)
    lowers = []
    for number, layer in enumerate(spec.layers):
        (links / str(number)).symlink_to(layer)
        lowers.append(links / str(number))
    (links / TOP).symlink_to(top)
    # First without ours: only the whole tree tells what a folder of the image is like.
    await mount_root(root, lowers, None, None)
    try:
        await asyncio.to_thread(_settle, spec, top, root)
    finally:
        left = await unmount_below(root)
    if left:
        raise error(ErrorCode.INTERNAL, f"the image's layers cannot be unmounted: {left[0]}")
    upper, work = spec.folder / "layer" / UPPER, spec.folder / "layer" / WORK
    for folder in (upper, work):
        folder.mkdir(mode=0o755, exist_ok=True)
    await mount_root(root, [links / TOP, *lowers], upper, work)


def _settle(spec: ContainerSpec, top: Path, image: Path) -> None:
    for own in spec.own_folders:
        place = in_root(image, own).relative_to(image)
        if place.parts and (not os.path.lexists(image / place) or (image / place).is_dir()):
            (top / place).mkdir(parents=True, exist_ok=True)
    source = top / _OPEN_TO_ALL
    if _is_folder(image / _OPEN_TO_ALL):
        source.mkdir(exist_ok=True)
    _adopt(top, image, ())
    for own in spec.own_folders:
        place = in_root(image, own).relative_to(image)
        if place.parts and (top / place).is_dir():
            os.chown(top / place, spec.uid, spec.gid)
            (top / place).chmod(0o755)
    if source.is_dir():
        source.chmod(0o755)


def _adopt(place: Path, image: Path | None, parts: tuple[str, ...]) -> None:
    """Give a folder of ours, and those in it, owner and mode of the image's. `image` None: the image has none there."""
    if image is not None and _is_folder(image):
        status = image.lstat()
        os.chown(place, status.st_uid, status.st_gid)
        place.chmod(stat.S_IMODE(status.st_mode))
    else:
        if image is not None and image.is_symlink() and len(parts) == 1 and parts[0] in _PROGRAMS:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"/{parts[0]} is a link in this image, and something must be shown below it",
                next="give mount= a folder in another place",
            )  # fmt: skip
        image = None
    for child in place.iterdir():
        if _is_folder(child):
            _adopt(child, image / child.name if image is not None else None, (*parts, child.name))


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


async def mount_root(place: Path, lowers: Sequence[Path], upper: Path | None, work: Path | None) -> None:
    """Mount layers (top first) as one tree, writable into `upper` where that is given. Raises PlatformError.

    Options that would tie a layer to the ones it was made over by more than names (redirects, indexes) are off.
    """
    with _short_names(place, lowers) as (base, names):
        options = f"lowerdir={names},redirect_dir=nofollow,metacopy=off,index=off,nosuid,nodev"
        if upper is not None and work is not None:
            options += f",upperdir={upper},workdir={work}"
        await _mount_overlay(base, options, place)


@contextmanager
def _short_names(place: Path, lowers: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """A folder, and the layers' names in it for one mount option: as they are, or where they are too long by links that are there
    only while they are mounted."""
    base = os.path.commonpath([lower.parent for lower in lowers])
    names = ":".join(os.path.relpath(lower, base) for lower in lowers)
    if len(names.encode()) <= MOST_NAMES_BYTES:
        yield base, names
        return
    with TemporaryDirectory(prefix="names-", dir=place.parent) as links:
        for number, lower in enumerate(lowers):
            (Path(links) / str(number)).symlink_to(lower)
        yield links, ":".join(map(str, range(len(lowers))))


async def _mount_overlay(base: str, options: str, place: Path) -> None:
    # By mount(2), which takes 4096 bytes of options, from a folder that keeps the names short; newer mount(8) would
    # otherwise use a call that takes 256.
    program = [
        find_program("env") or "env",
        "-C",
        base,
        "LIBMOUNT_FORCE_MOUNT2=always",
        find_program("mount") or "mount",
    ]
    result = await run_command([*program, "-t", "overlay", "-o", options, "cellburst-image", str(place)])
    if not result.ok:
        raise error(
            ErrorCode.START_FAILED, f"mounting an image's layers at {place} failed: {result.reason()}",
            next="the data folder must be on a file system that overlayfs can write to (ext4, xfs, btrfs)",
        )  # fmt: skip


# -- looking into layers that are not mounted ------------------------------------------------------------------------


def find_in_layers(layers: Sequence[Path], path: str) -> tuple[Path, os.stat_result] | None:
    """The topmost layer that has the path, and what it is there; None where no layer has it or a link is on the way."""
    for layer in layers:
        try:
            with parent_folder(layer, path.lstrip("/")) as (folder, name):
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return None if is_whiteout(status) else (layer, status)
    return None


def read_in_layers(layers: Sequence[Path], path: str) -> bytes | None:
    """A small regular file of an image; None where it is none."""
    found = find_in_layers(layers, path)
    if found is None or not stat.S_ISREG(found[1].st_mode) or found[1].st_size > MOST_READ_BYTES:
        return None
    with parent_folder(found[0], path.lstrip("/")) as (folder, name):
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    with os.fdopen(fd, "rb") as file:
        return file.read(MOST_READ_BYTES)


def names_in_layers(layers: Sequence[Path], path: str) -> set[str]:
    """The names in a folder of an image; none where a link is on the way."""
    found: set[str] = set()
    gone: set[str] = set()
    for layer in layers:
        try:
            with parent_folder(layer, f"{path.strip('/')}/x") as (folder, _), os.scandir(folder) as entries:
                here = {entry.name: is_whiteout(entry.stat(follow_symlinks=False)) for entry in entries}
        except OSError:
            continue
        found |= {name for name, hidden in here.items() if not hidden and name not in gone}
        gone |= {name for name, hidden in here.items() if hidden}
    return found
