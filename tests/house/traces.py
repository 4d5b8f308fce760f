"""What a machine shows of containers: processes, mounts, cgroups, network namespaces, links, nft tables."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil


def processes(marker: str) -> dict[int, str]:
    """Processes whose command line or environment-free arguments contain `marker`."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if marker in line and process.pid != os.getpid():
            found[process.pid] = line[:160]
    return found


def machine() -> dict[str, set[str]]:
    """Everything a container could leave on this machine outside its folder."""
    mounts = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    groups = {str(p) for p in Path("/sys/fs/cgroup").glob("*/*ellburst*/*")} | {
        str(p) for p in Path("/sys/fs/cgroup").glob("cellburst*/*")
    }
    namespaces = {p.name for p in Path("/run/netns").glob("*")} if Path("/run/netns").is_dir() else set()
    links = {p.name for p in Path("/sys/class/net").iterdir()}
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    loops = subprocess.run(
        ["losetup", "-n", "-O", "NAME,BACK-FILE"], capture_output=True, text=True, check=False
    ).stdout
    return {
        "mounts": mounts, "cgroups": groups, "namespaces": namespaces, "links": links, "tables": set(tables.splitlines()),
        "loops": {" ".join(line.split()) for line in loops.splitlines()},
    }  # fmt: skip
