"""A small world for tests of images: a store, a builder without a network, and a base of 2 MB made from a static busybox."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

from cellburst.image_packs import PackedFile, PackWriter
from cellburst_protocol.images import AnyStep, Copy, FromScratch, ImageRecipe, RunCommands
from cellburst_runtime.cgroups import Cgroup, Cgroups
from cellburst_runtime.engine_gvisor import GvisorSettings
from cellburst_runtime.image_build import BuiltImage, ImageBuilder
from cellburst_runtime.image_sandbox import BuildMachine, NetworkMaker
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.proc import all_processes
from cellburst_runtime.tools import find_runsc

BUSYBOX = "/bin/busybox"


class WatchedCgroups(Cgroups):
    """Knows every group that was asked for, so that a test can look for what is left."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: set[str] = set()

    def group(self, name: str) -> Cgroup:
        self.asked.add(name)
        return super().group(name)


class ImageHouse:
    """`folder` holds everything. `log` gets the lines of all builds."""

    def __init__(self, folder: Path, networks: NetworkMaker | None = None) -> None:
        self.folder = folder
        self.images = folder / "data" / "images"
        self.log: list[str] = []
        self.packs = PackWriter(folder / "packs")
        # runsc's sockets lie in its root: the path must be short.
        self.state = Path("/tmp") / f"cb-{secrets.token_hex(4)}"
        self.groups = WatchedCgroups()
        self.machine = BuildMachine(
            GvisorSettings(find_runsc(folder), self.state, "test"),
            self.groups,
            networks,
            memory_mib=1024,
            disk_reserve_bytes=0,
        )

    def builder(self) -> ImageBuilder:
        """A builder as a new process would make it."""
        return ImageBuilder(self.images, self.machine, uv_cache=self.folder / "data" / "uv-cache")

    def file(self, key: str) -> Path:
        """What a build asks for a pack."""
        return self.packs.files[key]

    def base(self) -> list[AnyStep]:
        """A root with busybox and its commands, and the people root and someone."""
        names = subprocess.run([BUSYBOX, "--list"], check=True, capture_output=True, text=True).stdout.split()
        entries = [PackedFile("bin/busybox", Path(BUSYBOX), executable=True)]
        entries += [PackedFile(f"bin/{name}", link="busybox") for name in names if name != "busybox"]
        entries += [
            PackedFile("etc/passwd", content=b"root:x:0:0::/root:/bin/sh\nsomeone:x:1234:1235::/home/someone:/bin/sh\n"),
            PackedFile("etc/group", content=b"root:x:0:\nsomeone:x:1235:\n"),
            PackedFile("tmp", folder=True), PackedFile("etc/shadow", content=b"root:*:1::::::\n"),
        ]  # fmt: skip
        return [FromScratch(), Copy(pack=self.packs.write(entries), destination="/")]

    def recipe(self, *commands: str | AnyStep, adds: list[Copy] | None = None) -> ImageRecipe:
        """The base and then each command or step."""
        steps = [RunCommands(commands=[step]) if isinstance(step, str) else step for step in commands]
        return ImageRecipe(steps=[*self.base(), *steps], adds=adds or [])

    async def build(self, recipe: ImageRecipe, builder: ImageBuilder | None = None) -> BuiltImage:
        """Build it; the caller releases it."""
        return await (builder or self.builder()).build(recipe, self.file, self.log.append)

    def leftovers(self) -> list[str]:
        """What builds must not leave: drafts, mounts, groups, processes, namespaces, runsc's state."""
        drafts = {path.name for path in (self.images / "drafts").glob("*")} if self.images.exists() else set()
        self.groups.asked |= {name for name in drafts if not name.endswith(".lock")}  # another process's too
        found = [f"draft {name}" for name in sorted(drafts)]
        found += [f"mount {path}" for path in mounts_below(self.folder)]
        for name in sorted(self.groups.asked):
            found += [f"group {path}" for path in self.groups.folders(name)]
            found += [f"network {path}" for path in Path("/run/netns").glob(f"*{name}*")]
        found += [f"state {path}" for path in self.state.glob("*")] if self.state.exists() else []
        for pid in all_processes():
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:
                continue
            if pid != os.getpid() and os.fsencode(self.state) in command:
                found.append(f"process {pid}: {command!r}")
        return found

    async def end(self) -> None:
        """Remove what lies outside the folder, and fail when builds have left anything. It goes nevertheless."""
        left = self.leftovers()
        if left:
            await self.builder().store.remove_dead_drafts()
        shutil.rmtree(self.state, ignore_errors=True)
        assert left == []


async def until(condition: Callable[[], bool], *, seconds: float = 60.0) -> None:
    """Return when the condition holds; AssertionError when it does not in time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def wait_line(stream: asyncio.StreamReader, text: str, *, seconds: float = 60.0) -> None:
    """Read lines until one holds the text."""
    seen: list[str] = []
    async with asyncio.timeout(seconds):
        while line := await stream.readline():
            seen.append(line.decode())
            if text in seen[-1]:
                return
    raise AssertionError(f"{text!r} was never printed; seen: {''.join(seen[-20:])}")


Build = Callable[[ImageRecipe], Awaitable[BuiltImage]]


def content(image: BuiltImage, path: str) -> bytes:
    """A regular file of a built image: from the topmost layer that has it."""
    for layer in image.layers:
        place = layer / path.lstrip("/")
        if place.is_file():
            return place.read_bytes()
    raise FileNotFoundError(path)
