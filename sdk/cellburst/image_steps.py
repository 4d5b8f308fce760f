"""The steps that build an image: packages and commands. `Image` has them; they are here for its file to stay readable."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import AnyStep, AptInstall, RunCommands, RunFunction, UvSync

from . import image_arguments as check
from .image_arguments import Make, Packages
from .image_dockerfile import dockerfile_steps
from .image_equipment import Gpu, Paths, Variables, equipment, step_limits
from .image_packs import PackedFile, PackWriter, list_file
from .image_patterns import Ignore

if TYPE_CHECKING:
    from .network_file_system import NetworkFileSystem
    from .secret import Secret
    from .volume import Volume


class ImageSteps:
    """Each method returns a new image with one step more, by `_with`.

    What a step may have while it runs: `env`, variables; `secrets` (by name), whose values are in its environment and hidden in
    what it prints, and a new version of one runs it again; `gpu`, as a cell's line says it, held and paid for until the step has
    ended; `volumes`, path -> Volume, whose changes are committed when the step has succeeded. None of it is in the image.
    """

    def _with(self, name: str, make: Make) -> Self:
        raise NotImplementedError

    # packages

    def apt_install(
        self,
        *packages: Packages,
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """Debian packages."""
        has = equipment("apt_install", env=env, secrets=secrets, gpu=gpu)
        names = check.packages("apt_install", packages)
        for name in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9+.:~=_-]*", name, re.IGNORECASE):
                raise error(
                    ErrorCode.BAD_ARGUMENT,
                    f"apt_install: {name!r} is no package name",
                    allowed="such as git or ffmpeg=7:5.*",
                )
        return self._with("apt_install", check.just(has.given_to(AptInstall(packages=names, force=force_build))))

    def pip_install(
        self,
        *packages: Packages,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """Python packages, by uv: `pip_install("numpy", "pandas>=2")`. `extra_options` are uv's (`uv pip install --help`)."""
        has = equipment("pip_install", env=env, secrets=secrets, gpu=gpu)
        names = check.requirements("pip_install", packages)
        step = has.given_to(
            check.pip_step(names, find_links, index_url, extra_index_url, pre, extra_options, force_build)
        )
        return self._with("pip_install", check.just(step))

    def uv_pip_install(
        self,
        *packages: Packages,
        requirements: Sequence[str] | None = None,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """As `pip_install`, also from `requirements` files."""
        has = equipment("uv_pip_install", env=env, secrets=secrets, gpu=gpu)
        names = check.requirements("uv_pip_install", packages, may_be_empty=bool(requirements))
        step = has.given_to(
            check.pip_step(names, find_links, index_url, extra_index_url, pre, extra_options, force_build)
        )
        if not requirements:
            return self._with("uv_pip_install", check.just(step))
        return self._with("uv_pip_install", check.requirement_files(step, list(requirements)))

    def pip_install_from_requirements(
        self,
        requirements_txt: str,
        find_links: str | None = None,
        *,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """The packages of a requirements file."""
        has = equipment("pip_install_from_requirements", env=env, secrets=secrets, gpu=gpu)
        step = has.given_to(check.pip_step([], find_links, index_url, extra_index_url, pre, extra_options, force_build))
        return self._with("pip_install_from_requirements", check.requirement_files(step, [requirements_txt]))

    def pip_install_from_pyproject(
        self,
        pyproject_toml: str,
        optional_dependencies: Sequence[str] = (),
        *,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """The dependencies in a pyproject.toml, and those of its named optional groups; not the project itself."""
        has = equipment("pip_install_from_pyproject", env=env, secrets=secrets, gpu=gpu)

        def make(_: PackWriter) -> list[AnyStep]:
            names = check.project_dependencies(pyproject_toml, optional_dependencies)
            step = check.pip_step(names, find_links, index_url, extra_index_url, pre, extra_options, force_build)
            return [has.given_to(step)]

        return self._with("pip_install_from_pyproject", make)

    def uv_sync(
        self,
        uv_project_dir: str = "./",
        *,
        groups: Sequence[str] | None = None,
        extras: Sequence[str] | None = None,
        frozen: bool = True,
        extra_options: str = "",
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """The dependencies that a uv project's lock file names; not the project itself."""
        has = equipment("uv_sync", env=env, secrets=secrets, gpu=gpu)

        def make(packs: PackWriter) -> list[AnyStep]:
            folder = Path(uv_project_dir).expanduser()
            files = [list_file(folder / "pyproject.toml", "pyproject.toml")]
            lock = folder / "uv.lock"
            if frozen and not lock.is_file():
                raise error(
                    ErrorCode.NOT_FOUND,
                    f"{str(folder)!r} has no uv.lock",
                    next="run `uv lock` there, or give frozen=False",
                )
            files += [list_file(lock, "uv.lock")] if lock.is_file() else []
            step = UvSync(
                pack=packs.write(files), extras=list(extras or ()), groups=list(groups or ()), frozen=frozen,
                options=shlex.split(extra_options), force=force_build,
            )  # fmt: skip
            return [has.given_to(step)]

        return self._with("uv_sync", make)

    # commands

    def run_commands(
        self,
        *commands: Packages,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        volumes: Mapping[Paths, Volume] | None = None,
        gpu: Gpu = None,
        force_build: bool = False,
    ) -> Self:
        """Shell commands, one after another, as root of the image, in the build's sandbox."""
        lines = check.words("run_commands", commands)
        has = equipment("run_commands", env=env, secrets=secrets, gpu=gpu, volumes=volumes)
        return self._with(
            "run_commands", check.just(has.given_to(RunCommands(commands=list(lines), force=force_build)))
        )

    def run_function(
        self,
        raw_f: Callable[..., object],
        *,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        volumes: Mapping[Paths, Volume] | None = None,
        network_file_systems: Mapping[Paths, NetworkFileSystem] | None = None,
        gpu: Gpu = None,
        cpu: float | None = None,
        memory: int | None = None,
        timeout: float | None = None,
        force_build: bool = False,
    ) -> Self:
        """Call a function while building, for what it leaves on the disk (a download of weights). `cpu` (cores), `memory` (MiB)
        and `timeout` (seconds) bound it in place of what every step may have: they are no part of the layer's key.
        `network_file_systems`, path -> NetworkFileSystem, are changed at once, whatever becomes of the step."""
        has = equipment(
            "run_function", env=env, secrets=secrets, gpu=gpu, volumes=volumes, network_file_systems=network_file_systems
        )  # fmt: skip
        limits = step_limits("run_function", cpu, memory, timeout)
        if not inspect.isroutine(raw_f):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"run_function({raw_f!r}): this is no function", allowed="a plain function"
            )

        def make(packs: PackWriter) -> list[AnyStep]:
            try:
                from .image_function import pickle_call
            except ModuleNotFoundError as why:  # it belongs to an extra
                raise error(
                    ErrorCode.NOT_FOUND, f"run_function needs {why.name}, which is not installed",
                    next="pip install 'cellburst[jupyter]'",
                ) from None  # fmt: skip

            content = pickle_call(raw_f, args, kwargs or {})
            pack = packs.write([PackedFile("call.pickle", content=content)])
            name = getattr(raw_f, "__qualname__", "function")
            step = RunFunction(
                pack=pack, name=name, cpu=limits.cpu, memory_mib=limits.memory_mib,
                timeout_seconds=limits.timeout_seconds, force=force_build,
            )  # fmt: skip
            return [has.given_to(step)]

        return self._with("run_function", make)

    def dockerfile_commands(
        self,
        *dockerfile_commands: Packages,
        context_dir: str | Path | None = None,
        ignore: Ignore | None = None,
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Self:
        """Instructions of a Dockerfile without FROM: `dockerfile_commands("RUN make", "COPY a /a")`. Each RUN has `env`,
        `secrets` and `gpu`."""
        has = equipment("dockerfile_commands", env=env, secrets=secrets, gpu=gpu)
        text = "\n".join(check.words("dockerfile_commands", dockerfile_commands)) + "\n"

        def make(packs: PackWriter) -> list[AnyStep]:
            context = Path(context_dir).expanduser() if context_dir is not None else Path.cwd()
            ignored = check.docker_ignore(context / "Dockerfile", context, ignore)
            steps = dockerfile_steps(
                text,
                packs,
                context=context,
                ignored=ignored,
                arguments={},
                name="dockerfile_commands",
                without_base=True,
            )
            steps = has.given_to_all(steps)
            return check.forced(steps) if force_build else steps

        return self._with("dockerfile_commands", make)
