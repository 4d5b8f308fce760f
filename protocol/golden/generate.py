"""Writes `runner_wire.json`, the golden vectors of the runner's wire: `python protocol/golden/generate.py`.

One vector for every message of the runner's wire. `head` is the JSON as text, `buffers` and `wire` are hex. Both sides are
tested against the file, and that the file is what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.runner_wire import to_runner_raw

FILE = Path(__file__).parent / "runner_wire.json"
_REPLY = b'{"status":"ok","execution_count":3}'
_STREAM = b'{"header":{"msg_type":"stream"},"parent_header":{},"metadata":{},"content":{"name":"stdout","text":"\xc3\xa9\\n"}}'
_PART = m.ValuePart(hash="ab" * 32, size_bytes=3, at="inline")
_GROUP = m.NameGroup(names=["x"], hash="cd" * 32, parts=[_PART])
_LOST = m.RemoteName(name="guard", type="_thread.lock", why="unpicklable", detail="guard: a lock cannot be pickled")

# (message, call that its head carries, buffers)
TO_RUNNER: list[tuple[m.Message, list[bytes]]] = [
    (m.RunnerStart(environment={"A": "1"}, folder="/work", python=["/usr/bin/python3"]), []),
    (m.RunCell(call="c1", code="x = 'é'", names=[_GROUP], header={"msg_id": "1"}, bound=["x"]), [b"\x00\x01\xff"]),
    (m.NamesData(call="c1", groups=[_GROUP]), [b"abc"]),
    (m.StdinReply(call="c1", value="yes"), []),
    (m.CommMessage(msg_type="comm_msg"), [b'{"header":{},"metadata":{},"content":{"comm_id":"w","data":{}}}', b"\x07"]),
    (m.SideRequest(id="s1", kind="complete", content={"code": "np.", "cursor_pos": 3}), []),
    (m.Interrupt(container="k1", call="c1", level=2), []),
    (m.RunnerPing(number=7), []),
    (m.RunnerCredit(size_bytes=65536), []),
    (m.RunnerFreeze(preload=["numpy", "os.path"], save_names=True, limit_bytes=1000), []),
    (m.RunnerDetach(), []),
    (m.RunnerStart(environment={"A": "2"}, restored=True, reseed=True), []),
    (m.RunnerLoadNames(groups=[_GROUP]), [b"abc"]),
    (m.ReleaseSecrets(environment={"TOKEN": "xyz"}, origins={"TOKEN": "hub"}), []),
    (m.ValueComing(file="ef" * 16, size_bytes=1000), []),
]
FROM_RUNNER: list[tuple[m.Message, str, list[bytes]]] = [
    (m.RunnerHello(container="k1", protocol=(1, 0), python_version="3.11.7", pid=1), "", []),
    (m.RunnerReady(executor_pid=12, seconds=0.5), "", []),
    (m.NamesNeeded(groups=["cd" * 32]), "c1", []),
    (m.CellStarted(), "c1", []),
    (m.IOPub(msg_type="stream", text_bytes=3), "c1", [_STREAM]),
    (
        m.IOPub(msg_type="comm_msg"),
        "c1",
        [b'{"header":{},"parent_header":{},"metadata":{},"content":{}}', b"", b"\x00" * 9],
    ),
    (m.Notice(text="a line"), "c1", []),
    (m.StdinRequest(prompt="name? "), "c1", []),
    (m.CellDone(status="ok", home=[_GROUP], run_seconds=0.25), "c1", [_REPLY, b"xyz"]),
    (m.SideReply(id="s1", content={"matches": ["np.e"]}), "", []),
    (m.ValueComing(file="ab" * 16, size_bytes=20_000_000), "", []),
    (m.RunnerPong(number=7, executor_alive_seconds=0.1), "", []),
    (m.ExecutorEnded(call="c1", signal=11, text="Fatal Python error: Segmentation fault"), "", []),
    (m.RunnerFrozen(files=["/usr/lib/a.so"], groups=[_GROUP], lost=[_LOST], preloaded=["numpy"]), "", [b"abc"]),
    (m.RunnerFrozen(error=ErrorInfo(code=ErrorCode.BUSY, message="a cell runs", next="wait for its end")), "", []),
    (m.RunnerReady(executor_pid=12, notes=["hook load raised ValueError: no"]), "", []),
    (m.RunnerNamesLoaded(names=["x"], lost=[_LOST]), "", []),
]


def vectors() -> list[dict[str, object]]:
    """All vectors."""
    found = [_vector("to runner", message, "", buffers) for message, buffers in TO_RUNNER]
    return found + [_vector("from runner", message, call, buffers) for message, call, buffers in FROM_RUNNER]


def _vector(direction: str, message: m.Message, call: str, buffers: list[bytes]) -> dict[str, object]:
    head = json.loads(m.encode(message))
    if call:
        head["call"] = call
    raw = msgspec.json.encode(head)
    wire = b"".join(bytes(part) for part in to_runner_raw(raw, buffers))
    return {"direction": direction, "head": raw.decode(), "buffers": [b.hex() for b in buffers], "wire": wire.hex()}


def text() -> str:
    """The file's text."""
    return json.dumps(vectors(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
