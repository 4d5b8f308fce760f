"""The calls of one container as its worker knows them: keys, limits, and which one runs. Pure: time is passed in.

A call is known from its RunCell on, and stays known by name after its end, because late output still carries it.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from .timeouts import CallLimit

MAX_ENDED = 10_000  # late output of an older cell than that is counted to the container and not to the cell
MAX_CANCELLED_EARLY = 64  # interrupts that overtook the RunCell they mean


@dataclass
class Call:
    """One call that has not ended."""

    id: str
    value_key: str
    limit: CallLimit = field(default_factory=lambda: CallLimit(None))
    relayed: bool = False  # the runner has it: from here on an interrupt is the runner's to carry out
    cancelled: bool = False
    blobs: set[str] = field(default_factory=set)  # shown in the container for it


class Calls:
    """All calls of one container."""

    def __init__(self) -> None:
        self._open: dict[str, Call] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()
        self._cancelled_early: OrderedDict[str, None] = OrderedDict()

    def began(self, id: str, value_key: str, timeout_seconds: float | None) -> Call | None:
        """A RunCell came. None when this call came before (a repeat after a lost link)."""
        if id in self._open or id in self._ended:
            return None
        call = self._open[id] = Call(id, value_key, CallLimit(timeout_seconds))
        if id in self._cancelled_early:
            del self._cancelled_early[id]
            call.cancelled = True
        return call

    def get(self, id: str) -> Call | None:
        """The call if it has not ended."""
        return self._open.get(id)

    def knows(self, id: str) -> bool:
        """Whether the call was ever given to this container."""
        return id in self._open or id in self._ended

    def started(self, id: str, now_seconds: float) -> Call | None:
        """User code of the call starts."""
        call = self._open.get(id)
        if call is not None and call.limit.started_seconds is None:
            call.limit.started_seconds = now_seconds
        return call

    def ended(self, id: str) -> Call | None:
        """The call is over. None when it was already, or never was."""
        call = self._open.pop(id, None)
        if call is not None:
            self._ended[id] = None
            if len(self._ended) > MAX_ENDED:
                self._ended.popitem(last=False)
        return call

    def cancel_early(self, id: str) -> None:
        """An interrupt overtook the RunCell it means: remember it until that comes."""
        if id not in self._open and id not in self._ended:
            self._cancelled_early[id] = None
            if len(self._cancelled_early) > MAX_CANCELLED_EARLY:
                self._cancelled_early.popitem(last=False)

    @property
    def ended_count(self) -> int:
        """How many calls have ended, as far as they are remembered."""
        return len(self._ended)

    @property
    def running(self) -> str:
        """The oldest call that has not ended, or ""."""
        return next(iter(self._open), "")

    def due(self, now_seconds: float) -> list[tuple[str, int]]:
        """(call, interrupt level) for every limit that is reached."""
        levels = ((call.id, call.limit.due(now_seconds)) for call in self._open.values())
        return [(id, level) for id, level in levels if level]

    def next_due_seconds(self) -> float | None:
        """When `due` has something next, on the monotonic clock."""
        times = [t for call in self._open.values() if (t := call.limit.next_due_seconds()) is not None]
        return min(times, default=None)
