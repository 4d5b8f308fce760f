"""What is shown of a value that stays in the container."""

from __future__ import annotations

import tracemalloc

import pytest

from cellburst_runner.values_shown import HEAD_CHARACTERS, describe, head


@pytest.mark.parametrize("make", [bytes, bytearray])
@pytest.mark.parametrize("inside", [False, True])
def test_the_head_of_many_bytes_takes_next_to_no_memory(make: type, inside: bool) -> None:
    value = make(8 << 20)
    given = [value, value] if inside else value
    tracemalloc.start()
    try:
        shown = describe("x", given, "too_large")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    beginning = repr(make(3))[:-4]
    assert shown["head"].lstrip("[").startswith(beginning) and "..." in shown["head"]
    assert len(shown["head"]) <= HEAD_CHARACTERS and peak < 1 << 20


def test_short_bytes_are_shown_whole() -> None:
    assert (head(b"abc"), head(bytearray(b"abc")), head([b"a", 1])) == ("b'abc'", "bytearray(b'abc')", "[b'a', 1]")
