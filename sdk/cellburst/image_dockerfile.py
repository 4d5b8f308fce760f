"""A Dockerfile as steps of an image, so that its RUN commands run in the build's sandbox like all others.

What it cannot say in our steps is refused by line and name, never left out: ADD from the network, ONBUILD, mounts of
secrets. Instructions that change nothing in the files or in how a container runs (LABEL, EXPOSE, ...) are passed over.
Source of the rules: the Dockerfile reference. buildah does not do this itself: its RUN is isolated by a chroot, and its layers
would be none of our steps'. Longer than most files here: a small language, read in one place.
"""

from __future__ import annotations

import lzma
import platform
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.images import (
    AnyStep,
    Cmd,
    Copy,
    CopyFrom,
    Entrypoint,
    Env,
    FromRegistry,
    FromScratch,
    FromStage,
    RunCommands,
    Shell,
    User,
    Workdir,
    expand,
)

from .image_arguments import full_name
from .image_dockerfile_parse import Instruction, parse, shell_words
from .image_packs import PackedFile, PackWriter, list_file, list_tree

_UNREAD_ARCHIVES = (".tar.zst", ".tzst", ".tar.Z")  # which Python cannot unpack
ANY_REGISTRY = ""
_PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
# A script that names its interpreter, as a file that is gone afterwards.
_BY_ITS_INTERPRETER = (
    'folder=$(mktemp -d) && printf %s "$1" > "$folder/RUN" && chmod 700 "$folder/RUN" && "$folder/RUN"; '
    'code=$?; rm -rf "$folder"; exit "$code"'
)
_VARIABLE = re.compile(r"(?<!\\)\$\{?([A-Za-z_][A-Za-z0-9_]*)")


@dataclass
class _Stage:
    """A stage so far. `arguments` are the ARGs in force, `variables` the ENVs this file has set."""

    steps: list[AnyStep]
    arguments: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    has_cmd: bool = False
    user: str = ""


@dataclass
class _Translation:
    """One Dockerfile being translated."""

    packs: PackWriter
    context: Path
    ignored: Callable[[Path], bool]
    given: dict[str, str]
    name: str
    stages: list[_Stage] = field(default_factory=list)
    names: dict[str, _Stage] = field(default_factory=dict)
    before_from: dict[str, str] = field(default_factory=dict)
    logins: Mapping[str, str] = field(default_factory=dict)
    asked: set[str] = field(default_factory=set)  # registries, of images that the file names

    def image(self, reference: str) -> FromRegistry:
        """The step that pulls an image, with the login of its registry."""
        whole = full_name(reference)
        registry = whole.partition("/")[0]
        self.asked.add(registry)
        return FromRegistry(reference=whole, secret=self.logins.get(registry, self.logins.get(ANY_REGISTRY, "")))

    def wrong(self, instruction: Instruction, why: str, *, allowed: str = "", next: str = "") -> CellburstError:
        text = f"{self.name}, line {instruction.line}: {instruction.name} {instruction.text}"
        return error(ErrorCode.BAD_ARGUMENT, f"{text[:200]}: {why}", allowed=allowed, next=next)


def dockerfile_steps(
    text: str, packs: PackWriter, *, context: Path, ignored: Callable[[Path], bool], arguments: dict[str, str], name: str,
    without_base: bool = False, logins: Mapping[str, str] | None = None,
) -> list[AnyStep]:  # fmt: skip
    """The steps of the last stage, with stages it uses inside. `without_base`: instructions alone, no FROM. `logins`: registry ->
    the secret with its login; the one of ANY_REGISTRY is for the only registry that the file names.

    Raises RequestError with the line for what is no Dockerfile, what is not supported, and local files that are missing.
    """
    work = _Translation(packs, context, ignored, arguments, name, logins=logins or {})
    if without_base:
        work.stages.append(_Stage([]))
    for instruction in parse(text, name):
        _translate(work, instruction, without_base=without_base)
    if not work.stages:
        raise error(ErrorCode.BAD_ARGUMENT, f"{name} has no FROM", next="begin it with FROM image")
    if ANY_REGISTRY in work.logins and len(work.asked) > 1:
        # A login must never go to another registry than the one it is for.
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{name} has images of {len(work.asked)} registries, and secret= says not for which it is",
            allowed=", ".join(sorted(work.asked)), next=f'write secret={{"{min(work.asked)}": Secret.from_name("...")}}',
        )  # fmt: skip
    return work.stages[-1].steps


def _translate(work: _Translation, instruction: Instruction, *, without_base: bool) -> None:
    if instruction.name == "FROM":
        if without_base:
            raise work.wrong(instruction, "these instructions follow a base", next="use Image.from_dockerfile")
        work.stages.append(_from(work, instruction))
        return
    if not work.stages:
        if instruction.name != "ARG":
            raise work.wrong(instruction, "it stands before FROM", allowed="only ARG")
        work.before_from.update(_argument(work, instruction, work.before_from))
        return
    stage = work.stages[-1]
    match instruction.name:
        case "ARG":
            known = {**stage.arguments, **stage.variables}
            stage.arguments.update(_argument(work, instruction, known))
        case "ENV":
            variables = _pairs(work, instruction)
            stage.steps.append(Env(variables=variables, scope=dict(stage.arguments)))
            known = {**stage.arguments, **stage.variables}
            stage.variables.update(
                {name: _expanded(work, instruction, value, known) for name, value in variables.items()}
            )
        case "RUN":
            stage.steps.append(_run(work, instruction, stage))
        case "COPY" | "ADD":
            stage.steps += _copy(work, instruction, stage)
        case "WORKDIR":
            stage.steps.append(Workdir(path=_unquoted(instruction.text), scope=dict(stage.arguments)))
            # Docker makes the folder here, also when nothing runs in it, as the user's.
            stage.steps.append(Copy(pack=work.packs.write([]), destination=".", owner=stage.user))
        case "USER":
            stage.user = _known_text(work, instruction, instruction.text, stage)
            stage.steps.append(User(user=stage.user))
        case "SHELL":
            words = instruction.words()
            if not words:
                raise work.wrong(instruction, "it needs the JSON form", next='write SHELL ["/bin/bash", "-c"]')
            stage.steps.append(Shell(arguments=words))
        case "ENTRYPOINT":
            stage.steps.append(Entrypoint(arguments=_program(instruction)))
            if not stage.has_cmd:
                stage.steps.append(Cmd(arguments=[]))  # the base's command was for the base's entry point
        case "CMD":
            stage.steps.append(Cmd(arguments=_program(instruction)))
            stage.has_cmd = True
        case "ONBUILD":
            raise work.wrong(instruction, "it is not supported", next="put the instruction where it is used")


def _from(work: _Translation, instruction: Instruction) -> _Stage:
    text = _expanded(work, instruction, instruction.text, work.before_from)
    parts = text.split()
    if len(parts) not in (1, 3) or (len(parts) == 3 and parts[1].upper() != "AS"):
        raise work.wrong(instruction, "it is not FROM image [AS name]")
    wanted = _expanded(work, instruction, instruction.flags.pop("platform", ""), work.before_from)
    here = _PLATFORMS.get(platform.machine(), platform.machine())
    if wanted and not wanted.startswith(here):
        raise work.wrong(instruction, f"it is for {wanted}", allowed=here, next="leave --platform out")
    _no_flags(work, instruction)
    base = parts[0]
    if base == "scratch":
        stage = _Stage([FromScratch()])
    elif (earlier := _stage(work, base)) is not None:
        stage = _Stage([FromStage(steps=list(earlier.steps))], variables=dict(earlier.variables), user=earlier.user)
    else:
        stage = _Stage([work.image(base)])
    if len(parts) == 3:
        work.names[parts[2].lower()] = stage
    return stage


def _stage(work: _Translation, name: str) -> _Stage | None:
    return work.names.get(name.lower())


def _argument(work: _Translation, instruction: Instruction, known: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in shell_words(instruction.text):
        name, equals, value = word.partition("=")
        if name in work.given:
            found[name] = work.given[name]
        elif equals:
            found[name] = _expanded(work, instruction, value, {**known, **found})
        elif name in work.before_from:
            found[name] = work.before_from[name]
    return found


def _run(work: _Translation, instruction: Instruction, stage: _Stage) -> RunCommands:
    mount = instruction.flags.pop("mount", "")
    # A cache that stays empty changes how long the command takes, not what it makes.
    if mount and not re.match(r"(type=(cache|tmpfs)\b)|.*,type=(cache|tmpfs)\b", mount):
        raise work.wrong(
            instruction, f"--mount={mount} is not supported", allowed="type=cache", next="COPY what it needs"
        )
    if instruction.flags.pop("network", "default") != "default":
        raise work.wrong(instruction, "--network is not supported", next="leave it out")
    _no_flags(work, instruction)
    words = instruction.words()
    environment = {name: value for name, value in stage.arguments.items() if name not in stage.variables}
    command = words if words is not None else _command(instruction)
    return RunCommands(commands=[command], environment=environment)


def _command(instruction: Instruction) -> str | list[str]:
    """The shell form of RUN. A here-document alone is a script; behind a command it is the shell's own."""
    documents = instruction.documents
    if len(documents) != 1 or instruction.text != documents[0].word:
        following = "".join(f"{document.text}{document.name}\n" for document in documents)
        return f"{instruction.text}\n{following}" if documents else instruction.text
    script = documents[0].text
    return ["/bin/sh", "-c", _BY_ITS_INTERPRETER, "RUN", script] if script.startswith("#!") else script


def _copy(work: _Translation, instruction: Instruction, stage: _Stage) -> list[AnyStep]:
    """COPY and ADD: one step, and with ADD one for each archive among the sources."""
    source_stage = instruction.flags.pop("from", "")
    instruction.flags.pop("link", "")
    owner = _known_text(work, instruction, instruction.flags.pop("chown", ""), stage)
    mode = _known_text(work, instruction, instruction.flags.pop("chmod", ""), stage)
    _no_flags(work, instruction)
    documents = _documents(work, instruction, stage)
    words = instruction.words() or [word for word in _words(instruction) if word not in documents]
    if len(words) + len(documents) < 2 or not words:
        raise work.wrong(instruction, "it needs a source and a destination")
    *sources, destination = words
    sources = [_known_text(work, instruction, source, stage) for source in sources]
    scope = dict(stage.arguments)
    if source_stage:
        if documents:
            raise work.wrong(instruction, "a here-document is in no stage", next="leave --from out")
        other = _stage(work, source_stage) or _numbered(work, source_stage)
        inner: list[AnyStep] = list(other.steps) if other else [work.image(source_stage)]
        return [CopyFrom(steps=inner, sources=sources, destination=destination, owner=owner, mode=mode, scope=scope)]

    def copy(entries: list[PackedFile], *, single: bool = False, unpack: bool = False) -> Copy:
        pack = work.packs.write(entries)
        return Copy(
            pack=pack, destination=destination, single=single, unpack=unpack, owner=owner, mode=mode, scope=scope
        )

    archives = [source for source in sources if instruction.name == "ADD" and _is_archive(work, instruction, source)]
    steps: list[AnyStep] = []
    for source in archives:
        entries, _ = _sources(work, instruction, [source])
        steps += [copy([entry], unpack=True) for entry in entries]
    plain = [source for source in sources if source not in archives]
    entries, single = _sources(work, instruction, plain)
    entries += documents.values()
    single = (single and not documents) or (len(documents) == 1 and not plain)
    many = len(plain) + len(documents) > 1 or (
        not single and bool(plain) and sum(not entry.folder for entry in entries) != 1 and _is_pattern(plain[0])
    )
    if many and not destination.endswith("/") and not (_all_folders(work, plain) and not documents):
        raise work.wrong(instruction, f"several sources for {destination!r}", next="end the destination with /")
    if entries or not archives:
        steps.append(copy(entries, single=single and not many))
    return steps


def _words(instruction: Instruction) -> list[str]:
    """The words, with those of here-documents as they are written."""
    named = {document.word for document in instruction.documents}
    pairs = zip(shell_words(instruction.text, raw=True), shell_words(instruction.text), strict=True)
    return [raw if raw in named else word for raw, word in pairs]


def _documents(work: _Translation, instruction: Instruction, stage: _Stage) -> dict[str, PackedFile]:
    """The here-documents as files, named by their delimiters: the word that stands for each -> the file."""
    found: dict[str, PackedFile] = {}
    for document in instruction.documents:
        text = _known_text(work, instruction, document.text, stage) if document.expands else document.text
        found[document.word] = PackedFile(posixpath.basename(document.name), content=text.encode())
    return found


def _is_archive(work: _Translation, instruction: Instruction, source: str) -> bool:
    """Whether ADD unpacks it: a tar file, plain or compressed, by its content. Raises RequestError for what cannot be fetched or
    unpacked here."""
    if re.match(r"(https?|git|ftp)[:@]", source) or source.endswith(".git"):
        raise work.wrong(instruction, "ADD from the network is not supported", next="fetch it with RUN curl or RUN git")
    path = work.context / posixpath.normpath("/" + source).lstrip("/")
    if _is_pattern(source) or not path.is_file() or not path.resolve().is_relative_to(work.context.resolve()):
        return False
    if source.endswith(_UNREAD_ARCHIVES):
        raise work.wrong(
            instruction, "ADD unpacks no such archive here", allowed="tar, plain or with gzip, bzip2 or xz",
            next="COPY it and RUN tar -xf",
        )  # fmt: skip
    try:
        with tarfile.open(path) as archive:
            return archive.next() is not None
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError):
        return False


def _sources(work: _Translation, instruction: Instruction, sources: list[str]) -> tuple[list[PackedFile], bool]:
    """The files that COPY's sources name in the context, and whether it is one file alone."""
    entries: list[PackedFile] = []
    single = False
    for source in sources:
        relative = posixpath.normpath("/" + source).lstrip("/")
        matched = sorted(work.context.glob(relative)) if _is_pattern(relative) else [work.context / relative]
        matched = [path for path in matched if path == work.context or not _left_out(work, path)]
        if not matched or not all(path.exists() or path.is_symlink() for path in matched):
            raise work.wrong(
                instruction, f"there is no {source!r} in {str(work.context)!r}" + (" after .dockerignore" if not matched else ""),
                next="give context_dir, or check the path",
            )  # fmt: skip
        for path in matched:
            if path.is_dir():
                base = path.relative_to(work.context)
                entries += list_tree(path, _Below(work.ignored, base))
            else:
                if not path.resolve().is_relative_to(work.context.resolve()):
                    raise work.wrong(instruction, f"{source!r} leads out of the context", next="put a copy there")
                entries.append(list_file(path, path.name))
                single = len(sources) == 1 and len(matched) == 1
    return entries, single


def _left_out(work: _Translation, path: Path) -> bool:
    """A folder that is left out may hold files that a later pattern takes back."""
    return not path.is_dir() and work.ignored(path.relative_to(work.context))


class _Below:
    """An ignore function for paths relative to a folder of the context."""

    def __init__(self, ignored: Callable[[Path], bool], base: Path) -> None:
        self._ignored, self._base = ignored, base

    def __call__(self, path: Path) -> bool:
        return self._ignored(self._base / path)

    def covers(self, path: Path) -> bool:
        covers = getattr(self._ignored, "covers", None)
        return bool(covers and covers(self._base / path))


def _all_folders(work: _Translation, sources: list[str]) -> bool:
    return all((work.context / source.lstrip("/")).is_dir() for source in sources)


def _is_pattern(text: str) -> bool:
    return any(char in text for char in "*?[")


def _numbered(work: _Translation, text: str) -> _Stage | None:
    return work.stages[int(text)] if text.isdigit() and int(text) < len(work.stages) - 1 else None


def _program(instruction: Instruction) -> list[str]:
    words = instruction.words()
    return words if words is not None else ["/bin/sh", "-c", instruction.text]


def _pairs(work: _Translation, instruction: Instruction) -> dict[str, str]:
    """ENV's variables: `NAME=value ...`, or the old `NAME value`."""
    words = shell_words(instruction.text)
    if "=" not in words[0]:
        name, _, value = instruction.text.partition(" ")
        words = [f"{name}={value.strip()}"]
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise work.wrong(instruction, f"{word!r} is no NAME=value")
        found[name] = value
    return found


def _unquoted(text: str) -> str:
    return " ".join(shell_words(text))


def _known_text(work: _Translation, instruction: Instruction, text: str, stage: _Stage) -> str:
    """Expand by what this file sets. A variable of the base image is not known here, where the files are looked for."""
    known = {**stage.arguments, **stage.variables}
    missing = [name for name in _VARIABLE.findall(text) if name not in known]
    if missing:
        raise work.wrong(
            instruction, f"${missing[0]} is not set in this file", next=f"set it with ARG {missing[0]}=... or ENV"
        )
    return _expanded(work, instruction, text, known)


def _expanded(work: _Translation, instruction: Instruction, text: str, known: dict[str, str]) -> str:
    try:
        return expand(text, known)
    except ValueError as why:
        raise work.wrong(instruction, str(why)) from None


def _no_flags(work: _Translation, instruction: Instruction) -> None:
    for flag in instruction.flags:
        raise work.wrong(instruction, f"--{flag} is not supported", next="leave it out")
