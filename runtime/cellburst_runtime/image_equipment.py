"""What a build's step has beside the image while it runs: GPUs of a lease, and volumes. None of it is in the layer.

Both come from whoever builds (`BuildAids`): the right to a GPU is the gateway's to give, and so are a volume's files. A volume is
mounted at its path in the sandbox only; where the image has no such folder one is made to mount on, and removed after the step.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import AnyStep, RunFunction, StepVolume, every_step

from .beneath import parent_folder
from .engine import DeviceGrant, Mount
from .image_files import in_root, make_folder

Grant = Callable[[Sequence[str], Path], DeviceGrant]  # of GPUs (uuids) to a sandbox, with a folder for what it shows
Owner = tuple[int, int]  # uid and gid in the image


@dataclass(frozen=True)
class ShownVolume:
    """A folder of this machine that a step sees as a volume at `path`."""

    path: str
    source: Path
    read_only: bool = False


class BuildAids(Protocol):
    """What a build asks of its worker when a step that must be made wants it; never for a layer that is there."""

    def gpus(self, gpu: str, log: Callable[[str], None]) -> AbstractAsyncContextManager[Sequence[str]]:
        """The uuids of GPUs that are the step's until the block ends, however it ends. Waits for busy ones, and says so in
        `log`. Raises RequestError, CapacityError: they cannot be had on this machine; PlatformError: the lease was lost, also
        in the middle of the block, which is cancelled then."""

    def volumes(
        self, asked: Sequence[StepVolume], folder: Path, owner: Owner, log: Callable[[str], None]
    ) -> AbstractAsyncContextManager[Sequence[ShownVolume]]:
        """The volumes as folders, whose files belong to `owner` and which may use the empty `folder`. Where the block ends
        well, what was written is committed; where it raises, nothing is. Raises the error tree, OSError."""


class Leased:
    """The GPUs of one step, from before it is made until its programs have ended: its files are read and hashed without them."""

    def __init__(self) -> None:
        self.uuids: Sequence[str] = ()
        self._stack = AsyncExitStack()

    async def enter(self, gpus: AbstractAsyncContextManager[Sequence[str]]) -> None:
        """Have them. Raises what `BuildAids.gpus` does."""
        self.uuids = await self._stack.enter_async_context(gpus)

    async def release(self) -> None:
        """Give them back, if that is not done yet. Raises what the end of the block does."""
        self.uuids = ()
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *problem: Any) -> bool | None:
        return await self._stack.__aexit__(*problem)


class NoAids:
    """Of a build that nobody stands behind who could give them."""

    def gpus(self, gpu: str, log: Callable[[str], None]) -> AbstractAsyncContextManager[Sequence[str]]:
        """See BuildAids. Raises RequestError."""
        raise _nobody(f"gpu={gpu}")

    def volumes(
        self, asked: Sequence[StepVolume], folder: Path, owner: Owner, log: Callable[[str], None]
    ) -> AbstractAsyncContextManager[Sequence[ShownVolume]]:
        """See BuildAids. Raises RequestError."""
        raise _nobody(f"volume {asked[0].name}")


def check_limits(steps: Sequence[AnyStep], cores: float, memory_mib: int) -> None:
    """Whether every step's limits can be had on a machine of so much. Raises CapacityError (NO_SUCH_HARDWARE)."""
    for step in every_step(steps):
        if isinstance(step, RunFunction) and ((step.cpu or 0) > cores or (step.memory_mib or 0) > memory_mib):
            asked = [f"cpu={step.cpu:g}"] if step.cpu else []
            asked += [f"memory={step.memory_mib}"] if step.memory_mib else []
            raise error(
                ErrorCode.NO_SUCH_HARDWARE, f"run_function {step.name} asks for {' and '.join(asked)}, and the machine that"
                " builds has less", allowed=f"at most cpu={cores:g} and memory={memory_mib}",
            )  # fmt: skip


@dataclass
class MountPoints:
    """Where a step's volumes are mounted in an image's root. Made while nothing of the image runs, removed when nothing does."""

    root: Path
    made: list[str]
    mounts: list[Mount]

    @classmethod
    def make(cls, root: Path, shown: Sequence[ShownVolume]) -> MountPoints:
        """Raises RequestError (BAD_ARGUMENT) where the image has a file in the way."""
        points = cls(root, [], [])
        try:
            for volume in shown:
                points._make(volume)
        except BaseException:
            points.remove()
            raise
        return points

    def _make(self, volume: ShownVolume) -> None:
        place = in_root(self.root, volume.path)
        missing = []
        while not place.exists():
            missing.append(place.relative_to(self.root).as_posix())
            place = place.parent
        self.made += reversed(missing)
        make_folder(self.root, volume.path)
        inside = f"/{in_root(self.root, volume.path).relative_to(self.root).as_posix()}"
        self.mounts.append(Mount(inside, str(volume.source), read_only=volume.read_only))

    def remove(self) -> None:
        """Take away the folders that were made, as far as the step left them empty. The step may have made links of them: none
        is followed."""
        for path in reversed(self.made):
            with contextlib.suppress(OSError), parent_folder(self.root, path) as (folder, name):
                os.rmdir(name, dir_fd=folder)
        self.made = []


def _nobody(what: str) -> CellburstError:
    return error(
        ErrorCode.NOT_FOUND, f"a step asks for {what}, and nothing came with this build",
        next="build it with `image.build()`, `cellburst image build`, or by a cell",
    )  # fmt: skip
