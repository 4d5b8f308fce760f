"""Packages by the names in a folder, and how two lists differ."""

from __future__ import annotations

from cellburst_protocol.packages import package_changes, packages_named


def test_distributions_are_found_by_their_folders() -> None:
    entries = [
        "numpy",
        "numpy-2.2.3.dist-info",
        "Typing_Extensions-4.12.dist-info",
        "old-1.0-py3.11.egg-info",
        "x.pth",
        "a-b",
    ]
    assert packages_named(entries) == {"numpy": "2.2.3", "typing-extensions": "4.12", "old": "1.0"}


def test_changes_are_a_line_each() -> None:
    old, new = {"a": "1", "b": "1", "c": "1"}, {"a": "2", "c": "1", "d": "3"}
    assert package_changes(old, new) == ["a 1 -> 2", "b 1 removed", "d 3 installed"]
    assert package_changes(old, dict(old)) == []
