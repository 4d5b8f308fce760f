"""Limits and usage of a container's control group, for cgroup v1 (also hybrid) and v2 behind one class.

A container's group is `cellburst/TAG-NAME` (TAG is the installation's), in every v1 hierarchy or once in the v2 tree.
The runtime makes it and sets its limits before the engine starts, so that the counts of out-of-memory kills are still
there after the engine has gone.
Sources: the kernel's Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from dataclasses import dataclass
from pathlib import Path

from .cgroup_moves import own_procs
from .proc import kill_all, kill_until_none

CGROUP_ROOT = Path("/sys/fs/cgroup")
PARENT = "cellburst"
CPU_PERIOD_MICROSECONDS = 100_000  # the kernel's default; shorter ones cost more scheduling
_CONTROLLERS = ("memory", "cpu", "pids")
_MIB = 1024 * 1024
_NO_LIMIT_BYTES = 1 << 60  # v1 shows "no limit" as a number near 2**63


@dataclass(frozen=True)
class Limits:
    """What a group may use."""

    memory_mib: int
    cpu: float
    pids: int

    @property
    def cpu_quota_microseconds(self) -> int:
        """CPU time per period; the kernel takes no less than 1 ms."""
        return max(1000, round(self.cpu * CPU_PERIOD_MICROSECONDS))


class Cgroups:
    """The control groups of one installation. `root` is where they are mounted (a made-up tree in tests).

    `tag` tells its groups from another installation's, which may give a container the same name.
    """

    def __init__(self, root: Path = CGROUP_ROOT, *, tag: str = "") -> None:
        self.root = root
        self._prefix = f"{tag}-" if tag else ""
        if (root / "cgroup.controllers").is_file():
            self.version = 2
        elif all((root / name).is_dir() for name in (*_CONTROLLERS, "cpuacct")):
            self.version = 1
        else:
            self.version = 0

    def probe(self) -> str:
        """ "" when groups with limits can be made here, else why not. Makes the common parent."""
        if self.version == 0:
            return f"{self.root} has no memory, cpu and pids controllers"
        try:
            self._make_parent()
        except OSError as problem:
            return f"control groups below {self.root} cannot be made: {problem.strerror}"
        return ""

    def group(self, name: str) -> Cgroup:
        """The group of a container, whether it exists or not."""
        return Cgroup(self, name)

    def folders(self, name: str) -> list[Path]:
        """Every folder of the group that exists, in all hierarchies (an engine adds some of its own)."""
        roots = (
            [self.root]
            if self.version == 2
            else sorted(p for p in self.root.iterdir() if p.is_dir())
            if self.version
            else []
        )
        return [folder for base in roots if (folder := base / PARENT / self.folder_name(name)).is_dir()]

    def folder_name(self, name: str) -> str:
        """What the container's group is called below the common parent."""
        return f"{self._prefix}{name}"

    def names(self) -> set[str]:
        """The folder names of all groups below the common parent, also of other installations."""
        roots = [self.root] if self.version == 2 else list(self.root.iterdir()) if self.version else []
        parents = [base / PARENT for base in roots if (base / PARENT).is_dir()]
        return {entry.name for parent in parents for entry in parent.iterdir() if entry.is_dir()}

    def own_procs(self) -> Path | None:
        """`cgroup.procs` of this process's own group, None where there is none."""
        try:
            return own_procs(self.root, self.version, Path("/proc/self/cgroup").read_text())
        except OSError:
            return None

    def _make_parent(self) -> None:
        if self.version == 1:
            for controller in (*_CONTROLLERS, "cpuacct"):
                (self.root / controller / PARENT).mkdir(exist_ok=True)
            return
        parent = self.root / PARENT
        parent.mkdir(exist_ok=True)
        for folder in (self.root, parent):
            _enable_controllers(folder)


class Cgroup:
    """One container's group. Reading gives None where the group or the figure is not there."""

    def __init__(self, host: Cgroups, name: str) -> None:
        self.host = host
        self.name = name

    @property
    def engine_path(self) -> str:
        """The path an OCI engine joins (`linux.cgroupsPath`).

        On v2 a child: an engine that removes its group then leaves ours, whose counts include the child's.
        """
        return f"/{PARENT}/{self.host.folder_name(self.name)}" + ("/sandbox" if self.host.version == 2 else "")

    def create(self, limits: Limits) -> None:
        """Make the group with its limits. Raises OSError and leaves nothing then."""
        try:
            self.host._make_parent()
            if self.host.version == 2:
                self._create_v2(limits)
            else:
                self._create_v1(limits)
        except OSError:
            for folder in self.host.folders(self.name):
                _remove_tree(folder)
            raise

    def _create_v1(self, limits: Limits) -> None:
        for controller in (*_CONTROLLERS, "cpuacct"):
            self._v1(controller).mkdir(exist_ok=True)
        (self._v1("memory") / "memory.limit_in_bytes").write_text(str(limits.memory_mib * _MIB))
        # Without this a group swaps instead of ending; kernels without swap accounting lack the file.
        swap_limit = self._v1("memory") / "memory.memsw.limit_in_bytes"
        if swap_limit.exists():
            swap_limit.write_text(str(limits.memory_mib * _MIB))
        (self._v1("cpu") / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_MICROSECONDS))
        (self._v1("cpu") / "cpu.cfs_quota_us").write_text(str(limits.cpu_quota_microseconds))
        (self._v1("pids") / "pids.max").write_text(str(limits.pids))

    def _create_v2(self, limits: Limits) -> None:
        self._v2.mkdir(exist_ok=True)
        _limit_v2(self._v2, limits)

    def limit(self, limits: Limits) -> None:
        """Set other limits for a group that exists. Raises OSError where it uses more memory and none can be freed."""
        if self.host.version == 2:
            # The engine's own child has limits too, as it was told them at its start.
            for folder in (self._v2, self._v2 / "sandbox"):
                if folder.is_dir():
                    _limit_v2(folder, limits)
            return
        self.limit_memory(limits.memory_mib)
        (self._v1("cpu") / "cpu.cfs_quota_us").write_text(str(limits.cpu_quota_microseconds))
        (self._v1("pids") / "pids.max").write_text(str(limits.pids))

    def limit_memory(self, memory_mib: int) -> None:
        """As `limit`, of its memory alone."""
        if self.host.version == 2:
            for folder in (self._v2, self._v2 / "sandbox"):
                if folder.is_dir():
                    (folder / "memory.max").write_text(str(memory_mib * _MIB))
            return
        current = self.memory_limit_bytes()
        # The limit with swap is never below the one without.
        names = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"]
        if current is not None and memory_mib * _MIB > current:
            names.reverse()
        for path in [self._v1("memory") / name for name in names]:
            if path.exists():
                path.write_text(str(memory_mib * _MIB))

    def procs_files(self) -> list[Path]:
        """Files that a process writes its pid (or 0) to, to be in the group before it does anything else."""
        if self.host.version == 2:
            return [self._v2 / "cgroup.procs"]
        return [self._v1(controller) / "cgroup.procs" for controller in (*_CONTROLLERS, "cpuacct")]

    def pids(self) -> list[int]:
        """All processes in the group and below it."""
        found: set[int] = set()
        for folder in self.host.folders(self.name):
            # os.walk, unlike a glob, passes over a group that is removed while it looks.
            for group, _, _ in os.walk(folder):
                found.update(_read_pids(Path(group) / "cgroup.procs"))
        return sorted(found)

    def cpu_seconds(self) -> float | None:
        """CPU time of all its processes since it was made."""
        if self.host.version == 2:
            microseconds = _read_key(self._v2 / "cpu.stat", "usage_usec")
            return None if microseconds is None else microseconds / 1e6
        nanoseconds = _read_number(self._v1("cpuacct") / "cpuacct.usage")
        return None if nanoseconds is None else nanoseconds / 1e9

    def memory_bytes(self) -> int | None:
        """Memory in use, without the page cache that the kernel can drop at once."""
        if self.host.version == 2:
            used = _read_number(self._v2 / "memory.current")
            idle = _read_key(self._v2 / "memory.stat", "inactive_file")
        else:
            used = _read_number(self._v1("memory") / "memory.usage_in_bytes")
            idle = _read_key(self._v1("memory") / "memory.stat", "total_inactive_file")
        return None if used is None else max(0, used - (idle or 0))

    def memory_limit_bytes(self) -> int | None:
        """The limit, or None without one."""
        path = self._v2 / "memory.max" if self.host.version == 2 else self._v1("memory") / "memory.limit_in_bytes"
        limit = _read_number(path)
        return limit if limit is not None and limit < _NO_LIMIT_BYTES else None

    def oom_kills(self) -> int:
        """How many processes the kernel has killed in the group for its memory limit."""
        if self.host.version == 2:
            return _read_key(self._v2 / "memory.events", "oom_kill") or 0
        return _read_key(self._v1("memory") / "memory.oom_control", "oom_kill") or 0

    def pids_refused(self) -> int:
        """How many forks the pids limit has refused."""
        folder = self._v2 if self.host.version == 2 else self._v1("pids")
        return _read_key(folder / "pids.events", "max") or 0

    async def kill(self) -> bool:
        """SIGKILL every process in the group until there is none; False when one would not die."""
        kill_file = self._v2 / "cgroup.kill" if self.host.version == 2 else None
        if kill_file is not None and kill_file.exists():
            try:
                kill_file.write_text("1")
            except OSError:
                kill_all(self.pids())
        return await kill_until_none(self.pids)

    async def remove(self, *, seconds: float = 5.0) -> list[str]:
        """Remove the group from every hierarchy; returns the folders that would not go (processes still in them)."""
        deadline = time.monotonic() + seconds
        left = self.host.folders(self.name)
        while left:
            for folder in left:
                _remove_tree(folder)
            left = [folder for folder in left if folder.is_dir()]
            if not left or time.monotonic() > deadline:
                break
            # A killed process leaves its group only when it has been reaped.
            await asyncio.sleep(0.01)
        return [str(folder) for folder in left]

    def _v1(self, controller: str) -> Path:
        return self.host.root / controller / PARENT / self.host.folder_name(self.name)

    @property
    def _v2(self) -> Path:
        return self.host.root / PARENT / self.host.folder_name(self.name)


def _limit_v2(folder: Path, limits: Limits) -> None:
    (folder / "memory.max").write_text(str(limits.memory_mib * _MIB))
    swap_limit = folder / "memory.swap.max"
    if swap_limit.exists():
        swap_limit.write_text("0")
    (folder / "cpu.max").write_text(f"{limits.cpu_quota_microseconds} {CPU_PERIOD_MICROSECONDS}")
    (folder / "pids.max").write_text(str(limits.pids))


def _enable_controllers(folder: Path) -> None:
    """Let the children of a v2 group have the controllers; those already enabled are not asked for again."""
    enabled = set((folder / "cgroup.subtree_control").read_text().split())
    missing = [name for name in _CONTROLLERS if name not in enabled]
    if missing:
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in missing))


def _remove_tree(folder: Path) -> None:
    for child, _, _ in os.walk(folder, topdown=False):
        try:
            Path(child).rmdir()
        except OSError as problem:
            if problem.errno not in (errno.EBUSY, errno.ENOENT, errno.ENOTEMPTY):
                raise


def _read_pids(path: Path) -> list[int]:
    try:
        return [int(word) for word in path.read_text().split()]
    except OSError:
        return []


def _read_number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _read_key(path: Path, key: str) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(" ")
        if name == key and value.strip().isdigit():
            return int(value)
    return None
