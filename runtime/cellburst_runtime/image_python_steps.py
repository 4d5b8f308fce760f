"""The steps that give an image a Python and packages for it."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import SUITE_PYTHON, SUITE_PYTHON_PATCH, PipInstall, RunFunction, UvSync

from .engine import Mount
from .image_config import DEFAULT_PATH, ImageConfig
from .image_files import find_in_path, settle_links
from .image_index import PLACE
from .image_nearest import is_frozen, with_nearest
from .image_python import PREFIX, PROBE, PROBE_BARE, PythonPlaces, candidates, copy_python
from .image_root import mount_root
from .image_sandbox import Program, run_program
from .image_secrets import AS_JSON, with_environment, with_values
from .image_step_base import SECRETS, StepBase

_CALL = f"""
import sys
sys.path.append("{PLACE}/function")  # last: the image's own packages come first
import pickle
with open("{PLACE}/input/call.pickle", "rb") as file:
    function, args, kwargs = pickle.load(file)
function(*args, **kwargs)
"""
_WITH_SECRETS = f"""
import json, os
with open("{SECRETS}/{AS_JSON}", encoding="utf-8") as file:
    os.environ.update(json.load(file))
"""


class PythonSteps(StepBase):
    """Python, pip_install, uv_sync, run_function."""

    async def finish_debian(self, config: ImageConfig) -> ImageConfig:
        """A Debian with its own Python: checked, and with pip."""
        python, why = await self._probe("/usr/bin/python3", PROBE)
        if python is None:
            raise error(ErrorCode.START_FAILED, f"the Python of the Debian just made does not run: {why}")
        return await self._with_pip(_merged(config, python))

    async def _with_pip(self, config: ImageConfig) -> ImageConfig:
        """What `pip install` in a later command needs; our own steps use uv."""
        self.config = config
        await self._uv(
            ["pip", "install", "--python", config.python, "--break-system-packages", "pip"], "pip install pip"
        )
        return config

    async def add_python(self, config: ImageConfig, version: str, least: str = "") -> ImageConfig:
        """A Python of this machine's, the first that runs in the image; none before `least`. Raises RequestError when there is
        none."""
        downloads, prefix = self.machine.downloads, self.draft.root / PREFIX.lstrip("/")
        places = PythonPlaces(self.machine.uv, downloads.pythons)
        async with downloads.used(), aclosing(candidates(places, version, self.log, least=least)) as found_here:
            async for python in found_here:
                await asyncio.to_thread(copy_python, python, self.draft.root)
                # Some have their library apart, which the linker only finds in /usr/local by its cache.
                linker = find_in_path(self.draft.root, ["ldconfig"], DEFAULT_PATH)
                if linker:
                    request = Program([linker], {"PATH": DEFAULT_PATH}, network=False)
                    await run_program(self.machine.build, self.draft, request, self.log)
                found, why = await self._probe(f"{PREFIX}/bin/python{version}", PROBE)
                if found is not None:
                    self.log(f"Python {found.python_version} in {PREFIX}")
                    return await self._with_pip(_merged(config, found))
                self.log(f"the Python {python.version} at {python.prefix} does not run in this image: {why}")
                for name in (f"bin/python{version}", "bin/python3", "bin/python"):
                    (prefix / name).unlink(missing_ok=True)
                shutil.rmtree(prefix / "lib" / f"python{version}")
        suites = {s: f"{v}.{SUITE_PYTHON_PATCH[s]}" for s, v in SUITE_PYTHON.items() if v == version}
        suite = "".join(f"; Debian {s} has {has}" for s, has in suites.items())
        what = f"{least} or a later {version}" if least else version
        raise error(
            ErrorCode.BAD_ARGUMENT, f"there is no Python {what} for this image on the worker's machine{suite}",
            next=f"install one there with `uv python install {version}`, or ask for another version",
        )  # fmt: skip

    async def find_python(self, config: ImageConfig) -> ImageConfig:
        """The Python that an image of a registry brings, if it has one."""
        path = config.environment.get("PATH", DEFAULT_PATH)
        program = find_in_path(self.draft.root, ["python3", "python"], path)
        found = (await self._probe(program, PROBE_BARE))[0] if program else None
        return _merged(config, found) if found is not None else config

    async def _probe(self, program: str, probe: str) -> tuple[ImageConfig | None, str]:
        """What a Python in the image says of itself; None, and its last words, when it does not run."""
        said: list[str] = []
        request = Program([program, "-I", "-c", probe], {"PATH": DEFAULT_PATH, "HOME": "/root"}, network=False)
        outcome = await run_program(self.machine.build, self.draft, request, said.append)
        answer = next((line for line in outcome.tail if line.startswith("PYTHON ")), "")
        if outcome.exit_code != 0 or not answer:
            return None, outcome.ended_for or "".join(outcome.tail[-1:]) or f"exit code {outcome.exit_code}"
        found = json.loads(answer.removeprefix("PYTHON "))
        config = ImageConfig(python=program, python_version=found["version"], site_packages=found["site_packages"])
        return config, ""

    async def pip(self, step: PipInstall) -> None:
        """pip_install and its kin."""
        python = self._needs_python("pip_install")
        options = ["--python", python, "--break-system-packages"]
        options += ["--pre"] if step.pre else []
        options += ["--no-deps"] if step.no_deps else []
        if step.extra_index_urls:
            options += ["--index-strategy", "unsafe-best-match"]
        if not step.secrets:  # else the addresses may have their values, which no command line may hold
            options += ["--default-index", step.index_url] if step.index_url else []
            options += [word for url in step.extra_index_urls for word in ("--index", url)]
        for link in step.find_links:
            options += ["--find-links", link]
        for name in step.requirements:
            options += ["--requirements", f"{PLACE}/input/{name}"]
        mounts = [await self.input_mount(step.pack)] if step.pack else []
        words = ["pip", "install", *options, *step.options, "--", *step.packages]
        shown = f"uv pip install {' '.join([*step.packages, *step.requirements])}"
        try:
            await self._uv(words, shown, mounts, step)
        except CellburstError as why:
            if not (step.no_deps and is_frozen(step.packages)) or step.secrets:
                raise

            async def tried(more: Sequence[str]) -> str:
                words = ["pip", "install", "--dry-run", "--reinstall", *options, *step.options, *more]
                return await self._said_by_uv(words, mounts, step)

            raise await with_nearest(why, step.packages, tried) from None

    async def _said_by_uv(self, words: list[str], mounts: Sequence[Mount], step: PipInstall) -> str:
        """What uv says when it is run for its words only; "" where it fails."""
        said: list[str] = []
        log, self.log = self.log, said.append
        try:
            await self._uv(words, "uv", mounts, step)
        except CellburstError:
            return ""
        finally:
            self.log = log
        return "\n".join(said)

    async def uv_sync(self, step: UvSync) -> None:
        """Into the image's own Python, which everything in a container uses: what the lock names, as requirements."""
        python = self._needs_python("uv_sync")
        project, listed = f"{PLACE}/input", f"{PLACE}/input/cellburst-requirements.txt"
        words = ["export", "--quiet", "--project", project, "--python", python, "--no-emit-workspace", "-o", listed]
        words += ["--frozen"] if step.frozen else []
        for extra in step.extras:
            words += ["--extra", extra]
        for group in step.groups:
            words += ["--group", group]
        # uv writes into this copy of the project, which is thrown away.
        mounts = [replace(await self.input_mount(step.pack), read_only=False)]
        await self._uv([*words, *step.options], "uv export", mounts, step)
        install = ["pip", "install", "--python", python, "--break-system-packages", "--no-deps", "-r", listed]
        await self._uv(install, "uv sync", mounts, step)

    def _needs_python(self, what: str) -> str:
        if not self.config.python:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{what} needs a Python, and this image has none",
                next='give `add_python="3.12"` to from_registry or from_dockerfile',
            )  # fmt: skip
        return self.config.python

    async def _uv(
        self, words: list[str], shown: str, mounts: Sequence[Mount] = (), step: PipInstall | UvSync | None = None
    ) -> None:  # fmt: skip
        """Run uv in the sandbox, with the shared cache as far as that is safe.

        Code of a user's must not reach a cache that other images use. So uv runs first without building any source
        package; with the shared cache when nothing of a user's is in the image either (uv starts the image's Python) and
        the `step` says nothing that changes where packages come from, else over a copy whose changes are thrown away.
        Only when that fails does it run again, building, on such a copy.
        So a version that has a wheel is taken before a newer one that has none, as with pip's --prefer-binary.

        Packages come as links into the cache, which the host then replaces by the files (`settle_links`).
        """
        async with self.machine.downloads.used():
            await self._uv_on_cache(words, shown, mounts, step)

    async def _uv_on_cache(
        self, words: list[str], shown: str, mounts: Sequence[Mount], step: PipInstall | UvSync | None
    ) -> None:  # fmt: skip
        plain = step is None or not (step.options or step.secrets or step.environment)
        base = self.request()
        place, scratch = f"{PLACE}/cache", self.draft.folder / "tmp"
        scratch.mkdir(exist_ok=True)
        environment = {
            **base.environment, **self.machine.source.environment, "UV_CACHE_DIR": place, "UV_LINK_MODE": "symlink",
            "UV_COMPILE_BYTECODE": "0", "UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1", "NO_COLOR": "1",
            "TMPDIR": f"{PLACE}/tmp",  # its locks and unpacked files are no part of the image  # noqa: S108
        }  # fmt: skip
        own = [Mount(f"{PLACE}/uv", self.machine.uv), Mount(f"{PLACE}/tmp", str(scratch), read_only=False)]  # noqa: S108
        tools = [*own, *base.mounts, *self.machine.source.mounts, *mounts]
        cache = self.machine.downloads.cache if self.config.clean and plain else await self._private_cache()
        uses = step.secrets if step is not None else []
        async with self.with_secrets(replace(base, mounts=tools), uses, lambda has: _indexes(step, has)) as having:
            arguments = [f"{PLACE}/uv", *words]
            program = replace(
                having, arguments=with_environment(SECRETS, arguments) if uses else arguments, folder="/",
                environment={**environment, "UV_NO_BUILD": "1"},
                mounts=(Mount(place, str(cache), read_only=False), *having.mounts),
            )  # fmt: skip
            said: list[str] = []
            outcome = await run_program(self.machine.build, self.draft, program, said.append)
            if outcome.ended_for:
                raise self.failed(shown, outcome)
            if outcome.exit_code == 0:
                for line in said:
                    self.log(line)
            else:
                cache = await self._private_cache()
                mounted = (Mount(place, str(cache), read_only=False), *having.mounts)
                await self.program(replace(program, environment=environment, mounts=mounted), shown)
        shared = self.machine.downloads.cache
        stores = [shared] if cache == shared else [self._private / "upper", shared]
        await asyncio.to_thread(settle_links, self.draft.upper, place, stores)

    @property
    def _private(self) -> Path:
        return self.draft.folder / "cache"

    async def _private_cache(self) -> Path:
        """The shared cache with changes of its own, below the draft: removed with it."""
        folder = self._private
        if not folder.exists():
            for name in ("upper", "work", "root"):
                (folder / name).mkdir(parents=True)
            await mount_root(folder / "root", [self.machine.downloads.cache], folder / "upper", folder / "work")
        return folder / "root"

    async def function(self, step: RunFunction) -> None:
        """run_function. Unpickled in the sandbox only."""
        python = self._needs_python("run_function")
        base = self.request()
        mounts = [*base.mounts, await self.input_mount(step.pack)]
        if self.machine.pickle_folder is not None:
            mounts.append(Mount(f"{PLACE}/function/cloudpickle", str(self.machine.pickle_folder)))
        script = (_WITH_SECRETS if step.secrets else "") + _CALL
        request = replace(base, arguments=[python, "-c", script], mounts=tuple(mounts))
        async with self.with_secrets(request, step.secrets) as program:
            await self.program(program, f"run_function {step.name}")


def _indexes(step: PipInstall | UvSync | None, values: Mapping[str, str]) -> dict[str, str]:
    """Where a step's packages come from, its secrets' values put in for `$NAME`, as uv's variables have it."""
    if not isinstance(step, PipInstall):
        return {}
    found = {"UV_DEFAULT_INDEX": with_values(step.index_url, values)} if step.index_url else {}
    if step.extra_index_urls:
        found["UV_INDEX"] = " ".join(with_values(url, values) for url in step.extra_index_urls)
    return found


def _merged(config: ImageConfig, python: ImageConfig) -> ImageConfig:
    return msgspec.structs.replace(
        config, python=python.python, python_version=python.python_version, site_packages=python.site_packages
    )
