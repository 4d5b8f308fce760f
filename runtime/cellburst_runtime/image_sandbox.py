"""Running one program of a build step: a gVisor sandbox whose root is the image being made.

Inside it is uid 0 with the capabilities that Docker gives (but for device nodes and raw sockets), because packages' scripts
expect that; outside it is nothing: it sees the image and the few mounts of its step, and no file of the host. Its writes
go through the overlay into the draft. Limits hold by a group of its own, its network reaches the internet only, and a
watch ends it before it fills the disk.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import os
import shlex
import shutil
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import ErrorCode, error

from .cgroups import CPU_PERIOD_MICROSECONDS, Cgroup, Cgroups, Limits
from .devices_simulated import BIN
from .engine import DeviceGrant, Mount
from .engine_base import finish
from .engine_gvisor import GvisorSettings
from .engine_gvisor import NetworkMaker as NetworkMaker
from .image_config import DEFAULT_PATH
from .image_equipment import Grant
from .image_secrets import Hider
from .image_store import Draft
from .oci import HOST_TASKS_FIXED, HOST_TASKS_PER_PROCESS, MIB, OPEN_FILES, device_node
from .proc import process_stat
from .removal import Remover
from .tools import find_program

TAIL_LINES = 40
LINE_BYTES = 4096  # a line of a log; what is longer is cut
LOG_BYTES = 16 * MIB  # of one program's output: a build that prints more is in a loop
STEP_SECONDS = 3600.0
_WATCH_SECONDS = 1.0
_HIDDEN_FROM_RUNSC = "/proc/sys/net/core"  # see engine_gvisor
_CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN",
        "DAC_OVERRIDE",
        "FSETID",
        "FOWNER",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "SETFCAP",
        "NET_BIND_SERVICE",
        "SYS_CHROOT",
        "KILL",
        "AUDIT_WRITE",
    )
]


@dataclass(frozen=True)
class BuildMachine:
    """What this machine gives to builds. `networks` None: steps have no network, for the reason in `no_network`. `grant` None:
    they have no GPUs."""

    gvisor: GvisorSettings
    cgroups: Cgroups
    networks: NetworkMaker | None
    no_network: str = ""
    cpu: float = float(os.cpu_count() or 1)
    memory_mib: int = 4096
    most_memory_mib: int = 4096  # what a step can ask for
    pids: int = 4096
    disk_reserve_bytes: int = 1 << 30  # what a step always leaves free
    step_seconds: float = STEP_SECONDS
    grant: Grant | None = None

    @property
    def remover(self) -> Remover:
        """Ends and removes what a draft's record names."""
        return Remover(self.cgroups, self.networks)


@dataclass(frozen=True)
class Program:
    """One program of a step. `mounts` have their places in the scaffold below every image."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str = "/"
    uid: int = 0
    gid: int = 0
    groups: Sequence[int] = ()
    mounts: Sequence[Mount] = ()
    network: bool = True
    devices: DeviceGrant = field(default_factory=DeviceGrant)


@dataclass
class Outcome:
    """How it ended: exit code, its last lines, and why the build ended it ("" when it ended by itself)."""

    exit_code: int
    tail: list[str] = field(default_factory=list)
    ended_for: str = ""


async def run_program(machine: BuildMachine, draft: Draft, program: Program, log: Callable[[str], None]) -> Outcome:
    """Run it in `draft.root` to its end. Nothing of the sandbox is left then, also after a cancel.

    Raises PlatformError (START_FAILED) when the sandbox cannot be made.
    """
    record = draft.record
    record.engine, record.runsc, record.runsc_root = "gvisor", machine.gvisor.runsc, str(machine.gvisor.root)
    record.cgroup = draft.id
    record.network = program.network and machine.networks is not None
    record.save(draft.folder)
    try:
        namespace, nameserver = "", ""
        if record.network and machine.networks is not None:
            network = await machine.networks.create(draft.id)
            namespace, nameserver = str(network.namespace_path), network.nameserver
        group, limits = _make_group(machine, draft)
        bundle = draft.folder / "bundle"
        bundle.mkdir(exist_ok=True)
        etc = _etc_mounts(bundle, nameserver)
        document = _config(program, draft, group, limits, namespace, etc, machine.pids)
        (bundle / "config.json").write_text(json.dumps(document))
        machine.gvisor.root.mkdir(parents=True, exist_ok=True)
        command = _command(machine, bundle, draft.id, namespace, program.devices.engine_flags)
        return await _attend(machine, draft, command, group, log)
    finally:
        await finish(_clean(machine, draft))


async def run_on_host(
    machine: BuildMachine, draft: Draft, arguments: Sequence[str], log: Callable[[str], None]
) -> Outcome:
    """Run one of this machine's own programs for a draft, within the same limits; a build that ends ends all of it.

    Only for programs that run nothing of a user's (see image_base). Raises OSError when it cannot be started.
    """
    draft.record.engine, draft.record.cgroup, draft.record.network = "", draft.id, False
    draft.record.save(draft.folder)
    try:
        group, _ = _make_group(machine, draft)
        # Entered before the program begins: then whatever it starts is in the group too.
        enter = [f"echo 0 > {shlex.quote(str(path))}" for path in group.procs_files()]
        scratch = draft.folder / "host"  # what it would leave in /tmp when it is killed
        scratch.mkdir(exist_ok=True)
        enter.append(f"export TMPDIR={shlex.quote(str(scratch))}")
        command = ["sh", "-c", " && ".join([*enter, 'exec "$@"']), "sh", *arguments]
        return await _attend(machine, draft, command, group, log)
    finally:
        await finish(_clean(machine, draft))


def _make_group(machine: BuildMachine, draft: Draft) -> tuple[Cgroup, Limits]:
    group = machine.cgroups.group(draft.id)
    limits = Limits(machine.memory_mib, machine.cpu, machine.pids * HOST_TASKS_PER_PROCESS + HOST_TASKS_FIXED)
    group.create(limits)
    return group, limits


async def _clean(machine: BuildMachine, draft: Draft) -> None:
    record = draft.record
    await machine.remover.end(record)
    if record.network and machine.networks is not None:
        await machine.networks.remove(record.id)
    left = await machine.cgroups.group(draft.id).remove()
    if left:
        raise error(ErrorCode.INTERNAL, f"the build's control groups {left} cannot be removed")
    record.network, record.cgroup, record.pid = False, "", 0
    with contextlib.suppress(OSError):  # a full disk: the old record names what is gone, which harms nobody
        record.save(draft.folder)


async def _attend(
    machine: BuildMachine, draft: Draft, command: Sequence[str], group: Cgroup, log: Callable[[str], None]
) -> Outcome:
    """Start it, read what it prints, and end it when it takes too much."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    stat = process_stat(process.pid)
    draft.record.pid, draft.record.start_ticks = process.pid, stat.start_ticks if stat else 0
    draft.record.save(draft.folder)
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    assert process.stdout is not None
    reading = asyncio.create_task(
        _read_lines(process.stdout, tail, log, draft.hiding() if draft.hiding is not None else None)
    )
    watching = asyncio.create_task(_watch(machine, draft, group))
    waiting = asyncio.create_task(process.wait())
    try:
        async with asyncio.timeout(machine.step_seconds):
            await asyncio.wait({waiting, watching}, return_when=asyncio.FIRST_COMPLETED)
        ended_for = "" if waiting.done() else watching.result()
    except TimeoutError:
        ended_for = f"it ran for {machine.step_seconds:g} s, the most a step may take"
    finally:
        watching.cancel()
        await finish(_end(machine, draft, process, reading))
    if waiting.done() and not ended_for and group.oom_kills() > 0:
        ended_for = f"it used more memory than the build's {machine.memory_mib} MiB"
    return Outcome(await waiting, list(tail), ended_for)


async def _end(
    machine: BuildMachine, draft: Draft, process: asyncio.subprocess.Process, reading: asyncio.Task[None]
) -> None:
    """End the sandbox if it still runs, read the rest of its output, and leave no pipe open."""
    if process.returncode is None:
        await machine.remover.end(draft.record)
        await process.wait()
    # runsc's children hold the pipe; they end with it, a moment later.
    _, late = await asyncio.wait({reading}, timeout=5)
    if late:
        reading.cancel()
        await asyncio.wait({reading})
    elif (problem := reading.exception()) is not None:
        raise problem
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


async def _read_lines(
    stream: asyncio.StreamReader, tail: deque[str], log: Callable[[str], None], hider: Hider | None = None
) -> None:
    """Give each line to the log and keep the last ones. A carriage return ends a line too: progress bars end in it.

    Values of secrets are hidden before lines are made of it: a line that is cut shows no part of one.
    """
    clock = asyncio.get_running_loop().time
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, total = "", 0

    def emit(line: str) -> None:
        text = line.encode(errors="replace")[:LINE_BYTES].decode(errors="ignore").rstrip()
        if text:
            tail.append(text)
            if total <= LOG_BYTES:
                log(text)

    def take(text: str) -> None:
        nonlocal rest
        *lines, rest = (rest + text.replace("\r", "\n")).split("\n")
        rest = rest[:LINE_BYTES]
        for line in lines:
            emit(line)

    while True:
        try:
            async with asyncio.timeout_at(hider.due_at if hider is not None else None):
                data = await stream.read(65_536)
        except TimeoutError:
            assert hider is not None  # only that has a time
            take(hider.due(clock()))
            continue
        if not data:
            break
        if total <= LOG_BYTES < total + len(data):
            log(f"(more than {LOG_BYTES >> 20} MiB of output: the rest is not shown)")
        total += len(data)
        text = decoder.decode(data)
        take(hider.write(text, clock()) if hider is not None else text)
    end = decoder.decode(b"", final=True)
    take(hider.write(end, clock()) + hider.settle() if hider is not None else end)
    emit(rest)


async def _watch(machine: BuildMachine, draft: Draft, group: Cgroup) -> str:
    """Return when the sandbox must be ended, saying why."""
    while True:
        await asyncio.sleep(_WATCH_SECONDS)
        if shutil.disk_usage(draft.folder).free < machine.disk_reserve_bytes:
            return f"the disk has less than {machine.disk_reserve_bytes >> 20} MiB left"
        if group.oom_kills() > 0:
            # The kernel may have chosen a part of the sandbox that leaves the rest hanging.
            return f"it used more memory than the build's {machine.memory_mib} MiB"


def _etc_mounts(bundle: Path, nameserver: str) -> list[Mount]:
    resolver = bundle / "resolv.conf"
    resolver.write_text(f"nameserver {nameserver}\noptions timeout:2 attempts:2\n" if nameserver else "")
    hosts = bundle / "hosts"
    hosts.write_text("127.0.0.1\tlocalhost\n127.0.1.1\tbuild\n")
    return [Mount("/etc/resolv.conf", str(resolver)), Mount("/etc/hosts", str(hosts))]


def _config(
    program: Program,
    draft: Draft,
    group: Cgroup,
    limits: Limits,
    namespace: str,
    etc: list[Mount],
    pids: int,
) -> dict[str, Any]:
    namespaces: list[dict[str, str]] = [{"type": name} for name in ("pid", "ipc", "uts", "mount")]
    namespaces.append({"type": "network", **({"path": namespace} if namespace else {})})
    capabilities = _CAPABILITIES if program.uid == 0 else []
    return {
        "ociVersion": "1.0.2",
        "hostname": "build",
        "root": {"path": str(draft.root), "readonly": False},
        "process": {
            "user": {"uid": program.uid, "gid": program.gid, "additionalGids": list(program.groups)},
            "cwd": program.folder,
            "args": list(program.arguments),
            "env": [f"{name}={value}" for name, value in sorted(_environment(program).items())],
            "capabilities": {
                **dict.fromkeys(("effective", "permitted"), capabilities),
                "bounding": _CAPABILITIES,
            },
            "noNewPrivileges": False,  # su and sudo work, as in every image build; the bounding set is the limit
            "rlimits": [
                {"type": "RLIMIT_NOFILE", "hard": OPEN_FILES, "soft": OPEN_FILES},
                {"type": "RLIMIT_CORE", "hard": 0, "soft": 0},
                {"type": "RLIMIT_NPROC", "hard": pids, "soft": pids},
            ],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {
                "destination": "/dev/shm",  # noqa: S108
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777", f"size={limits.memory_mib * MIB // 4}"],
            },
            *(_bind(mount) for mount in [*etc, *program.mounts, *program.devices.mounts]),
        ],
        "linux": {
            "namespaces": namespaces,
            "devices": [device_node(node) for node in program.devices.nodes],
            "cgroupsPath": group.engine_path,
            "resources": {
                "memory": {"limit": limits.memory_mib * MIB},
                "cpu": {"quota": limits.cpu_quota_microseconds, "period": CPU_PERIOD_MICROSECONDS},
                "pids": {"limit": limits.pids},
            },
        },
    }


def _environment(program: Program) -> dict[str, str]:
    """With what GPUs add; their own programs (a simulated one's nvidia-smi) are found before the image's."""
    environment = {**program.environment, **program.devices.environment}
    places = [mount.destination for mount in program.devices.mounts if mount.destination == BIN]
    if places:
        environment["PATH"] = ":".join([*places, environment.get("PATH") or DEFAULT_PATH])
    return environment


def _bind(mount: Mount) -> dict[str, Any]:
    access = "ro" if mount.read_only else "rw"
    return {
        "destination": mount.destination,
        "type": "bind",
        "source": mount.source,
        "options": ["rbind", access, "nosuid", "nodev"],
    }


def _command(machine: BuildMachine, bundle: Path, name: str, namespace: str, device_flags: Sequence[str]) -> list[str]:
    flags = [
        "--platform=systrap",
        f"--network={'sandbox' if namespace else 'none'}",
        "--overlay2=none",  # writes go to the draft
        "--cpu-num-from-quota",
        *device_flags,
    ]
    command = machine.gvisor.command(*flags, "run", "--bundle", str(bundle), name)
    if not namespace:
        return command
    script = f"mount -t tmpfs -o size=4k none {_HIDDEN_FROM_RUNSC} && exec {shlex.join(command)}"
    private = [find_program("unshare") or "unshare", "--mount", "--propagation", "slave", "sh", "-c", script]
    return [find_program("nsenter") or "nsenter", f"--net={namespace}", *private]
