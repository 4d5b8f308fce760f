"""A Dockerfile as steps of an image, so that its RUN commands run in the build's sandbox like all others.

What it cannot say in our steps is refused by line and name, never left out: ADD from the network, ONBUILD, mounts of
secrets. Instructions that change nothing in the files or in how a container runs (LABEL, EXPOSE, ...) are passed over.
Source of the rules: the Dockerfile reference. Longer than most files here: a small language, read in one place.
"""

from __future__ import annotations

import json
import platform
import posixpath
import re
from collections.abc import Callable
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
from .image_packs import PackedFile, PackWriter, list_file, list_tree

_IGNORED = frozenset({"LABEL", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "MAINTAINER", "VOLUME"})
_KNOWN = ("FROM", "ARG", "RUN", "COPY", "ADD", "ENV", "WORKDIR", "USER", "SHELL", "ENTRYPOINT", "CMD")
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_PLATFORMS = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}
_VARIABLE = re.compile(r"(?<!\\)\$\{?([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True)
class Instruction:
    """One instruction: `flags` are its `--name=value` words, `text` the rest, `line` where it begins."""

    name: str
    flags: dict[str, str]
    text: str
    line: int

    def words(self) -> list[str] | None:
        """The JSON form's words; None for the shell form."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except ValueError:
            return None
        return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


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

    def wrong(self, instruction: Instruction, why: str, *, allowed: str = "", next: str = "") -> CellburstError:
        text = f"{self.name}, line {instruction.line}: {instruction.name} {instruction.text}"
        return error(ErrorCode.BAD_ARGUMENT, f"{text[:200]}: {why}", allowed=allowed, next=next)


def dockerfile_steps(
    text: str, packs: PackWriter, *, context: Path, ignored: Callable[[Path], bool], arguments: dict[str, str], name: str,
    without_base: bool = False,
) -> list[AnyStep]:  # fmt: skip
    """The steps of the last stage, with stages it uses inside. `without_base`: instructions alone, no FROM.

    Raises RequestError with the line for what is no Dockerfile, what is not supported, and local files that are missing.
    """
    work = _Translation(packs, context, ignored, arguments, name)
    if without_base:
        work.stages.append(_Stage([]))
    for instruction in parse(text, name):
        _translate(work, instruction, without_base=without_base)
    if not work.stages:
        raise error(ErrorCode.BAD_ARGUMENT, f"{name} has no FROM", next="begin it with FROM image")
    return work.stages[-1].steps


def parse(text: str, name: str) -> list[Instruction]:
    """The instructions of a Dockerfile. Raises RequestError with the line number."""
    escape = "\\"
    directive = re.match(r"\s*#\s*escape\s*=\s*(\S)", text, re.IGNORECASE)
    if directive and directive[1] == "`":
        escape = "`"
    found: list[Instruction] = []
    pending, begun = "", 0
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.rstrip() if pending else raw.strip()
        if line.strip().startswith("#") or (pending and not line.strip()):
            continue  # comments and empty lines do not end an instruction
        if not line:
            continue
        begun = begun or number
        if line.endswith(escape):
            pending += line[: -len(escape)]
            continue
        found.append(_instruction(pending + line, begun, name))
        pending, begun = "", 0
    if pending.strip():
        found.append(_instruction(pending, begun, name))
    return found


def _instruction(text: str, line: int, name: str) -> Instruction:
    word, _, rest = text.strip().partition(" ")
    word, rest = word.upper(), rest.strip()
    if not re.fullmatch(r"[A-Z]+", word) or (word not in _KNOWN and word not in _IGNORED and word != "ONBUILD"):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{name}, line {line}: {text.strip()[:120]!r} is no instruction", allowed=", ".join(_KNOWN),
            next="end a line with \\ where its instruction goes on",
        )  # fmt: skip
    if not rest and word not in _IGNORED:
        raise error(ErrorCode.BAD_ARGUMENT, f"{name}, line {line}: {word} needs an argument")
    flags: dict[str, str] = {}
    while (flag := re.match(r"--([a-z-]+)(?:=(\S*))?\s+", rest)) and word in ("FROM", "RUN", "COPY", "ADD"):
        flags[flag[1]] = flag[2] or ""
        rest = rest[flag.end() :]
    if word in ("RUN", "COPY", "ADD") and re.search(r"<<-?[\"']?[A-Za-z_]", rest):
        raise error(
            ErrorCode.BAD_ARGUMENT,
            f"{name}, line {line}: here-documents are not supported",
            next="join the commands with && \\",
        )
    return Instruction(word, flags, rest, line)


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
            stage.steps.append(_copy(work, instruction, stage))
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
        stage = _Stage([FromRegistry(reference=full_name(base))])
    if len(parts) == 3:
        work.names[parts[2].lower()] = stage
    return stage


def _stage(work: _Translation, name: str) -> _Stage | None:
    return work.names.get(name.lower())


def _argument(work: _Translation, instruction: Instruction, known: dict[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in _shell_words(instruction.text):
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
    return RunCommands(commands=[words if words is not None else instruction.text], environment=environment)


def _copy(work: _Translation, instruction: Instruction, stage: _Stage) -> AnyStep:
    source_stage = instruction.flags.pop("from", "")
    instruction.flags.pop("link", "")
    owner = _known_text(work, instruction, instruction.flags.pop("chown", ""), stage)
    mode = _known_text(work, instruction, instruction.flags.pop("chmod", ""), stage)
    _no_flags(work, instruction)
    words = instruction.words() or _shell_words(instruction.text)
    if len(words) < 2:
        raise work.wrong(instruction, "it needs a source and a destination")
    *sources, destination = words
    sources = [_known_text(work, instruction, source, stage) for source in sources]
    scope = dict(stage.arguments)
    if source_stage:
        other = _stage(work, source_stage) or _numbered(work, source_stage)
        inner: list[AnyStep] = list(other.steps) if other else [FromRegistry(reference=full_name(source_stage))]
        return CopyFrom(steps=inner, sources=sources, destination=destination, owner=owner, mode=mode, scope=scope)
    if instruction.name == "ADD":
        for source in sources:
            if re.match(r"(https?|git|ftp)[:@]", source) or source.endswith(".git"):
                raise work.wrong(
                    instruction, "ADD from the network is not supported", next="fetch it with RUN curl or RUN git"
                )
            if source.endswith(_ARCHIVES):
                raise work.wrong(instruction, "ADD does not unpack here", next="COPY it and RUN tar -xf")
    entries, single = _sources(work, instruction, sources)
    many = len(sources) > 1 or (
        not single and sum(not entry.folder for entry in entries) != 1 and _is_pattern(sources[0])
    )
    if many and not destination.endswith("/") and not _all_folders(work, sources):
        raise work.wrong(instruction, f"several sources for {destination!r}", next="end the destination with /")
    return Copy(
        pack=work.packs.write(entries),
        destination=destination,
        single=single and not many,
        owner=owner,
        mode=mode,
        scope=scope,
    )


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
    words = _shell_words(instruction.text)
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


def _shell_words(text: str) -> list[str]:
    """Words with quotes taken off; a `$` in single quotes is escaped, since it stands for itself."""
    words: list[str] = []
    current, quote, begun, place = "", "", False, 0
    while place < len(text):
        char = text[place]
        if char == "\\" and quote != "'" and place + 1 < len(text):
            following = text[place + 1]
            current += f"\\{following}" if following == "$" else following
            place += 1
            begun = True
        elif quote:
            if char == quote:
                quote = ""
            else:
                current += "\\$" if char == "$" and quote == "'" else char
        elif char in "\"'":
            quote, begun = char, True
        elif char.isspace():
            if begun:
                words.append(current)
            current, begun = "", False
        else:
            current, begun = current + char, True
        place += 1
    return [*words, current] if begun else words


def _unquoted(text: str) -> str:
    return " ".join(_shell_words(text))


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
