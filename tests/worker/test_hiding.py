"""What leaves a container that has secrets: messages in their order, values hidden, what is ours untouched."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.messages import (
    CellDone,
    FileChange,
    IOPub,
    NameGroup,
    Notice,
    ReleaseSecrets,
    RemoteName,
    ValuePart,
    decode,
    encode,
)
from cellburst_worker.hiding import Hiding, Shown

VALUE = "sentinel-0123456789"


def hiding() -> Hiding:
    made = Hiding()
    made.add(ReleaseSecrets(environment={"TOKEN": VALUE}, origins={"TOKEN": "hf"}, hidden={"old.KEY": "earlier-value"}))
    return made


def stream(made: Hiding, text: str, name: str = "stdout", parent: str = "p1", now: float = 0.0) -> list[Shown]:
    message = {
        "header": {"msg_id": "m1"},
        "parent_header": {"msg_id": parent},
        "metadata": {},
        "content": {"name": name, "text": text},
    }
    return made.iopub(
        IOPub(msg_type="stream", text_bytes=len(text)), [json.dumps(message).encode()], f"call-{parent}", now
    )


def texts(shown: list[Shown]) -> list[tuple[str, str, str]]:
    contents = [json.loads(bytes(one.buffers[0]))["content"] for one in shown]
    return [
        (one.call, content.get("name", "?"), content.get("text", "?"))
        for one, content in zip(shown, contents, strict=True)
    ]


def test_held_text_goes_before_whatever_comes_behind_it() -> None:
    made = hiding()
    assert stream(made, "a sent") and made.due_at is not None
    assert texts(stream(made, "x", "stderr")) == [("call-p1", "stdout", "sent"), ("call-p1", "stderr", "x")]
    stream(made, "sent", parent="p1")
    assert texts(stream(made, "y", parent="p2")) == [("call-p1", "stdout", "sent"), ("call-p2", "stdout", "y")]
    stream(made, "sent", parent="p2")
    data = {"content": {"data": {"text/plain": f"'{VALUE}'", "n": 1}}}
    shown = made.iopub(IOPub(msg_type="display_data"), [json.dumps(data).encode(), b"raw " + VALUE.encode()], "c", 0.0)
    assert texts(shown[:1]) == [("call-p2", "stdout", "sent")]
    assert json.loads(bytes(shown[1].buffers[0])) == {"content": {"data": {"text/plain": "'****(hf.TOKEN)'", "n": 1}}}
    assert shown[1].buffers[1] == b"raw " + b"*" * len(VALUE)
    assert made.settle() == [] and made.due_at is None


def test_a_value_over_several_writes_and_its_size() -> None:
    made = hiding()
    shown = [one for letter in f"<{VALUE}>" for one in stream(made, letter)]
    assert "".join(text for _, _, text in texts(shown)) == "<****(hf.TOKEN)>"
    sizes = [decode(one.head) for one in shown]
    assert sum(size.text_bytes for size in sizes if isinstance(size, IOPub)) == len("<****(hf.TOKEN)>")
    assert made.text("earlier-value") == "****(old.KEY)"


def test_words_are_hidden_and_hashes_are_not_touched() -> None:
    made = Hiding()
    made.add(ReleaseSecrets(environment={"PIN": "abcdef"}, origins={"PIN": "s"}))
    group = NameGroup(names=["x"], hash="abcdef" * 8, parts=[ValuePart(hash="abcdef" * 8, size_bytes=1, at="inline")])
    done = CellDone(status="ok", home=[group], stayed=[RemoteName(name="y", type="str", head="'abcdef'")], mac="abcdef")
    after = decode(made.head(encode(done)))
    assert isinstance(after, CellDone) and after.home == [group] and after.mac == "abcdef"
    assert after.stayed[0].head == "'****(s.PIN)'"
    notice = encode(Notice(text="nothing"))
    assert made.head(notice) == notice


def test_a_path_is_hidden_wherever_it_is() -> None:
    made = hiding()
    files = [FileChange(path=f"f-{VALUE}.txt", size_bytes=3), FileChange(path=f"{VALUE}/x", deleted=True)]
    after = decode(made.head(encode(CellDone(status="ok", files=files))))
    assert isinstance(after, CellDone)
    assert [file.path for file in after.files] == ["f-****(hf.TOKEN).txt", "****(hf.TOKEN)/x"]
    why = ErrorInfo(code=ErrorCode.NOT_FOUND, message=VALUE, allowed=VALUE, next=VALUE, detail={"path": VALUE})
    assert VALUE not in made.error(why).text() + str(made.error(why).detail)
    shown = stream(made, "text\n", name=VALUE)
    assert VALUE.encode() not in b"".join(bytes(buffer) for one in shown for buffer in one.buffers)


def test_paths_that_are_shown_alike_are_told_apart() -> None:
    made = hiding()
    hidden, coded = "a-****(hf.TOKEN)", base64.b64encode(VALUE.encode()).decode().rstrip("=")
    paths = {"plain.txt", f"a-{VALUE}", f"a-{coded}", f"a-{VALUE.encode().hex()}"}
    shown = made.paths(iter(paths))
    assert set(shown) == paths and shown["plain.txt"] == "plain.txt" and shown == made.paths(sorted(paths))
    assert sorted(shown.values()) == [hidden, f"{hidden}~2", f"{hidden}~3", "plain.txt"]
    assert made.paths([hidden, f"a-{VALUE}"]) == {hidden: hidden, f"a-{VALUE}": f"{hidden}~2"}


def test_the_work_for_paths_that_are_shown_alike_grows_as_their_number() -> None:
    made, steps = Hiding(), [0]
    value = "ab" * 10
    made.add(ReleaseSecrets(environment={"TOKEN": value}, origins={"TOKEN": "hf"}))
    # All are shown as one `****(hf.TOKEN)`: values that overlap are hidden together.
    paths = [value + "ab" * number for number in range(300)]
    assert {made.text(path) for path in paths} == {"****(hf.TOKEN)"}

    def count(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code is not Hiding.paths.__code__:
            return None
        steps[0] += event == "line"
        return count

    before = sys.gettrace()
    sys.settrace(count)
    try:
        shown = made.paths(paths)
    finally:
        sys.settrace(before)
    assert len(set(shown.values())) == len(paths) and f"****(hf.TOKEN)~{len(paths)}" in shown.values()
    assert 0 < steps[0] < 20 * len(paths)


def test_what_was_hidden_is_known_again_also_when_it_was_replaced() -> None:
    made = hiding()
    made.add(ReleaseSecrets(environment={"TOKEN": "the-next-value"}, origins={"TOKEN": "hf"}))
    again = Hiding()
    again.know(made.given)
    shown = again.text(f"{VALUE} the-next-value earlier-value")
    assert shown == "****(hf.TOKEN) ****(hf.TOKEN) ****(old.KEY)"


def test_values_that_have_one_are_kept_back(tmp_path: Path) -> None:
    made = hiding()
    (tmp_path / "big").write_bytes(b"x" * 5_000_000 + VALUE.encode() + b"y")
    (tmp_path / "clean").write_bytes(b"x" * 100)
    (tmp_path / "link").symlink_to(tmp_path / "big")

    def group(name: str, at: str, size: int) -> NameGroup:
        return NameGroup(
            names=[name],
            hash="h",
            parts=[ValuePart(hash=f"file:{name}" if at == "blob" else "h", size_bytes=size, at=at)],
        )  # type: ignore[arg-type]

    groups = [group("a", "inline", 9), group("big", "blob", 5_000_001 + len(VALUE)), group("b", "inline", 30), group("clean", "blob", 100),
              group("link", "blob", 5_000_001 + len(VALUE)), group("../big", "blob", 1)]  # fmt: skip
    assert made.held_back(groups, [b"harmless!", b"pickle " + VALUE.encode()], tmp_path) == {1, 2}
    named = NameGroup(names=["x", f"n{VALUE}"], hash="h", parts=[])
    assert made.held_back([groups[3], named], [], tmp_path) == {1}
