"""Moves between control groups that are quick while a container starts: whose file is written, and that it ends."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from cellburst_runtime.cgroup_moves import QuickMoves, own_procs


def keepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "quick group moves"]


def test_the_own_group_is_written_until_the_time_is_over(tmp_path: Path) -> None:
    procs = tmp_path / "cgroup.procs"
    procs.touch()
    moves, others = QuickMoves(procs), {*keepers()}
    for _ in ("a start", "the next one"):
        moves.expect(3600)
        moves.expect(3600)
        (keeper,) = {*keepers()} - others  # one, however many starts
        deadline = time.monotonic() + 10
        while procs.read_text() != str(os.getpid()) and time.monotonic() < deadline:
            keeper.join(0.005)
        assert procs.read_text() == str(os.getpid())
        moves._until = 0.0
        keeper.join(10)
        assert not keeper.is_alive()
        procs.write_text("")


def test_where_it_may_not_it_gives_up(tmp_path: Path) -> None:
    moves, others = QuickMoves(tmp_path / "gone" / "cgroup.procs"), {*keepers()}
    moves.expect(3600)
    for keeper in {*keepers()} - others:
        keeper.join(10)
    moves.expect(3600)
    QuickMoves(None).expect(3600)
    assert not {*keepers()} - others


@pytest.mark.parametrize(
    ("version", "text", "place"),
    [
        (1, "8:pids:/a/b\n4:memory:/other\n0::/\n", "pids/a/b"),
        (1, "8:cpu,pids:/\n", "pids"),
        (2, "0::/user.slice/x\n", "user.slice/x"),
        (2, "0::/gone\n", ""),
        (1, "0::/a\n", ""),
        (0, "0::/a\n", ""),
    ],
)
def test_the_group_of_a_process(tmp_path: Path, version: int, text: str, place: str) -> None:
    for folder in ("pids/a/b", "user.slice/x", "a", "other"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "cgroup.procs").touch()
    (tmp_path / "pids" / "cgroup.procs").touch()
    assert own_procs(tmp_path, version, text) == (tmp_path / place / "cgroup.procs" if place else None)
