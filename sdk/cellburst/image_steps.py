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
from .image_packs import PackedFile, PackWriter, list_file
from .image_patterns import Ignore

if TYPE_CHECKING:
    from .secret import Secret


class ImageSteps:
    """Each method returns a new image with one step more, by `_with`."""

    def _with(self, name: str, make: Make) -> Self:
        raise NotImplementedError

    # packages

    def apt_install(self, *packages: Packages, force_build: bool = False) -> Self:
        """Debian packages."""
        names = check.packages("apt_install", packages)
        for name in names:
            if not re.fullmatch(r"[a-z0-9][a-z0-9+.:~=_-]*", name, re.IGNORECASE):
                raise error(
                    ErrorCode.BAD_ARGUMENT,
                    f"apt_install: {name!r} is no package name",
                    allowed="such as git or ffmpeg=7:5.*",
                )
        return self._with("apt_install", check.just(AptInstall(packages=names, force=force_build)))

    def pip_install(
        self,
        *packages: Packages,
        find_links: str | None = None,
        index_url: str | None = None,
        extra_index_url: str | None = None,
        pre: bool = False,
        extra_options: str = "",
        force_build: bool = False,
    ) -> Self:
        """Python packages, by uv: `pip_install("numpy", "pandas>=2")`. `extra_options` are uv's (`uv pip install --help`)."""
        names = check.requirements("pip_install", packages)
        step = check.pip_step(names, find_links, index_url, extra_index_url, pre, extra_options, force_build)
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
    ) -> Self:
        """As `pip_install`, also from `requirements` files."""
        names = check.requirements("uv_pip_install", packages, may_be_empty=bool(requirements))
        step = check.pip_step(names, find_links, index_url, extra_index_url, pre, extra_options, force_build)
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
    ) -> Self:
        """The packages of a requirements file."""
        step = check.pip_step([], find_links, index_url, extra_index_url, pre, extra_options, force_build)
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
    ) -> Self:
        """The dependencies in a pyproject.toml, and those of its named optional groups; not the project itself."""

        def make(_: PackWriter) -> list[AnyStep]:
            names = check.project_dependencies(pyproject_toml, optional_dependencies)
            return [check.pip_step(names, find_links, index_url, extra_index_url, pre, extra_options, force_build)]

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
    ) -> Self:
        """The dependencies that a uv project's lock file names; not the project itself."""

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
            return [
                UvSync(
                    pack=packs.write(files), extras=list(extras or ()), groups=list(groups or ()), frozen=frozen,
                    options=shlex.split(extra_options), force=force_build,
                )
            ]  # fmt: skip

        return self._with("uv_sync", make)

    # commands

    def run_commands(
        self,
        *commands: Packages,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[str, object] | None = None,
        gpu: str | None = None,
        force_build: bool = False,
    ) -> Self:
        """Shell commands, one after another, as root of the image, in the build's sandbox. `secrets` (by name) are in their
        environment, and hidden in what they print; a new version of one runs them again. `volumes` and `gpu`: not yet."""
        lines, uses = check.words("run_commands", commands), check.secret_uses("run_commands", secrets)
        check.not_while_building("run_commands", volumes, gpu)
        step = RunCommands(commands=list(lines), secrets=uses, force=force_build)
        return self._with("run_commands", check.just(step))

    def run_function(
        self,
        raw_f: Callable[..., object],
        *,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
        secrets: Sequence[Secret] = (),
        volumes: Mapping[str, object] | None = None,
        gpu: str | None = None,
        force_build: bool = False,
    ) -> Self:
        """Call a function while building, for what it leaves on the disk (a download of weights). It sees the image only, and
        in its environment the `secrets`, as in `run_commands`."""
        uses = check.secret_uses("run_function", secrets)
        check.not_while_building("run_function", volumes, gpu)
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
            return [RunFunction(pack=pack, name=name, secrets=uses, force=force_build)]

        return self._with("run_function", make)

    def dockerfile_commands(
        self,
        *dockerfile_commands: Packages,
        context_dir: str | Path | None = None,
        ignore: Ignore | None = None,
        force_build: bool = False,
    ) -> Self:
        """Instructions of a Dockerfile without FROM: `dockerfile_commands("RUN make", "COPY a /a")`."""
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
            return check.forced(steps) if force_build else steps

        return self._with("dockerfile_commands", make)
