"""Values of secrets in text: found and shown as `****(name.KEY)`, also when they are split over writes. Pure: time is passed in.

What is looked for: a value of at least MIN_HIDDEN_CHARACTERS as it is; with `\\n` as `\\r\\n`; each long line of one that has
several; and the whole value as JSON, Python's repr, HTML, part of a URL, base64 (also URL-safe, without padding) or hex. Written
in any other way it is not found. Occurrences may overlap: their union is hidden.

`TextStream`, theory of operation. Text that ends in the beginning of a value cannot be shown yet: what follows may complete
it. That end is *held*. It is given back by

    more text       it is decided by what follows
    `due`           HOLD_SECONDS later, if it is short: a prompt that looks like a value's beginning is shown
    `settle`        the end of the cell, or another message that must keep its place behind it

and what was shown without the rest is remembered, so that a completed value is never shown whole. A held end of half a value
or more is given back hidden: so letter by letter no more than that gets out.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, quote_plus

from cellburst_protocol.secrets import MIN_HIDDEN_CHARACTERS

HOLD_SECONDS = 0.05
LINE_CHARACTERS = 16  # of a value with several lines, those so long are hidden one by one too: a key in PEM form
PROBE = 8  # characters of a value's beginning that are looked for before it is compared as a whole


@dataclass(frozen=True)
class _Form:
    text: str
    label: str

    def __repr__(self) -> str:
        return f"_Form({self.label})"


class Redactor:
    """All values that one container was ever given. `repr` shows none."""

    def __init__(self) -> None:
        self._forms: dict[str, _Form] = {}
        self._longest = 0
        self._bytes: list[bytes] = []
        self._values: list[bytes] = []
        self.given: list[tuple[str, str]] = []  # each value that is hidden, with its label

    def __repr__(self) -> str:
        return f"Redactor({len(self._forms)} forms)"

    def __bool__(self) -> bool:
        return bool(self._forms)

    def add(self, values: Mapping[str, str]) -> None:
        """More values, by label `name.KEY`. The first label of a value stays."""
        for label, value in values.items():
            if len(value) >= MIN_HIDDEN_CHARACTERS and value.encode() not in self._values:
                self._values.append(value.encode())
                self.given.append((label, value))
            for text in forms(value):
                self._forms.setdefault(text, _Form(text, f"****({label})"))
        self._longest = max(map(len, self._forms), default=0)
        self._bytes = sorted({form.text.encode() for form in self._forms.values()}, key=len, reverse=True)

    # -- whole texts -----------------------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        """The text with every value hidden."""
        spans = self.spans(text)
        return _hidden(text, spans) if spans else text

    def spans(self, text: str) -> list[tuple[int, int, str]]:
        """Where values are: (start, end, label), in order, overlapping ones as one."""
        found = [
            (start, start + len(form.text), form.label)
            for form in self._forms.values()
            for start in _occurrences(form.text, text)
        ]
        merged: list[tuple[int, int, str]] = []
        for start, end, label in sorted(found, key=lambda span: (span[0], -span[1])):
            if merged and start < merged[-1][1]:
                merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
            else:
                merged.append((start, end, label))
        return merged

    def data(self, data: bytes | memoryview) -> bytes:
        """Raw bytes with every value in UTF-8 overwritten by `*`; their length stays."""
        raw = bytes(data)
        for form in self._bytes:
            if form in raw:
                raw = raw.replace(form, b"*" * len(form))
        return raw

    def holds(self, data: Any) -> bool:
        """Whether bytes (anything with `find`) have a value as it is, in UTF-8: as pickles have texts."""
        return any(data.find(value) >= 0 for value in self._values)

    @property
    def longest(self) -> int:
        """Characters of the longest form."""
        return self._longest

    def strings(self, value: Any) -> Any:
        """A JSON value with every value hidden in its strings, keys of objects too. The same object where there is none."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.strings(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key) if isinstance(key, str) else key: self.strings(item) for key, item in value.items()}
        return value

    def json(self, data: bytes | memoryview) -> bytes:
        """Encoded JSON the same way; the same bytes when nothing is in them. What is no JSON is treated as raw bytes."""
        raw = bytes(data)
        try:
            before = json.loads(raw)
        except ValueError:
            return self.data(raw)
        after = self.strings(before)
        return raw if after == before else json.dumps(after, ensure_ascii=False, separators=(",", ":")).encode()

    # -- beginnings ------------------------------------------------------------------------------------------------

    def beginning(self, text: str) -> tuple[int, int, str]:
        """Where the longest end of `text` that is a value's beginning starts (its length if there is none), how long the shortest
        such value is, and its label."""
        best, size, label = len(text), 0, ""
        for form in self._forms.values():
            start = _beginning(form.text, text)
            if start < best or (start == best < len(text) and len(form.text) < size):
                best, size, label = start, len(form.text), form.label
        return best, size, label


@dataclass
class TextStream:
    """One stream's text through a redactor. All methods return what may be shown now."""

    redactor: Redactor
    held: str = ""
    _shown: str = ""  # the end of what was shown, where it may be a value's beginning
    _held_since: float | None = field(default=None, repr=False)

    def write(self, text: str, now: float) -> str:
        """More text."""
        given, self.held = self._cut(self.held + text, settle=False)
        if (
            len(self.held) > 4 * self.redactor.longest
        ):  # a value of one letter again and again, in a text of that letter
            given += self._settle()
        if not self.held:
            self._held_since = None
        elif self._held_since is None or given:
            self._held_since = now
        return given

    @property
    def due_at(self) -> float | None:
        """When `due` should be called, None: never."""
        return None if self._held_since is None else self._held_since + HOLD_SECONDS

    def due(self, now: float) -> str:
        """Give a short held end back, if it was held for long enough."""
        due_at = self.due_at
        if due_at is None or now < due_at:
            return ""
        self._held_since = None
        if len(self._shown) + len(self.held) >= MIN_HIDDEN_CHARACTERS:
            return ""  # too long to be chance: it waits for what follows, or for `settle`
        return self._settle()

    def settle(self) -> str:
        """Give back what is held: nothing may wait behind it any longer."""
        self._held_since = None
        return self._settle()

    def _settle(self) -> str:
        given, self.held = self._cut(self.held, settle=True)
        return given

    def _cut(self, text: str, *, settle: bool) -> tuple[str, str]:
        """What to show of `text`, which follows `_shown`, and what to hold."""
        if not text:
            return "", ""
        before = len(self._shown)
        whole = self._shown + text
        spans = self.redactor.spans(whole)
        hold, size, label = self.redactor.beginning(whole)
        cut = len(whole)
        if hold < cut and not settle:
            cut = max(hold, before)
            for start, end, _ in spans:
                if start < cut < end:
                    cut = max(start, before)  # what overlaps a value that may be completed is decided with it
        elif hold < cut and cut - hold >= max(MIN_HIDDEN_CHARACTERS, size // 2):
            spans = _with(spans, (max(hold, before), cut, label))
        given = _hidden(whole[:cut], [span for span in spans if span[0] < cut], before)
        rest = whole[cut:]
        # What is shown stays in mind while a value may go on from it, also one whose other part was hidden just now.
        self._shown = whole[hold:cut] if hold < cut else ""
        return given, rest


def forms(value: str) -> Iterator[str]:
    """How a value may be written, each once; nothing for a value too short to be hidden."""
    if len(value) < MIN_HIDDEN_CHARACTERS:
        return
    raw = value.encode()
    lines = [line for line in value.splitlines() if len(line) >= LINE_CHARACTERS] if "\n" in value else []
    written = [
        value,
        value.rstrip("\n"),
        value.replace("\n", "\r\n"),
        *lines,
        json.dumps(value)[1:-1],
        json.dumps(value, ensure_ascii=False)[1:-1],
        repr(value)[1:-1],
        html.escape(value),
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        base64.b64encode(raw).decode().rstrip("="),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
        raw.hex(),
        raw.hex().upper(),
    ]
    yield from (text for text in dict.fromkeys(written) if len(text) >= MIN_HIDDEN_CHARACTERS)


def _occurrences(form: str, text: str) -> Iterator[int]:
    start = text.find(form)
    while start >= 0:
        yield start
        start = text.find(form, start + 1)


def _beginning(form: str, text: str) -> int:
    """Where the longest proper beginning of `form` that `text` ends with starts; len(text) if there is none."""
    start = max(0, len(text) - len(form) + 1)
    probe = form[:PROBE]
    while start < len(text):
        left = len(text) - start
        found = text.find(probe if left >= PROBE else form[:1], start)
        if found < 0:
            if left < PROBE:
                break
            start = len(text) - PROBE + 1  # shorter ends, one by one
            continue
        if form.startswith(text[found:]):
            return found
        start = found + 1
    return len(text)


def _with(spans: Iterable[tuple[int, int, str]], more: tuple[int, int, str]) -> list[tuple[int, int, str]]:
    """The spans with one more, which ends last."""
    kept = list(spans)
    while kept and kept[-1][1] > more[0]:
        start, _, label = kept.pop()
        more = (min(start, more[0]), more[1], label)
    return [*kept, more]


def _hidden(text: str, spans: Iterable[tuple[int, int, str]], begin: int = 0) -> str:
    """`text[begin:]` with the spans as their labels; of a span that began before `begin`, only what comes after."""
    pieces, at = [], begin
    for start, end, label in spans:
        if end <= at:
            continue
        pieces += [text[at : max(start, at)], label]
        at = min(end, len(text))
    pieces.append(text[at:])
    return "".join(pieces)
