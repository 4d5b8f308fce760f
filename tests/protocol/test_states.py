"""Every pair that is not in a table is refused; terminal states stay."""

import enum
import itertools

import pytest

from cellburst_protocol import states
from cellburst_protocol.states import CALL_END_STATE, EndReason, TransitionError, advance, is_terminal

TABLES = {
    states.CallState: states.CALL_TRANSITIONS,
    states.SessionState: states.SESSION_TRANSITIONS,
    states.ContainerState: states.CONTAINER_TRANSITIONS,
    states.WorkerState: states.WORKER_TRANSITIONS,
}
PAIRS = [(kind, a, b) for kind in TABLES for a, b in itertools.product(kind, kind)]


@pytest.mark.parametrize(("kind", "a", "b"), PAIRS)
def test_a_move_is_in_the_table_or_refused(kind: type[enum.StrEnum], a: enum.StrEnum, b: enum.StrEnum) -> None:
    table = TABLES[kind]  # type: ignore[index]
    if b in table[a]:  # type: ignore[index]
        assert advance(table, a, b, "thing 7") is b  # type: ignore[arg-type,type-var]
    else:
        with pytest.raises(TransitionError, match=f"thing 7 is {a.value} and cannot become {b.value}"):
            advance(table, a, b, "thing 7")  # type: ignore[arg-type,type-var]


@pytest.mark.parametrize("kind", TABLES)
def test_tables_are_total_and_every_state_can_end(kind: type[enum.StrEnum]) -> None:
    table = TABLES[kind]  # type: ignore[index]
    assert set(table) == set(kind)
    for state in kind:
        seen, todo = set(), [state]
        while todo:
            current = todo.pop()
            if current not in seen:
                seen.add(current)
                todo.extend(table[current])  # type: ignore[index]
        assert any(is_terminal(table, s) for s in seen), f"{state} never ends"  # type: ignore[arg-type,type-var]


def test_every_reason_has_a_final_state() -> None:
    assert set(CALL_END_STATE) == set(EndReason)
    assert all(is_terminal(states.CALL_TRANSITIONS, s) for s in CALL_END_STATE.values())
