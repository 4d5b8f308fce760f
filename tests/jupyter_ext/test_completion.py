"""Completion of the magic's line, and what happens to positions on the way to a container and back."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from cellburst_jupyter.completion import Completion, as_sent, complete_line, merged, shifted
from cellburst_jupyter.completion_names import KEPT_SECONDS, Later
from cellburst_protocol.errors import ErrorCode, error


@pytest.mark.parametrize(
    ("before", "wanted", "start"),
    [
        ("%%modal gp", ["gpu="], 8),
        ("%%modal --gp", ["--gpu="], 8),
        ("%%modal de", ["detach"], 8),
        ("%%modal gpu=A100-", ["A100-40GB", "A100-80GB"], 12),
        ("%%modal --gpu=A100-", ["A100-40GB", "A100-80GB"], 14),
        ("%%modal gpu=H100,l4", ["L4", "L40S", "L40"], 17),
        ("%%modal session=t", ["train"], 16),
        ("%%modal network=", ["outbound", "none"], 16),
        ("%%modal in=x,fr", ["frame"], 13),
        ("%%mod", [], 5),
    ],
)
def test_line(before: str, wanted: list[str], start: int) -> None:
    matches, at = complete_line(before, [], ["train"], ["frame", "x"])
    assert (matches, at) == (wanted, start)


@pytest.mark.parametrize(
    ("before", "wanted", "typed"),
    [
        ("%%modal volumes=", [], ""),
        ("%%modal volumes=/data", [], ""),
        ("%%modal volumes=/data:", ["datasets", "models"], ""),
        ("%%modal volumes=/data:da", ["datasets"], "da"),
        ("%%modal volumes=/data:datasets,/m:mo", ["models"], "mo"),
        ("%%modal volumes=/data:datasets:r", ["ro"], "r"),
        ("%%modal secrets=", ["hub", "warehouse"], ""),
        ("%%modal --secrets=hub,", ["warehouse"], ""),
        ("%%modal secrets=w", ["warehouse"], "w"),
        ("%%modal secrets=hub:KEY,w", ["warehouse"], "w"),
        ("%%modal gpu=T4 secrets=none", [], "none"),
    ],
)
def test_volumes_and_secrets_by_name(before: str, wanted: list[str], typed: str) -> None:
    there = {"volumes": ["datasets", "models"], "secrets": ["hub", "warehouse"]}
    assert complete_line(before, [], [], [], [], there.__getitem__) == (wanted, len(before) - len(typed))


def test_names_are_asked_for_only_where_they_are_needed() -> None:
    def never(key: str) -> list[str]:
        raise AssertionError(key)

    assert complete_line("%%modal gpu=A100-", [], [], [], [], never)[0]
    assert complete_line("%%modal vol", [], [], [], [], never)[0] == ["volumes="]


def test_a_list_that_is_slow_is_there_at_the_next_key() -> None:
    gate, now = threading.Event(), [0.0]
    asked: list[str] = []

    def ask() -> list[str]:
        asked.append("")
        gate.wait(30)
        return ["name"]

    later = Later(ask, lambda: now[0])
    assert later.names() == []  # not waited for
    gate.set()
    deadline = time.monotonic() + 30
    while later.names() != ["name"]:
        assert time.monotonic() < deadline
    assert len(asked) == 1
    now[0] = KEPT_SECONDS + 1
    later.names()
    assert len(asked) == 2


def test_a_list_that_cannot_be_asked_has_no_names() -> None:
    def ask() -> list[str]:
        raise error(ErrorCode.GATEWAY_DOWN, "no gateway")

    assert Later(ask).names() == []


def test_images_are_completed_by_the_variables_that_hold_one() -> None:
    assert complete_line("%%modal image=i", [], [], ["i", "img", "x"], ["base", "img"]) == (["img"], 14)


def test_keys_that_are_there_are_not_offered_again() -> None:
    matches, _ = complete_line("%%modal gpu=A100 cpu=2 ", [], [], [])
    assert "gpu=" not in matches
    assert "memory=" in matches


def test_types_of_the_fleet_come_first() -> None:
    assert complete_line("%%modal gpu=", ["RTX-9999"], [], [])[0][0] == "RTX-9999"


def test_positions_go_there_and_back() -> None:
    code = "%%modal gpu=A100\nframe.he"
    sent, shift = as_sent(code)
    assert sent[: len(code) + shift] == sent == "# %%modal gpu=A100\nframe.he"
    reply = {"matches": ["head"], "cursor_start": len(sent) - 2, "cursor_end": len(sent)}
    back = shifted(reply, -shift)
    assert code[back["cursor_start"] : back["cursor_end"]] == "he"


def test_a_nested_magic_is_sent_without_our_line() -> None:
    code = "%%modal\n%%time\nframe.he"
    sent, shift = as_sent(code)
    assert sent == "%%time\nframe.he"
    assert sent[len(code) + shift - 2 :] == "he"


def test_remote_and_local_matches_of_one_place_are_joined() -> None:
    local = {"matches": ["data_here", "data_both"], "cursor_start": 8, "cursor_end": 10}
    remote = {"matches": ["data_there", "data_both"], "cursor_start": 8, "cursor_end": 10}
    assert merged(remote, local)["matches"] == ["data_there", "data_both", "data_here"]
    assert merged(None, local) is local
    assert merged({"matches": []}, local) is local


def test_the_container_is_asked_while_the_local_completer_works() -> None:
    order: list[str] = []

    def side_later(kind: str, content: dict[str, Any], timeout_seconds: float) -> Any:
        order.append(f"{kind} asked")

        def wait() -> tuple[Any, list[memoryview]]:
            order.append("waited for")
            end = len(content["code"])
            found = {"matches": ["there"], "cursor_start": end - 1, "cursor_end": end, "found": False}
            return SimpleNamespace(content=found, error=None), []

        return wait

    def here(*_: object) -> dict[str, Any]:
        order.append("here")
        return {"matches": ["tool"], "cursor_start": 8, "cursor_end": 9, "metadata": {}, "status": "ok"}

    session = SimpleNamespace(container_id="c-1", side_later=side_later)
    notebook: Any = SimpleNamespace(has_hub=True, hub=SimpleNamespace(sessions={"default": session}))
    completion = Completion(notebook, SimpleNamespace(do_complete=here, do_inspect=here))
    assert completion.complete("%%modal\nt", 9)["matches"] == ["there", "tool"]
    assert order == ["complete asked", "here", "waited for"]
    order.clear()
    assert completion.inspect("%%modal\nt", 9)["matches"] == ["tool"], "what is not found there may be here"
    assert order == ["inspect asked", "here", "waited for"]
