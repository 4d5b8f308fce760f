"""Making a session's layer: which kind, its store of stated size, its masks and mounts."""

from __future__ import annotations

import asyncio
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import MirrorSpec

from .engine import Mount
from .idmap import mount_swapped
from .layer import DirectLayer, EmptyLayer, Layer, OverlayLayer
from .masks import TooManyEntries, always_masked, find_masked, is_masked
from .mounts import mount
from .record import ContainerRecord
from .tools import find_program, run_command

MIB = 1024 * 1024
STORE_MIB = 16 * 1024  # what a session may write over its folder and hand out; sparse: only what is written takes space
STORE_SHARE_OF_FREE = 0.5  # one session never gets more than half of what the disk has left
STORE_LEAST_MIB = 64
# The kernel would write zeros over inode tables that are zeros: they are holes of the image.
_STORE_OPTIONS = "loop,nosuid,nodev,noatime,noinit_itable"
MEMORY_STORE_SHARE = 0.25  # of the container's memory, where no disk image can be mounted
# Copies of the .py files beside a notebook whose folder itself is not shown.
PYTHON_FILES, PYTHON_FILES_BYTES = 1000, 64 * MIB
_DIRECT_NOTE = (
    "Files written in the notebook's folder change it directly: a layer of the session's own needs root and gVisor."
)
_EMPTY = "engine/empty"  # below a container's folder: shown in place of files that it may not see
_COPIES_NOTE = "Of the notebook's folder only copies of the .py files beside the notebook are shown."


@dataclass(frozen=True)
class MadeLayer:
    """A layer, and the mounts that show it in a container of an engine that has mounts."""

    layer: Layer
    mounts: tuple[Mount, ...]


async def make_store(
    record: ContainerRecord, folder: Path, *, overlay: bool, memory_mib: int, store_folder: Path,
    store_image: Path | None = None,
) -> None:  # fmt: skip
    """Make a container's folders and, for an engine that shows a layer by mounts, its store: a file system of stated size at
    FOLDER/layer, on a sparse disk image, or in memory where images cannot be mounted. It needs nothing of what the container
    shows, so it is made while that is planned. `overlay`: this process may mount.

    The image, in `store_folder`, is in the saved record before it is made. `store_image`, a disk image that another
    container's store was on, is moved in: what was written there is there again. It is the container's from then on, and goes
    with it. Raises PlatformError (DISK_FULL, START_FAILED).
    """
    await asyncio.to_thread(make_folders, folder)
    if record.engine != "gvisor" or not overlay:
        return
    store_folder.mkdir(parents=True, exist_ok=True)
    image = store_folder / f"{record.id}.img"
    record.store = str(image)
    record.save(folder)
    if store_image is not None:
        store_image.rename(image)
        await mount(str(image), folder / "layer", options=_STORE_OPTIONS)
    else:
        await _mount_new_store(image, folder, store_folder, memory_mib)


async def make_layer(
    spec: MirrorSpec, folder: Path, *, engine: str, overlay: bool, owner: tuple[int, int], destination: str
) -> MadeLayer:
    """Make the layer for a container that has its store. `overlay`: this process may mount. Everything made is below `folder`.
    `destination` is where a container shows the folder (`MirrorPlan.working_folder`).

    Raises PlatformError (START_FAILED), RequestError (NOT_FOUND) for a folder that is not there.
    """
    await asyncio.to_thread(_give_folders, folder, owner, overlay and engine == "gvisor")
    if overlay and engine == "gvisor":
        await mount(str(folder / "layer" / "out"), folder / "var" / "out", options="bind")
    if not spec.notebook_folder or spec.notebook_mode == "none":
        return MadeLayer(EmptyLayer(), ())
    source = Path(os.path.realpath(spec.notebook_folder))
    if not source.is_dir():
        raise error(
            ErrorCode.NOT_FOUND, f"the notebook's folder {spec.notebook_folder} is not there on this machine",
            next="save the notebook, and run the cell again",
        )  # fmt: skip
    if engine == "process":
        layer: Layer = await asyncio.to_thread(DirectLayer.begin, source, folder / "fetched", [_DIRECT_NOTE])
        return MadeLayer(layer, ())
    if not overlay:
        return await asyncio.to_thread(_rootless, spec, source, folder, destination)
    overlay_layer = await _overlay(spec, source, folder, owner)
    return MadeLayer(overlay_layer, (Mount(destination, str(overlay_layer.merged), read_only=False),))


def make_folders(folder: Path, owner: tuple[int, int] | None = None) -> None:
    """The folders of a container's host folder (see `engine`), with the modes its uid needs; what it hands out is `owner`'s."""
    for name in (
        "layer",
        "merged",
        "masks",
        "shown",
        "fetched",
        "volumes",
        "engine",
        "bin",
        "var",
        "var/ctl",
        "var/in",
        "var/out",
    ):
        (folder / name).mkdir(exist_ok=True)
    # Read by the container's ordinary uid; other users of the host are kept out by the folder's own mode.
    for name in ("bin", "volumes", "var", "var/ctl", "var/in"):
        (folder / name).chmod(0o755)
    if owner is not None and os.geteuid() == 0:
        os.chown(folder / "var/out", *owner)


def _give_folders(folder: Path, owner: tuple[int, int], store: bool) -> None:
    """What is the container's own: what it hands out, and its folders in the store."""
    if os.geteuid() != 0:
        return
    os.chown(folder / "var/out", *owner)
    if not store:
        return
    for name in ("upper", "work", "out", "fetched"):
        (folder / "layer" / name).mkdir(exist_ok=True)
    for name in ("upper", "out"):
        os.chown(folder / "layer" / name, *owner)


async def _mount_new_store(image: Path, folder: Path, store_folder: Path, memory_mib: int) -> None:
    size_mib = min(STORE_MIB, int(shutil.disk_usage(store_folder).free / MIB * STORE_SHARE_OF_FREE))
    if size_mib < STORE_LEAST_MIB:
        raise error(
            ErrorCode.DISK_FULL, f"{store_folder} has too little space for a session: {size_mib} MiB could be given",
            allowed=f"at least {STORE_LEAST_MIB} MiB", next="free disk space on the worker's machine",
        )  # fmt: skip
    mkfs = find_program("mkfs.ext4")
    if not (mkfs and await _mount_image(mkfs, image, folder / "layer", size_mib)):
        image.unlink(missing_ok=True)
        await mount(
            "none", folder / "layer", kind="tmpfs", options=f"size={int(memory_mib * MEMORY_STORE_SHARE)}m,mode=755"
        )


async def _mount_image(mkfs: str, image: Path, destination: Path, size_mib: int) -> bool:
    with open(image, "xb") as file:
        os.truncate(file.fileno(), size_mib * MIB)
    # Without a journal: what a running session wrote does not outlive its machine's crash, and the store of a parked one
    # was unmounted and flushed. Without room to grow, which takes 4 MB and half the time: its size is stated.
    features = ["-O", "^has_journal,^resize_inode", "-E", "lazy_itable_init=1,nodiscard", "-m", "0"]
    if not (await run_command([mkfs, "-q", "-F", *features, str(image)])).ok:
        return False
    try:
        await mount(str(image), destination, options=_STORE_OPTIONS)
    except CellburstError:
        return False  # no loop devices here
    return True


async def _overlay(spec: MirrorSpec, source: Path, folder: Path, owner: tuple[int, int]) -> OverlayLayer:
    shown, notes, masked = folder / "shown", [], always_masked()
    python_files = spec.notebook_mode == "python_files"
    if not python_files:
        try:
            masked = sorted({*masked, *await asyncio.to_thread(find_masked, source)})
        except TooManyEntries as problem:
            python_files = True
            notes.append(f"The notebook's folder is not shown: {problem}.")
    if python_files:
        await asyncio.to_thread(_copy_python_files, source, shown, owner)
        notes.append(spec.notebook_note or _COPIES_NOTE)
    else:
        notes += await _show(source, shown, owner)
    await asyncio.to_thread(_write_masks, folder / "masks", shown, masked)
    upper = folder / "layer" / "upper"
    _copy_metadata(shown, upper)
    lower = f"lowerdir={folder}/masks:{shown}"
    options = (
        f"{lower},upperdir={upper},workdir={folder}/layer/work,redirect_dir=off,metacopy=off,index=off,nosuid,nodev"
    )
    await mount("cellburst", folder / "merged", kind="overlay", options=options)
    return OverlayLayer(folder / "merged", upper, shown, folder / "layer" / "fetched", owner, notes, source)


async def _show(source: Path, shown: Path, owner: tuple[int, int]) -> list[str]:
    """Show the notebook's folder at `shown`; where it is another user's than the container's, as the container's own."""
    folder_uid = source.stat().st_uid
    if folder_uid != owner[0]:
        try:
            await asyncio.to_thread(mount_swapped, source, shown, folder_uid, owner[0])
            return []
        except OSError:
            pass  # an older kernel, or a file system without id-mapped mounts
    await mount(str(source), shown, options="bind,ro")
    if folder_uid == owner[0]:
        return []
    return ["Files of the notebook's folder belong to another user there: some cannot be read or changed in place."]


def _copy_python_files(source: Path, shown: Path, owner: tuple[int, int]) -> None:
    total_bytes = 0
    for path in sorted(source.glob("*.py"))[:PYTHON_FILES]:
        if path.is_symlink() or not path.is_file() or is_masked(path.name):
            continue
        total_bytes += path.stat().st_size
        if total_bytes > PYTHON_FILES_BYTES:
            break
        shutil.copy2(path, shown / path.name)
        if os.geteuid() == 0:
            os.chown(shown / path.name, *owner)
    if os.geteuid() == 0:
        os.chown(shown, *owner)


def _write_masks(masks: Path, shown: Path, masked: list[str]) -> None:
    """A whiteout for each masked path. Folders on the way get the metadata of those they stand before."""
    _copy_metadata(shown, masks)
    for relative in masked:
        target = masks / relative
        for parent in reversed([p for p in target.parents if p.is_relative_to(masks) and p != masks]):
            if not parent.exists():
                parent.mkdir()
                _copy_metadata(shown / parent.relative_to(masks), parent)
        os.mknod(target, 0o600 | 0o020000, os.makedev(0, 0))


def _copy_metadata(source: Path, target: Path) -> None:
    status = source.stat()
    os.chown(target, status.st_uid, status.st_gid)
    target.chmod(status.st_mode & 0o7777)


def _rootless(spec: MirrorSpec, source: Path, folder: Path, destination: str) -> MadeLayer:
    """Without root: the folder itself, masked names covered by empty mounts of the sandbox."""
    if spec.notebook_mode == "python_files":
        _copy_python_files(source, folder / "shown", (os.geteuid(), os.getegid()))
        copies = DirectLayer.begin(folder / "shown", folder / "fetched", [spec.notebook_note or _COPIES_NOTE])
        return MadeLayer(copies, (Mount(destination, str(folder / "shown"), read_only=False),))
    (folder / _EMPTY).touch()
    try:
        mounts = direct_mounts(source, folder, destination)
    except TooManyEntries as problem:
        raise error(
            ErrorCode.START_FAILED, f"the notebook's folder cannot be shown: {problem}",
            next="move the notebook to a folder of its own",
        ) from None  # fmt: skip
    return MadeLayer(DirectLayer.begin(source, folder / "fetched", [_DIRECT_NOTE]), mounts)


def direct_mounts(source: Path, folder: Path, destination: str) -> tuple[Mount, ...]:
    """How a container without root has the notebook's folder `source`, as it is now: itself, and over each masked name nothing.
    `folder` is the container's. Raises TooManyEntries."""
    names = sorted(find_masked(source))
    covers = [_cover(source / name, f"{destination}/{name}", folder / _EMPTY) for name in names]
    return Mount(destination, str(source), read_only=False), *(cover for cover in covers if cover is not None)


def _cover(path: Path, destination: str, empty: Path) -> Mount | None:
    if path.is_symlink():
        return None  # leads to a place that the container does not have, or whose own masks hold
    if path.is_dir():
        return Mount(destination, kind="tmpfs", size_bytes=4096, mode=0o555)
    return Mount(destination, str(empty))
