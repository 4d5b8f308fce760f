"""The log of events: numbering, replay, acknowledgement, bounds, and what a kill leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_gateway import logstore_format as fmt
from cellburst_gateway.logstore import KEPT_SOURCES, LogStore
from cellburst_gateway.logstore_text import plain, text_of
from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_protocol.messages import CellStarted, IOPub, Notice, encode


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[LogStore]:
    opened = LogStore(tmp_path / "logs", segment_bytes=2000, retain_bytes=4000, total_bytes=20_000)
    yield opened
    opened.close()


def fill(logs: LogStore, count: int, session: str = "s", size: int = 100) -> None:
    first = logs.last_sequence(session) + 1
    for n in range(first, first + count):
        assert logs.append(session, n, f"call-{n}", b'{"t":"cell_started"}', [b"x" * size], ("c1", n))


def stream(text: str) -> tuple[bytes, list[bytes]]:
    content = json.dumps({"content": {"name": "stdout", "text": text}}).encode()
    return encode(IOPub(msg_type="stream", text_bytes=len(text))), [content]


def sequences(logs: LogStore, after: int = 0, limit: int | None = None, session: str = "s") -> list[int]:
    return [event.sequence for event in logs.read(session, after, limit)]


def test_what_is_appended_is_read_back_whole(logs: LogStore) -> None:
    assert logs.append("s", 1, "call", b"head", [b"", b"\x00one", memoryview(b"two")], ("c9", 7))
    [event] = logs.read("s")
    assert (event.sequence, event.call, event.head, event.buffers) == (1, "call", b"head", [b"", b"\x00one", b"two"])
    assert event.source == ("c9", 7)
    assert (logs.last_sequence("s"), logs.last_source("s", "c9"), logs.last_source("s", "c1")) == (1, 7, 0)
    assert (logs.last_sequence("other"), list(logs.read("other"))) == (0, [])


def test_a_repeat_adds_nothing_and_a_gap_is_refused(logs: LogStore) -> None:
    fill(logs, 3)
    assert not logs.append("s", 3, "", b"again")
    assert not logs.append("s", 4, "", b"of an event the container sent before", source=("c1", 2))
    with pytest.raises(ValueError, match="event 6 of session s after 3"):
        logs.append("s", 6, "", b"x")
    assert logs.append("s", 4, "", b"of another container", source=("c2", 2))
    assert sequences(logs) == [1, 2, 3, 4]


def test_reading_starts_after_a_sequence_and_ends_at_a_limit(logs: LogStore) -> None:
    fill(logs, 300)
    assert len(list((logs._folder / "s").glob("*.seg"))) > 5
    first = sequences(logs)[0]
    for after in (first - 1, first, 200, 270, 299, 300, 301):
        assert sequences(logs, after) == list(range(after + 1, 301))
    assert sequences(logs, 290, limit=300) == [291, 292]
    assert sequences(logs, 290, limit=1) == [291]


def test_acknowledged_segments_stay_only_up_to_their_bound(tmp_path: Path) -> None:
    logs = LogStore(tmp_path, segment_bytes=2000, retain_bytes=4000)
    fill(logs, 100)
    size = logs.size_bytes
    logs.ack("s", 50)
    assert logs.acknowledged("s") == 50
    left = sequences(logs)
    assert left[-1] == 100 and 1 < left[0] < 51
    assert logs.size_bytes < size
    logs.ack("s", 10)
    logs.ack("s", 1000)
    assert logs.acknowledged("s") == 100
    assert sum(path.stat().st_size for path in tmp_path.glob("s/*.seg")) == logs.size_bytes <= 4000 + 2 * 2200
    logs.close()


def test_the_total_is_bounded_and_acknowledged_output_goes_first(logs: LogStore) -> None:
    fill(logs, 40, "old-unread")
    fill(logs, 40, "read")
    logs.ack("read", 40)
    fill(logs, 60, "new")
    assert logs.size_bytes <= 20_000 + 2200
    assert sequences(logs, session="old-unread") == list(range(1, 41))
    assert sequences(logs, session="new") == list(range(1, 61))
    assert sequences(logs, session="read")[0] > 1
    fill(logs, 200, "new")
    assert logs.size_bytes <= 20_000 + 2200
    assert sequences(logs, session="old-unread")[0] > 1
    assert sequences(logs, session="new")[-1] == 260


def test_sessions_of_an_earlier_run_count_and_give_way_too(tmp_path: Path) -> None:
    before = LogStore(tmp_path, segment_bytes=2000)
    fill(before, 60, "old")
    before.close()
    logs = LogStore(tmp_path, segment_bytes=2000, total_bytes=12_000)
    fill(logs, 40, "new")
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*.seg")) == logs.size_bytes <= 12_000 + 2200
    assert sequences(logs, session="new") == list(range(1, 41))
    assert sequences(logs, session="old")[-1] == logs.last_sequence("old") == 60
    fill(logs, 1, "old")
    assert sequences(logs, 60, session="old") == [61]
    logs.close()


def test_opened_again_it_goes_on_where_it_was_also_when_old_segments_are_gone(tmp_path: Path) -> None:
    logs = LogStore(tmp_path, segment_bytes=2000, retain_bytes=0)
    fill(logs, 30)
    logs.append("s", 31, "", b"x", source=("c2", 5))
    fill(logs, 50)
    logs.ack("s", 81)
    logs.close()
    again = LogStore(tmp_path, segment_bytes=2000, retain_bytes=0)
    assert (again.last_sequence("s"), again.last_source("s", "c1"), again.last_source("s", "c2")) == (81, 81, 5)
    assert sequences(again)[0] > 31
    files = len(list(tmp_path.glob("s/*.seg")))
    fill(again, 1)
    assert len(list(tmp_path.glob("s/*.seg"))) == files  # the last segment is gone on with
    assert sequences(again, 80) == [81, 82]
    again.close()


def test_what_was_acknowledged_is_known_after_it_was_let_go(tmp_path: Path) -> None:
    logs = LogStore(tmp_path)
    fill(logs, 5)
    logs.ack("s", 3)
    logs.release("s")
    size = logs.size_bytes
    assert (logs.acknowledged("s"), sequences(logs)) == (3, [1, 2, 3, 4, 5])
    logs.release("s")
    assert logs.size_bytes == size == (tmp_path / "s" / f"{1:020d}.seg").stat().st_size, "nothing new, nothing written"
    logs.ack("s", 5)
    logs.close()
    again = LogStore(tmp_path)
    assert again.acknowledged("s") == 5
    fill(again, 2)
    assert sequences(again, 4) == [5, 6, 7]
    again.close()


def test_a_record_cut_short_at_any_byte_is_cut_off_and_written_anew(tmp_path: Path) -> None:
    logs = LogStore(tmp_path / "a")
    fill(logs, 3, size=20)
    logs.close()
    [path] = (tmp_path / "a").glob("s/*.seg")
    whole = path.read_bytes()
    ends = [r.end for r in fmt.records(memoryview(whole))]
    for cut in range(len(fmt.HEADER), len(whole)):
        path.write_bytes(whole[:cut])
        again = LogStore(tmp_path / "a")
        kept = max(0, sum(end <= cut for end in ends) - 1)  # the first record is the segment's state
        assert sequences(again) == list(range(1, kept + 1)), cut
        fill(again, 1, size=20)
        assert sequences(again)[-1] == kept + 1
        assert again.size_bytes == path.stat().st_size
        again.close()


def test_a_flipped_bit_ends_the_segment_there(tmp_path: Path) -> None:
    logs = LogStore(tmp_path)
    fill(logs, 3)
    logs.close()
    [path] = tmp_path.glob("s/*.seg")
    data = bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    again = LogStore(tmp_path)
    assert sequences(again) == [1, 2]
    again.close()


def test_a_file_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "00000000000000000001.seg").write_bytes(b"not a segment of ours")
    logs = LogStore(tmp_path)
    with pytest.raises(PlatformError, match="not a log segment") as caught:
        logs.last_sequence("s")
    assert caught.value.code is ErrorCode.STORE


WRITER = """
import pathlib, sys
from cellburst_gateway.logstore import LogStore
logs = LogStore(pathlib.Path(sys.argv[1]), segment_bytes=50_000)
n = 0
while True:
    n += 1
    logs.append("s", n, "call", b"{}", [bytes(n % 3000)], ("c", n))
    print(n, flush=True)
"""


def test_nothing_that_was_appended_is_lost_by_sigkill(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 500:
                writer.send_signal(signal.SIGKILL)
                break
        said = [int(line) for line in writer.stdout if line.endswith("\n")]
    last_said = max([500, *said])
    logs = LogStore(tmp_path)
    events = list(logs.read("s"))
    assert [event.sequence for event in events] == list(range(1, logs.last_sequence("s") + 1))
    assert logs.last_sequence("s") >= last_said
    assert all(event.buffers == [bytes(event.sequence % 3000)] for event in events)
    assert logs.last_source("s", "c") == logs.last_sequence("s")
    logs.close()


def test_only_the_latest_sources_are_remembered(logs: LogStore) -> None:
    for n in range(1, KEPT_SOURCES + 3):
        logs.append("s", n, "", b"x", source=(f"c{n}", 9))
    assert [logs.last_source("s", f"c{n}") for n in (1, 2, 3, KEPT_SOURCES + 2)] == [0, 0, 9, 9]


def test_a_message_of_many_buffers_is_one_event(logs: LogStore) -> None:
    buffers = [b"%d" % n for n in range(3000)]
    logs.append("s", 1, "", b"x", buffers)
    assert next(logs.read("s")).buffers == buffers


def test_dropped_it_leaves_nothing_and_released_it_leaves_everything(logs: LogStore, tmp_path: Path) -> None:
    fill(logs, 5)
    logs.flush("s")
    logs.release("s")
    assert sequences(logs) == [1, 2, 3, 4, 5]
    fill(logs, 1, "other")
    assert set(logs.on_disk()) == {"s", "other"}
    logs.drop("s")
    logs.drop("s")
    logs.drop("other")
    assert (logs.size_bytes, logs.last_sequence("s"), os.listdir(tmp_path / "logs")) == (0, 0, [])


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 200, "a\0b"])
def test_only_an_id_is_a_sessions_name(logs: LogStore, name: str) -> None:
    with pytest.raises(ValueError, match="not a session's id"):
        logs.append(name, 1, "", b"x")


# -- text ---------------------------------------------------------------------------------------------------------------


def test_text_is_what_was_printed_its_end_and_says_so(tmp_path: Path) -> None:
    logs = LogStore(tmp_path, segment_bytes=1500)
    for n in range(1, 51):
        head, buffers = stream(f"line {n}\n")
        logs.append("s", n, "call", head, buffers)
    everything = "".join(f"line {n}\n" for n in range(1, 51))
    assert logs.text("s", 10_000) == (everything, False)
    assert logs.text("s", 16) == ("line 49\nline 50\n", True)
    assert logs.text("none", 100) == ("", False)
    logs.close()


def test_a_cut_inside_a_character_loses_only_that_character(logs: LogStore) -> None:
    head, buffers = stream("aé€")
    logs.append("s", 1, "", head, buffers)
    assert logs.text("s", 4) == ("€", True)


def iopub(msg_type: str, content: dict[str, object]) -> str:
    return text_of(encode(IOPub(msg_type=msg_type)), [json.dumps({"content": content}).encode()])


def test_streams_errors_results_and_notices_have_text_and_nothing_else_has() -> None:
    assert iopub("stream", {"name": "stderr", "text": "oops\n"}) == "oops\n"
    assert (
        iopub("error", {"ename": "E", "evalue": "v", "traceback": ["\x1b[31mE\x1b[0m", "v"]}) == "\x1b[31mE\x1b[0m\nv\n"
    )
    assert iopub("error", {"ename": "E", "evalue": "v", "traceback": []}) == "E: v\n"
    assert iopub("execute_result", {"data": {"text/plain": "42", "text/html": "<b>"}}) == "42\n"
    assert iopub("display_data", {"data": {"image/png": "…"}}) == ""
    assert iopub("status", {"execution_state": "idle"}) == ""
    assert text_of(encode(Notice(text="48 MB dropped")), []) == "48 MB dropped\n"
    assert text_of(encode(CellStarted()), []) == ""
    assert text_of(b'{"t":"numbered","sequence":1,"event":{"t":"notice","text":"hi"}}', []) == "hi\n"
    for made_up in (b'{"t":"iopub"}', b'"iopub"', b'{"t":"iopub","msg_type":"stream"', b'["notice"]'):
        assert text_of(made_up, [b"{}"]) == ""


def test_of_escape_sequences_only_colours_stay() -> None:
    assert plain("\x1b[1;31mred\x1b[0m \x1b[2J\x1b[10;5H\x1b]0;title\x07bar\x1b]8;;http://x\x1b\\link\x1bM!") == (
        "\x1b[1;31mred\x1b[0m barlink!"
    )
    assert plain("\x1b[38:2:1:2:3mx\x1b[K\x1b") == "\x1b[38:2:1:2:3mx"
