"""Which rung comes next, what it is called, and why a snapshot does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_worker.rungs import Rung, Rungs, detail, difference, unusable
from tests.runtime.test_snapshot_key import Case


@pytest.mark.parametrize(
    ("snapshot", "template", "parked", "failing", "tried", "kind"),
    [
        (False, False, False, 0, ["boot"], "boot"),
        (False, True, False, 0, ["template"], "template"),
        (False, True, False, 1, ["template", "boot"], "boot"),
        (True, True, True, 0, ["snapshot"], "snapshot"),
        (True, True, True, 1, ["snapshot", "template"], "names"),
        (True, True, True, 2, ["snapshot", "template", "boot"], "names"),
        (True, False, True, 1, ["snapshot", "boot"], "names"),
        (False, True, True, 0, ["template"], "names"),
        (False, False, True, 0, ["boot"], "names"),
    ],
)
def test_the_fastest_rung_first_and_then_the_next(
    snapshot: bool, template: bool, parked: bool, failing: int, tried: list[Rung], kind: str
) -> None:
    rungs = Rungs(snapshot=snapshot, template=template, parked=parked)
    seen = [rungs.next()]
    for _ in range(failing):
        assert rungs.failed(seen[-1], "why")
        seen.append(rungs.next())
    assert seen == tried and rungs.kind(seen[-1]) == kind
    assert [rung for rung, _ in rungs.failures] == tried[:-1]


@pytest.mark.parametrize(
    ("template", "failing", "tried", "kind"),
    [
        (True, 0, ["warm"], "template"),
        (True, 1, ["warm", "template"], "template"),
        (False, 1, ["warm", "boot"], "boot"),
        (True, 2, ["warm", "template", "boot"], "boot"),
    ],
)
def test_a_warm_container_comes_before_the_template(template: bool, failing: int, tried: list[Rung], kind: str) -> None:
    rungs = Rungs(snapshot=False, template=template, parked=False, warm=True)
    seen = [rungs.next()]
    for _ in range(failing):
        assert rungs.failed(seen[-1], "why")
        seen.append(rungs.next())
    assert seen == tried and rungs.kind(seen[-1]) == kind


def test_below_a_boot_there_is_nothing() -> None:
    rungs = Rungs(snapshot=False, template=False, parked=False)
    assert not rungs.failed("boot", "no memory") and rungs.failures == [("boot", "no memory")]


@pytest.mark.parametrize(
    ("mine", "here", "said"),
    [
        ({"a": "1"}, {"a": "1"}, ""),
        ({"engine": "1"}, {"engine": "2"}, "gVisor on this machine is another version now"),
        ({"gone": "x"}, {}, "gone was x, is not there"),
        ({}, {"new": "x"}, "new was not there, is x"),
        ({"bundle": "x"}, {}, "the packages that run cells were updated since"),
        (
            {"CPUs": "2, 2 shown"},
            {"CPUs": "8, 8 shown"},
            "it ran with cpu=2 and cpu=8 is asked for: libraries make their threads for that number",
        ),
        # What follows from the first is not told.
        (
            {"mounts": "27 mounts 02604e18", "kernel": "6.1", "variables": "1"},
            {"mounts": "26 mounts 12345678", "kernel": "6.2", "variables": "2"},
            "this machine's kernel was 6.1 then and is 6.2 now",
        ),
    ],
)
def test_a_mismatch_is_told_as_a_sentence(mine: dict[str, str], here: dict[str, str], said: str) -> None:
    assert difference(mine, here) == said


def test_every_part_of_a_key_has_its_sentence(tmp_path: Path) -> None:
    parts = Case(tmp_path).prepared().key_parts
    for name in [*parts, "bundle"]:
        said = difference({**parts, name: "0123456789abcdef"}, parts)
        assert said and not said.startswith(name) and (name in ("kernel", "CPUs") or "0123456789" not in said), said


def test_phases_say_what_was_restored_or_why_not() -> None:
    assert (detail("snapshot"), detail("template"), detail("warm")) == ("session", "template", "warm pool")
    assert unusable("warm", "gone") == "warm container unusable: gone"
    assert unusable("snapshot", "x.so was replaced") == "snapshot unusable: x.so was replaced"
