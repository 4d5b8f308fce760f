"""How much more memory a container gets while it is put away."""

from __future__ import annotations

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_runtime.engine import Usage
from cellburst_worker.park_memory import FREEZE_BYTES, MACHINE_BYTES, Room, room

MIB = 1 << 20
FREEZE, MUCH = FREEZE_BYTES // MIB, 1 << 40


@pytest.mark.parametrize(
    ("used", "limit", "names", "free", "given"),
    [
        (100, 600, 1000, MUCH, Room(0, 1000 * MIB)),  # it has that room of its own
        (590, 600, 1000, MUCH, Room(FREEZE + 4 * 590 - 10, 1000 * MIB)),
        (590, 600, 100, MUCH, Room(FREEZE + 4 * 100 - 10, 100 * MIB)),
        (590, 600, 0, MUCH, Room(FREEZE + 4 * 590 - 10, 0)),
        (590, 600, 0, MACHINE_BYTES + 200 * MIB, Room(200, (210 - FREEZE) * MIB // 4)),
        (600, 600, 0, MACHINE_BYTES + FREEZE_BYTES, Room(FREEZE, 1)),
        (700, 600, 0, MACHINE_BYTES + FREEZE_BYTES, Room(FREEZE, 1)),
    ],
)
def test_it_gets_what_its_names_take_and_no_more_than_the_machine_has(
    used: int, limit: int, names: int, free: int, given: Room
) -> None:
    assert room(Usage(0.0, used * MIB, limit * MIB), names * MIB, free, whole=False) == given


def test_beside_its_processes_the_names_take_no_more_than_its_limit_once_more() -> None:
    assert room(Usage(0.0, 590 * MIB, 600 * MIB), 0, MUCH, whole=True) == Room(600, (610 - FREEZE) * MIB // 4)
    assert room(Usage(0.0, 590 * MIB, 600 * MIB), 100 * MIB, MUCH, whole=True) == Room(FREEZE + 390, 100 * MIB)


def test_without_limits_nothing_is_given() -> None:
    assert room(Usage(None, 5, None), 7, 0, whole=True) == room(Usage(None, None, 5), 7, 0, whole=False) == Room(0, 7)


def test_without_any_memory_to_spare_it_is_not_begun() -> None:
    with pytest.raises(CellburstError) as refused:
        room(Usage(0.0, 590 * MIB, 600 * MIB), 0, MACHINE_BYTES + 7 * MIB, whole=True)
    assert refused.value.code is ErrorCode.UNAVAILABLE
    assert "590 of its 600 MiB" in refused.value.info.message and "7 MiB to spare" in refused.value.info.message
