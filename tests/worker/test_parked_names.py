"""Names by value: into a snapshot's folder, and out of it again, byte for byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_protocol.messages import NameGroup, ValuePart
from cellburst_worker.parked_names import keep, lost_names, names_bytes, show

BIG = os.urandom(100_000)


def said(names: str, *parts: tuple[str, bytes]) -> NameGroup:
    """A group as a runner names it: parts are ("inline" or a file's name, bytes)."""
    made = [
        ValuePart(hash="00" * 32, size_bytes=len(data), at="inline")
        if at == "inline"
        else ValuePart(hash=f"file:{at}", size_bytes=len(data), at="blob")
        for at, data in parts
    ]
    return NameGroup(names=names.split(), hash="", parts=made)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "f1").write_bytes(BIG)
    return folder


def test_names_come_back_as_they_were(tmp_path: Path, out: Path) -> None:
    groups = [said("x y", ("inline", b"one"), ("f1", BIG)), said("z", ("inline", b"")), said("w", ("inline", b"three"))]
    kept, lost = keep(groups, [b"one", b"", b"three"], out, tmp_path / "names")
    assert lost == [] and [group.names for group in kept] == [["x", "y"], ["z"], ["w"]]
    assert names_bytes(kept) == 8 + len(BIG) and list(out.iterdir()) == []
    into = tmp_path / "in"
    into.mkdir()
    assert show(kept, tmp_path / "names", into) == [b"one", b"", b"three"]
    assert {file.name for file in into.iterdir()} == {blake3(BIG).hexdigest()}
    assert (into / blake3(BIG).hexdigest()).read_bytes() == BIG


def test_a_file_that_is_not_what_the_runner_said_is_lost_and_the_others_are_kept(tmp_path: Path, out: Path) -> None:
    groups = [said("bad", ("f2", b"xx")), said("good", ("inline", b"ok"), ("f1", BIG))]
    kept, lost = keep(groups, [b"ok"], out, tmp_path / "names")
    assert [group.names for group in kept] == [["good"]]
    assert [name.name for name in lost] == ["bad"] and "not there" in lost[0].detail


def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path, out: Path) -> None:
    kept, _ = keep([said("x", ("inline", b"one"), ("f1", BIG))], [b"one"], out, tmp_path / "names")
    into = tmp_path / "in"
    into.mkdir()
    (tmp_path / "names" / "inline").write_bytes(b"on")
    with pytest.raises(PlatformError) as problem:
        show(kept, tmp_path / "names", into)
    assert problem.value.code is ErrorCode.INTEGRITY
    (tmp_path / "names" / blake3(BIG).hexdigest()).unlink()
    with pytest.raises(PlatformError):
        show(kept, tmp_path / "names", into)


def test_lost_names_say_why() -> None:
    lost = lost_names([said("a b"), said("c")], "the disk broke")
    assert [(name.name, name.detail) for name in lost] == [(n, "the disk broke") for n in "abc"]
