"""`Image`: the environment of a container, declared step by step in Python. The names are Modal's.

An Image never changes: each method returns a new one with one step more. Nothing is read from the disk before `recipe`,
so a module that declares an image can be imported where the local files are not.
"""

from __future__ import annotations

import os
import platform
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import (
    AddPython,
    AnyStep,
    Cmd,
    Copy,
    Entrypoint,
    Env,
    FilePack,
    FromRegistry,
    FromScratch,
    ImageRecipe,
    Shell,
    Workdir,
    debian_slim,
)

from . import image_arguments as check
from .image_arguments import SOURCE_FOLDER, Make
from .image_dockerfile import dockerfile_steps
from .image_equipment import Gpu, Variables, equipment
from .image_imports import asked_imports
from .image_packs import PackWriter, list_file, list_tree
from .image_patterns import NON_PYTHON_FILES, FilePatternMatcher, Ignore, matcher
from .image_steps import ImageSteps

if TYPE_CHECKING:
    from .secret import Secret


@dataclass(frozen=True)
class Recipe:
    """A recipe with its local files: `files` has the tar of every pack that a build may ask for, by hash."""

    recipe: ImageRecipe
    files: dict[str, Path]


@dataclass(frozen=True)
class Image(ImageSteps):
    """A container's environment. Begin with `debian_slim`, `from_registry`, `from_dockerfile`, `from_scratch` or `mirror`."""

    _steps: tuple[Make, ...] = ()
    _adds: tuple[tuple[str, Make], ...] = ()
    _base: str = "debian_slim"
    _architecture: str = ""
    _preload: list[str] = field(default_factory=list, compare=False)

    # bases

    @staticmethod
    def debian_slim(python_version: str | None = None, force_build: bool = False) -> Image:
        """A small Debian with Python; without a version, this Python's own minor version."""
        version = check.python_version(python_version or ".".join(platform.python_version_tuple()[:2]))
        return Image((check.just(*debian_slim(version, force=force_build)),))

    @staticmethod
    def from_scratch() -> Image:
        """Nothing at all, to copy files into."""
        return Image((check.just(FromScratch()),), _base="from_scratch")

    @staticmethod
    def from_registry(
        tag: str, *, secret: Secret | None = None, add_python: str | None = None, force_build: bool = False
    ) -> Image:
        """An image of a registry by its name ("ubuntu:24.04", "ghcr.io/owner/name:tag"). `secret` (by name) has the registry's
        login in its keys REGISTRY_USERNAME and REGISTRY_PASSWORD."""
        if not re.fullmatch(r"[a-z0-9][A-Za-z0-9._/:@-]*", tag):
            raise error(ErrorCode.BAD_ARGUMENT, f"{tag!r} is no image name", allowed="such as ubuntu:24.04")
        [login] = check.secret_uses("from_registry", [secret]) if secret is not None else [""]
        steps: list[AnyStep] = [FromRegistry(reference=check.full_name(tag), secret=login, force=force_build)]
        if add_python is not None:
            steps.append(AddPython(python_version=check.python_version(add_python), force=force_build))
        return Image((check.just(*steps),), _base="from_registry")

    @staticmethod
    def from_dockerfile(
        path: str | Path,
        *,
        context_dir: str | Path | None = None,
        build_args: Mapping[str, str] | None = None,
        add_python: str | None = None,
        ignore: Ignore | None = None,
        secret: Secret | Mapping[str, Secret] | None = None,
        force_build: bool = False,
        env: Variables | None = None,
        secrets: Sequence[Secret] | None = None,
        gpu: Gpu = None,
    ) -> Image:
        """What a Dockerfile says. Its commands run in the build's sandbox. `context_dir`: this folder unless given; what
        `ignore`, or `.dockerignore` beside the file or in that folder, leaves out cannot be copied. `secret` (by name) has the
        login of the registry that its images come from, as in `from_registry`; where they come from several, a dict: registry ->
        secret. Each RUN has `env`, `secrets` and `gpu`."""
        has = equipment("from_dockerfile", env=env, secrets=secrets, gpu=gpu)
        logins = check.registry_logins("from_dockerfile", secret)
        version = check.python_version(add_python) if add_python is not None else ""

        def make(packs: PackWriter) -> list[AnyStep]:
            file = Path(path).expanduser()
            context = Path(context_dir).expanduser() if context_dir is not None else Path.cwd()
            text = check.read(file, "Dockerfile")
            ignored = check.docker_ignore(file, context, ignore)
            given = dict(build_args or {})
            steps = dockerfile_steps(
                text, packs, context=context, ignored=ignored, arguments=given, name=str(path), logins=logins
            )
            steps = has.given_to_all(steps)
            if version:
                steps.append(AddPython(python_version=version))
            return check.forced(steps) if force_build else steps

        return Image((make,), _base="from_dockerfile")

    @staticmethod
    def mirror() -> Image:
        """This environment: the same Python minor version, the same versions of the same packages, and the sources of what is
        installed as editable. On this very machine a container shows the environment itself instead of a copy."""
        from .image_mirror import mirror_steps  # reads every installed package's metadata: only who uses it pays

        return Image((mirror_steps,), _base="mirror")

    # how it runs

    def env(self, vars: Mapping[str, str]) -> Image:
        """Environment variables."""
        for name, value in vars.items():
            if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or "\0" in value:
                raise error(
                    ErrorCode.BAD_ARGUMENT, f"env: {name!r}: {value!r} is no variable", allowed="names of letters, digits and _, "
                    "and strings as values", next=f'write {{"{name}": "{value}"}}',
                )  # fmt: skip
        return self._with("env", check.just(Env(variables=dict(vars))))

    def workdir(self, path: str | Path) -> Image:
        """The working folder."""
        return self._with("workdir", check.just(Workdir(path=str(path))))

    def entrypoint(self, entrypoint_commands: Sequence[str]) -> Image:
        """The program that a container's command is given to."""
        return self._with(
            "entrypoint", check.just(Entrypoint(arguments=check.arguments("entrypoint", entrypoint_commands)))
        )

    def cmd(self, cmd: Sequence[str]) -> Image:
        """The default command."""
        return self._with("cmd", check.just(Cmd(arguments=check.arguments("cmd", cmd))))

    def shell(self, shell_commands: Sequence[str]) -> Image:
        """What later `run_commands` are given to, in place of `/bin/sh -c`."""
        return self._with("shell", check.just(Shell(arguments=check.arguments("shell", shell_commands))))

    # local files

    def add_local_file(self, local_path: str | Path, remote_path: str, *, copy: bool = False) -> Image:
        """A local file, at `remote_path` (below it, where that ends in /). Without `copy` it is mounted when a container
        starts, so that a change rebuilds nothing, and no build step may follow."""
        check.absolute("add_local_file", remote_path)
        target = remote_path + Path(local_path).name if remote_path.endswith("/") else remote_path

        def make(packs: PackWriter) -> list[AnyStep]:
            pack = packs.write([list_file(local_path, posixpath.basename(target))])
            return [Copy(pack=pack, destination=target, single=True)]

        return self._add("add_local_file", make, copy)

    def add_local_dir(
        self, local_path: str | Path, remote_path: str, *, copy: bool = False, ignore: Ignore = ()
    ) -> Image:
        """A local folder's files, below `remote_path`. `copy` as in `add_local_file`; `ignore` are patterns as in a
        .dockerignore, or a function that is given each relative path and returns whether to leave it out."""
        check.absolute("add_local_dir", remote_path)
        ignored = matcher(ignore)

        def make(packs: PackWriter) -> list[AnyStep]:
            return [Copy(pack=packs.write(list_tree(local_path, ignored)), destination=remote_path)]

        return self._add("add_local_dir", make, copy)

    def add_local_python_source(self, *modules: str, copy: bool = False, ignore: Ignore = NON_PYTHON_FILES) -> Image:
        """Local modules and packages by their names, so that they can be imported there. Of packages only the .py files,
        unless `ignore` says otherwise."""
        names = check.words("add_local_python_source", modules)
        ignored = matcher(ignore)

        def make(packs: PackWriter) -> list[AnyStep]:
            entries = [entry for name in names for entry in check.module_files(name, ignored)]
            return [Copy(pack=packs.write(entries), destination=SOURCE_FOLDER)]

        return self._add("add_local_python_source", make, copy)

    # use

    @contextmanager
    def imports(self) -> Iterator[None]:
        """Imports that only this image needs to have: `with image.imports(): import torch`. Where a module is missing, the
        rest of the block is passed over. What the block asks for, imported here before or not, is loaded before the image's
        template is taken."""

        def asked(name: str) -> None:
            if name not in self._preload:
                self._preload.append(name)

        with suppress(ImportError), asked_imports(asked):
            yield

    def pipe(self, function: Callable[..., Image], *args: Any, **kwargs: Any) -> Image:
        """`function(self, *args, **kwargs)`, for steps that several images share."""
        return function(self, *args, **kwargs)

    @property
    def is_mirror(self) -> bool:
        """Whether this is `mirror()` and nothing more, which needs no build on this very machine."""
        return self._base == "mirror" and len(self._steps) == 1 and not self._adds

    def build(self) -> Image:
        """Build it now instead of when a container needs it, and wait for that; says on stderr how far it is. Returns itself.

        Starts this user's own gateway if none runs. Raises UserCodeError (IMAGE_BUILD) with the command, its exit code and the
        end of its output when a step fails, else RequestError, CapacityError or PlatformError.
        """
        from .image_build import build  # links and threads: only who builds pays
        from .image_progress import StepLines, built_text

        StepLines.to_stderr().say(built_text(build(self)))
        return self

    def recipe(self, folder: str | Path) -> Recipe:
        """The recipe, with the local files it needs packed into `folder`. Raises RequestError for files that are not
        there, are too much, or lead elsewhere."""
        packs = PackWriter(Path(folder))
        try:
            steps = [step for make in self._steps for step in make(packs)]
            adds = [step for _, make in self._adds for step in make(packs)]
        except OSError as why:
            raise error(ErrorCode.NOT_FOUND, f"a file for the image cannot be read: {why}") from None
        forced = os.environ.get("CELLBURST_FORCE_BUILD", "").lower() in ("1", "true", "yes")
        recipe = ImageRecipe(
            steps=check.forced(steps) if forced else steps,
            adds=[step for step in adds if isinstance(step, Copy)],
            architecture=self._architecture,
            preload=list(self._preload),
            mirror=self.is_mirror,
        )
        return Recipe(recipe, packs.files)

    def _with(self, name: str, make: Make) -> Self:
        if self._adds:
            first = self._adds[0][0]
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{name} cannot follow {first}: files added without copy=True are mounted when a "
                "container starts, after every build step", allowed=f"{first} as the last step, or with copy=True",
                next=f"write {first}(..., copy=True), or move it behind {name}",
            )  # fmt: skip
        return replace(self, _steps=(*self._steps, make), _preload=list(self._preload))

    def _add(self, name: str, make: Make, copy: bool) -> Image:
        if copy:
            return self._with(name, make)
        return replace(self, _adds=(*self._adds, (name, make)), _preload=list(self._preload))

    def __repr__(self) -> str:
        return f"<Image {self._base}, {len(self._steps)} steps{f', {len(self._adds)} adds' if self._adds else ''}>"


__all__ = ["FilePack", "FilePatternMatcher", "Image", "Recipe"]
