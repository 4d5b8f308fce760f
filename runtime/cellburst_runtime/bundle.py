"""Bundles: ipykernel and all it needs for one Python minor version, for environments that have none of their own.

The cell executor is a full ipykernel. Where the mirror (or image) has it, that one is used and nothing here happens. Else
DATA/bundles/KEY/packages is shown to the container and the executor appends it to its `sys.path`, so that the environment's
own packages come first. A bundle is made once, in one step (temporary folder, rename) under a lock that other processes see,
from exact versions (`bundle_pins`), and needs no network afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import MirrorSpec

from .bundle_pins import PINS
from .image_build import BuiltImage
from .image_root import find_in_layers, names_in_layers
from .tools import CommandResult, find_program, run_command

FOLDER = "bundles"  # below the data folder
SHOWN = "/cellburst/bundle"  # in a container: SHOWN/3.11 is the bundle for Python 3.11
LEAST_IPYKERNEL = (6, 29)  # what the cell executor is written for
INSTALL_SECONDS = 300.0  # 30 wheels, 30 MB: a second from a cache, minutes over a slow line
_LOCK_SECONDS = 0.1  # a waiting flock could not be cancelled: it is asked for again
_GLIBC = (2, 28)  # the oldest that all pinned wheels run on
_SHOWN_LINES = 6  # of what the installer said
_VERSION = re.compile(r"(\d+)\.(\d+)")
_FOLDER_MINOR = re.compile(r"/python(\d+\.\d+)(t?)(/|$)")
_WANTED = ("ipykernel", "cloudpickle")


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk. `packages` is what goes to the end of `sys.path`; `minor` is "3.11"."""

    packages: Path
    minor: str


def minor_of(python_version: str) -> str:
    """The minor version of a version: 3.11 of 3.11.7. Raises RequestError (BAD_ARGUMENT) for what is no version."""
    found = _VERSION.match(python_version)
    if found is None:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{python_version!r} is no Python version", allowed="a version such as 3.11.7",
            next="name the interpreter's own version",
        )  # fmt: skip
    return f"{int(found[1])}.{int(found[2])}"


async def bundle_for_mirror(spec: MirrorSpec, data_folder: Path) -> Bundle | None:
    """The bundle that a mirror's container needs, made now if it is not there yet; None where the mirror has ipykernel.

    Raises what `make_bundle` raises, and START_FAILED where the environment's ipykernel is too old for the executor.
    """
    if not await asyncio.to_thread(lacks_kernel, spec):
        return None
    free_threaded = any(found[2] for entry in spec.sys_path if (found := _FOLDER_MINOR.search(entry)))
    return await make_bundle(data_folder, spec.python_version, free_threaded=free_threaded)


async def bundle_for_image(image: BuiltImage, data_folder: Path) -> Bundle | None:
    """The same for a built image."""
    names = (
        await asyncio.to_thread(names_in_layers, image.layers, image.site_packages) if image.site_packages else set()
    )
    found = _found_among(names, set(_WANTED))
    _check_age(found.get("ipykernel", ()), "the image", 'pip_install("ipykernel")')
    if found.keys() >= set(_WANTED):
        return None
    if find_in_layers(image.layers, f"lib/ld-musl-{platform.machine()}.so.1") is not None:
        raise error(
            ErrorCode.START_FAILED, "this image has no ipykernel, and there is no bundle for musl (Alpine)",
            next='add pip_install("ipykernel", "cloudpickle") to it, or take a Debian image',
        )  # fmt: skip
    return await make_bundle(data_folder, image.python_version)


def lacks_kernel(spec: MirrorSpec) -> bool:
    """Whether ipykernel or cloudpickle is in none of the folders that the mirror's interpreter imports from.

    Only lists folders: nothing is imported and no interpreter started, since the paths come from a notebook. Raises
    START_FAILED for an ipykernel that is too old. An environment with one of unknown version is taken to be good.
    """
    missing = set(_WANTED)
    for folder in _import_folders(spec):
        found = _found_in(folder, missing)
        missing -= found.keys()
        _check_age(found.get("ipykernel", ()), folder, f"{spec.executable} -m pip install -U ipykernel")
    return bool(missing)


def _check_age(version: tuple[int, ...], where: str, update: str) -> None:
    if version and version < LEAST_IPYKERNEL:
        raise error(
            ErrorCode.START_FAILED,
            f"ipykernel {'.'.join(map(str, version))} in {where} is too old to run cells in a container",
            allowed=f"ipykernel {LEAST_IPYKERNEL[0]}.{LEAST_IPYKERNEL[1]} or later, or none at all",
            next=update,
        )


async def make_bundle(
    data_folder: Path, python_version: str, *, machine: str = "", free_threaded: bool = False
) -> Bundle:
    """The bundle for a Python version; installed now if it is not on disk. `machine` is an image's, "" this machine's.

    May be called by several tasks and processes at once. Raises PlatformError: START_FAILED (no bundle for this Python or
    system, or the installer failed: its own last lines are in the message) or DISK_FULL. Leaves nothing half made.
    """
    minor, target = minor_of(python_version), _platform(machine)
    if minor not in PINS or free_threaded:
        raise error(
            ErrorCode.START_FAILED,
            f"this environment has no ipykernel, and there is no bundle for Python {minor}{'t' if free_threaded else ''}",
            allowed=f"Python {', '.join(PINS)}",
            next="install ipykernel and cloudpickle into the environment",
        )
    home = data_folder / FOLDER
    made = home / _key(minor, target)
    if not await asyncio.to_thread(_is_whole, made):
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            async with _locked(home / f"{made.name}.lock"):
                if not await asyncio.to_thread(_is_whole, made):
                    await _make(made, minor, target)
        except OSError as problem:
            raise _failed(minor, str(problem), full=problem.errno == errno.ENOSPC) from problem
    return Bundle(made / "packages", minor)


# -- does the environment have it ----------------------------------------------------------------------------------


def _import_folders(spec: MirrorSpec) -> Iterator[str]:
    minor = minor_of(spec.python_version)
    for entry in spec.sys_path:
        found = _FOLDER_MINOR.search(entry)
        if found is None or found[1] == minor:  # a kernel's own folders are not those of another interpreter
            yield entry
    for prefix in dict.fromkeys((spec.prefix, spec.base_prefix)):
        if not prefix or (prefix != spec.prefix and not _sees_system(spec.prefix)):
            continue
        yield from (f"{prefix}/{lib}/python{minor}/site-packages" for lib in ("lib", "lib64"))
        yield from (f"{prefix}/lib/python3/dist-packages", f"{prefix}/local/lib/python{minor}/dist-packages")


def _sees_system(prefix: str) -> bool:
    """Whether a virtual environment also imports what is installed beside its base interpreter."""
    try:
        text = Path(prefix, "pyvenv.cfg").read_text(errors="replace")
    except OSError:
        return True  # no virtual environment
    return re.search(r"^\s*include-system-site-packages\s*=\s*true\s*$", text, re.IGNORECASE | re.MULTILINE) is not None


def _found_in(folder: str, wanted: set[str]) -> dict[str, tuple[int, ...]]:
    """Which of the packages a folder has, as modules or as the metadata of an (editable) install, and their versions."""
    try:
        return _found_among(os.listdir(folder), wanted)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return {}


def _found_among(names: Iterable[str], wanted: set[str]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name in names:
        package, _, rest = name.partition("-")
        if package in wanted and (not rest or rest.endswith((".dist-info", ".egg-info"))):
            version = _VERSION.match(rest)
            found[package] = (int(version[1]), int(version[2])) if version else found.get(package, ())
    return found


# -- making it -----------------------------------------------------------------------------------------------------


def _platform(machine: str) -> str:
    """The installer's name of the platform. Raises START_FAILED where there are no wheels for it."""
    machine = machine or platform.machine()
    name, version = platform.libc_ver()
    old = name == "glibc" and tuple(int(part) for part in version.split(".")[:2] if part.isdecimal()) < _GLIBC
    if sys.platform != "linux" or name != "glibc" or old or machine not in ("x86_64", "aarch64"):
        raise error(
            ErrorCode.START_FAILED,
            f"this environment has no ipykernel, and there is no bundle for {sys.platform} {machine} {name} {version}",
            allowed=f"Linux on x86_64 or aarch64 with glibc {_GLIBC[0]}.{_GLIBC[1]} or later",
            next="install ipykernel and cloudpickle into the environment",
        )
    return f"{machine}-manylinux_{_GLIBC[0]}_{_GLIBC[1]}"


def _key(minor: str, target: str) -> str:
    text = "\n".join(["cellburst bundle 1", minor, target, *PINS[minor]])
    return f"{minor}-{hashlib.blake2b(text.encode(), digest_size=10).hexdigest()}"


def _is_whole(made: Path) -> bool:
    """Whether it holds what its manifest says: files can be lost when a machine loses its power, or to a cleaner."""
    try:
        manifest = json.loads((made / "manifest.json").read_text())
        return (manifest["files"], manifest["size_bytes"]) == _measure(made / "packages")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _measure(packages: Path) -> tuple[int, int]:
    sizes = [(Path(folder) / name).stat().st_size for folder, _, names in os.walk(packages) for name in names]
    return len(sizes), sum(sizes)


@contextlib.asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    """Hold a lock that all processes on this machine see; it goes with the process that holds it."""
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(_LOCK_SECONDS)
        yield


async def _make(made: Path, minor: str, target: str) -> None:
    """Under the lock: install beside its place, then rename."""
    for left in made.parent.glob(f"{made.name}.making-*"):  # of a maker that was killed: nobody else holds the lock
        await asyncio.to_thread(shutil.rmtree, left, True)
    making = Path(tempfile.mkdtemp(prefix=f"{made.name}.making-", dir=made.parent))
    try:
        await _install(making, minor, target)
        await asyncio.to_thread(_finish, making, made, minor, target)
    finally:
        await asyncio.to_thread(shutil.rmtree, making, True)


async def _install(making: Path, minor: str, target: str) -> None:
    beside = Path(sys.executable).with_name("uv")
    installer = str(beside) if os.access(beside, os.X_OK) else find_program("uv")
    if not installer:
        raise _failed(minor, "the installer uv is not here")
    command = [
        installer, "pip", "install", "--directory", str(making), "--target", str(making / "packages"), "--no-deps",
        "--python", sys.executable, "--python-version", minor, "--python-platform", target, "--only-binary", ":all:",
        "--link-mode", "copy", "--no-progress", "--color", "never", *PINS[minor],
    ]  # fmt: skip
    # The versions are exact: what its cache has need not be asked for, and without a network it is all there is.
    result = await run_command([*command, "--offline"], seconds=INSTALL_SECONDS)
    if not result.ok:
        await asyncio.to_thread(shutil.rmtree, making / "packages", True)
        result = await run_command(command, seconds=INSTALL_SECONDS)
    if not result.ok:
        raise _failed(minor, _last_lines(result), full="os error 28" in result.errors)
    if minor == f"{sys.version_info[0]}.{sys.version_info[1]}":
        # It cannot be written from inside. Unchecked: nothing changes in a bundle.
        compiler = [sys.executable, "-I", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        await run_command([*compiler, str(making / "packages")], seconds=INSTALL_SECONDS)


def _finish(making: Path, made: Path, minor: str, target: str) -> None:
    packages = making / "packages"
    shutil.rmtree(packages / "bin", ignore_errors=True)  # scripts with the path of another interpreter
    (packages / ".lock").unlink(missing_ok=True)
    for folder, _, names in os.walk(packages):
        # Whatever this process's umask is: the container's own user reads them.
        Path(folder).chmod(0o755)
        for name in names:
            (Path(folder) / name).chmod(0o644)
    files, size_bytes = _measure(packages)
    manifest = {
        "python": minor, "platform": target, "packages": list(PINS[minor]), "files": files, "size_bytes": size_bytes,
    }  # fmt: skip
    (making / "manifest.json").write_text(json.dumps(manifest, indent=1))
    if made.exists():  # not whole: a container that has it mounted keeps what is left of it
        made.rename(making / "old")
    making.chmod(0o755)
    making.rename(made)
    shutil.rmtree(made / "old", ignore_errors=True)


def _last_lines(result: CommandResult) -> str:
    lines = [line.rstrip() for line in result.errors.splitlines() if line.strip()]
    return "\n".join(lines[-_SHOWN_LINES:]) or result.reason()


def _failed(minor: str, why: str, *, full: bool = False) -> CellburstError:
    message = f"this environment has no ipykernel, and a bundle of it for Python {minor} could not be made: {why}"
    if full:
        return error(ErrorCode.DISK_FULL, message, next="free some space in the data folder")
    return error(
        ErrorCode.START_FAILED,
        message,
        next="install ipykernel and cloudpickle into the environment, or give this machine uv and a package index "
        "(UV_DEFAULT_INDEX) and run the cell again",
    )
