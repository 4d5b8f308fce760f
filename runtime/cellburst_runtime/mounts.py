"""Mounts that the runtime makes on the host for a container, and finding and removing them again."""

from __future__ import annotations

import re
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from .tools import find_program, run_command

_MOUNTINFO = Path("/proc/self/mountinfo")


async def mount(source: str, destination: Path, *, kind: str = "", options: str = "") -> None:
    """Mount by the system's `mount`. Raises PlatformError (START_FAILED) with mount's own words."""
    arguments = [find_program("mount") or "mount"]
    if kind:
        arguments += ["-t", kind]
    if options:
        arguments += ["-o", options]
    result = await run_command([*arguments, source, str(destination)])
    if not result.ok:
        raise error(
            ErrorCode.START_FAILED, f"mounting {source} at {destination} failed: {result.reason()}",
            next="see dmesg on this machine for the kernel's reason",
        )  # fmt: skip


def mounts_below(folder: Path) -> list[Path]:
    """Mount points at or below a folder, the last mounted first (a mount point mounted over twice appears twice)."""
    base = str(folder.resolve())
    found: list[Path] = []
    for line in _MOUNTINFO.read_text().splitlines():
        point = _unescape(line.split(" ")[4])
        if point == base or point.startswith(base + "/"):
            found.append(Path(point))
    return found[::-1]


async def unmount_below(folder: Path) -> list[str]:
    """Unmount everything at or below a folder; returns what would not go. A busy one is detached: it goes with its last user."""
    failed: list[str] = []
    program = find_program("umount") or "umount"
    for point in mounts_below(folder):
        if (await run_command([program, str(point)])).ok:
            continue
        result = await run_command([program, "-l", str(point)])
        if not result.ok and point in mounts_below(point):
            failed.append(f"{point}: {result.reason()}")
    return failed


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
