"""Which engines work on this machine: found, tried once (a success is kept by version), the preferred one first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .cgroups import Cgroups
from .engine import Container, ContainerSpec, Engine, Mount
from .engine_gvisor import GvisorEngine, GvisorSettings
from .engine_process import ProcessEngine
from .layer_make import make_folders
from .network import Networks
from .record import CONTAINERS
from .removal import remove_folder
from .tools import find_runsc, run_command

ENGINES = ("gvisor", "process")
SELF_TEST_SECONDS = 30.0
_CACHE = "engines.json"
_SNAPSHOTS = " snapshots"  # after a key of the cache: whether checkpoints work, too
_POLL_SECONDS = 0.01
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
    cgroups = cgroups or Cgroups(tag=networks.tag)
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
    flags = await run_command([runsc, "flags"])
    settings = GvisorSettings(
        runsc,
        run_folder / "runsc",
        version,
        rootless=os.geteuid() != 0,
        disconnects="-net-disconnect-ok" in flags.output + flags.errors,
    )
    gpu = bool(driver_version) and await _supports_driver(runsc, driver_version)
    key = f"{runsc} {version} {Path(runsc).stat().st_mtime_ns} {platform.release()} uid={os.geteuid()} {no_limits}"
    known = _load_results(data_folder)
    snapshots = key + _SNAPSHOTS
    if known.get(key, "untried"):  # a failure is tried again: what was in the way may be gone, and much hangs on it
        trial = GvisorEngine(settings, cgroups, None, no_network="a trial", no_limits=no_limits)
        # What can be checkpointed and restored runs, too.
        known = {snapshots: "" if not settings.rootless and not await snapshot_test(trial, run_folder) else "no"}
        why_not = known[snapshots] and await self_test(trial, run_folder) and await self_test(trial, run_folder)
        if why_not:
            return None, why_not
        known[key] = ""
        (data_folder / _CACHE).write_bytes(msgspec.json.encode(known))
    engine = GvisorEngine(
        settings, cgroups, networks if not no_network else None, no_network=no_network, no_limits=no_limits, gpu=gpu,
        snapshot=not known.get(snapshots, "untried"),
    )  # fmt: skip
    return engine, ""


async def self_test(engine: Engine, run_folder: Path) -> str:
    """Run a small container to its end; "" when it did what it should, else what went wrong."""
    return await _tried(_first_container(engine, run_folder))


async def snapshot_test(engine: Engine, run_folder: Path) -> str:
    """Checkpoint a small container that waits, and restore it in another that lets it end; "" when that worked."""
    return await _tried(_checkpoint_and_restore(engine, run_folder))


async def _tried(trial: Coroutine[None, None, str]) -> str:
    try:
        async with asyncio.timeout(SELF_TEST_SECONDS):
            return await trial
    except TimeoutError:
        return f"a first container gave no answer within {SELF_TEST_SECONDS:g} s"
    except CellburstError as problem:
        return problem.info.message


async def _first_container(engine: Engine, run_folder: Path) -> str:
    with _trial(run_folder, "echo works > /cellburst/var/out/result && test ! -w /") as spec:
        container = await engine.start(spec)
        try:
            return await _result(container, spec)
        finally:
            await container.remove()


async def _checkpoint_and_restore(engine: Engine, run_folder: Path) -> str:
    script = """
echo waits > /cellburst/var/out/begun
while test ! -e /cellburst/var/in/go; do sleep 0.01; done
echo works > /cellburst/var/out/result && test ! -w /"""
    with _trial(run_folder, script) as first, _trial(run_folder, script) as second:
        checkpoint = second.folder / "checkpoint"
        container = await engine.start(first)
        try:
            while not (first.folder / "var" / "out" / "begun").is_file():
                await asyncio.sleep(_POLL_SECONDS)
            await container.checkpoint(checkpoint)
        finally:
            await container.remove()
        (second.folder / "var" / "in" / "go").touch()
        restored = await engine.start(second, checkpoint)
        try:
            return await _result(restored, second)
        finally:
            await restored.remove()


async def _result(container: Container, spec: ContainerSpec) -> str:
    end = await container.wait()
    result = spec.folder / "var" / "out" / "result"
    works = end.exit_code == 0 and result.is_file() and result.read_text() == "works\n"
    return "" if works else f"a first container ended with {end.exit_code} ({end.cause}): {end.detail[-500:]}"


@contextlib.contextmanager
def _trial(run_folder: Path, script: str) -> Iterator[ContainerSpec]:
    """A small container, among all others: what a worker that is killed leaves of it is found as theirs is."""
    id = f"selftest-{secrets.token_hex(4)}"
    folder = run_folder / CONTAINERS / id
    folder.mkdir(mode=0o700, parents=True)
    make_folders(folder, (1000, 1000))
    mounts = tuple(Mount(place, os.path.realpath(place)) for place in _SYSTEM if Path(place).is_dir())
    try:
        yield ContainerSpec(
            id=id, folder=folder, arguments=("/bin/sh", "-c", script),
            environment={"PATH": "/usr/bin:/bin", "HOME": "/home/user"}, working_folder="/", mounts=mounts, links={},
            root_files={}, cpu=1.0, memory_mib=512, network="none",
        )  # fmt: skip
    finally:
        remove_folder(folder)


async def _supports_driver(runsc: str, driver_version: str) -> bool:
    """Whether runsc's nvproxy knows this driver; it must know the very version."""
    result = await run_command([runsc, "nvproxy", "list-supported-drivers"])
    return result.ok and driver_version in result.output.split()


def _load_results(data_folder: Path) -> dict[str, str]:
    try:
        return msgspec.json.decode((data_folder / _CACHE).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.MsgspecError):
        return {}
