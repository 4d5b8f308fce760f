"""The environment that a schedule was made with, against the one that is there now. Reads names and files, runs nothing.

A run has its environment as it was when it was scheduled. Where nothing has changed that is the live one, which costs nothing;
else it is built as an image from what the schedule keeps: the packages with their versions, and the editable sources. An update
of Cellburst itself is no change: it would have every environment built anew, and results do not come from it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

from cellburst_protocol.images import packs
from cellburst_protocol.messages import EngineInfo, MirrorSpec
from cellburst_protocol.packages import package_changes, packages_named
from cellburst_protocol.schedules import FrozenEnvironment, ScheduleSpec

SHOWN_CHANGES = 12
COMPARED_BYTES = 1 << 20
KEPT_LOOKS = 200  # packs whose last comparison is remembered: a few thousand numbers each at most
OUR_PACKAGE = "cellburst"
Kind = Literal["", "live", "frozen", "image"]
_AS_IT_WAS = "the environment is not as it was when this was scheduled"
_Seen = tuple[int, int, int, int]


def environment_changes(image: MirrorSpec | None) -> list[str]:
    """What is installed differently now, a line each. Empty where nothing is, or where nothing was noted. Blocks."""
    if image is None or not image.packages:
        return []
    if not Path(image.executable).exists():
        return [f"its interpreter {image.executable} is not there any more"]
    now: dict[str, str] = {}
    for folder in image.sys_path:  # the first one with a package is the one that is imported
        try:
            now = packages_named(os.listdir(folder)) | now  # noqa: PTH208 - names only, from folders of thousands
        except OSError:
            continue
    return package_changes(image.packages, now)


class Surroundings:
    """What schedules keep of their environments against what there is now. `pack` is where a pack is kept, by its hash. A pack
    is read again only when a file's size or times are others than when it was last found to be the same: a hundred runs in one
    second read it once."""

    def __init__(self, pack: Callable[[str], Path]) -> None:
        self._pack = pack
        self._same: dict[str, dict[Path, _Seen]] = {}  # by pack

    def changes(self, spec: ScheduleSpec) -> list[str]:
        """Packages and editable sources that are others now than those that a run's own session is to have, a line each."""
        if spec.recipe is not None:
            return []  # it has an image, whatever is installed here
        return [*environment_changes(spec.image), *self._source_changes(spec.frozen)]

    def _source_changes(self, frozen: FrozenEnvironment | None) -> list[str]:
        """A file that was added is no change: nothing that was kept imports it."""
        if frozen is None or not frozen.sources:
            return []
        same = self._same.get(frozen.sources)
        if same and all(_seen(path) == seen for path, seen in same.items()):
            return []
        found: list[str] = []
        looked: dict[Path, _Seen] = {}
        try:
            with tarfile.open(self._pack(frozen.sources)) as archive:
                for member in archive:
                    number, _, name = member.name.partition("/")
                    if not number.isdigit() or int(number) >= len(frozen.roots) or member.isdir():
                        continue
                    path = Path(frozen.roots[int(number)]) / name
                    seen = _seen(path)
                    if seen is None:
                        found.append(f"{path} is gone")
                    elif not _equal(archive, member, path):
                        found.append(f"{path} changed")
                    else:
                        looked[path] = seen
        except (OSError, tarfile.TarError):
            return found  # what was kept cannot be read: there is nothing to tell it from
        if not found:
            self._same = dict([*self._same.items()][-KEPT_LOOKS:]) | {frozen.sources: looked}
        return found


def differs(changes: Iterable[str]) -> bool:
    """Whether such changes are any that a notebook could tell."""
    return any(line.partition(" ")[0] != OUR_PACKAGE for line in changes)


def chosen(spec: ScheduleSpec, changes: Sequence[str], engines: Iterable[EngineInfo]) -> tuple[Kind, str]:
    """What the run's own session has, and a line for its record ("" for nothing to say). `engines` are those that its workers
    would use; without one that runs images an environment cannot be built."""
    if spec.recipe is not None:
        return "image", ""
    if not differs(changes):
        return "live", told(changes)
    line = told(changes)
    if spec.environment == "live":
        return "live", f"{line}; the schedule asks for the live one"
    if spec.frozen is None:
        return "live", f"{line}; it was not kept, so this run has it as it is now"
    if (using := list(engines)) and not any(_runs_images(engine) for engine in using):
        return "live", f"{line}; it cannot be built here without root and gVisor, so this run has it as it is now"
    return "frozen", f"{line}; this run has it as it was, built from what was kept"


def told(changes: Sequence[str]) -> str:
    """One line for the run's record, "" for no changes."""
    if not changes:
        return ""
    more = f", and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
    return f"{_AS_IT_WAS}: {', '.join(changes[:SHOWN_CHANGES])}{more}"


def packs_of(spec: ScheduleSpec) -> list[str]:
    """Hashes of the local files that its image and its environment are built with."""
    recipes = [spec.recipe, spec.frozen.recipe if spec.frozen is not None else None]
    return [pack.hash for recipe in recipes if recipe is not None for pack in packs(recipe)]


def machine_id() -> str:
    """As `cellburst_jupyter.environment.machine_id` has it: the same for who sees the same files on the same machine, until it is
    started again."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        boot = platform.node()
    root = Path("/").stat()
    return f"{boot}:{root.st_dev}:{root.st_ino}"


def _runs_images(engine: EngineInfo) -> bool:
    return engine.name != "process" and not engine.unprivileged


def _seen(path: Path) -> _Seen | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _equal(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bool:
    with contextlib.suppress(OSError):
        if member.issym():
            return path.is_symlink() and str(path.readlink()) == member.linkname
        kept = archive.extractfile(member)
        if kept is None or path.stat().st_size != member.size:
            return False
        with kept, path.open("rb") as now:
            while part := kept.read(COMPARED_BYTES):
                if now.read(len(part)) != part:
                    return False
            return True
    return False
