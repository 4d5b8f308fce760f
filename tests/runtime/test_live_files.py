"""Live files that were written after a process was started: it may have read another text than is there now."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cellburst_runtime.live_files import Sights
from cellburst_runtime.snapshot_manifest import LiveFile

LONG_AGO = (1_000_000_000, 1_000_000_000)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An old file that was put there just now."""
    path = tmp_path / "a.py"
    path.write_text("old")
    os.utime(path, LONG_AGO)
    return path


def live(path: Path) -> list[LiveFile]:
    return [LiveFile(path=f"/in{path}", host_path=str(path))]


def test_an_old_file_that_was_put_there_is_told(file: Path) -> None:
    sights, before = Sights(), file.stat().st_ctime_ns
    assert sights.written_since(live(file), before) == f"/in{file}"
    assert sights.written_since(live(file), before) == f"/in{file}"  # a look from after it says nothing
    assert Sights().written_since(live(file), before + 10**9) == ""
    assert Sights().written_since(live(file.parent / "gone"), before) == ""


def test_one_more_link_to_a_file_that_was_seen_before_is_no_writing(file: Path) -> None:
    sights = Sights()
    sights.written_since(live(file), 0)
    since = time.time_ns()
    os.link(file, file.parent / "b.py")
    assert sights.written_since(live(file), since) == ""
    assert Sights().written_since(live(file), since) == f"/in{file}"  # who never saw it cannot tell


@pytest.mark.parametrize("how", ["written", "cut", "replaced"])
def test_a_file_that_was_seen_before_and_is_another_now_is_told(file: Path, how: str) -> None:
    sights = Sights()
    sights.written_since(live(file), 0)
    since = time.time_ns()
    if how == "written":
        file.write_text("new")
    elif how == "cut":
        file.write_text("o")
        os.utime(file, LONG_AGO)
    else:
        other = file.parent / "other.py"
        other.write_text("new")
        os.utime(other, LONG_AGO)
        other.rename(file)
    assert sights.written_since(live(file), since) == f"/in{file}"


def test_only_so_many_are_remembered(file: Path) -> None:
    sights, other = Sights(most_files=1), file.parent / "b.py"
    other.write_text("")
    sights.written_since([*live(file), *live(other)], 0)
    since = time.time_ns()
    for path in (file, other):
        os.link(path, f"{path}.link")
        os.utime(path, LONG_AGO)
    assert sights.written_since(live(file), since) == f"/in{file}"
