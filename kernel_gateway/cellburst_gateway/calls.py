"""A call while it lives: what was asked, how far it is, what it may cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from cellburst_protocol.images import ImageRecipe
from cellburst_protocol.messages import MirrorSpec, NamesData, Phase, PhaseTime, RunCell
from cellburst_protocol.resources import Resources
from cellburst_protocol.states import CALL_TRANSITIONS, CallState, EndReason, advance, is_terminal

PHASE_ORDER = ("queue", "image", "restore", "boot", "enter", "values", "run")


def merged(phases: Iterable[PhaseTime]) -> list[PhaseTime]:
    """One of each name: a start whose first rung failed went through `restore` twice, and both took time and say how."""
    found: dict[str, PhaseTime] = {}
    for phase in phases:
        one = found.get(phase.name)
        if one is None:
            found[phase.name] = PhaseTime(name=phase.name, seconds=phase.seconds, detail=phase.detail)
        else:
            one.seconds += phase.seconds
            one.detail = "; ".join(words for words in (one.detail, phase.detail) if words)
    return list(found.values())


@dataclass
class Call:
    """One cell. Times are the gateway's monotonic seconds. `cell` is dropped when the code has started."""

    id: str
    resources: Resources
    value_key: str
    accepted_at: float
    state: CallState = CallState.CREATED
    cell: RunCell | None = None
    buffers: list[memoryview] = field(default_factory=list)
    image: MirrorSpec | None = None
    recipe: ImageRecipe | None = None
    names: tuple[NamesData, list[memoryview]] | None = None
    container: str = ""
    queued_at: float | None = None
    started_at: float | None = None
    billed_from_uptime: float = 0.0
    phases: dict[str, PhaseTime] = field(default_factory=dict)
    interrupted: bool = False
    interrupt_due: int = 0  # a level that could not be delivered yet
    end_reason: EndReason | None = None  # why we ended it, before its end is reported
    accepted_sequence: int = 0  # the last event before it
    detached: bool = False
    starts: int = 0  # containers started for it
    reached_state: CallState = CallState.SENT  # what it was before it became unreachable

    def move(self, to: CallState) -> None:
        """Change state by the table; raises TransitionError."""
        self.state = advance(CALL_TRANSITIONS, self.state, to, f"call {self.id}")

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return is_terminal(CALL_TRANSITIONS, self.state)

    @property
    def before_code(self) -> bool:
        """Whether user code surely has not started: it may be cancelled or placed again freely."""
        return self.state in (CallState.CREATED, CallState.QUEUED, CallState.STARTING)

    @property
    def budget_usd(self) -> Decimal | None:
        """What it may cost, if that was said."""
        return Decimal(self.resources.budget_usd) if self.resources.budget_usd else None

    def add_phase(self, phase: Phase | PhaseTime) -> None:
        """Note a phase that ended."""
        if phase.seconds is not None:
            self.phases[phase.name] = PhaseTime(name=phase.name, seconds=round(phase.seconds, 4), detail=phase.detail)

    def phase_list(self) -> list[PhaseTime]:
        """All phases in their order."""
        return [self.phases[name] for name in PHASE_ORDER if name in self.phases]
