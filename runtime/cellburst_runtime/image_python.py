"""A Python for an image that has none of the wanted version: one of this machine's, copied to /usr/local.

In order: those that uv manages (they need nothing of a system), others that uv or pyenv has and the worker's own (they need the
system's libraries, so each is tried in the image), and one that uv downloads. What the interpreter's user installed into it stays
behind.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from .tools import run_command

PREFIX = "/usr/local"
_DOWNLOAD_SECONDS = 600.0
_ASK = """
import json, sys, sysconfig
version = "%d.%d.%d" % sys.version_info[:3]
print(json.dumps({"prefix": sys.base_prefix, "version": version, "stdlib": sysconfig.get_path("stdlib")}))
"""
# Tried inside the image: the modules whose libraries are not part of an interpreter, and where packages go.
PROBE = """
import json, sys, sysconfig
import ctypes, hashlib, ssl, sqlite3, zlib, bz2, lzma
print("PYTHON " + json.dumps({"version": "%d.%d.%d" % sys.version_info[:3], "site_packages": sysconfig.get_path("purelib")}))
"""
# The same for an image's own Python, which may lack some of them.
PROBE_BARE = """
import json, sys, sysconfig
print("PYTHON " + json.dumps({"version": "%d.%d.%d" % sys.version_info[:3], "site_packages": sysconfig.get_path("purelib")}))
"""


class FoundPython(msgspec.Struct, frozen=True):
    """An interpreter on this machine: its folders and "3.12.1"."""

    prefix: str
    version: str
    stdlib: str


@dataclass(frozen=True)
class PythonPlaces:
    """Where to look. `uv` is uv's program; `downloads` a folder for what it downloads."""

    uv: str
    downloads: Path


async def candidates(
    places: PythonPlaces, version: str, log: Callable[[str], None], *, least: str = ""
) -> AsyncGenerator[FoundPython, None]:
    """Interpreters of the version ("3.12"), the best to copy first, none before `least` ("3.12.3"). The download is only begun
    when all others were passed over."""
    wanted = _request(version, least)
    seen: set[str] = set()
    for program in [*await _uv_found(places, wanted), *_pyenv_found(version), f"{sys.base_prefix}/bin/python{version}"]:
        python = await _ask(program)
        if python is None or python.prefix in seen or python.prefix in ("/usr", "/"):
            continue
        seen.add(python.prefix)
        if _numbers(python.version) >= _numbers(least):
            yield python
        else:
            log(f"the Python {python.version} at {python.prefix} is before {least}")
    log(f"downloading Python {f'{least} or later' if least else version}")
    places.downloads.mkdir(parents=True, exist_ok=True)
    install = ["python", "install", "--no-bin", "--install-dir", str(places.downloads), wanted]
    result = await run_command([places.uv, *install], seconds=_DOWNLOAD_SECONDS)
    if not result.ok:
        log(f"uv: {result.reason()}")
        return
    for folder in sorted(places.downloads.glob(f"cpython-{version}*"), reverse=True):
        python = await _ask(str(folder / "bin" / f"python{version}"))
        if python is not None and python.prefix not in seen and _numbers(python.version) >= _numbers(least):
            seen.add(python.prefix)
            yield python


def _request(version: str, least: str) -> str:
    """What uv is asked for."""
    major, _, minor = version.partition(".")
    return f">={least},<{major}.{int(minor) + 1}" if least else version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


async def _uv_found(places: PythonPlaces, wanted: str) -> list[str]:
    programs = []
    for which in ("--managed-python", "--no-managed-python"):
        result = await run_command([places.uv, "python", "find", "--no-project", "--system", which, wanted])
        if result.ok:
            programs.append(result.output.strip())
    return programs


def _pyenv_found(version: str) -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    found = root.glob(f"versions/{version}.*/bin/python{version}")
    return [str(path) for path in sorted(found, key=lambda path: _numbers(path.parts[-3]), reverse=True)]


async def _ask(program: str) -> FoundPython | None:
    result = await run_command([program, "-I", "-c", _ASK])
    if result.ok:
        with contextlib.suppress(msgspec.MsgspecError):
            return msgspec.json.decode(result.output, type=FoundPython)
    return None


def copy_python(python: FoundPython, root: Path) -> None:
    """Copy an interpreter to /usr/local of the root. Raises OSError."""
    minor = python.version.rpartition(".")[0]
    source, target = Path(python.prefix), root / PREFIX.lstrip("/")
    for name in ("bin", "lib", "include"):
        (target / name).mkdir(parents=True, exist_ok=True)
    shutil.copy2(os.path.realpath(source / "bin" / f"python{minor}"), target / "bin" / f"python{minor}")
    for link in ("python3", "python"):
        (target / "bin" / link).unlink(missing_ok=True)
        (target / "bin" / link).symlink_to(f"python{minor}")
    for library in source.glob("lib/libpython*.so*"):
        shutil.copy2(library, target / "lib" / library.name, follow_symlinks=False)
    stdlib = Path(python.stdlib)
    skipped = {"site-packages", "__pycache__", "EXTERNALLY-MANAGED"}

    def ignore(folder: str, names: list[str]) -> set[str]:
        tests = {"test", "tests", "idle_test"} if Path(folder) != stdlib else {"test"}
        archives = {name for name in names if name.endswith(".a")}
        return (skipped | tests | archives) & set(names)

    place = target / "lib" / f"python{minor}"
    shutil.copytree(stdlib, place, symlinks=True, ignore=ignore, dirs_exist_ok=True)
    (place / "site-packages").mkdir(exist_ok=True)
    headers = source / "include" / f"python{minor}"
    if headers.is_dir():
        shutil.copytree(headers, target / "include" / headers.name, symlinks=True, dirs_exist_ok=True)
