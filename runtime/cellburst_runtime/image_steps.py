"""What each kind of step does to a draft. A step that makes no layer is in `image_config.after`."""

from __future__ import annotations

import asyncio
import posixpath
from dataclasses import replace

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import (
    AddPython,
    AnyStep,
    AptInstall,
    Copy,
    CopyFrom,
    DebianSlim,
    FromRegistry,
    FromScratch,
    PipInstall,
    RunCommands,
    RunFunction,
    UvSync,
    expand,
)

from .image_archive import place_archive
from .image_base import make_debian, pull
from .image_config import ImageConfig
from .image_files import copy_between, make_folder, ownership, place_pack
from .image_python_steps import PythonSteps
from .image_root import mount_root
from .image_sandbox import Program
from .image_secrets import login_file, with_environment
from .image_step_base import SECRETS
from .mounts import unmount_below

_SHELL = ["/bin/sh", "-c"]
# Questions of package scripts would wait for ever; the variable is no part of the image.
_APT_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive"}


class StepRunner(PythonSteps):
    """Runs one step. See StepBase."""

    async def run(self, step: AnyStep) -> ImageConfig:
        """Do it; the draft's `upper` then is the layer and nothing is mounted over it. Raises CellburstError."""
        config = self.config
        if isinstance(step, DebianSlim):
            await make_debian(self.machine.build, self.draft, step, self.log)
            config = ImageConfig(clean=True)
        elif isinstance(step, FromRegistry):
            config = await self._pull(step)
        elif isinstance(step, FromScratch):
            return ImageConfig()
        await mount_root(self.draft.root, self.lowers, self.draft.upper, self.draft.work)
        try:
            async with self.equipped(step):
                config = await self._run(step, config)
        finally:
            left = await unmount_below(self.draft.root)
        if left:
            raise error(ErrorCode.INTERNAL, f"the build's root cannot be unmounted: {'; '.join(left)}")
        return msgspec.structs.replace(config, clean=_stays_clean(step, self.config))

    async def _run(self, step: AnyStep, config: ImageConfig) -> ImageConfig:
        match step:
            case DebianSlim():
                return await self.finish_debian(config) if step.python else config
            case FromRegistry():
                return await self.find_python(config)
            case AddPython():
                return await self.add_python(config, step.python_version, step.least)
            case AptInstall():
                await self._apt(step)
            case PipInstall():
                await self.pip(step)
            case UvSync():
                await self.uv_sync(step)
            case RunCommands():
                async with self.with_secrets(self.request(as_user=True), step.secrets) as base:
                    for command in step.commands:
                        await self._command(base, command, step)
            case RunFunction():
                await self.function(step)
            case Copy():
                await self._copy(step)
            case CopyFrom():
                await self._copy_from(step)
            case _:
                raise error(ErrorCode.INTERNAL, f"{type(step).__name__} makes no layer")
        return config

    async def _pull(self, step: FromRegistry) -> ImageConfig:
        build, draft = self.machine.build, self.draft
        if not step.secret:
            return await pull(build, draft, step.reference, self.log)
        values = self.secrets.environment([step.secret])
        async with login_file(draft.folder, step.reference, values) as login:
            return await pull(build, draft, step.reference, self.log, login=login, secret=step.secret)

    async def _command(self, base: Program, command: str | list[str], step: RunCommands) -> None:
        arguments = [*(self.config.shell or _SHELL), command] if isinstance(command, str) else command
        shown = command if isinstance(command, str) else " ".join(command)
        self.log(f"$ {shown}")
        if step.secrets:
            arguments = with_environment(SECRETS, arguments)
        environment = {**_APT_ENVIRONMENT, **base.environment}
        await self.program(replace(base, arguments=arguments, environment=environment), shown)

    async def _apt(self, step: AptInstall) -> None:
        async with self.with_secrets(self.request(), step.secrets) as base:
            await self._apt_with(base, step)

    async def _apt_with(self, base: Program, step: AptInstall) -> None:
        packages = " ".join(f"'{name}'" for name in step.packages)
        script = (
            f"apt-get update -q && apt-get install -q -y --no-install-recommends -- {packages} && apt-get clean"
            " && rm -rf /var/lib/apt/lists/*"
        )
        environment = {**base.environment, **_APT_ENVIRONMENT}
        shown = f"apt-get install {' '.join(step.packages)}"
        arguments = [*_SHELL, script]
        if step.secrets:
            arguments = with_environment(SECRETS, arguments)
        await self.program(replace(base, arguments=arguments, environment=environment, folder="/"), shown)

    def _place(self, path: str, scope: dict[str, str] | None) -> str:
        try:
            expanded = path if scope is None else expand(path, {**scope, **self.config.variables()})
        except ValueError as problem:
            raise error(ErrorCode.BAD_ARGUMENT, f"the destination {problem}") from None
        joined = posixpath.join(self.config.workdir or "/", expanded)
        return posixpath.normpath(joined) + ("/" if expanded.endswith("/") and joined != "/" else "")

    async def _copy(self, step: Copy) -> None:
        owner = ownership(self.draft.root, step.owner, step.mode)
        place = self._place(step.destination, step.scope)
        tar = await self.pack_file(step.pack)
        if step.unpack:
            await asyncio.to_thread(place_archive, self.draft.root, tar, place, owner=owner)
            return
        if not step.single:
            make_folder(self.draft.root, place, owner)  # also for a pack without files: a Dockerfile's WORKDIR
        await asyncio.to_thread(place_pack, self.draft.root, tar, place, single=step.single, owner=owner)

    async def _copy_from(self, step: CopyFrom) -> None:
        assert self.other_root is not None
        owner = replace(ownership(self.draft.root, step.owner, step.mode), keeps=not step.owner)
        place = self._place(step.destination, step.scope)
        await asyncio.to_thread(copy_between, self.other_root, step.sources, self.draft.root, place, owner)


def _stays_clean(step: AnyStep, before: ImageConfig) -> bool:
    """Whether everything in the image that can run is still Debian's or this machine's own."""
    if isinstance(step, AptInstall) and (step.secrets or step.environment):
        return False  # a variable may say where packages come from, or what their scripts run
    return isinstance(step, DebianSlim) or (before.clean and isinstance(step, AptInstall | AddPython))
