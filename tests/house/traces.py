"""What a machine shows of containers: processes, mounts, cgroups, network namespaces, links, nft tables."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import psutil

from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.network import Networks


def processes(marker: str) -> dict[int, str]:
    """Processes whose command line or environment-free arguments contain `marker`."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if marker in line and process.pid != os.getpid():
            found[process.pid] = line[:160]
    return found


def house_traces(folder: Path) -> set[str]:
    """What the house in `folder` has on this machine outside that folder: other houses may come and go meanwhile."""
    tag = Networks(folder / "run").tag
    found = {f"mount {line.split()[4]}" for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    loops = subprocess.run(["losetup", "-n", "-O", "BACK-FILE"], capture_output=True, text=True, check=False).stdout
    tables = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=False).stdout
    found |= {f"loop {line}" for line in loops.splitlines()} | {f"table {line}" for line in tables.splitlines()}
    found |= {f"cgroup {name}" for name in Cgroups().names()}
    found |= {f"link {path.name}" for path in Path("/sys/class/net").iterdir()}
    if Path("/run/netns").is_dir():
        found |= {f"namespace {path.name}" for path in Path("/run/netns").iterdir()}
    return {trace for trace in found if f"{folder}/" in trace or tag in trace}
