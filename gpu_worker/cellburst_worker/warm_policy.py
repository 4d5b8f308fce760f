"""How many containers wait for a session, and of which key. Pure: facts and time are passed in.

A key that was started lately keeps one warm container, two while it is started often; none ten minutes after its last
start. All together keep to a share of the memory that no lease holds, least recently used keys giving way first, and there
are none at all on a machine that is short of memory. What requests wait for is not held: while any waits none is made, and
those stay that fit beside the memory it asks for. One that must be booted takes seconds of processor time: it is made when
no cell runs, or when its key has waited for that for long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

KEEP_SECONDS = 600.0
OFTEN_STARTS, OFTEN_SECONDS, OFTEN_WARM = 3, 60.0, 2  # a person who starts again and again, or several people
LEAST_BYTES = 256 << 20  # what a warm container counts at least: it grows as soon as it is used
BUDGET_SHARE = 0.25  # of the memory that no lease holds
SHORT_BYTES = 2 << 30  # a machine with less free memory has none to wait with
SPARE_FACTOR = 2  # so much more must be free for another one, or it would go again at once
SETTLE_SECONDS = 1.0  # after a start: its first cell has the machine to itself
AGAIN_SECONDS = 60.0  # after one that did not come up
PATIENCE_SECONDS = 30.0  # after its key's last start: a boot then waits no longer for cells to end


@dataclass(frozen=True)
class Held:
    """A warm container. `memory_bytes` is what its group uses; None where that cannot be read."""

    id: str
    key: str
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Machine:
    """What the worker's machine has and holds. `busy`: a container starts or is put away, or requests wait; `wanted_bytes` is
    the memory that those ask for. `quiet`: no cell runs, nor did a moment ago."""

    memory_bytes: int
    leased_bytes: int
    free_bytes: int
    busy: bool = False
    wanted_bytes: int = 0
    quiet: bool = True


@dataclass(frozen=True)
class Plan:
    """Remove these, then make one of this key ("" for none)."""

    drop: tuple[str, ...] = ()
    fill: str = ""


@dataclass
class WarmPolicy:
    """The demand, by key. All seconds are of one monotonic clock."""

    _starts: dict[str, list[float]] = field(default_factory=dict)  # the last OFTEN_STARTS of each key
    _failed: dict[str, float] = field(default_factory=dict)
    _cost_bytes: dict[str, int] = field(default_factory=dict)

    def started(self, key: str, now_seconds: float) -> None:
        """A container of this key came up, however it did."""
        starts = self._starts.setdefault(key, [])
        starts.append(now_seconds)
        del starts[:-OFTEN_STARTS]

    def failed(self, key: str, now_seconds: float) -> None:
        """A warm container of this key could not be made, or ended while it waited."""
        self._failed[key] = now_seconds

    def keys(self, now_seconds: float) -> list[str]:
        """Keys with any demand, last used first. Older ones are forgotten."""
        for key in [key for key, starts in self._starts.items() if now_seconds - starts[-1] >= KEEP_SECONDS]:
            del self._starts[key]
            self._cost_bytes.pop(key, None)
            self._failed.pop(key, None)
        return sorted(self._starts, key=lambda key: -self._starts[key][-1])

    def wanted(self, key: str, now_seconds: float) -> int:
        """How many warm containers of this key its demand asks for."""
        starts = self._starts.get(key, [])
        if not starts or now_seconds - starts[-1] >= KEEP_SECONDS:
            return 0
        often = sum(now_seconds - start < OFTEN_SECONDS for start in starts) >= OFTEN_STARTS
        return OFTEN_WARM if often else 1

    def plan(
        self, now_seconds: float, held: Sequence[Held], templates: Collection[str], machine: Machine,
        booted: Collection[str] = (),
    ) -> Plan:  # fmt: skip
        """What to do now. `held`: the warm containers, those to be kept longest first; `templates`: the keys that one can be
        made of; `booted`: those of them that have no template and must be booted."""
        for one in held:
            self._cost_bytes[one.key] = max(LEAST_BYTES, one.memory_bytes or 0)
        room = self._room(now_seconds, templates, machine)
        drop = []
        for one in held:
            if room.get(one.key, 0):
                room[one.key] -= 1
            else:
                drop.append(one.id)
        may = [key for key, more in room.items() if more and self._may_fill(key, now_seconds, machine)]
        fill = next((key for key in may if key not in booted or self._may_boot(key, now_seconds, machine)), "")
        return Plan(tuple(drop), fill)

    def _room(self, now_seconds: float, templates: Collection[str], machine: Machine) -> dict[str, int]:
        """How many of each key there may be, last used first: one of each before a second of any."""
        room = dict.fromkeys((key for key in self.keys(now_seconds) if key in templates), 0)
        no_lease_bytes = max(0, machine.memory_bytes - machine.leased_bytes)
        left_bytes = min(BUDGET_SHARE * no_lease_bytes, no_lease_bytes - machine.wanted_bytes)
        if machine.free_bytes < SHORT_BYTES:
            return {}
        for number in range(OFTEN_WARM):
            for key in room:
                if number < self.wanted(key, now_seconds) and self._cost(key) <= left_bytes and room[key] == number:
                    room[key] += 1
                    left_bytes -= self._cost(key)
        return room

    def _may_fill(self, key: str, now_seconds: float, machine: Machine) -> bool:
        settled = all(now_seconds - starts[-1] >= SETTLE_SECONDS for starts in self._starts.values())
        enough = machine.free_bytes >= SHORT_BYTES + SPARE_FACTOR * self._cost(key)
        failed = key in self._failed and now_seconds - self._failed[key] < AGAIN_SECONDS
        return settled and enough and not failed and not machine.busy

    def _may_boot(self, key: str, now_seconds: float, machine: Machine) -> bool:
        return machine.quiet or now_seconds - self._starts[key][-1] >= PATIENCE_SECONDS

    def _cost(self, key: str) -> int:
        return self._cost_bytes.get(key, LEAST_BYTES)
