"""What the steps of a build share: the machine they run on, programs in the sandbox, packs as folders, the mounted root."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import AnyStep, FilePack, RunCommands, RunFunction, Working

from .engine import DeviceGrant, Mount
from .image_config import ImageConfig
from .image_downloads import Downloads
from .image_equipment import BuildAids, Leased, MountPoints, NoAids
from .image_files import check_pack, find_user, make_folder, unpack
from .image_index import PLACE, PackageSource, certificates, package_source
from .image_sandbox import BuildMachine, Outcome, Program, run_program
from .image_secrets import BuildSecrets, shown_in_memory
from .image_store import Draft

SECRETS = f"{PLACE}/secrets"  # where a step that has some sees them
SHOWN_CHARACTERS = 200
_FULL_BYTES = 1 << 20  # less than this free is a full disk


@dataclass
class StepMachine:
    """What steps need beside the sandbox: uv's program, its cache, and the folder that holds the package cloudpickle."""

    build: BuildMachine
    uv: str
    downloads: Downloads
    pickle_folder: Path | None = None
    source: PackageSource = field(default_factory=package_source)
    certificates: PackageSource = field(default_factory=certificates)


@dataclass
class StepBase:
    """One step on one draft. `lowers` are the layers below, top first; `config` as before the step."""

    machine: StepMachine
    draft: Draft
    lowers: Sequence[Path]
    config: ImageConfig
    files: Callable[[str], Path | Awaitable[Path]]
    log: Callable[[str], None]
    other_root: Path | None = None  # the mounted image that CopyFrom copies from
    secrets: BuildSecrets = field(default_factory=BuildSecrets)
    aids: BuildAids = field(default_factory=NoAids)
    gpus: Leased = field(default_factory=Leased)
    equipment: Program = field(
        default_factory=lambda: Program([], {})
    )  # what `equipped` adds to every program of the step

    @asynccontextmanager
    async def equipped(self, step: AnyStep) -> AsyncIterator[None]:
        """Have what the step asks for beside the image, in the mounted root, for as long as it runs. Volumes are committed when
        no GPU is held any more."""
        if not isinstance(step, Working):
            yield
            return
        mounts: list[Mount] = []
        devices = DeviceGrant()
        async with AsyncExitStack() as stack:
            if step.volumes:
                uid, gid, _ = find_user(self.draft.root, self.config.user if isinstance(step, RunCommands) else "")
                folder = self.draft.folder / "volumes"
                folder.mkdir()
                shown = await stack.enter_async_context(self.aids.volumes(step.volumes, folder, (uid, gid), self.log))
                points = MountPoints.make(self.draft.root, shown)
                stack.callback(points.remove)
                mounts = points.mounts
            if step.gpu:
                devices = await self._granted(self.gpus.uuids)
            self.equipment = Program([], step.environment, mounts=tuple(mounts), devices=devices)
            self._limit(step)
            yield
            await self.gpus.release()

    async def _granted(self, uuids: Sequence[str]) -> DeviceGrant:
        grant = self.machine.build.grant
        if grant is None:
            raise error(
                ErrorCode.NO_SUCH_HARDWARE, "builds on this machine have no GPU", next="build it on another worker"
            )
        folder = self.draft.folder / "gpu"
        folder.mkdir()
        return await asyncio.to_thread(grant, uuids, folder)

    def _limit(self, step: Working) -> None:
        if not isinstance(step, RunFunction):
            return
        build = self.machine.build
        bounded = replace(
            build, cpu=step.cpu or build.cpu, memory_mib=step.memory_mib or build.memory_mib,
            step_seconds=step.timeout_seconds or build.step_seconds,
        )  # fmt: skip
        self.machine = replace(self.machine, build=bounded)

    async def program(self, program: Program, shown: str) -> Outcome:
        """Run one in the sandbox; raise UserCodeError (IMAGE_BUILD) with its last lines unless it ends with 0."""
        outcome = await run_program(self.machine.build, self.draft, program, self.log)
        if outcome.exit_code != 0 or outcome.ended_for:
            raise self.failed(shown, outcome)
        return outcome

    def failed(self, shown: str, outcome: Outcome) -> CellburstError:
        """The error of a program: its last lines say why, but for a full disk, which is no fault of the command's."""
        why = outcome.ended_for or f"exit code {outcome.exit_code}"
        tail = "\n".join(outcome.tail)
        least = max(_FULL_BYTES, self.machine.build.disk_reserve_bytes)
        full = shutil.disk_usage(self.draft.folder).free < least
        return error(
            ErrorCode.DISK_FULL if full else ErrorCode.IMAGE_BUILD,
            f"`{_one_line(shown)}` failed: {why}" + (f"\n{tail}" if tail else ""),
            next="free space on the worker's machine, as by `cellburst image prune`" if full else "",
            command=shown, exit_code=str(outcome.exit_code), output=tail,
        )  # fmt: skip

    def request(self, *, as_user: bool = False) -> Program:
        """A program as the image configures it, still without arguments; uid 0's, or its user's."""
        uid, gid, home = find_user(self.draft.root, self.config.user if as_user else "")
        has = self.equipment
        environment = {
            "HOME": home, **self.machine.certificates.environment, **self.config.variables(), **has.environment,
        }  # fmt: skip
        folder = self.config.workdir or "/"
        make_folder(self.draft.root, folder)
        mounts = (*self.machine.certificates.mounts, *has.mounts)
        return Program([], environment, folder, uid, gid, mounts=mounts, devices=has.devices)

    @asynccontextmanager
    async def with_secrets(
        self, program: Program, uses: Sequence[str], more: Callable[[dict[str, str]], dict[str, str]] = lambda _: {}
    ) -> AsyncIterator[Program]:
        """The program with these secrets at SECRETS of its root, for as long as it is needed, and with what `more` makes of them.
        Raises RequestError (NOT_FOUND)."""
        if not uses:
            yield program
            return
        values = self.secrets.environment(uses)
        values |= more(values)
        async with shown_in_memory(self.draft.folder, values, program.uid, program.gid) as folder:
            yield replace(program, mounts=(*program.mounts, Mount(SECRETS, str(folder))))

    async def pack_file(self, pack: FilePack) -> Path:
        """A pack's tar, checked. Raises PlatformError (INTEGRITY)."""
        found = self.files(pack.hash)
        path = found if isinstance(found, Path) else await found
        await asyncio.to_thread(check_pack, path, pack)
        return path

    async def input_mount(self, pack: FilePack) -> Mount:
        """A pack's files as a folder that only this step sees."""
        folder = self.draft.folder / "input"
        folder.mkdir()
        await asyncio.to_thread(unpack, await self.pack_file(pack), folder)
        return Mount(f"{PLACE}/input", str(folder))


def _one_line(text: str) -> str:
    """A command for a sentence; cut between words, or within one that is as long by itself. The error's detail has it whole."""
    line = re.sub(r"\s+", " ", text).strip()
    if len(line) <= SHOWN_CHARACTERS:
        return line
    cut = line[:SHOWN_CHARACTERS]
    return f"{cut.rpartition(' ')[0] or cut} …"
