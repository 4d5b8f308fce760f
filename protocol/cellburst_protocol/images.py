"""Image recipes: what an image is made of, step by step, and the key of the layer that each step makes. Pure.

A recipe travels as one struct. Local files travel beside it as packs: one tar per step, whose bytes are a blob (see
`FilePack`), so a step names its files by the hash of their content, modes and names.

The key of a layer is BLAKE3 over the key of the layer below and the step's canonical JSON (keys of objects sorted, so the
order of a dict does not matter). Equal recipes have equal keys on every machine of one architecture, and so build once.
Over 400 lines: one struct for each kind of step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from blake3 import blake3

KEY_VERSION = "cellburst image 2"  # changed when the same step would make another layer than before
KEY_BYTES = 20  # 160 bits: no two recipes meet by chance or on purpose
SUITE = "bookworm"  # the Debian of debian_slim
SUITE_PYTHON = {"bookworm": "3.11", "trixie": "3.13"}  # what Debian's own python3 is
SUITE_PYTHON_PATCH = {
    "bookworm": 2,
    "trixie": 5,
}  # of that, for the suite's whole life: Debian keeps the version of a release
MAX_STEPS = 200  # far more than anybody writes, well below what can be mounted
MAX_LAYERS = 400  # of an image with its stages: overlayfs takes 500 (OVL_MAX_STACK), and ours lie there as well
MAX_PACK_BYTES = 4 << 30  # local files of one step; more belongs into a volume
MAX_RECIPE_BYTES = 192 << 10  # as JSON: a recipe opens a stream, whose first message is one frame


class FilePack(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Local files of one step: a tar of names, modes and contents only (owner 0, one fixed time, sorted by name).

    `hash` is BLAKE3 of the tar in hex, `size_bytes` its size, `files` how many files it holds.
    """

    hash: str
    size_bytes: int
    files: int = 0


class Step(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What every step has. `force`: built anew at every build, and with it all that follow."""

    force: bool = False


class StepVolume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that a step sees at the absolute `path` while it runs, by its name; or a network file system (`kind` "shared").
    What is written there is committed when the step has succeeded, and is in no layer. `create`: made where it is missing."""

    name: str
    path: str
    read_only: bool = False
    kind: Literal["volume", "shared"] = "volume"
    create: bool = False


class Working(Step, frozen=True, kw_only=True, omit_defaults=True):
    """What a step has that runs programs, while they run: `environment`; `secrets`, each `NAME` or `NAME:KEY` with a key that it
    must have; the GPUs of a lease, `gpu` as a cell's line says it ("A100:2"); `volumes`."""

    environment: dict[str, str] = {}
    secrets: list[str] = []
    gpu: str = ""
    volumes: list[StepVolume] = []


class DebianSlim(Step, frozen=True, kw_only=True, omit_defaults=True, tag="debian_slim"):
    """A minimal Debian, with its own Python if `python` is set, else with what another Python needs of the system."""

    suite: str = SUITE
    python: bool = True


class FromScratch(Step, frozen=True, kw_only=True, omit_defaults=True, tag="from_scratch"):
    """Nothing: only for images whose files are all copied in."""


class FromRegistry(Step, frozen=True, kw_only=True, omit_defaults=True, tag="from_registry"):
    """An image of an OCI registry, by its full name (`docker.io/library/debian:12`). `secret` has the login."""

    reference: str
    secret: str = ""


class FromStage(Step, frozen=True, kw_only=True, omit_defaults=True, tag="from_stage"):
    """Another recipe's image as the base (a stage of a Dockerfile)."""

    steps: list[AnyStep]


class AddPython(Step, frozen=True, kw_only=True, omit_defaults=True, tag="add_python"):
    """Python of that version ("3.12") in /usr/local, and of no earlier patch than `least` ("3.12.3")."""

    python_version: str
    least: str = ""


class AptInstall(Working, frozen=True, kw_only=True, omit_defaults=True, tag="apt_install"):
    """Debian packages, without recommended ones."""

    packages: list[str]


class PipInstall(Working, frozen=True, kw_only=True, omit_defaults=True, tag="pip_install"):
    """Python packages. `pack` holds requirements files, named in `requirements`. `options` go to uv as they are."""

    packages: list[str] = []
    requirements: list[str] = []
    pack: FilePack | None = None
    index_url: str = ""
    extra_index_urls: list[str] = []
    find_links: list[str] = []
    pre: bool = False
    no_deps: bool = False
    options: list[str] = []


class UvSync(Working, frozen=True, kw_only=True, omit_defaults=True, tag="uv_sync"):
    """A uv project's locked dependencies; `pack` holds pyproject.toml and, where there is one, uv.lock."""

    pack: FilePack
    extras: list[str] = []
    groups: list[str] = []
    frozen: bool = True
    options: list[str] = []


class RunCommands(Working, frozen=True, kw_only=True, omit_defaults=True, tag="run_commands"):
    """Commands: a string is given to the image's shell, a list is a program with its arguments. A Dockerfile's ARG is in their
    `environment`."""

    commands: list[str | list[str]]


class RunFunction(Working, frozen=True, kw_only=True, omit_defaults=True, tag="run_function"):
    """A Python function called while building. `pack` holds `call.pickle`: (function, args, kwargs) by cloudpickle. Limits that
    are None are the build's own; they have no part in the layer's key."""

    pack: FilePack
    name: str
    cpu: float | None = None
    memory_mib: int | None = None
    timeout_seconds: float | None = None


class Env(Step, frozen=True, kw_only=True, omit_defaults=True, tag="env"):
    """Environment variables. With `scope`, `$NAME` in a value stands for a variable of the image or of the scope."""

    variables: dict[str, str]
    scope: dict[str, str] | None = None


class Workdir(Step, frozen=True, kw_only=True, omit_defaults=True, tag="workdir"):
    """The working folder of what runs; relative: below the one before. `scope` as in Env."""

    path: str
    scope: dict[str, str] | None = None


class Entrypoint(Step, frozen=True, kw_only=True, omit_defaults=True, tag="entrypoint"):
    """The program that a container's command is given to."""

    arguments: list[str]


class Cmd(Step, frozen=True, kw_only=True, omit_defaults=True, tag="cmd"):
    """The default command."""

    arguments: list[str]


class Shell(Step, frozen=True, kw_only=True, omit_defaults=True, tag="shell"):
    """What later commands are given to; the default is /bin/sh -c."""

    arguments: list[str]


class User(Step, frozen=True, kw_only=True, omit_defaults=True, tag="user"):
    """Who later commands run as: a name or number of the image's, with `:group` where wanted."""

    user: str


class Copy(Step, frozen=True, kw_only=True, omit_defaults=True, tag="copy"):
    """Local files. `pack`'s names lie below `destination`, or with `single` its one file becomes `destination`.

    With `unpack` its one file is a tar archive, plain or compressed, and what it holds lies below `destination`.
    `owner` is "USER[:GROUP]" of the image, `mode` an octal mode for every file; `scope` as in Env, for the destination.
    """

    pack: FilePack
    destination: str
    single: bool = False
    unpack: bool = False
    owner: str = ""
    mode: str = ""
    scope: dict[str, str] | None = None


class CopyFrom(Step, frozen=True, kw_only=True, omit_defaults=True, tag="copy_from"):
    """Files of another recipe's image (`COPY --from=`), by paths in it, `*` and `?` allowed."""

    steps: list[AnyStep]
    sources: list[str]
    destination: str
    owner: str = ""
    mode: str = ""
    scope: dict[str, str] | None = None


AnyStep = (
    DebianSlim | FromScratch | FromRegistry | FromStage | AddPython | AptInstall | PipInstall | UvSync | RunCommands
    | RunFunction | Env | Workdir | Entrypoint | Cmd | Shell | User | Copy | CopyFrom
)  # fmt: skip
BASES = (DebianSlim, FromScratch, FromRegistry, FromStage)
METADATA = (Env, Workdir, Entrypoint, Cmd, Shell, User)  # these make no layer


class ImageRecipe(msgspec.Struct, kw_only=True, omit_defaults=True):
    """An image: `steps` build it, `adds` are copied over it when it is used, so that a changed local file rebuilds nothing.

    `architecture` is the machine's word for it ("x86_64"), "" for any. `preload` are modules whose import belongs into
    a template. `mirror`: these steps stand for the caller's own environment, which the same machine shows live. `folder`: files
    of the notebook's folder, shown in its place on another machine. It is no part of what is built.
    """

    steps: list[AnyStep]
    adds: list[Copy] = []
    architecture: str = ""
    preload: list[str] = []
    mirror: bool = False
    folder: FilePack | None = None


def debian_slim(python_version: str, *, least_patch: int = 0, force: bool = False) -> list[AnyStep]:
    """The steps of a Debian with Python of that version ("3.12"): Debian's own where it is that one, and its patch is not below
    `least_patch` (3.12.3 for 3)."""
    if SUITE_PYTHON[SUITE] == python_version and SUITE_PYTHON_PATCH[SUITE] >= least_patch:
        return [DebianSlim(force=force)]
    least = f"{python_version}.{least_patch}" if least_patch else ""
    return [DebianSlim(python=False, force=force), AddPython(python_version=python_version, least=least, force=force)]


def layer_keys(
    steps: Sequence[AnyStep], *, architecture: str, nonce: str = "", versions: Mapping[str, int] | None = None
) -> list[str]:
    """The key after each step, in hex. `nonce` is this build's own: it enters at the first step that is forced. `versions` are
    those of the secrets that steps use, by name: never their values."""
    keys: list[str] = []
    key = blake3(f"{KEY_VERSION}\n{architecture}".encode()).hexdigest(KEY_BYTES)
    for step in steps:
        # What a mirror or a mount does not change must not be hashed: only the step itself.
        hashed = blake3(key.encode() + b"\n" + msgspec.json.encode(_keyed(step), order="sorted"))
        if is_forced(step):
            hashed.update(b"\n" + nonce.encode())
        for name in sorted({use.partition(":")[0] for use in secrets_of([step])} if versions else ()):
            hashed.update(f"\nsecret {name} {(versions or {}).get(name, 0)}".encode())
        key = hashed.hexdigest(KEY_BYTES)
        keys.append(key)
    return keys


def _keyed(step: AnyStep) -> AnyStep:
    """What of a step is in its layer's key: not how much of the machine it may use, which changes nothing of what it makes, and
    not whether a volume is made where it is missing."""
    if isinstance(step, Working) and step.volumes:
        same = [msgspec.structs.replace(volume, create=False) for volume in step.volumes]
        step = msgspec.structs.replace(step, volumes=same)
    if isinstance(step, RunFunction):
        step = msgspec.structs.replace(step, cpu=None, memory_mib=None, timeout_seconds=None)
    return step


def every_step(steps: Sequence[AnyStep]) -> Iterator[AnyStep]:
    """The steps in their order, each stage's before the step that uses it."""
    for step in steps:
        if isinstance(step, FromStage | CopyFrom):
            yield from every_step(step.steps)
        yield step


def secrets_of(steps: Sequence[AnyStep]) -> list[str]:
    """The secrets that steps use, those of stages too, as they name them; each once."""
    found: dict[str, None] = {}
    for step in every_step(steps):
        if isinstance(step, FromRegistry) and step.secret:
            found[step.secret] = None
        elif isinstance(step, Working):
            found.update(dict.fromkeys(step.secrets))
    return list(found)


def gpus_of(steps: Sequence[AnyStep]) -> list[str]:
    """The `gpu` of every step that asks for some, each once."""
    return list(dict.fromkeys(step.gpu for step in every_step(steps) if isinstance(step, Working) and step.gpu))


def volumes_of(steps: Sequence[AnyStep]) -> list[StepVolume]:
    """The volumes of all steps, in their order."""
    return [volume for step in every_step(steps) if isinstance(step, Working) for volume in step.volumes]


def is_forced(step: AnyStep) -> bool:
    """Whether a step, or one of the recipe inside it, is built anew every time."""
    return step.force or (isinstance(step, FromStage | CopyFrom) and any(is_forced(inner) for inner in step.steps))


def image_key(recipe: ImageRecipe) -> str:
    """What tells a recipe from another, for "is this another image than the session's?": equal recipes with equal local
    files have equal keys. A recipe that is forced has the same key each time: it is built anew for new containers only."""
    return layer_keys([*recipe.steps, *recipe.adds], architecture=recipe.architecture)[-1]


def python_minor(steps: Sequence[AnyStep]) -> str:
    """The Python ("3.12") that an image will have, as far as its steps say so; "" where only its build can tell."""
    found = ""
    for step in steps:
        match step:
            case DebianSlim():
                found = SUITE_PYTHON.get(step.suite, "") if step.python else ""
            case FromStage():
                found = python_minor(step.steps)
            case AddPython():
                found = ".".join(step.python_version.split(".")[:2])
            case FromRegistry() | FromScratch():
                found = ""
            case _:
                pass
    return found


def packs(recipe: ImageRecipe) -> list[FilePack]:
    """Every pack that the recipe's use may ask for, each once."""
    found: dict[str, FilePack] = {recipe.folder.hash: recipe.folder} if recipe.folder is not None else {}
    waiting: list[AnyStep] = [*recipe.steps, *recipe.adds]
    while waiting:
        step = waiting.pop()
        if isinstance(step, FromStage | CopyFrom):
            waiting.extend(step.steps)
        pack = getattr(step, "pack", None)
        if pack is not None:
            found[pack.hash] = pack
    return list(found.values())


def describe(step: AnyStep) -> str:
    """One line for a log: `pip_install numpy pandas`, `run_function warm with gpu A100`."""
    gpu = f" with gpu {step.gpu}" if isinstance(step, Working) and step.gpu else ""
    return f"{_described(step)}{gpu}"


def _described(step: AnyStep) -> str:
    name = str(step.__struct_config__.tag)
    match step:
        case DebianSlim():
            return f"{name} {step.suite}{f' Python {SUITE_PYTHON.get(step.suite)}' if step.python else ''}"
        case AddPython():
            return f"{name} {f'{step.least} or later' if step.least else step.python_version}"
        case FromRegistry():
            return f"{name} {step.reference}"
        case AptInstall() | PipInstall():
            return _short(f"{name} {' '.join([*step.packages, *getattr(step, 'requirements', [])])}")
        case RunCommands():
            return _short(f"{name} {'; '.join(c if isinstance(c, str) else ' '.join(c) for c in step.commands)}")
        case RunFunction():
            return f"{name} {step.name}"
        case Env():
            return _short(f"{name} {' '.join(step.variables)}")  # names only: a value may be private
        case Workdir():
            return f"{name} {step.path}"
        case Copy():
            return f"{name} {step.pack.files} files to {step.destination}"
        case CopyFrom():
            return _short(f"{name} {' '.join(step.sources)} to {step.destination}")
        case _:
            return name


def expand(text: str, variables: dict[str, str]) -> str:
    """A Dockerfile's `$NAME`, `${NAME}`, `${NAME:-other}`, `${NAME:+other}` and `\\$`; unknown names are empty.

    Source: Dockerfile reference, "Environment replacement". Raises ValueError for a brace that is not closed.
    """
    result, place = [], 0
    while place < len(text):
        char = text[place]
        if char == "\\" and text[place + 1 : place + 2] == "$":
            result.append("$")
            place += 2
        elif char == "$":
            value, place = _variable(text, place + 1, variables)
            result.append(value)
        else:
            result.append(char)
            place += 1
    return "".join(result)


def _variable(text: str, place: int, variables: dict[str, str]) -> tuple[str, int]:
    braced = text[place : place + 1] == "{"
    start = end = place + braced
    while end < len(text) and (text[end] == "_" or (text[end].isalnum() and text[end].isascii())):
        end += 1
    name = text[start:end]
    if not braced:
        return (variables.get(name, ""), end) if name else ("$", end)
    close, depth = end, 1
    while close < len(text):
        depth += {"{": 1, "}": -1}.get(text[close], 0)
        if depth == 0:
            break
        close += 1
    if close >= len(text):
        raise ValueError(f"{text!r}: a brace is not closed")
    rest, value = text[end:close], variables.get(name, "")
    if rest.startswith((":-", "-")):
        keep = bool(value) if rest.startswith(":") else name in variables
        value = value if keep else expand(rest.partition("-")[2], variables)
    elif rest.startswith((":+", "+")):
        use = bool(value) if rest.startswith(":") else name in variables
        value = expand(rest.partition("+")[2], variables) if use else ""
    elif rest:
        raise ValueError(f"{text!r}: ${{{name}{rest}}} is not supported")
    return value, close + 1


def _short(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    cut = line[: most - 2]
    return f"{cut.rpartition(' ')[0] or cut} …"


def decode_recipe(data: bytes | dict[str, Any]) -> ImageRecipe:
    """A recipe from JSON. Raises msgspec.ValidationError."""
    return (
        msgspec.json.decode(data, type=ImageRecipe) if isinstance(data, bytes) else msgspec.convert(data, ImageRecipe)
    )
