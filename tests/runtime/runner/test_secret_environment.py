"""What secrets put into an executor's environment, and take away."""

from __future__ import annotations

import os

import pytest

from cellburst_runner.secret_environment import SecretEnvironment


def test_values_come_change_and_go_and_what_they_covered_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COVERED", "before")
    for key in ("ADDED", "OWN"):
        monkeypatch.delenv(key, raising=False)
    secrets = SecretEnvironment()
    secrets.take({"COVERED": "one", "ADDED": "two", "OWN": "three"})
    assert (os.environ["COVERED"], os.environ["ADDED"]) == ("one", "two")
    os.environ["OWN"] = "set by user code"
    secrets.take({"COVERED": "one", "ADDED": "newer", "OWN": "three"})
    assert (os.environ["ADDED"], os.environ["OWN"]) == ("newer", "set by user code")
    secrets.take({})
    assert os.environ["COVERED"] == "before" and "ADDED" not in os.environ and os.environ["OWN"] == "set by user code"
    secrets.take({"ADDED": "again"})
    del os.environ["ADDED"]
    secrets.take({})
    assert "ADDED" not in os.environ
    monkeypatch.delenv("OWN")
