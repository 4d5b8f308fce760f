"""Where a container goes: requests and machines in; a place, a place in the queue, or a reasoned refusal out. Pure.

Rules, in the order they bind:

1. What no machine of the fleet could ever satisfy is refused at once, naming what there is.
2. A simulated GPU is chosen only where no real one of the fleet could ever satisfy the request, busy or not.
3. The queue is first come, first served. A request that waits reserves what it waits for, on the machine where least is
   missing; later ones may take anything else. So small requests flow past a big one and never starve it.
4. Alternatives of `gpu=` in their order, first that is free; then a preferred worker; then the tightest fit: a request
   without a GPU goes to machines with the fewest free ones, and "any" or a family takes the smallest card.

All GPUs of a lease are of one type and one kind (real or simulated). A GPU marked `in_use` cannot be leased.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

from cellburst_protocol.errors import ErrorInfo
from cellburst_protocol.messages import GpuShown, Inventory
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import WorkerState

from . import placement_words as words

_ROUNDING = 1e-9  # sums of CPU shares such as 0.1 are not exact


@dataclass(frozen=True, slots=True)
class Holding:
    """A lease that holds hardware of a machine. `who` names it to people ("train.ipynb (default)").

    An `evictable` one (of a superseded or idle session) may be parked for a request that would otherwise wait, the one
    with most `idle_seconds` first. A `leaving` one is on its way out already: nobody else has to go for who waits for it.
    """

    lease: str
    who: str
    gpus: frozenset[str]
    cpu: float
    memory_mib: int
    opened_unix_seconds: float = 0.0
    evictable: bool = False
    idle_seconds: float = 0.0
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """A worker as placement sees it: only JOINED ones take new leases, a LOST one counts for nothing."""

    worker: str
    inventory: Inventory
    holdings: tuple[Holding, ...] = ()
    state: WorkerState = WorkerState.JOINED


@dataclass(frozen=True, slots=True)
class Request:
    """Something that needs a container. `prefer` are workers that have its things (of its kernel's own machine); `only` are those
    that it can go to at all, where any are named (the one that keeps its parked session): it is placed there, waits for that, or
    is refused. `build` is what steps of its image ask for: its machine must have that as well, though not at the same time."""

    id: str
    resources: Resources
    prefer: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    build: tuple[tuple[GpuChoice, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Placed:
    """Put it there. `alternative` is the index into `resources.gpus` (0 without GPUs)."""

    worker: str
    gpus: tuple[GpuShown, ...]
    alternative: int = 0

    @property
    def uuids(self) -> tuple[str, ...]:
        """The GPUs' uuids, as the lease names them."""
        return tuple(gpu.uuid for gpu in self.gpus)


@dataclass(frozen=True, slots=True)
class Waits:
    """It waits: `position` 1 is next. The end of the leases of `evict` (all evictable; none if that is no help, or if enough
    leases are leaving) would place it on `worker`. `memory_mib` is what it asks for."""

    position: int
    waiting_for: str
    worker: str
    evict: tuple[str, ...] = ()
    memory_mib: int = 0


@dataclass(frozen=True, slots=True)
class Refused:
    """No machine of the fleet could ever satisfy it."""

    error: ErrorInfo


Outcome = Placed | Waits | Refused


def place(request: Request, machines: Sequence[Machine], *, ahead: Sequence[Request] = (), now: float = 0.0) -> Outcome:
    """The outcome of one request behind those that wait already, in their order. `now` is unix seconds, for words only."""
    return place_all([*ahead, request], machines, now=now)[request.id]


def place_all(requests: Iterable[Request], machines: Sequence[Machine], *, now: float = 0.0) -> dict[str, Outcome]:
    """The outcome of every request, in order of arrival; what one is given, the later ones find taken."""
    rooms = [_Room(machine) for machine in machines if machine.state is not WorkerState.LOST]
    outcomes: dict[str, Outcome] = {}
    position = 0
    for request in requests:
        outcome = _place(request, rooms, position + 1, now)
        position += isinstance(outcome, Waits)
        outcomes[request.id] = outcome
    return outcomes


def can_build(machine: Machine, gpus: Sequence[tuple[GpuChoice, ...]]) -> Literal["yes", "simulated", "no"]:
    """Whether a machine has, busy or not, what steps of an image ask for; "simulated" where it has some of it only so."""
    found: Literal["yes", "simulated"] = "yes"
    for choices in gpus:
        options = _options(_Room(machine), Resources(gpus=choices, cpu=0.0, memory_mib=0))
        if not options:
            return "no"
        if all(option.simulated for option in options):
            found = "simulated"
    return found


@dataclass(slots=True)
class _Room:
    """A machine during one pass: what is still free, and what waiting requests have reserved."""

    machine: Machine
    reserved: set[str] = field(default_factory=set)
    cpu_promised: float = 0.0
    memory_promised: int = 0
    claimed: set[str] = field(default_factory=set)  # leases that an earlier request would evict; they still hold
    counted: set[str] = field(default_factory=set)  # leases whose CPU and memory some waiting request counts on
    supposed_ended: set[str] = field(default_factory=set)  # leases counted as gone while a "what if" is looked at

    def holdings(self) -> list[Holding]:
        return [h for h in self.machine.holdings if h.lease not in self.supposed_ended]

    def on_the_way(self) -> set[str]:
        """Leases that end without anybody asking again."""
        return self.claimed | {h.lease for h in self.machine.holdings if h.leaving}

    @contextmanager
    def supposing(self, ended: set[str]) -> Iterator[None]:
        """Look at the machine as if these leases had ended."""
        self.supposed_ended = set(ended)
        try:
            yield
        finally:
            self.supposed_ended = set()

    def busy_gpus(self) -> set[str]:
        marked = {gpu.uuid for gpu in self.machine.inventory.gpus if gpu.in_use}
        return marked | self.reserved | {uuid for h in self.holdings() for uuid in h.gpus}

    def cpu_free(self) -> float:
        return self.machine.inventory.cpu_cores - self.cpu_promised - sum(h.cpu for h in self.holdings())

    def memory_free(self) -> int:
        return self.machine.inventory.memory_mib - self.memory_promised - sum(h.memory_mib for h in self.holdings())

    def promise(self, gpus: Iterable[GpuShown], resources: Resources, ending: Sequence[Holding] = ()) -> None:
        """Keep these for a request; CPU and memory only beyond what the holdings whose end it waits for give back."""
        back = [h for h in ending if h.lease not in self.counted]
        self.counted |= {h.lease for h in back}
        self.reserved |= {gpu.uuid for gpu in gpus}
        self.cpu_promised += max(0.0, resources.cpu - sum(h.cpu for h in back))
        self.memory_promised += max(0, resources.memory_mib - sum(h.memory_mib for h in back))


@dataclass(frozen=True, slots=True)
class _Option:
    """A way a machine could satisfy a request: with `count` of these GPUs, whoever holds them now."""

    room: _Room
    alternative: int
    count: int
    gpus: tuple[GpuShown, ...]
    simulated: bool

    def free(self) -> list[GpuShown]:
        busy = self.room.busy_gpus()
        return [gpu for gpu in self.gpus if gpu.uuid not in busy]

    def missing(self, resources: Resources) -> tuple[int, float]:
        """How much has to be given back before it fits: GPUs, then shares of the machine's CPU and memory."""
        inventory = self.room.machine.inventory
        cpu = max(0.0, resources.cpu - self.room.cpu_free() - _ROUNDING) / max(inventory.cpu_cores, _ROUNDING)
        memory = max(0, resources.memory_mib - self.room.memory_free()) / max(inventory.memory_mib, 1)
        return max(0, self.count - len(self.free())), cpu + memory

    def fits(self, resources: Resources) -> bool:
        return self.room.machine.state is WorkerState.JOINED and self.missing(resources) == (0, 0.0)

    def tightness(self, prefer: tuple[str, ...]) -> tuple[int, bool, int, int, int, float, str]:
        room = self.room
        smallest_card = self.gpus[0].memory_mib if self.gpus else 0
        free = len(self.free()) if self.gpus else self._free_of_any()
        return (
            self.alternative, room.machine.worker not in prefer, smallest_card, free, room.memory_free(), room.cpu_free(),
            room.machine.worker,
        )  # fmt: skip

    def _free_of_any(self) -> int:
        busy = self.room.busy_gpus()
        return sum(gpu.uuid not in busy for gpu in self.room.machine.inventory.gpus)


def _place(request: Request, rooms: list[_Room], position: int, now: float) -> Outcome:
    resources = request.resources
    if request.only:
        rooms = [room for room in rooms if room.machine.worker in request.only]
    options = [option for room in rooms for option in _options(room, resources)]
    if options and not (options := [option for option in options if _builds(option.room, request)]):
        return Refused(words.cannot_build(request.build, [room.machine.inventory for room in rooms]))
    if not options:
        return Refused(words.refusal(resources, [room.machine.inventory for room in rooms]))
    if any(not option.simulated for option in options):
        options = [option for option in options if not option.simulated]
    fitting = [option for option in options if option.fits(resources)]
    if fitting:
        best = min(fitting, key=lambda option: option.tightness(request.prefer))
        chosen = tuple(best.free()[: best.count])
        best.room.promise(chosen, resources)
        return Placed(best.room.machine.worker, chosen, best.alternative)
    return _wait(request, options, position, now)


def _builds(room: _Room, request: Request) -> bool:
    """Whether the machine has, busy or not, what steps of the request's image ask for: an image is built where it runs."""
    return can_build(room.machine, request.build) != "no"


def _options(room: _Room, resources: Resources) -> list[_Option]:
    inventory = room.machine.inventory
    if resources.cpu > inventory.cpu_cores + _ROUNDING or resources.memory_mib > inventory.memory_mib:
        return []
    if not resources.gpus:
        return [_Option(room, 0, 0, (), False)]
    kinds = sorted({(gpu.type, gpu.simulated) for gpu in inventory.gpus})
    found = []
    for index, choice in enumerate(resources.gpus):
        for gpu_type, simulated in kinds:
            same = tuple(gpu for gpu in inventory.gpus if (gpu.type, gpu.simulated) == (gpu_type, simulated))
            if choice.accepts(gpu_type) and len(same) >= choice.count:
                found.append(_Option(room, index, choice.count, same, simulated))
    return found


def _wait(request: Request, options: list[_Option], position: int, now: float) -> Waits:
    resources = request.resources

    def wanting(option: _Option) -> tuple[bool, tuple[int, float], tuple[int, bool, int, int, int, float, str]]:
        away = option.room.machine.state is not WorkerState.JOINED
        return away, option.missing(resources), option.tightness(request.prefer)

    ordered = sorted(options, key=wanting)
    target, evict = _whom_to_evict(ordered, resources)
    said = words.waiting(
        resources,
        target.room.machine,
        target.room.holdings(),
        [gpu.uuid for gpu in target.gpus],
        target.count,
        now,
        position,
    )
    room = target.room
    room.claimed |= set(evict)
    with room.supposing(room.on_the_way()):  # of what it waits for, first what it gets soonest
        free = target.free()
    taken = [gpu for gpu in target.gpus if gpu not in free and gpu.uuid not in room.reserved]
    kept = [*free, *taken][: target.count]
    uuids = {gpu.uuid for gpu in kept}
    room.promise(kept, resources, [h for h in room.holdings() if h.gpus & uuids or h.lease in evict or h.leaving])
    return Waits(position, said, target.room.machine.worker, evict, resources.memory_mib)


def _whom_to_evict(options: Sequence[_Option], resources: Resources) -> tuple[_Option, tuple[str, ...]]:
    """The option to wait for, and the leases to end for it: nobody where enough is on its way out, on any machine."""
    for option in options:
        with option.room.supposing(option.room.on_the_way()):
            if option.fits(resources):
                return option, ()
    for option in options:
        evict = _evictions(option, resources)
        if evict:
            return option, evict
    return options[0], ()


def _evictions(option: _Option, resources: Resources) -> tuple[str, ...]:
    """The fewest evictable leases, longest idle first, whose end makes the option fit; none where no such set does."""
    room = option.room
    if room.machine.state is not WorkerState.JOINED:
        return ()
    with room.supposing(room.on_the_way()):
        candidates = sorted(
            (h for h in room.holdings() if h.evictable and not h.leaving),
            key=lambda h: (-h.idle_seconds, h.opened_unix_seconds, h.lease),
        )
        chosen: list[str] = []
        for candidate in candidates:
            chosen.append(candidate.lease)
            room.supposed_ended.add(candidate.lease)
            if option.fits(resources):
                break
        else:
            return ()
        for lease in list(chosen[:-1]):  # some taken on the way may have been of no help
            room.supposed_ended.discard(lease)
            if option.fits(resources):
                chosen.remove(lease)
            else:
                room.supposed_ended.add(lease)
        return tuple(chosen)
