"""Which rung comes next, what it is called, and why a snapshot does not fit."""

from __future__ import annotations

import pytest

from cellburst_worker.rungs import Rung, Rungs, detail, difference, unusable


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
        ({"engine": "1"}, {"engine": "2"}, "engine was 1, is 2"),
        ({"gone": "x"}, {}, "gone was x, is not there"),
        ({}, {"new": "x"}, "new was not there, is x"),
        (
            dict.fromkeys("abcde", "1"),
            dict.fromkeys("abcde", "2"),
            "a was 1, is 2; b was 1, is 2; c was 1, is 2 and 2 more",
        ),
    ],
)
def test_a_mismatch_names_what_differs(mine: dict[str, str], here: dict[str, str], said: str) -> None:
    assert difference(mine, here) == said


def test_phases_say_what_was_restored_or_why_not() -> None:
    assert (detail("snapshot"), detail("template"), detail("warm")) == ("session", "template", "warm pool")
    assert unusable("warm", "gone") == "warm container unusable: gone"
    assert unusable("snapshot", "x.so was replaced") == "snapshot unusable: x.so was replaced"
