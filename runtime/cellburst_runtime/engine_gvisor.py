"""The `gvisor` engine: each container is a sandbox of runsc with its own kernel.

runsc runs in the foreground as a child in a session of its own: its exit code is the container's, and it outlives this
process, so a worker that starts again finds it by its id and ends it. As root limits hold by a group that the runtime
makes first; without root (`--rootless`) there are no limits on the host, no network and no snapshots.

Checkpoints are written by `engine_checkpoint`. A restored sandbox is a new one: its own group, its own fresh network
namespace, its own mounts of the same places. It takes the number of CPUs it shows, the sizes of memory file systems and the
limits inside from the checkpoint; addresses, names and limits on the host are its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import platform
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import EngineInfo

from .cgroup_moves import QuickMoves
from .cgroups import Cgroup, Cgroups
from .engine import Container, ContainerSpec
from .engine_base import finish
from .engine_checkpoint import GvisorContainer
from .engine_child import Child
from .image_root import clear_image_root, mount_image_root
from .oci import all_mounts, config, host_limits, visible_cpus, write_bundle
from .record import ContainerRecord, load_record
from .removal import NetworkRemover, Remover
from .snapshot_key import cpu_text, files_text, mounts_text
from .tools import find_program

START_SECONDS = 60.0  # engine start on a machine that swaps; 0.2 s is usual
RESTORE_SECONDS = 20.0  # at least; 0.2 s is usual, and 1 s for 1 GB from memory
RESTORE_BYTES_PER_SECOND = 50_000_000  # of the slowest disk that is waited for
_POLL_SECONDS = 0.005
_MOST_REASON_LETTERS = 300  # of a panic: what fits in a phase's detail
_PID_FILE = "pid"  # in the bundle: runsc writes it when the sandbox is there
_RUNSC_FAILED = 128  # the exit code of runsc's own errors
_STARTED = ("running", "stopped")  # `status` in runsc's state file, after "creating" and "created"
# On newer kernels every network namespace shows this folder, and runsc of 2024 takes one that does for the host's own
# and refuses it. It is hidden from runsc by an empty mount in a mount namespace of its own.
_HIDDEN_FROM_RUNSC = "/proc/sys/net/core"

log = logging.getLogger(__name__)


class ContainerNetwork(Protocol):
    """What the engine needs of `network.ContainerNetwork`."""

    @property
    def namespace_path(self) -> Path:
        """The network namespace, fresh: used for one sandbox only."""

    @property
    def nameserver(self) -> str:
        """The address of the resolver that answers in it."""


class NetworkMaker(NetworkRemover, Protocol):
    """What the engine needs of `network.Networks`."""

    def begin(self, container_id: str) -> None:
        """Start making what `create` then gives. `remove` must follow."""

    async def create(self, container_id: str) -> ContainerNetwork:
        """Make a network namespace with a way out. Raises PlatformError."""


@dataclass(frozen=True)
class GvisorSettings:
    """How runsc is called on this machine. `root` keeps runsc's state files; a short path, sockets lie in it.

    `disconnects`: this runsc has `--net-disconnect-ok`.
    """

    runsc: str
    root: Path
    version: str
    rootless: bool = False
    disconnects: bool = True

    def command(self, *arguments: str) -> list[str]:
        """A runsc command line without the flags of a container."""
        return [self.runsc, f"--root={self.root}", *arguments]


class GvisorEngine:
    """See `engine.Engine`. `networks` is None where containers cannot have one; `no_network` then says why."""

    def __init__(
        self,
        settings: GvisorSettings,
        cgroups: Cgroups,
        networks: NetworkMaker | None,
        *,
        no_network: str = "",
        no_limits: str = "",
        gpu: bool = False,
        snapshot: bool = False,
    ) -> None:
        self._settings = settings
        self._cgroups = cgroups
        self._networks = networks if not settings.rootless else None
        self._no_network = no_network
        self._no_limits = no_limits or ("without root the kernel's limits cannot be set" if settings.rootless else "")
        self._remover = Remover(cgroups, networks)
        self._quick_moves = QuickMoves(cgroups.own_procs())
        self.info = EngineInfo(
            name="gvisor",
            isolates=True,
            snapshot=snapshot and not settings.rootless,
            network=self._networks is not None,
            gpu=gpu,
            unprivileged=settings.rootless,
            version=settings.version,
            warning="gVisor without root: no network, and memory and CPU are not limited" if settings.rootless else "",
        )

    @property
    def settings(self) -> GvisorSettings:
        """How runsc is called here."""
        return self._settings

    @property
    def networks(self) -> tuple[NetworkMaker | None, str]:
        """What makes its containers' networks, else why they have none."""
        return self._networks, self._no_network

    def snapshot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """See `engine.Engine.snapshot_parts`: {} without root, and for a container with a real GPU.

        Not in it, since runsc takes it from the new container: sources of mounts, environment, host name, addresses,
        limits of the group.
        """
        return self._parts(spec) if self.info.snapshot and not spec.devices.nodes else {}

    def boot_parts(self, spec: ContainerSpec) -> dict[str, str]:
        """See `engine.Engine.boot_parts`: only where there are no snapshots. A GPU's device cannot be given to a sandbox that
        is up."""
        if self.info.snapshot or spec.devices.nodes:
            return {}
        return {**self._parts(spec), "start": "booted"}  # a template that may lie on the disk has another key

    def _parts(self, spec: ContainerSpec) -> dict[str, str]:
        program = Path(self._settings.runsc)
        network = spec.network == "outbound" and self._networks is not None
        cpus = visible_cpus(spec) if not self._no_limits else os.cpu_count() or 1
        return {
            "engine": f"runsc {self._settings.version} {program.stat().st_mtime_ns}",
            "engine flags": " ".join([*self._flags(spec, network=network, limited=not self._no_limits)]),
            "kernel": platform.release(),
            "CPU": cpu_text(),
            # Libraries make so many threads when they are loaded (see `mirror`).
            "CPUs": f"{max(1, math.ceil(spec.cpu))}, {cpus} shown",
            "process": f"{' '.join(spec.arguments)} uid={spec.uid} gid={spec.gid} pids={spec.pids}-{spec.most_pids}",
            "mounts": mounts_text(all_mounts(spec)),
            "files": files_text(spec.root_files, spec.links),
        }

    def begin(self, container_id: str, *, network: bool) -> None:
        """Start what `start` would wait for while the container's folder is made: its network, as many steps as all the rest (its
        record says `network` by now, so that its removal finds it), and the wait of its first move into a group."""
        if not self._no_limits:
            self._quick_moves.expect()
        if network and self._networks is not None:
            self._networks.begin(container_id)

    async def start(self, spec: ContainerSpec, checkpoint: Path | None = None) -> Container:
        """See `engine.Engine.start`."""
        record = load_record(spec.folder) or ContainerRecord(id=spec.id)
        record.engine, record.runsc, record.runsc_root = "gvisor", self._settings.runsc, str(self._settings.root)
        try:
            return await self._start(spec, record, checkpoint)
        except BaseException as problem:
            await finish(self._undo(spec, record))
            if isinstance(problem, OSError):
                raise _start_error(spec, str(problem)) from problem
            raise

    async def collect_garbage(self, folder: Path) -> None:
        """See `engine.Engine.collect_garbage`."""
        record = load_record(folder)
        if record is not None:
            await self._remover.remove(record, folder)

    async def _start(self, spec: ContainerSpec, record: ContainerRecord, checkpoint: Path | None) -> Container:
        notes: list[str] = []
        wants_network = spec.network == "outbound"
        has_network = wants_network and self._networks is not None
        if wants_network and not has_network:
            notes.append(f"No network in this container: {self._no_network or 'gVisor without root has none'}.")
        if self._no_limits:
            notes.append(f"Memory, CPU and process limits do not hold: {self._no_limits}.")
        record.network = has_network
        record.cgroup = "" if self._no_limits else spec.id
        record.save(spec.folder)
        namespace = ""
        if has_network and self._networks is not None:
            network = await self._networks.create(spec.id)
            namespace = str(network.namespace_path)
            resolver = f"nameserver {network.nameserver}\noptions timeout:2 attempts:2\n".encode()
            spec = replace(spec, root_files={**spec.root_files, "/etc/resolv.conf": resolver})
        cgroup = self._make_group(spec) if record.cgroup else None
        bundle = spec.folder / "engine"
        # Without root the user's own files are uid 0's inside: code runs as that, but without any capability.
        uid, gid = (0, 0) if self._settings.rootless else (spec.uid, spec.gid)
        document = config(
            spec, cgroup_path=cgroup.engine_path if cgroup else "", network_namespace=namespace, uid=uid, gid=gid
        )
        if spec.layers:
            await clear_image_root(bundle)
        await asyncio.to_thread(write_bundle, spec, bundle, document)
        if spec.layers:
            await mount_image_root(spec, bundle)
        self._settings.root.mkdir(parents=True, exist_ok=True)
        command = self._run_command(spec, bundle, namespace, limited=cgroup is not None, checkpoint=checkpoint)
        (bundle / _PID_FILE).unlink(missing_ok=True)
        child = await Child.start(command)
        record.pid, record.start_ticks = child.pid, child.start_ticks
        record.save(spec.folder)
        container = GvisorContainer(spec, record, self._remover, child, cgroup)
        container.network = "outbound" if has_network else "none"
        container.notes = notes
        try:
            await self._until_running(spec, child, checkpoint)
        except BaseException:
            await finish(container.abandon())
            raise
        return container

    def _make_group(self, spec: ContainerSpec) -> Cgroup:
        group = self._cgroups.group(spec.id)
        group.create(host_limits(spec))
        return group

    def _flags(self, spec: ContainerSpec, *, network: bool, limited: bool) -> list[str]:
        """The flags of a sandbox; the same ones at checkpoint and restore."""
        return [
            "--platform=systrap",
            f"--network={'sandbox' if network else 'none'}",
            "--overlay2=none",  # writable places are mounts of stated sizes; an overlay in memory has none
            "--host-uds=open",  # the runner dials the worker's socket in a bound folder
            *(["--cpu-num-from-quota"] if limited else ["--ignore-cgroups"]),
            # A session with an open connection could not be checkpointed; restored, that connection says it was aborted.
            *(["--net-disconnect-ok"] if self._settings.disconnects else []),
            *(["--rootless"] if self._settings.rootless else []),
            *spec.devices.engine_flags,
        ]

    def _run_command(
        self, spec: ContainerSpec, bundle: Path, namespace: str, *, limited: bool, checkpoint: Path | None
    ) -> list[str]:
        flags = self._flags(spec, network=bool(namespace), limited=limited)
        verb = ["run"] if checkpoint is None else ["restore", f"--image-path={checkpoint}"]
        places = ["--bundle", str(bundle), f"--pid-file={bundle / _PID_FILE}"]
        command = self._settings.command(*flags, *verb, *places, spec.id)
        if not namespace:
            return command
        script = f"mount -t tmpfs -o size=4k none {_HIDDEN_FROM_RUNSC} && exec {shlex.join(command)}"
        # A file system mounted later (the layer of another container) must not stay busy through this namespace.
        private = [find_program("unshare") or "unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
        # The folder to hide is another one in each network namespace.
        return [find_program("nsenter") or "nsenter", f"--net={namespace}", *private]

    async def _until_running(self, spec: ContainerSpec, child: Child, checkpoint: Path | None) -> None:
        """Return when runsc's state file says so, or when it has ended already: `wait` then says how."""
        state = self._settings.root / f"{spec.id}_sandbox:{spec.id}.state"
        seconds = START_SECONDS if checkpoint is None else _restore_seconds(checkpoint)
        failed = _start_error if checkpoint is None else _restore_error
        try:
            async with asyncio.timeout(seconds):
                while not _is_running(state):
                    if child.ended:
                        # Its state file went with it: a container may be over before anyone has looked.
                        if (spec.folder / "engine" / _PID_FILE).exists() and await child.wait() != _RUNSC_FAILED:
                            return
                        raise failed(spec, await child.output())
                    await asyncio.sleep(_POLL_SECONDS)
        except TimeoutError:
            raise failed(spec, f"runsc did not start it within {seconds:g} s") from None

    async def _undo(self, spec: ContainerSpec, record: ContainerRecord) -> None:
        """After a failed start: end and remove all that was made, but for what the caller made in the folder."""
        await self._remover.end(record)
        if record.network and self._networks is not None:
            await self._networks.remove(spec.id)
        if record.cgroup:
            await self._cgroups.group(record.cgroup).remove()


def _is_running(state: Path) -> bool:
    try:
        return json.loads(state.read_bytes()).get("status") in _STARTED
    except (OSError, ValueError):
        return False  # not there yet, or being written


def _start_error(spec: ContainerSpec, reason: str) -> CellburstError:
    full = "no space left" in reason.lower()
    reason = _without_traces(reason)
    return error(
        ErrorCode.DISK_FULL if full else ErrorCode.START_FAILED,
        f"container {spec.id} could not be started: {reason or 'runsc gave no reason'}",
        next="free disk space on the worker's machine" if full else "cellburst status shows the worker's notes",
    )


def _restore_error(spec: ContainerSpec, said: str) -> CellburstError:
    """What runsc says of a restore is of its own insides: for the log, and the start goes on without this checkpoint."""
    log.warning("gVisor refused a restore", extra={"container": spec.id, "said": said})
    full = "no space left" in said.lower()
    return error(
        ErrorCode.DISK_FULL if full else ErrorCode.START_FAILED,
        f"gVisor {'had no space' if full else 'refused'} to restore container {spec.id}: what it said is in the worker's log",
        next="free disk space on the worker's machine" if full else "",
    )


def _without_traces(reason: str) -> str:
    """What runsc says before the traces of its goroutines, if it panicked."""
    said, panic, _ = reason.partition("goroutine ")
    return said.strip()[:_MOST_REASON_LETTERS] if panic else reason


def _restore_seconds(checkpoint: Path) -> float:
    try:
        return RESTORE_SECONDS + sum(path.stat().st_size for path in checkpoint.iterdir()) / RESTORE_BYTES_PER_SECOND
    except OSError:
        return RESTORE_SECONDS  # runsc says what is wrong with it
