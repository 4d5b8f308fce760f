"""Processes as `/proc` shows them: who descends from whom, who carries a container's mark, and ending them all.

A pid is reused, so whoever stores one stores its start time too and compares both before sending a signal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
# Every process of a container of the `process` engine inherits this variable, also one that left its session.
MARK = "CELLBURST_CONTAINER"
# And this what we run beside a container for it, so that it is not ended with the container's own processes.
HELPER_MARK = "CELLBURST_BESIDE"


@dataclass(frozen=True)
class ProcessStat:
    """What `/proc/PID/stat` says: parent, state letter, start time in ticks since boot, CPU seconds, resident bytes."""

    pid: int
    parent: int
    state: str
    start_ticks: int
    cpu_seconds: float
    resident_bytes: int


def process_stat(pid: int) -> ProcessStat | None:
    """The process now, or None when there is none of that pid."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (OSError, UnicodeDecodeError):
        return None
    fields = text[text.rfind(")") + 2 :].split()
    cpu_ticks = int(fields[11]) + int(fields[12])
    return ProcessStat(
        pid, int(fields[1]), fields[0], int(fields[19]), cpu_ticks / _TICKS, int(fields[21]) * _PAGE_BYTES
    )


def is_same_process(pid: int, start_ticks: int) -> bool:
    """Whether the pid still names the process that started at `start_ticks`, and it is no zombie."""
    stat = process_stat(pid)
    return stat is not None and stat.start_ticks == start_ticks and stat.state not in "ZX"


def all_processes() -> dict[int, ProcessStat]:
    """Every process of the machine that this one may see."""
    stats = (process_stat(int(entry.name)) for entry in _PROC.iterdir() if entry.name.isdigit())
    return {stat.pid: stat for stat in stats if stat is not None}


def descendants(pid: int) -> list[ProcessStat]:
    """The process and all that descend from it, those that end in between left out."""
    processes = all_processes()
    children: dict[int, list[int]] = {}
    for stat in processes.values():
        children.setdefault(stat.parent, []).append(stat.pid)
    found: list[ProcessStat] = []
    waiting = [pid]
    while waiting:
        current = waiting.pop()
        if current in processes:
            found.append(processes[current])
        waiting.extend(children.get(current, ()))
    return found


def marked(container_id: str, mark: str = MARK) -> list[int]:
    """Pids of the live processes that inherited the container's mark, wherever they were reparented to."""
    needle = f"{mark}={container_id}".encode()
    found: list[int] = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        stat = process_stat(int(entry.name)) if needle in environment else None
        if stat is not None and stat.state not in "ZX":
            found.append(stat.pid)
    return found


def waiting_for_fuse(pids: Iterable[int]) -> set[int]:
    """Threads of these processes that no signal ends because they wait for a program that shows a file system (FUSE).

    Where the kernel does not say what they wait for, any such wait counts.
    """
    found: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError):  # it ends meanwhile
            for thread in (_PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError, UnicodeDecodeError):
                    text = (thread / "stat").read_text()
                    waits_in = (thread / "wchan").read_text().strip("0") if _state(text) == "D" else "nothing"
                    if waits_in in ("", "request_wait_answer") or "fuse" in waits_in:
                        found.add(int(thread.name))
    return found


def _state(stat: str) -> str:
    return stat[stat.rfind(")") + 2 :][:1]


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL to each; those already gone are passed over."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


async def kill_until_none(list_pids: Callable[[], list[int]], *, seconds: float = 10.0) -> bool:
    """SIGKILL what `list_pids` lists until it lists nothing: a process that forks meanwhile is in the next round.

    Returns whether all are gone; False after `seconds` (a process in uninterruptible sleep).
    """
    pause_seconds = 0.002
    try:
        async with asyncio.timeout(seconds):
            while pids := list_pids():
                kill_all(pids)
                await asyncio.sleep(pause_seconds)
                pause_seconds = min(pause_seconds * 2, 0.05)
    except TimeoutError:
        return False
    return True
