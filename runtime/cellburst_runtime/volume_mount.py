"""Showing volumes in a container: each as an overlay of a version's tree and what this container wrote above it.

    FOLDER/volumes/               bound to /cellburst/volumes in every container that has mounts, with volumes or not
    FOLDER/volumes/.NAME.<n>      the n-th tree that the container was given: an overlay, or a folder of copies
    FOLDER/volumes/NAME           a link to it; the asked-for path is a link to this
    FOLDER/layer/volumes/ID/<n>   `upper` and `work` of the overlay: in the session's store, so its size bounds them and a parked
                                  session has them again

A later tree (`reload`) is mounted beside the first and shown by exchanging the link: FOLDER/volumes is a shared mount, so the
sandbox's own mount namespace has it at once. What is not mounted by root and gVisor gets copies: they cost their size, and
without a sandbox they are not at the path that was asked for.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import FileEntry, VolumeFiles, VolumeMount

from .engine import Mount
from .mounts import mount, mounts_below
from .tools import find_program, run_command
from .volume_tree import Owner, VolumeStore

SHOWN = "/cellburst/volumes"
VOLUMES = "volumes"  # below the container's folder, and below its store
_OPTIONS = "redirect_dir=off,metacopy=off,index=off,nosuid,nodev"


@dataclass
class Place:
    """One volume in one container. `serial` counts its trees; `copies`: no overlay, the files are the container's own."""

    name: str
    serial: int
    merged: Path  # what the container sees
    tree: Path
    upper: Path | None  # None: read-only, or copies
    copies: bool = False


@dataclass
class VolumePlaces:
    """The volumes of one container. `folder` is its host folder; `overlay`: this process may mount, and the engine shows it."""

    folder: Path
    owner: Owner
    overlay: bool
    isolated: bool
    mounts: tuple[Mount, ...] = ()  # of the container, to find what a path lies in
    places: dict[str, Place] = field(default_factory=dict)  # by volume's id

    @property
    def var(self) -> str:
        """Where the container sees FOLDER/var."""
        return "/cellburst/var" if self.isolated else str(self.folder / "var")

    async def begin(self) -> None:
        """Before anything is shown, and before the container starts."""
        shown = self.folder / VOLUMES
        shown.mkdir(exist_ok=True)
        if self.overlay and not mounts_below(shown):
            await mount(str(shown), shown, options="bind")
            program = find_program("mount") or "mount"
            result = await run_command([program, "--make-shared", str(shown)])
            if not result.ok:
                raise error(ErrorCode.START_FAILED, f"volumes cannot be shown in {shown}: {result.reason()}")

    def store_of(self, volume: str) -> Path:
        """Where the container keeps what it wrote to a volume."""
        return self.folder / ("layer" if self.overlay else "engine") / VOLUMES / volume

    async def show(self, asked: VolumeMount, tree: Path, serial: int, store: VolumeStore, files: VolumeFiles) -> Place:
        """Show a tree, not yet under the volume's name: see `switch`. Raises PlatformError, OSError."""
        merged = self.folder / VOLUMES / f".{asked.folder_name}.{serial}"
        merged.mkdir(exist_ok=True)
        if not self.overlay:
            _fill(merged, files.entries, self.owner, store)
            return Place(asked.name, serial, merged, tree, None, copies=True)
        own = self.store_of(asked.volume) / str(serial)
        upper, work, empty = own / "upper", own / "work", own / "empty"
        for place in (upper, work, empty):
            place.mkdir(parents=True, exist_ok=True)
        status = tree.stat()
        os.chown(upper, *self.owner)
        upper.chmod(status.st_mode & 0o777)
        if asked.read_only:
            # Two lower folders and no upper one: the file system itself is read-only, in every namespace.
            options = f"lowerdir={tree}:{empty},{_OPTIONS}"
        else:
            options = f"lowerdir={tree},upperdir={upper},workdir={work},{_OPTIONS}"
        await mount("cellburst-volume", merged, kind="overlay", options=options)
        return Place(asked.name, serial, merged, tree, None if asked.read_only else upper)

    def switch(self, asked: VolumeMount, place: Place) -> Place | None:
        """Show it under the volume's name from now on; returns what was shown before."""
        self.link(asked, place.merged.name)
        before = self.places.get(asked.volume)
        self.places[asked.volume] = place
        return before

    def link(self, asked: VolumeMount, target: str) -> None:
        """Have its name lead there from now on."""
        draft = self.folder / VOLUMES / f".{secrets.token_hex(8)}"
        draft.symlink_to(target)
        draft.replace(self.folder / VOLUMES / asked.folder_name)

    def live_place(self, asked: VolumeMount) -> Path:
        """Where a bucket or shared folder is mounted."""
        return self.folder / VOLUMES / f".{asked.folder_name}.0"

    async def hide(self, volume: str, place: Place) -> None:
        """Take away a place that is not shown any more, and what was written there. A process that is in it keeps what it
        has open."""
        if not place.copies:
            await run_command([find_program("umount") or "umount", "-l", str(place.merged)])
        _remove(place.merged)
        _remove(self.store_of(volume) / str(place.serial))

    def links(self, asked: Sequence[VolumeMount]) -> tuple[dict[str, str], dict[str, str]]:
        """The links (path -> target) that lead to the volumes: those in the root, which must be there before the container
        starts, and those in places that the runner may write in. Raises RequestError (BAD_ARGUMENT)."""
        root: dict[str, str] = {}
        runner: dict[str, str] = {}
        for one in asked:
            around = _mount_around(one.path, self.mounts)
            target = f"{SHOWN}/{one.folder_name}"
            if around is None:
                root[one.path] = target
            elif around.kind == "tmpfs" and not around.read_only and one.path != around.destination:
                runner[one.path] = target
            else:
                raise error(
                    ErrorCode.BAD_ARGUMENT, f"the volume {one.name} cannot be shown at {one.path}: the container has"
                    f" {around.destination} there", allowed="a path where the container has nothing",
                    next="for example volumes=/data:NAME",
                )  # fmt: skip
        return root, runner

    def path_in(self, asked: VolumeMount) -> str:
        """Where code finds the volume."""
        return asked.path if self.isolated else str(self.folder / VOLUMES / asked.folder_name)


def _mount_around(path: str, mounts: Sequence[Mount]) -> Mount | None:
    best: Mount | None = None
    for one in mounts:
        place = os.path.normpath(one.destination)
        if (path == place or path.startswith(place.rstrip("/") + "/")) and (
            best is None or len(place) > len(best.destination)
        ):
            best = one
        elif place.startswith(path + "/"):
            return one  # something is shown below it
    return best


def _fill(folder: Path, entries: Sequence[FileEntry], owner: Owner, store: VolumeStore) -> None:
    """Files of the container's own: a hard link would let it write into the cache."""
    if any(folder.iterdir()):
        return
    for entry in entries:
        target = folder / entry.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == "folder":
            target.mkdir(exist_ok=True)
        elif entry.kind == "link":
            target.symlink_to(entry.target)
        else:
            store.copy_file(entry, owner, target)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_mount():
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class ShownVolumes:
    """How a container's volumes are reached: links of its root file system and links that its runner makes (path -> target),
    and the socket by which its code commits and reloads, "" for none."""

    root_links: dict[str, str] = field(default_factory=dict)
    runner_links: dict[str, str] = field(default_factory=dict)
    door: str = ""
