"""Values of secrets in text: found in all forms and however they are split; nothing else is changed."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from cellburst_worker.redact import HOLD_SECONDS, Redactor, TextStream, forms

VALUE = "sk-abc123/def+456=="


def redactor(*values: str) -> Redactor:
    made = Redactor()
    made.add({f"s.K{number}": value for number, value in enumerate(values)})
    return made


@pytest.mark.parametrize(
    "written",
    [
        VALUE, json.dumps(VALUE), repr(VALUE), quote(VALUE, safe=""), quote(VALUE), base64.b64encode(VALUE.encode()).decode(),
        base64.urlsafe_b64encode(VALUE.encode()).decode(), VALUE.encode().hex(), VALUE.encode().hex().upper(),
    ],
)  # fmt: skip
def test_each_form_is_hidden_by_its_name(written: str) -> None:
    shown = redactor(VALUE).text(f"before {written} after")
    assert shown.startswith("before ") and shown.endswith(" after") and "****(s.K0)" in shown
    assert VALUE not in shown and written.strip("'\"=") not in shown


def test_a_value_of_several_lines() -> None:
    value = '-----BEGIN KEY-----\nabcdefghijklmnopqrstuvwxyz\n"short"\n'
    made = redactor(value)
    for text in (
        value,
        value.replace("\n", "\r\n"),
        json.dumps({"k": value}),
        repr(value),
        "abcdefghijklmnopqrstuvwxyz",
    ):
        assert "abcdefghijkl" not in made.text(text)


def test_short_values_are_left_and_others_take_the_first_name() -> None:
    made = redactor("short", "long enough", "long enough")
    assert made.text("short long enough") == "short ****(s.K1)"
    assert not redactor("12345") and redactor("123456")
    assert "long" not in repr(made)


def test_overlapping_values_are_hidden_together() -> None:
    made = redactor("abcdefgh", "efghijkl")
    assert made.text("xx abcdefghijkl yy") == "xx ****(s.K0) yy"
    assert redactor("aaaaaaa").text("a" * 20) == "****(s.K0)"


def test_json_and_bytes() -> None:
    made = redactor("tricky\"\n'value")
    data = json.dumps(
        {"text": ["x tricky\"\n'value", {"tricky\"\n'value": 1}], "html": json.dumps("tricky\"\n'value"), "n": 1}
    )
    after = made.json(data.encode())
    assert b"tricky" not in after and json.loads(after)["n"] == 1
    clean = b'{"a": 1.50}'
    assert made.json(clean) == clean  # nothing in it: not even written anew
    assert redactor("binary-value").data(b"\0binary-value\xff") == b"\0************\xff"
    assert redactor("binary-value").json(b"{no json binary-value") == b"{no json ************"
    assert redactor("binary-value").holds(b"xx binary-value") and not redactor("binary-value").holds(b"62696e")


TEXTS = st.text(alphabet="abcd-", max_size=60)
VALUES = st.lists(st.text(alphabet="abcd-", min_size=6, max_size=12), min_size=1, max_size=3)


@st.composite
def written(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Values, and a text with some of them in it, cut into pieces."""
    values = draw(VALUES)
    parts = draw(st.lists(st.one_of(TEXTS, st.sampled_from(values)), max_size=6))
    text = "".join(parts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return values, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(written())
@settings(max_examples=150, deadline=None)
@example((["aaaaaa"], ["aaa", "aaaa", "a"]))
@example((["abcdef", "abcdefghi"], ["abcdef", "ghi"]))
@example((["xyzabc", "abcdef"], ["xyzabc", "def"]))
def test_text_in_pieces_is_hidden_as_the_whole_would_be(case: tuple[list[str], list[str]]) -> None:
    values, pieces = case
    made = redactor(*values)
    stream = TextStream(made)
    shown = "".join(stream.write(piece, 0.0) for piece in pieces)
    whole = made.text("".join(pieces) + "\n")
    again = TextStream(made)
    assert "".join(again.write(piece, 0.0) for piece in [*pieces, "\n"]) == whole
    assert whole.startswith(shown)


@given(written(), st.lists(st.sampled_from(["go", "wait", "settle"]), min_size=10, max_size=10))
@settings(max_examples=150, deadline=None)
def test_no_value_is_ever_shown_whole_whatever_comes_between(
    case: tuple[list[str], list[str]], between: list[str]
) -> None:
    values, pieces = case
    made = redactor(*values)
    stream, shown, now = TextStream(made), "", 0.0
    for piece, what in zip(pieces, between, strict=False):
        shown += stream.write(piece, now)
        now += 2 * HOLD_SECONDS
        if what == "wait":
            shown += stream.due(now)
        elif what == "settle":
            shown += stream.settle()
    shown += stream.settle()
    assert not stream.held
    assert not any(value in shown for value in values)


@given(TEXTS, st.lists(st.integers(1, 5), max_size=30))
@settings(max_examples=100, deadline=None)
def test_a_text_without_a_value_comes_out_as_it_is(text: str, sizes: list[int]) -> None:
    made = redactor("zzzzzzzz", "yyyyyy")
    stream, shown, at = TextStream(made), "", 0
    for size in [*sizes, len(text)]:
        shown += stream.write(text[at : at + size], 0.0)
        at += size
        assert not stream.held
    assert shown == text


def test_letter_by_letter_with_waits_only_a_short_beginning_gets_out() -> None:
    stream, shown, now = TextStream(redactor(VALUE)), "", 0.0
    for letter in f"{VALUE}!":
        shown += stream.write(letter, now)
        now += 1.0
        shown += stream.due(now)
    shown += stream.settle()
    assert shown == VALUE[:5] + "****(s.K0)!"


def test_letter_by_letter_between_other_messages_less_than_half_gets_out() -> None:
    stream, shown = TextStream(redactor(VALUE)), ""
    for letter in f"{VALUE}!":
        shown += stream.write(letter, 0.0) + stream.settle()
    assert shown.endswith("!") and VALUE[: len(VALUE) // 2 + 1] not in shown


def test_what_looks_like_a_beginning_is_shown_in_time() -> None:
    stream = TextStream(redactor(VALUE))
    assert stream.write("task", 1.0) == "ta" and stream.held == "sk"
    stream = TextStream(redactor(VALUE))
    assert stream.write("ask> sk-", 1.0) == "ask> " and stream.due_at == 1.0 + HOLD_SECONDS
    assert stream.due(1.0) == "" and stream.due(1.0 + HOLD_SECONDS) == "sk-" and stream.due_at is None
    assert stream.write("ill\n", 9.0) == "ill\n"


@given(st.text(min_size=6, max_size=40))
@settings(max_examples=150, deadline=None)
def test_any_value_is_hidden_in_its_forms(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        assume(False)
    made = redactor(value)
    for text in forms(value):
        assert value not in made.text(f"<{text}>") or value in "<****(s.K0)>"


def test_a_megabyte_of_one_letter_is_not_kept() -> None:
    stream = TextStream(redactor("aaaaaaaaaa"))
    for _ in range(50):
        stream.write("a" * 1000, 0.0)
        assert len(stream.held) <= 4 * stream.redactor.longest
