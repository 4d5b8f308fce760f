"""What a container wrote to a volume, and publishing it: over HTTP, with other writers, lost answers and files that move."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode, PlatformError, RequestError
from cellburst_protocol.volumes import CHUNK_BYTES, VolumeMount
from cellburst_worker.volume_commit import VolumeState, Writer
from cellburst_worker.volume_gateway import GatewayVolumes
from cellburst_worker.volume_outbox import Outbox
from tests.fakes.volume_server import Volume, VolumeServer

TOKEN = "t"


@pytest.fixture
def server() -> Iterator[VolumeServer]:
    made = VolumeServer(TOKEN)
    made.volumes["v"] = Volume()
    try:
        yield made
    finally:
        made.close()


class Side:
    """A container's upper folder over a tree that holds what the server has now."""

    def __init__(self, server: VolumeServer, place: Path, name: str, **options: bool) -> None:
        self.upper, tree = place / f"{name}-upper", place / f"{name}-tree"
        self.upper.mkdir()
        tree.mkdir()
        for path, data in server.read("v").items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        version = server.volumes["v"].version
        self.writer = Writer(
            VolumeMount(volume="v", name="v", path="/v", **options), GatewayVolumes(server.url, lambda: TOKEN), self.upper, tree,
            f"{name} (session {name})", name, VolumeState(version=version, shown_version=version),
        )  # fmt: skip

    def write(self, path: str, text: str) -> None:
        (self.upper / path).parent.mkdir(parents=True, exist_ok=True)
        (self.upper / path).write_text(text)

    def commit(self, *, explicit: bool = True) -> int:
        return self.writer.commit(explicit=explicit, patient=False)


def test_a_commit_publishes_what_changed_and_nothing_twice(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"old": b"old", "gone": b"x"})
    one = Side(server, tmp_path, "one")
    one.write("d/new", "new")
    (one.upper / "link").symlink_to("d/new")
    (one.upper / "empty").mkdir()
    os.mknod(one.upper / "gone", 0o600 | 0o020000, os.makedev(0, 0))
    assert one.commit() == 2
    assert server.read("v") == {"old": b"old", "d/new": b"new", "link": b"", "empty": b""}
    kinds = {e.path: (e.kind, e.target) for e in server.volumes["v"].files.values() if not e.deleted}
    assert kinds["link"] == ("link", "d/new") and kinds["empty"] == ("folder", "")
    before = len(server.asked)
    assert one.commit() == 2 and len(server.asked) == before  # nothing was asked: nothing changed
    (one.upper / "d/new").unlink()
    assert one.commit() == 3 and "d/new" not in server.read("v")
    os.utime(one.upper / "link", follow_symlinks=False)
    assert one.commit() == 3


def test_chunks_that_are_there_are_not_sent(server: VolumeServer, tmp_path: Path) -> None:
    big = random.Random(1).randbytes(CHUNK_BYTES + 10)
    server.write("v", {"big": big})
    one = Side(server, tmp_path, "one")
    (one.upper / "copy").write_bytes(big)
    one.commit()
    assert "PUT /chunks" not in server.asked
    (one.upper / "copy").write_bytes(big[:-1] + b"!")
    one.commit()
    assert server.asked.count("PUT /chunks") == 1 and server.read("v")["copy"] == big[:-1] + b"!"


def test_two_writers_of_one_file(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"a": b"0", "b": b"0"})
    one, two = Side(server, tmp_path, "one"), Side(server, tmp_path, "two")
    one.write("a", "of one")
    two.write("a", "of two")
    two.write("b", "b of two")
    assert one.commit() == 2
    with pytest.raises(RequestError) as caught:
        two.commit()
    assert caught.value.code is ErrorCode.VOLUME_CONFLICT
    assert "'a'" in caught.value.info.message and "session one" in caught.value.info.message
    assert server.read("v") == {"a": b"of one", "b": b"0"}  # nothing of two's was published
    assert two.commit(explicit=False) == 3
    assert server.read("v") == {"a": b"of one", "b": b"b of two", "a.conflict-two": b"of two"}
    assert [text for text in two.writer.notices if "a.conflict-two" in text] == two.writer.notices
    two.writer.notices.clear()
    two.write("a", "of two, later")
    two.commit()
    assert server.read("v")["a.conflict-two"] == b"of two, later" and not two.writer.notices


def test_what_others_changed_between_our_commits_is_not_overwritten(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"a": b"0", "b": b"0"})
    one = Side(server, tmp_path, "one")
    server.write("v", {"b": b"theirs"}, by="they")
    one.write("a", "ours")
    assert one.commit() == 3  # the base moves over their change, which this container has not seen
    one.write("b", "ours too")
    with pytest.raises(RequestError) as caught:
        one.commit()
    assert caught.value.code is ErrorCode.VOLUME_CONFLICT and "they" in caught.value.info.message
    assert server.read("v")["b"] == b"theirs"
    one.write("b", "theirs")
    assert one.commit() >= 3 and server.read("v")["b"] == b"theirs"  # the same bytes are no conflict


def test_a_deletion_that_stands_against_a_change_is_not_done(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"a": b"0"})
    one = Side(server, tmp_path, "one")
    server.write("v", {"a": b"theirs"}, by="they")
    os.mknod(one.upper / "a", 0o600 | 0o020000, os.makedev(0, 0))
    one.commit(explicit=False)
    assert server.read("v") == {"a": b"theirs"}
    assert ["was not deleted" in text for text in one.writer.notices] == [True]
    before = server.volumes["v"].version
    one.commit(explicit=False)
    assert server.volumes["v"].version == before and len(one.writer.notices) == 1


def test_last_write_wins_when_asked_for(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"a": b"0"})
    one = Side(server, tmp_path, "one", last_write_wins=True)
    server.write("v", {"a": b"theirs"})
    one.write("a", "ours")
    one.commit()
    assert server.read("v") == {"a": b"ours"} and not one.writer.notices


def test_a_lost_answer_is_the_same_commit_once(server: VolumeServer, tmp_path: Path) -> None:
    one = Side(server, tmp_path, "one")
    one.write("a", "1")
    server.lost = 1
    with pytest.raises(PlatformError) as caught:
        one.commit()
    assert caught.value.code is ErrorCode.UNAVAILABLE and server.volumes["v"].version == 1
    one.write("a", "2")
    assert one.commit() == 2 and server.read("v") == {"a": b"2"}


def test_a_read_only_volume_and_a_deleted_one(server: VolumeServer, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as refused:
        Side(server, tmp_path, "ro", read_only=True).commit()
    assert refused.value.code is ErrorCode.FORBIDDEN and "read-only" in refused.value.info.message
    one = Side(server, tmp_path, "one")
    del server.volumes["v"]
    one.write("a", "1")
    with pytest.raises(RequestError) as gone:
        one.commit()
    assert gone.value.code is ErrorCode.NOT_FOUND


def test_a_file_that_does_not_rest_waits_and_is_published_whole(server: VolumeServer, tmp_path: Path) -> None:
    one = Side(server, tmp_path, "one")
    one.write("log", "a" * 100)
    target, seen = one.upper / "log", threading.Event()
    real = one.writer.gateway.missing

    def missing(hashes: list[str]) -> set[str]:
        if not seen.is_set():
            seen.set()
            target.write_text("b" * 50)  # between hashing and sending
        return real(hashes)

    one.writer.gateway.missing = missing  # type: ignore[assignment,method-assign]
    assert one.writer.commit(explicit=False) == 0 and server.read("v") == {}
    assert one.writer.commit(explicit=False) == 1 and server.read("v") == {"log": b"b" * 50}


def test_names_and_kinds_that_cannot_be_in_a_volume_are_told_once(server: VolumeServer, tmp_path: Path) -> None:
    one = Side(server, tmp_path, "one")
    os.mkfifo(one.upper / "pipe")
    one.write("cafe\u0301", "decomposed")
    Path(os.fsdecode(os.fsencode(one.upper) + b"/\xff")).write_text("not Unicode")
    one.write("good <b>'\u202e", "x")
    one.commit()
    one.commit()
    assert list(server.read("v")) == ["good <b>'\u202e"] and len(one.writer.notices) == 3


def test_state_goes_on_after_it_was_written_down(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"a": b"0", "b": b"0"})
    one = Side(server, tmp_path, "one")
    one.write("a", "ours")
    server.write("v", {"b": b"theirs"}, by="they")
    one.commit()
    one.writer.state = msgspec.json.decode(msgspec.json.encode(one.writer.state), type=VolumeState)
    before = len(server.asked)
    one.commit()
    assert len(server.asked) == before
    one.write("b", "ours")
    with pytest.raises(CellburstError):
        one.commit()


@pytest.mark.parametrize("seed", range(3))
def test_no_update_is_lost_in_silence(server: VolumeServer, tmp_path: Path, seed: int) -> None:
    """Several containers write the same few files and commit by themselves, in any order: every text that was ever committed
    by its writer as its last is in the volume, under its name or beside it, or was seen by who wrote over it."""
    chance = random.Random(seed)
    server.write("v", dict.fromkeys("abc", b"start"))
    sides = [Side(server, tmp_path, f"s{number}") for number in range(4)]
    last: dict[tuple[int, str], str] = {}
    for step in range(60):
        number = chance.randrange(len(sides))
        if chance.random() < 0.6:
            name = chance.choice("abc")
            last[number, name] = f"{number} wrote {name} at {step}"
            sides[number].write(name, last[number, name])
        else:
            sides[number].commit(explicit=False)
    for side in sides:
        side.commit(explicit=False)
    texts = {data.decode() for data in server.read("v").values()}
    assert set(last.values()) <= texts


def test_the_outbox_publishes_later_what_could_not_be(server: VolumeServer, tmp_path: Path) -> None:
    server.write("v", {"a": b"0", "b": b"0"})
    one = Side(server, tmp_path, "one")
    outbox = Outbox(tmp_path / "outbox", one.writer.gateway)
    one.write("a", "first")
    one.commit()
    outbox.keep(one.writer)
    assert not outbox.waiting
    one.write("d/new", "late")
    one.write("a", "mine")
    os.mknod(one.upper / "b", 0o600 | 0o020000, os.makedev(0, 0))
    server.refusals = 10**6
    with pytest.raises(PlatformError):
        one.commit(explicit=False)
    outbox.keep(one.writer)
    outbox.deliver()
    assert outbox.waiting
    server.refusals = 0
    server.write("v", {"a": b"theirs"}, by="they")
    outbox.deliver()
    assert not outbox.waiting
    assert server.read("v") == {"a": b"theirs", "a.conflict-one": b"mine", "d/new": b"late"}
