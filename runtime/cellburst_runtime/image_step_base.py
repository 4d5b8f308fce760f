"""What the steps of a build share: the machine they run on, programs in the sandbox, packs as folders, the mounted root."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import FilePack

from .engine import Mount
from .image_config import ImageConfig
from .image_downloads import Downloads
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
        environment = {"HOME": home, **self.machine.certificates.environment, **self.config.variables()}
        folder = self.config.workdir or "/"
        make_folder(self.draft.root, folder)
        return Program([], environment, folder, uid, gid, mounts=tuple(self.machine.certificates.mounts))

    @asynccontextmanager
    async def with_secrets(self, program: Program, uses: Sequence[str]) -> AsyncIterator[Program]:
        """The program with these secrets at SECRETS of its root, for as long as it is needed. Raises RequestError (NOT_FOUND)."""
        if not uses:
            yield program
            return
        values = self.secrets.environment(uses)
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
