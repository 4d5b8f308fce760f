"""A container's OCI bundle (`config.json` and root file system) for runsc, from its ContainerSpec.

Arguments and mount destinations come from the spec alone, so they are the same for every container of an image: runsc
compares them when it restores a snapshot. Source: OCI runtime spec 1.0.2, config.md and config-linux.md.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from .cgroups import CPU_PERIOD_MICROSECONDS, Limits
from .engine import ContainerSpec, Mount

MIB = 1024 * 1024
# The sandbox needs tasks of its own on the host: measured 38 with one process inside, 2 more for each further process and
# none for a sleeping thread. Above twice that, so that a fork fails inside instead of ending the sandbox.
HOST_TASKS_PER_PROCESS = 4
HOST_TASKS_FIXED = 256
OPEN_FILES = 65_536  # what PyTorch's data loaders and Ray ask for; the host's own limit holds above it
FILE_SIZE_BYTES = 64 * 1024 * MIB  # one file; the writable places are smaller, this bounds what is on the host
# Writable places every container has, as shares of its memory: together they leave more than half for the processes.
_TMP_SHARE, _VAR_TMP_SHARE, _SHM_SHARE, _HOME_SHARE = 0.2, 0.05, 0.2, 0.1
_MOST_SHARE = 0.25
_ALWAYS_FOLDERS = ("proc", "dev", "sys", "tmp", "var", "run", "cellburst")


def memory_class_mib(memory_mib: int) -> int:
    """The memory that sizes inside a container are shares of: the power of two at or below its own.

    Those sizes are part of a checkpoint, so containers of one class can be restored from one template; the limit on the
    host is exact.
    """
    return 1 << max(0, memory_mib.bit_length() - 1)


def visible_cpus(spec: ContainerSpec) -> int:
    """The CPUs a sandbox with `--cpu-num-from-quota` shows: whole ones, two at least, no more than the machine has."""
    return min(max(2, math.ceil(spec.cpu)), os.cpu_count() or 1)


def host_limits(spec: ContainerSpec) -> Limits:
    """Limits of the container's group on the host; pids above what RLIMIT_NPROC may be raised to inside."""
    most = max(spec.pids, spec.most_pids)
    return Limits(spec.memory_mib, spec.cpu, most * HOST_TASKS_PER_PROCESS + HOST_TASKS_FIXED)


def all_mounts(spec: ContainerSpec) -> list[Mount]:
    """Every mount of the container in mounting order: outer before inner; a later one for the same place wins."""
    memory_bytes = (spec.sizes_mib or memory_class_mib(spec.memory_mib)) * MIB
    var = spec.folder / "var"
    wanted = [
        Mount("/tmp", kind="tmpfs", read_only=False, size_bytes=int(memory_bytes * _TMP_SHARE), mode=0o1777),  # noqa: S108
        Mount("/var/tmp", kind="tmpfs", read_only=False, size_bytes=int(memory_bytes * _VAR_TMP_SHARE), mode=0o1777),  # noqa: S108
        # An ordinary uid needs 1777 here, or multiprocessing.Lock fails.
        Mount("/dev/shm", kind="tmpfs", read_only=False, size_bytes=int(memory_bytes * _SHM_SHARE), mode=0o1777),  # noqa: S108
        Mount("/cellburst/var/ctl", str(var / "ctl")),
        Mount("/cellburst/var/in", str(var / "in")),
        Mount("/cellburst/var/out", str(var / "out"), read_only=False),
        *spec.mounts,
        *spec.devices.mounts,
    ]
    home = os.path.normpath(spec.environment.get("HOME", "/"))
    if home != "/" and all(os.path.normpath(mount.destination) != home for mount in wanted):
        home_bytes = int(memory_bytes * _HOME_SHARE)
        wanted.append(Mount(home, kind="tmpfs", read_only=False, size_bytes=home_bytes, mode=0o700))
    by_place = {os.path.normpath(mount.destination): _capped(mount, memory_bytes) for mount in wanted}
    return [by_place[place] for place in sorted(by_place, key=lambda place: (place.count("/"), place))]


def _capped(mount: Mount, memory_bytes: int) -> Mount:
    """A memory file system is memory: more than this share would end in SIGKILL before it is full."""
    most = int(memory_bytes * _MOST_SHARE)
    if mount.kind != "tmpfs" or 0 < mount.size_bytes <= most:
        return mount
    return replace(mount, size_bytes=most)


def config(spec: ContainerSpec, *, cgroup_path: str, network_namespace: str, uid: int, gid: int) -> dict[str, Any]:
    """The bundle's `config.json`. Empty `cgroup_path`: no limits by the engine; empty `network_namespace`: a new one."""
    limits = host_limits(spec)
    namespaces: list[dict[str, str]] = [{"type": name} for name in ("pid", "ipc", "uts", "mount")]
    namespaces.append({"type": "network", **({"path": network_namespace} if network_namespace else {})})
    linux: dict[str, Any] = {"namespaces": namespaces}
    if cgroup_path:
        linux["cgroupsPath"] = cgroup_path
        linux["resources"] = {
            "memory": {"limit": limits.memory_mib * MIB},
            "cpu": {"quota": limits.cpu_quota_microseconds, "period": CPU_PERIOD_MICROSECONDS},
            "pids": {"limit": limits.pids},
        }
    if spec.devices.nodes:
        linux["devices"] = [device_node(node) for node in spec.devices.nodes]
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": "rootfs", "readonly": not spec.layers},
        "process": {
            "user": {"uid": uid, "gid": gid},
            "cwd": "/",  # the runner changes to the working folder: this must be the same for all of an image
            "args": list(spec.arguments),
            "env": [
                f"{name}={value}" for name, value in sorted({**spec.environment, **spec.devices.environment}.items())
            ],
            "capabilities": {},
            "noNewPrivileges": True,
            "rlimits": [
                _rlimit("RLIMIT_NPROC", spec.pids, hard=max(spec.pids, spec.most_pids)),
                _rlimit("RLIMIT_NOFILE", OPEN_FILES),
                _rlimit("RLIMIT_FSIZE", FILE_SIZE_BYTES),
                _rlimit("RLIMIT_CORE", 0),
            ],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            *(_mount(m, uid, gid) for m in all_mounts(spec)),
        ],
        "linux": linux,
    }


def write_bundle(spec: ContainerSpec, bundle: Path, config_json: dict[str, Any]) -> None:
    """Make `bundle/config.json` and `bundle/rootfs` (`bundle/top` for an image): mount points, links and small files.

    Raises OSError.
    """
    # With an image this lies over its layers: see `image_root`.
    root = bundle / ("top" if spec.layers else "rootfs")
    for name in _ALWAYS_FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "cellburst").chmod(0o755)
    for mount in all_mounts(spec):
        _make_mount_point(root, mount)
    for path, content in spec.root_files.items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        target.chmod(0o644)
    for path, link_target in sorted({**spec.links, **spec.volume_links}.items()):
        link = root / path.lstrip("/")
        if not os.path.lexists(link):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(link_target)
    (bundle / "config.json").write_text(json.dumps(config_json))


def _make_mount_point(root: Path, mount: Mount) -> None:
    place = root / mount.destination.lstrip("/")
    place.parent.mkdir(parents=True, exist_ok=True)
    if mount.kind == "bind" and not Path(mount.source).is_dir():
        place.touch()
    else:
        place.mkdir(exist_ok=True)


def _mount(mount: Mount, uid: int, gid: int) -> dict[str, Any]:
    access = "ro" if mount.read_only else "rw"
    if mount.kind == "bind":
        return {
            "destination": mount.destination,
            "type": "bind",
            "source": mount.source,
            "options": ["rbind", access, "nosuid", *(["disable_file_handle_sharing"] if mount.own_handles else [])],
        }
    options = [access, "nosuid", "nodev", f"mode={mount.mode:04o}", f"uid={uid}", f"gid={gid}"]
    if mount.size_bytes:
        options.append(f"size={mount.size_bytes}")
    return {"destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options}


def _rlimit(name: str, value: int, hard: int | None = None) -> dict[str, Any]:
    return {"type": name, "hard": hard or value, "soft": value}


def device_node(node: str) -> dict[str, Any]:
    """A device of this machine's, as a configuration has it. Raises OSError."""
    status = Path(node).stat()
    return {
        "path": node, "type": "c", "major": os.major(status.st_rdev), "minor": os.minor(status.st_rdev),
        "fileMode": 0o666, "uid": 0, "gid": 0,
    }  # fmt: skip
