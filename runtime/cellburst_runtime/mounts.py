"""Mounts that the runtime makes on the host for a container, and finding and removing them again."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from .tools import find_program, run_command

_MOUNTINFO = Path("/proc/self/mountinfo")
# mount(2), umount2(2): <sys/mount.h>, the same on every architecture
_FLAGS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "noatime": 1024, "bind": 4096}
_MS_REMOUNT = 32
_MNT_DETACH, _UMOUNT_NOFOLLOW = 2, 8


_libc = ctypes.CDLL(None, use_errno=True)


async def mount(source: str, destination: Path, *, kind: str = "", options: str = "") -> None:
    """Mount, with the options of `mount -o`. Raises PlatformError (START_FAILED) with the reason."""
    if "loop" in options.split(","):
        return await _mount_by_program(source, destination, kind, options)
    try:
        # A start makes several: a process for each would cost more than the mount.
        await asyncio.to_thread(_mount, source, destination, kind, options)
    except OSError as problem:
        raise _failed(source, destination, problem.strerror or str(problem)) from problem


def _mount(source: str, destination: Path, kind: str, options: str) -> None:
    words = [word for word in options.split(",") if word]
    flags = sum(_FLAGS[word] for word in words if word in _FLAGS)
    data = ",".join(word for word in words if word not in _FLAGS)
    bind = "bind" in words
    # What else a bind mount is to have is set by a second call: mount(2).
    _mount_call(source, destination, kind, _FLAGS["bind"] if bind else flags, data)
    if bind and flags != _FLAGS["bind"]:
        try:
            _mount_call("", destination, "", flags | _MS_REMOUNT, "")
        except OSError:
            _umount_call(destination, _MNT_DETACH)
            raise


def _mount_call(source: str, destination: Path, kind: str, flags: int, data: str) -> None:
    texts = [os.fsencode(text) if text else None for text in (source, str(destination), kind)]
    if _libc.mount(*texts, ctypes.c_ulong(flags), os.fsencode(data) if data else None) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _umount_call(place: Path, flags: int) -> None:
    if _libc.umount2(os.fsencode(place), flags | _UMOUNT_NOFOLLOW) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


async def _mount_by_program(source: str, destination: Path, kind: str, options: str) -> None:
    """By `mount`, which finds a loop device and ties the image to it."""
    arguments = [find_program("mount") or "mount"]
    if kind:
        arguments += ["-t", kind]
    if options:
        arguments += ["-o", options]
    result = await run_command([*arguments, source, str(destination)])
    if not result.ok:
        raise _failed(source, destination, result.reason())


def _failed(source: str, destination: Path, reason: str) -> Exception:
    return error(
        ErrorCode.START_FAILED, f"mounting {source} at {destination} failed: {reason}",
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
    return await asyncio.to_thread(_unmount_below, folder)


def _unmount_below(folder: Path) -> list[str]:
    failed: list[str] = []
    for point in mounts_below(folder):
        try:
            _umount_call(point, 0)
            continue
        except OSError:
            pass  # busy
        try:
            _umount_call(point, _MNT_DETACH)
        except OSError as problem:
            if point in mounts_below(point):
                failed.append(f"{point}: {problem.strerror}")
    return failed


def _unescape(text: str) -> str:
    """mountinfo writes space, tab, newline and backslash as octal (proc(5))."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
