"""Completion of the magic's line, and what happens to positions on the way to a container and back."""

from __future__ import annotations

import pytest

from cellburst_jupyter.completion import as_sent, complete_line, merged, shifted


@pytest.mark.parametrize(
    ("before", "wanted", "start"),
    [
        ("%%modal gp", ["gpu="], 8),
        ("%%modal --gp", ["--gpu="], 8),
        ("%%modal de", ["detach"], 8),
        ("%%modal gpu=A100-", ["A100-40GB", "A100-80GB"], 12),
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
