"""Whether a container that was made beforehand shows what one made now would show: the layer over the notebook's folder.

Everything else that must be equal is in the snapshot's key and in the mounts' sources.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import MirrorSpec

from .engine import Mount
from .layer import DirectLayer, OverlayLayer
from .layer_make import MadeLayer, direct_mounts
from .masks import TooManyEntries, always_masked, find_masked, is_whiteout

Sources = dict[str, tuple[int, int]]


class Unlike(Exception):
    """The container is not one of this request's kind; it is untouched, and may be another's."""


def sources_of(mounts: Iterable[Mount]) -> Sources:
    """What lies at the sources of bind mounts, by device and inode: a mount keeps showing what was deleted since. Blocks."""
    return {mount.source: _identity(Path(mount.source)) for mount in mounts if mount.kind == "bind"}


def check_sources(before: Sources, mounts: Iterable[Mount]) -> None:
    """Raise RequestError (CONFLICT) unless these mounts have the same sources, with the same there. Blocks."""
    now = sources_of(mounts)
    if differs := sorted(path for path in {*before, *now} if before.get(path) != now.get(path)):
        raise _stale(f"{differs[0]} is another file or folder now")


def check_layer(made: MadeLayer, folder: Path, spec: MirrorSpec, destination: str) -> None:
    """Raise RequestError (CONFLICT) unless the layer in the container's host folder is what would be made for this notebook
    now: the same folder, the same entries hidden. `destination` is where it is shown. Blocks, as long as looking through the
    folder takes.
    """
    layer = made.layer
    if isinstance(layer, DirectLayer):
        _check_direct(layer, made.mounts, folder, spec, destination)
        return
    if not isinstance(layer, OverlayLayer):
        if spec.notebook_folder and spec.notebook_mode != "none":
            raise _stale("it has no layer over the notebook's folder")
        return
    source = Path(os.path.realpath(spec.notebook_folder))
    if spec.notebook_mode != "folder" or source != layer.source:
        raise _stale("it was made for another notebook's folder")
    try:
        if _identity(source) != _identity(layer.lower):
            raise _stale(f"{source} is another folder now")
        hidden = {*always_masked(), *find_masked(source)}
        if hidden != _hidden(folder / "masks"):
            raise _stale("other files of the notebook's folder are to be hidden now")
        if _metadata(layer.lower) != _metadata(layer.upper):
            raise _stale(f"{source} has another mode or owner now")
        layer.look_again()
    except (OSError, TooManyEntries) as why:
        raise _stale(str(why)) from why


def _check_direct(
    layer: DirectLayer, mounts: Iterable[Mount], folder: Path, spec: MirrorSpec, destination: str
) -> None:
    """The same without root, where the folder itself is shown. What changes in it is the session's from now on."""
    source = Path(os.path.realpath(spec.notebook_folder))
    if spec.notebook_mode != "folder" or source != layer.folder:
        raise _stale("it was made for another notebook's folder")
    try:
        if tuple(mounts) != direct_mounts(source, folder, destination):
            raise _stale("other files of the notebook's folder are to be hidden now")
        layer.begin_again()
    except (OSError, TooManyEntries) as why:
        raise _stale(str(why)) from why


def _hidden(masks: Path) -> set[str]:
    found: set[str] = set()
    for place, _, names in os.walk(masks):
        paths = [Path(place) / name for name in names]
        found.update(str(path.relative_to(masks)) for path in paths if is_whiteout(path.lstat()))
    return found


def _identity(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return status.st_dev, status.st_ino


def _metadata(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_mode, status.st_uid, status.st_gid


def _stale(why: str) -> CellburstError:
    return error(ErrorCode.CONFLICT, f"a container made beforehand does not fit any more: {why}")
