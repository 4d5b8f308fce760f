"""Text limits: what passes, what is held, and that the number of dropped bytes is exact."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from cellburst_runner.output_limit import MAX_CALLS, OutputLimit


def _message(text: str) -> tuple[bytes, int]:
    return json.dumps({"header": {"msg_id": "1"}, "content": {"name": "stdout", "text": text}}).encode(), len(
        text.encode()
    )


def test_under_the_limit_all_passes_and_there_is_no_tail() -> None:
    limit = OutputLimit(10, 4)
    assert limit.admit("c", *_message("12345")) and limit.admit("c", *_message("67890"))
    assert limit.tail("c") is None


def test_over_the_limit_the_tail_is_kept_behind_an_exact_count() -> None:
    limit = OutputLimit(10, 4)
    assert limit.admit("c", *_message("0123456789"))
    assert not limit.admit("c", *_message("abcdef"))
    assert not limit.admit("c", *_message("ghi"))
    tail = limit.tail("c")
    assert tail is not None and tail["content"] == {"name": "stdout", "text": "\n[5 bytes of output dropped]\nfghi"}
    assert limit.tail("c") is None


def test_what_fits_the_tail_is_not_called_dropped() -> None:
    limit = OutputLimit(2, 10)
    assert not limit.admit("c", *_message("abc"))
    tail = limit.tail("c")
    assert tail is not None and tail["content"]["text"] == "abc"


def test_calls_are_counted_apart_and_few_are_remembered() -> None:
    limit = OutputLimit(3, 3)
    assert limit.admit("a", *_message("abc")) and limit.admit("b", *_message("abc"))
    for number in range(2 * MAX_CALLS):
        limit.admit(f"c{number}", *_message("x"))
    assert len(limit.calls()) == MAX_CALLS


def test_before_an_error_the_tail_is_shown_once() -> None:
    limit = OutputLimit(1, 2)
    limit.admit("c", *_message("abcdef"))
    first = limit.tail_before_error("c")
    assert first is not None and first["content"]["text"] == "\n[4 bytes of output dropped]\nef"
    assert not limit.admit("c", *_message("z"))
    assert limit.tail_before_error("c") is None
    last = limit.tail("c")
    assert last is not None and last["content"]["text"] == "z"
    assert limit.tail_before_error("unknown") is None


@given(st.lists(st.text(max_size=20), max_size=40), st.integers(0, 60), st.integers(0, 30))
def test_nothing_is_lost_uncounted(texts: list[str], limit_bytes: int, tail_bytes: int) -> None:
    limit = OutputLimit(limit_bytes, tail_bytes)
    texts = [t.encode("utf-8", "replace").decode() for t in texts if t]
    passed = "".join(t for t in texts if limit.admit("c", *_message(t)))
    tail = limit.tail("c")
    shown = "" if tail is None else tail["content"]["text"]
    dropped = 0
    if shown.startswith("\n["):
        marker, _, shown = shown[1:].partition("\n")
        dropped = int(marker[1:].split()[0])
    whole = "".join(texts)
    assert len(whole.encode()) == len(passed.encode()) + dropped + len(shown.encode())
    assert whole.startswith(passed) and whole.endswith(shown)
    assert len(passed.encode()) <= limit_bytes and len(shown.encode()) <= max(tail_bytes, 0)
