"""Which engines work on this machine: found, tried once (a success is kept by version), the preferred one first."""

from __future__ import annotations

import asyncio
import os
import platform
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .cgroups import Cgroups
from .engine import ContainerSpec, Engine, Mount
from .engine_gvisor import GvisorEngine, GvisorSettings
from .engine_process import ProcessEngine
from .layer_make import make_folders
from .network import Networks
from .tools import find_runsc, run_command

ENGINES = ("gvisor", "process")
SELF_TEST_SECONDS = 30.0
_CACHE = "engines.json"
_SYSTEM = ("/usr", "/bin", "/lib", "/lib64")


@dataclass
class Choice:
    """The engines that work here, preferred first, and what is lesser about this machine.

    `fallback` says why the first one is not the best there is, for the users of its containers; "" when it is.
    """

    engines: list[Engine]
    cgroups: Cgroups
    notes: list[str] = field(default_factory=list)
    fallback: str = ""


async def find_engines(
    *,
    run_folder: Path,
    data_folder: Path,
    networks: Networks,
    only: str = "",
    driver_version: str = "",
    cgroups: Cgroups | None = None,
) -> Choice:
    """Find what works. Raises RequestError (BAD_ARGUMENT) when `only` is no engine, or does not work here (why)."""
    if only and only not in ENGINES:
        raise error(ErrorCode.BAD_ARGUMENT, f"engine={only!r} is not an engine", allowed=", ".join(ENGINES))
    cgroups = cgroups or Cgroups()
    no_limits = cgroups.probe() if os.geteuid() == 0 else "that needs root"
    choice = Choice([], cgroups)
    if only in ("", "gvisor"):
        no_network = await networks.probe()
        engine, why_not = await _gvisor(
            run_folder, data_folder, networks, cgroups, no_network, no_limits, driver_version
        )
        if engine is not None:
            choice.engines.append(engine)
            if no_network:
                choice.notes.append(f"Containers have no network: {no_network}.")
        elif only:
            raise error(ErrorCode.BAD_ARGUMENT, f"engine='gvisor' does not work here: {why_not}", allowed="process")
        else:
            choice.fallback = f"The gvisor engine does not work here: {why_not}."
            choice.notes.append(choice.fallback)
    if only in ("", "process"):
        choice.engines.append(ProcessEngine(cgroups, no_limits=no_limits))
    if no_limits:
        choice.notes.append(f"Memory, CPU and process limits do not hold: {no_limits}.")
    return choice


async def _gvisor(
    run_folder: Path,
    data_folder: Path,
    networks: Networks,
    cgroups: Cgroups,
    no_network: str,
    no_limits: str,
    driver_version: str,
) -> tuple[Engine | None, str]:
    runsc = find_runsc(data_folder)
    if not runsc:
        return None, "runsc was not found (CELLBURST_RUNSC, the data folder's tools, PATH)"
    result = await run_command([runsc, "--version"])
    if not result.ok:
        return None, f"{runsc} does not run: {result.reason()}"
    version = result.output.split("\n")[0].removeprefix("runsc version ").strip()
    settings = GvisorSettings(runsc, run_folder / "runsc", version, rootless=os.geteuid() != 0)
    gpu = bool(driver_version) and await _supports_driver(runsc, driver_version)
    key = f"{runsc} {version} {Path(runsc).stat().st_mtime_ns} {platform.release()} uid={os.geteuid()} {no_limits}"
    known = _load_results(data_folder)
    if known.get(key, "untried"):  # a failure is tried again: what was in the way may be gone, and much hangs on it
        trial = GvisorEngine(settings, cgroups, None, no_network="a trial", no_limits=no_limits)
        why_not = await self_test(trial, run_folder) and await self_test(trial, run_folder)
        if why_not:
            return None, why_not
        (data_folder / _CACHE).write_bytes(msgspec.json.encode({key: ""}))
    engine = GvisorEngine(
        settings, cgroups, networks if not no_network else None, no_network=no_network, no_limits=no_limits, gpu=gpu
    )
    return engine, ""


async def self_test(engine: Engine, run_folder: Path) -> str:
    """Run a small container to its end; "" when it did what it should, else what went wrong."""
    with tempfile.TemporaryDirectory(prefix="try", dir=run_folder) as parent:
        folder = Path(parent) / "c"
        folder.mkdir(mode=0o700)
        make_folders(folder, (1000, 1000))
        mounts = tuple(Mount(place, os.path.realpath(place)) for place in _SYSTEM if Path(place).is_dir())
        spec = ContainerSpec(
            id=f"selftest-{secrets.token_hex(4)}", folder=folder,
            arguments=("/bin/sh", "-c", "echo works > /cellburst/var/out/result && test ! -w /"),
            environment={"PATH": "/usr/bin:/bin", "HOME": "/home/user"}, working_folder="/", mounts=mounts, links={},
            root_files={}, cpu=1.0, memory_mib=512, network="none",
        )  # fmt: skip
        try:
            async with asyncio.timeout(SELF_TEST_SECONDS):
                container = await engine.start(spec)
                try:
                    end = await container.wait()
                    result = folder / "var" / "out" / "result"
                    works = end.exit_code == 0 and result.is_file() and result.read_text() == "works\n"
                    return (
                        ""
                        if works
                        else f"a first container ended with {end.exit_code} ({end.cause}): {end.detail[-500:]}"
                    )
                finally:
                    await container.remove()
        except TimeoutError:
            return f"a first container gave no answer within {SELF_TEST_SECONDS:g} s"
        except CellburstError as problem:
            return problem.info.message


async def _supports_driver(runsc: str, driver_version: str) -> bool:
    """Whether runsc's nvproxy knows this driver; it must know the very version."""
    result = await run_command([runsc, "nvproxy", "list-supported-drivers"])
    return result.ok and driver_version in result.output.split()


def _load_results(data_folder: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((data_folder / _CACHE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}
