"""Which way a container comes up: the fastest that can be, and after a failure the next one below it. Pure.

    parked snapshot ──▶ warm container ──▶ template of the image ──▶ boot
    (names are there)   (nothing parked)   (names by value, if parked)

A rung that failed is never tried again for the same container; a boot that failed is the end of the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from cellburst_protocol.messages import StartKind

Rung = Literal["snapshot", "warm", "template", "boot"]
ORDER: tuple[Rung, ...] = ("snapshot", "warm", "template", "boot")
WARM_SECONDS = 5.0  # its runner only has to dial again, and to take over the environment
RESTORE_SECONDS = 20.0  # a restore takes under 2 s; one that takes ten times that hangs, and a boot is quicker
RESTORE_BYTES_PER_SECOND = 50_000_000  # of the slowest disk that is waited for
# By part of a key (`snapshot_key`, `engine_gvisor`): what is told of a mismatch. Hashes say nothing to a reader.
_WHY = {
    "machine": "it was taken on another machine, or in another file system",
    "kernel": "this machine's kernel was {before} then and is {now} now",
    "CPU": "this machine has another CPU now",
    "engine": "gVisor on this machine is another version now",
    "runner": "Cellburst was updated since",
    "image": "the environment is another one now, or its packages were changed",
    "bundle": "the packages that run cells were updated since",
    "CPUs": "it ran with cpu={before_number} and cpu={now_number} is asked for: libraries make their threads for that number",
    "engine flags": "its network or its limits are other ones now",
    "variables": "environment variables of the kernel that libraries read when they are loaded are others now",
    "process": "it is to run as another user or by another interpreter",
    "memory": "it ran with another size of memory",
    "mounts": "other folders are shown in it now",
    "files": "users, hosts or the time zone of this machine are others now",
}


class Rungs:
    """The rungs of one start. `parked`: the request names a parked session whose names are here by value at least; `warm`: a
    warm container is at hand."""

    def __init__(self, *, snapshot: bool, template: bool, parked: bool, warm: bool = False) -> None:
        self._usable: dict[Rung, bool] = {"snapshot": snapshot, "warm": warm, "template": template, "boot": True}
        self._parked = parked
        self.failures: list[tuple[Rung, str]] = []

    def next(self) -> Rung:
        """The rung to try now."""
        return next(rung for rung in ORDER if self._usable[rung])

    def failed(self, rung: Rung, why: str) -> bool:
        """The rung did not work. False: there is none below it, the start has failed."""
        self.failures.append((rung, why))
        if rung == "boot":
            return False
        self._usable[rung] = False
        return True

    def kind(self, rung: Rung) -> StartKind:
        """What a container that came up by this rung is called."""
        if rung == "snapshot":
            return "snapshot"
        if self._parked:
            return "names"
        return "boot" if rung == "boot" else "template"


def restore_seconds(least_seconds: float, size_bytes: int) -> float:
    """How long the restore of a snapshot of so many bytes may take before it counts as one that hangs."""
    return least_seconds + size_bytes / RESTORE_BYTES_PER_SECOND


def detail(rung: Rung) -> str:
    """What the phase of a restore says it restored."""
    return {"snapshot": "session", "warm": "warm pool"}.get(rung, "template")


def unusable(rung: Rung, why: str) -> str:
    """What the phase of a restore says when it did not work."""
    return f"{'warm container' if rung == 'warm' else rung} unusable: {why}"


def difference(mine: Mapping[str, str], here: Mapping[str, str]) -> str:
    """Why a snapshot with the key parts `mine` cannot be restored into a container with the parts `here`; "" if it can. What
    comes first in `_WHY` is the cause of what comes behind it, mostly, so that one sentence says enough."""
    names = [name for name in (*_WHY, *sorted({*mine, *here} - _WHY.keys())) if mine.get(name) != here.get(name)]
    if not names:
        return ""
    name, before, now = names[0], mine.get(names[0], ""), here.get(names[0], "")
    text = _WHY.get(name, "{name} was {before}, is {now}")
    first = {"before_number": before.partition(",")[0], "now_number": now.partition(",")[0]}
    return text.format(name=name, before=before or "not there", now=now or "not there", **first)
