"""When a template is taken, and with which imports."""

from __future__ import annotations

import dataclasses

import pytest

from cellburst_worker.template_policy import (
    AGAIN_SECONDS,
    MAX_PRELOAD,
    MOST_UNFIT,
    MOST_WRITTEN,
    NEED_BYTES,
    PATIENCE_SECONDS,
    QUIET_SECONDS,
    SPARE_FACTOR,
    Facts,
    TemplatePolicy,
)

QUIET = Facts(container="c1", key="k1", busy=False, quiet_seconds=QUIET_SECONDS, ready_seconds=5.0, cells_done=1)
MUCH = SPARE_FACTOR * NEED_BYTES


@pytest.mark.parametrize(
    ("changes", "free_bytes", "due"),
    [
        ({}, MUCH, True),
        ({}, MUCH - 1, False),
        ({"key": ""}, MUCH, False),
        ({"quiet_seconds": QUIET_SECONDS - 0.1}, MUCH, False),
        ({"busy": True}, MUCH, False),
        ({"busy": True, "ready_seconds": PATIENCE_SECONDS}, MUCH, True),
        ({"busy": True, "ready_seconds": PATIENCE_SECONDS, "cells_done": 0}, MUCH, False),
        ({"cells_done": 0}, MUCH, True),
    ],
)
def test_a_first_template_waits_for_quiet_and_memory(changes: dict[str, object], free_bytes: int, due: bool) -> None:
    want = TemplatePolicy().due(0.0, [dataclasses.replace(QUIET, **changes)], {}, free_bytes)  # type: ignore[arg-type]
    assert (want is not None) == due


def test_one_that_exists_is_taken_again_only_for_new_imports_and_once_an_hour() -> None:
    policy, facts = TemplatePolicy(), dataclasses.replace(QUIET, imports=("numpy", "torch"))
    first = policy.due(0.0, [facts], {}, MUCH)
    assert first is not None and first.preload == ("numpy", "torch")
    policy.tried(first, 0.0)
    assert policy.due(AGAIN_SECONDS * 2, [facts], {"k1": ["numpy"]}, MUCH) is None  # torch could not be imported
    more = dataclasses.replace(facts, imports=("numpy", "torch", "pandas"))
    assert policy.due(AGAIN_SECONDS - 1, [more], {"k1": ["numpy"]}, MUCH) is None
    second = policy.due(AGAIN_SECONDS, [more], {"k1": ["numpy"]}, MUCH)
    assert second is not None and second.preload == ("numpy", "pandas")


def test_a_failure_is_tried_again_after_an_hour_and_at_once_when_the_template_is_gone() -> None:
    policy = TemplatePolicy()
    want = policy.due(0.0, [QUIET], {}, MUCH)
    assert want is not None
    policy.tried(want, 0.0)
    assert policy.due(AGAIN_SECONDS - 1, [QUIET], {}, MUCH) is None
    assert policy.due(AGAIN_SECONDS, [QUIET], {}, MUCH) is not None
    assert policy.due(1.0, [QUIET], {"k1": []}, MUCH) is None  # it is there now
    assert policy.due(2.0, [QUIET], {}, MUCH) is not None


def test_the_first_container_that_needs_one_is_served() -> None:
    other = dataclasses.replace(QUIET, container="c2", key="k2")
    want = TemplatePolicy().due(0.0, [QUIET, other], {"k1": []}, MUCH)
    assert want is not None and (want.container, want.key) == ("c2", "k2")


def test_a_template_imports_no_more_than_its_limit() -> None:
    names = tuple(f"m{number}" for number in range(MAX_PRELOAD + 10))
    want = TemplatePolicy().due(0.0, [dataclasses.replace(QUIET, imports=names)], {}, MUCH)
    assert want is not None and want.preload == names[:MAX_PRELOAD]


def test_one_that_is_full_is_not_taken_again_and_others_are_served() -> None:
    names = tuple(f"m{number}" for number in range(MAX_PRELOAD + 10))
    full = dataclasses.replace(QUIET, imports=names)
    other = dataclasses.replace(QUIET, container="c2", key="k2", imports=("numpy",))
    want = TemplatePolicy().due(0.0, [full, other], {"k1": names[:MAX_PRELOAD], "k2": []}, MUCH)
    assert want is not None and (want.key, want.preload) == ("k2", ("numpy",))


def test_what_was_asked_of_somebody_else_is_asked_once_until_that_is_gone() -> None:
    policy, facts = TemplatePolicy(), dataclasses.replace(QUIET, imports=("bad", "bad.inner", "numpy"))
    want = policy.due(0.0, [facts], {"k1": ["numpy"]}, MUCH)
    assert want is not None
    policy.asked(want)
    assert policy.due(0.0, [facts], {"k1": ["numpy"]}, MUCH) is None
    more = dataclasses.replace(facts, imports=(*facts.imports, "pandas"))
    want = policy.due(0.0, [more], {"k1": ["numpy"]}, MUCH)  # at once
    assert want is not None and want.preload == ("numpy", "pandas")
    want = policy.due(0.0, [facts], {}, MUCH)
    assert want is not None and want.preload == facts.imports


def test_a_module_that_must_not_be_in_one_is_left_out_at_once() -> None:
    policy, facts = TemplatePolicy(), dataclasses.replace(QUIET, imports=("bad", "bad.inner", "badly", "numpy"))
    want = policy.due(0.0, [facts], {}, MUCH)
    assert want is not None and want.preload == facts.imports
    policy.tried(want, 0.0)
    policy.unfit(want, "bad")
    again = policy.due(1.0, [facts], {}, MUCH)
    assert again is not None and again.preload == ("badly", "numpy")
    policy.tried(again, 1.0)
    assert policy.due(AGAIN_SECONDS * 2, [facts], {"k1": ["badly", "numpy"]}, MUCH) is None
    other = dataclasses.replace(facts, key="k2", container="c2")
    want = policy.due(1.0, [other], {}, MUCH)
    assert want is not None and want.preload == facts.imports
    for number in range(MOST_UNFIT):
        policy.unfit(want, f"module{number}")
    want = policy.due(1.0, [other], {}, MUCH)
    assert want is not None and want.preload == ()


def test_one_whose_sources_were_written_meanwhile_is_taken_again_at_once_but_not_for_ever() -> None:
    policy = TemplatePolicy()
    for _ in range(MOST_WRITTEN):
        want = policy.due(0.0, [QUIET], {}, MUCH)
        assert want is not None
        policy.tried(want, 0.0)
        policy.written(want)
    assert policy.due(0.0, [QUIET], {}, MUCH) is None
    assert policy.due(AGAIN_SECONDS, [QUIET], {"k1": []}, MUCH) is None  # there is one after all
    more = dataclasses.replace(QUIET, imports=("numpy",))
    want = policy.due(AGAIN_SECONDS, [more], {"k1": []}, MUCH)
    assert want is not None
    policy.tried(want, AGAIN_SECONDS)
    policy.written(want)
    assert policy.due(AGAIN_SECONDS, [more], {"k1": []}, MUCH) is not None  # counted anew
