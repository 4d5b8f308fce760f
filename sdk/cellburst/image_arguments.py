"""What `Image`'s methods are given: checked, with errors that say what is allowed, and turned into parts of steps."""

from __future__ import annotations

import posixpath
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import AnyStep, PipInstall, is_forced

from .image_packs import PackedFile, PackWriter, list_file, list_tree
from .image_patterns import FilePatternMatcher, Ignore, matcher

if TYPE_CHECKING:
    from .secret import Secret

PYTHON_VERSIONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
SOURCE_FOLDER = "/root"  # where local Python source goes; it is on the path of programs that run there
Packages = str | Sequence[str]
Make = Callable[[PackWriter], list[AnyStep]]


def just(*steps: AnyStep) -> Make:
    """Steps that need no local files."""
    return lambda _: list(steps)


def forced(steps: list[AnyStep]) -> list[AnyStep]:
    """The steps with the first one built anew, and so all."""
    first = steps[0]
    return steps if is_forced(first) else [msgspec.structs.replace(first, force=True), *steps[1:]]


def python_version(version: str) -> str:
    """A version that an image can have. Raises RequestError."""
    if version not in PYTHON_VERSIONS:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"python_version={version!r} is not there", allowed=", ".join(PYTHON_VERSIONS),
            next='write the version as a string of two numbers, "3.12"',
        )  # fmt: skip
    return version


def full_name(tag: str) -> str:
    """Docker's short names stand for those of its own registry (the first part of a full name has a dot or a port)."""
    first, slash, _ = tag.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return tag
    return f"docker.io/{tag}" if slash else f"docker.io/library/{tag}"


def words(name: str, given: Sequence[Packages], *, may_be_empty: bool = False) -> list[str]:
    """Strings and lists of strings as one list. Raises RequestError for anything else, and for none."""
    found: list[str] = []
    for item in given:
        parts = [item] if isinstance(item, str) else list(item) if isinstance(item, list | tuple) else None
        if parts is None or not all(isinstance(part, str) and part.strip() for part in parts):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{name}({item!r}): this is no string", allowed="strings, or lists of strings"
            )
        found.extend(parts)
    if not found and not may_be_empty:
        raise error(ErrorCode.BAD_ARGUMENT, f"{name}() got nothing to do", next=f'write {name}("...")')
    return found


def packages(name: str, given: Sequence[Packages]) -> list[str]:
    """Names, also several in one string."""
    return [word for text in words(name, given) for word in text.split()]


def requirements(name: str, given: Sequence[Packages], *, may_be_empty: bool = False) -> list[str]:
    """As pip takes them; options are refused by name."""
    found = [text.strip() for text in words(name, given, may_be_empty=may_be_empty)]
    for text in found:
        if text.startswith("-"):
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"{name}: {text!r} is an option, not a package",
                next=f'write extra_options="{text}"',
            )
    return found


def pip_step(
    names: list[str], find_links: str | None, index_url: str | None, extra_index_url: str | None, pre: bool,
    extra_options: str, force: bool,
) -> PipInstall:  # fmt: skip
    """What the methods that install Python packages have in common."""
    try:
        options = shlex.split(extra_options)
    except ValueError as why:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"extra_options={extra_options!r}: {why}", allowed="options as on a command line"
        ) from None
    return PipInstall(
        packages=names, find_links=optional(find_links), index_url=index_url or "",
        extra_index_urls=optional(extra_index_url), pre=pre, options=options, force=force,
    )  # fmt: skip


def arguments(name: str, given: Sequence[str]) -> list[str]:
    """A program's words."""
    if isinstance(given, str) or not all(isinstance(word, str) for word in given):
        raise error(ErrorCode.BAD_ARGUMENT, f"{name}({given!r}): this is no list of strings", next=f'write ["{given}"]')
    return list(given)


def optional(text: str | None) -> list[str]:
    """None, or a list of one."""
    return [text] if text else []


def secret_uses(name: str, given: Sequence[Secret]) -> list[str]:
    """How a step names its secrets. Raises RequestError (BAD_ARGUMENT)."""
    from .secret import Secret  # links and threads: only who uses one pays

    for secret in given:
        if not isinstance(secret, Secret):
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{name}: {type(secret).__name__} is no secret",
                next='write secrets=[Secret.from_name("...")]',
            )  # fmt: skip
        if not secret.by_name:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{name}: {secret!r} has no name: what is built with one is known by name and version",
                next='Secret.objects.create("NAME", {...}) keeps it; then Secret.from_name("NAME")',
            )  # fmt: skip
    return [secret.use for secret in given]


def registry_logins(name: str, given: Secret | Mapping[str, Secret] | None) -> dict[str, str]:
    """Registry -> how a step names the secret with its login; "" where none is named. Raises RequestError (BAD_ARGUMENT)."""
    if given is None:
        return {}
    each = dict(given) if isinstance(given, Mapping) else {"": given}
    for registry in each if isinstance(given, Mapping) else ():
        if not isinstance(registry, str) or not re.fullmatch(r"[a-z0-9.-]+(:\d+)?", registry):
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"{name}: {registry!r} is no registry",
                allowed="such as ghcr.io, docker.io or localhost:5000",
            )
    return dict(zip(each, secret_uses(name, list(each.values())), strict=True))


def absolute(name: str, path: str) -> None:
    """Raise RequestError for a path that is not absolute."""
    if not path.startswith("/"):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{name}: remote_path={path!r} is not absolute", allowed="a path that begins with /",
            next=f'write "{posixpath.join(SOURCE_FOLDER, path)}"',
        )  # fmt: skip


def read(path: Path, what: str) -> str:
    """A text file of the user's. Raises RequestError (NOT_FOUND)."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as why:
        reason = why.strerror if isinstance(why, OSError) else "it is no text"
        raise error(ErrorCode.NOT_FOUND, f"the {what} {str(path)!r} cannot be read: {reason}") from None


def requirement_files(step: PipInstall, paths: list[str]) -> Make:
    """A step with requirements files packed in."""

    def make(packs: PackWriter) -> list[AnyStep]:
        files: list[PackedFile] = []
        names: list[str] = []
        for number, path in enumerate(paths):
            source = Path(path).expanduser()
            # In a folder of its own each, so that equal names do not meet; `-r other.txt` in one is not followed.
            names.append(f"{number}/{source.name}")
            files.append(list_file(source, names[-1]))
        return [msgspec.structs.replace(step, requirements=names, pack=packs.write(files))]

    return make


def project_dependencies(path: str, optional: Sequence[str]) -> list[str]:
    """What a pyproject.toml depends on, with its named optional groups."""
    try:
        project = tomllib.loads(read(Path(path).expanduser(), "project file")).get("project", {})
        groups = project.get("optional-dependencies", {})
        found = [str(text) for text in project.get("dependencies", [])]
    except (tomllib.TOMLDecodeError, AttributeError, TypeError) as why:
        raise error(ErrorCode.BAD_ARGUMENT, f"{path!r} is no project file: {why}") from None
    for name in optional:
        if name not in groups:
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"{path!r} has no optional dependencies {name!r}",
                allowed=", ".join(groups) or "none",
            )
        found += [str(text) for text in groups[name]]
    if not found:
        raise error(ErrorCode.BAD_ARGUMENT, f"{path!r} names no dependencies", next="leave this step out")
    return found


def docker_ignore(dockerfile: Path, context: Path, ignore: Ignore | None) -> Callable[[Path], bool]:
    """What a build context leaves out: `ignore`, else the .dockerignore beside the file or in the context."""
    if ignore is not None:
        return matcher(ignore)
    for place in (dockerfile.with_name(f"{dockerfile.name}.dockerignore"), context / ".dockerignore"):
        if place.is_file():
            return FilePatternMatcher.from_file(place)
    return FilePatternMatcher()


def module_files(name: str, ignored: Callable[[Path], bool]) -> list[PackedFile]:
    """The files of a local module below the name that it is imported by."""
    place = name.replace(".", "/")
    try:
        spec = find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if (
        spec is None
        or (spec.origin is None and not spec.submodule_search_locations)
        or spec.origin in ("built-in", "frozen")
    ):
        raise no_module(name)
    if not spec.submodule_search_locations:
        return [list_file(str(spec.origin), f"{place}.py")]
    found: list[PackedFile] = []
    for folder in spec.submodule_search_locations:
        files = list_tree(folder, lambda path: ignored(path) or "__pycache__" in path.parts, f"{place}/")
        found += [entry for entry in files if not entry.folder]
    return found


def no_module(name: str) -> CellburstError:
    """The error for it."""
    return error(
        ErrorCode.NOT_FOUND, f"add_local_python_source({name!r}): there is no such module here",
        next="give its import name, and check that `import` finds it",
    )  # fmt: skip
