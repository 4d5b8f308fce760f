"""Which logs of ended sessions go, and that no other does."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from cellburst_gateway.config import from_arguments
from cellburst_gateway.log_keeping import DAY_SECONDS, LogKeeper
from cellburst_gateway.logstore import LogStore
from cellburst_gateway.store import Store
from cellburst_gateway.store_rows import Owner
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import Notice, encode
from cellburst_protocol.states import EndReason, SessionState
from tests.gateway.house import House

ME = Owner("w", "me")
NOW = 1_800_000_000.0


class Place:
    """A record and logs with sessions of stated ages."""

    def __init__(self, folder: Path, total_bytes: int = 10**9) -> None:
        self.logs = LogStore(folder / "logs", segment_bytes=2000, total_bytes=total_bytes)
        self.store = Store.open(folder / "record.sqlite", now=NOW)
        self.live: set[str] = set()
        self.keeper = LogKeeper(self.logs, self.store, self.live.__contains__, keep_days=30)

    def session(
        self, name: str, *, events: int = 10, acknowledged: int = 0, ended_days_ago: float | None = None
    ) -> None:
        """A session with a log whose last write was when it ended, else just now."""
        days = ended_days_ago or 0.0
        moment = NOW - days * DAY_SECONDS
        self.store.create_session(name, ME, notebook="n", name=name, kernel_id="k", now=moment)
        first = self.logs.last_sequence(name) + 1
        for sequence in range(first, first + events):
            self.logs.append(name, sequence, "call", b"head", [b"x" * 150])
        self.logs.ack(name, acknowledged)
        if ended_days_ago is None:
            self.live.add(name)
        else:
            self.store.update_session(name, now=moment, state=SessionState.ENDED, reason=EndReason.STOPPED)
            self.logs.release(name)
        self.written(name, days)

    def written(self, name: str, days_ago: float) -> None:
        folder = self.logs._folder / name
        for path in (*folder.iterdir(), folder):
            os.utime(path, (NOW - days_ago * DAY_SECONDS,) * 2)

    def drop_old(self) -> int:
        return self.keeper.drop_old(self.keeper.unwritten(NOW), NOW)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.logs.close()
    made.store.close()


def test_only_logs_of_sessions_that_ended_long_ago_go(place: Place) -> None:
    place.session("old", acknowledged=10, ended_days_ago=31)
    place.session("old-unread", ended_days_ago=30.1)
    place.session("recent", acknowledged=10, ended_days_ago=29.9)
    place.session("recent-unread", ended_days_ago=29)
    place.session("live", acknowledged=10)
    place.written("live", 100)  # nobody printed anything for long
    place.session("ended-lately", acknowledged=10, ended_days_ago=1)
    place.written("ended-lately", 100)
    assert place.drop_old() == 2
    assert set(place.logs.on_disk()) == {"recent", "recent-unread", "live", "ended-lately"}
    assert place.logs.last_sequence("live") == 10
    assert place.drop_old() == 0


def test_a_log_of_a_session_that_the_record_does_not_know_stays(place: Place) -> None:
    place.logs.append("stranger", 1, "", b"head")
    place.logs.release("stranger")
    place.written("stranger", 100)
    assert place.drop_old() == 0 and place.logs.on_disk() == ["stranger"]


def test_for_room_the_oldest_ended_goes_first_and_unread_output_and_live_sessions_stay(tmp_path: Path) -> None:
    place = Place(tmp_path, total_bytes=12_000)
    try:
        place.session("unread", ended_days_ago=9)
        place.session("older", acknowledged=10, ended_days_ago=8)
        place.session("newer", acknowledged=10, ended_days_ago=7)
        place.session("idle", acknowledged=10)
        place.written("idle", 20)
        place.logs.make_room = place.keeper.make_room
        assert place.logs.size_bytes < 12_000
        place.session("busy", events=30)
        assert set(place.logs.on_disk()) == {"unread", "newer", "idle", "busy"}
        assert place.logs.size_bytes <= 12_000 + 2200
        assert [e.sequence for e in place.logs.read("unread")] == list(range(1, 11))
        assert [e.sequence for e in place.logs.read("idle")] == list(range(1, 11))
        assert [e.sequence for e in place.logs.read("busy")] == list(range(1, 31))
    finally:
        place.logs.close()
        place.store.close()


def test_how_long_is_the_operators_choice(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    given = ["--data-dir", str(tmp_path), "--run-dir", str(tmp_path), "--config", str(file)]
    file.write_text("")
    assert from_arguments(given).log_keep_days == 30
    file.write_text("[gateway]\nlog_keep_days = 7\n")
    assert from_arguments(given).log_keep_days == 7
    file.write_text("[gateway]\nlog_keep_days = 0\n")
    with pytest.raises(CellburstError, match="log_keep_days = 0 cannot be used"):
        from_arguments(given)


async def test_a_gateway_that_starts_drops_what_is_too_old(make_house: Callable[..., Awaitable[House]]) -> None:
    first = await make_house()
    hub, long_ago = first.gateway.hub, time.time() - 31 * DAY_SECONDS
    for name in ("ended", "kept"):
        hub.store.create_session(name, ME, notebook="n", name=name, kernel_id="k", now=long_ago)
        hub.logs.append(name, 1, "", encode(Notice(text="of long ago")))
    hub.store.update_session("ended", now=long_ago, state=SessionState.ENDED, reason=EndReason.STOPPED)
    await first.gateway.close()
    folder = first.gateway.config.data_folder / "sessions"
    for path in (*folder.glob("*/*"), *folder.iterdir()):
        os.utime(path, (long_ago, long_ago))
    second = await make_house()
    await second.until(lambda: not (folder / "ended").exists())
    assert (folder / "kept").exists()
