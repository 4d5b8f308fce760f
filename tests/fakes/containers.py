"""Small containers for tests of the engines: a script in place of the runner, the host's system folders, traces of it."""

from __future__ import annotations

import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path

from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine import ContainerSpec, Mount
from cellburst_runtime.layer_make import make_folders
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.proc import all_processes

SYSTEM = ("/usr", "/bin", "/lib", "/lib64")
PREFIXES = tuple(dict.fromkeys((sys.prefix, sys.base_prefix)))


def make_spec(folder: Path, script: str, **changes: object) -> ContainerSpec:
    """A container whose first process is Python with `script`; writes go to /cellburst/var/out (FOLDER/var/out)."""
    folder.mkdir(mode=0o700)
    make_folders(folder, (1000, 1000))
    places = [*(Mount(place, os.path.realpath(place)) for place in SYSTEM if Path(place).is_dir())]
    places += [Mount(prefix, prefix) for prefix in PREFIXES if not prefix.startswith("/usr")]
    spec = ContainerSpec(
        id=f"test-{secrets.token_hex(4)}", folder=folder, arguments=(sys.executable, "-I", "-S", "-c", script),
        environment={"PATH": "/usr/bin:/bin", "HOME": "/home/user", "OUT": "/cellburst/var/out"}, working_folder="/",
        mounts=tuple(places), links={}, root_files={"/etc/passwd": b"user:x:1000:1000::/home/user:/bin/sh\n"}, cpu=1.0,
        memory_mib=512, network="none",
    )  # fmt: skip
    return replace(spec, **changes)  # type: ignore[arg-type]


def traces(container_id: str, folder: Path) -> list[str]:
    """Everything on this machine that still names the container: processes, groups, mounts, namespaces, its folder."""
    found = [f"cgroup {name}" for name in Cgroups().names() if name.endswith(container_id)]
    found += [f"mount {path}" for path in mounts_below(folder)]
    for pid in all_processes():
        try:
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        if container_id.encode() in command or os.fsencode(folder) in command:
            found.append(f"process {pid}: {command!r}")
    namespaces = Path("/run/netns")
    found += [f"network {path}" for path in namespaces.glob(f"*{container_id}*")] if namespaces.is_dir() else []
    return found + ([f"folder {folder}"] if folder.exists() else [])
