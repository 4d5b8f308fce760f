"""`.env` files: text to keys and values. Pure; no variable is put into another one, a value is what stands there.

    # a comment            export KEY=value         KEY = value  # a comment behind an unquoted value
    KEY='as it stands'     KEY="a \\"quote\\", \\n"    KEY="more
    KEY=                   (empty)                  lines"

A key that stands twice has the last value; `Parsed.duplicates` names it. `KEY` without `=` is an error, with its line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import ErrorCode, error

_START = re.compile(r"[ \t]*(?:export[ \t]+)?([^\s=#'\"]+)[ \t]*=[ \t]*")
_BLANK = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_UNQUOTED = re.compile(r"[^\n]*")
_COMMENT = re.compile(r"(?:^|[ \t])#.*")
_SINGLE = re.compile(r"'((?:\\'|[^'])*)'")
_DOUBLE = re.compile(r'"((?:\\.|[^"\\])*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_MEANS = {"n": "\n", "r": "\r", "t": "\t"}


@dataclass
class Parsed:
    """What a file says. `repr` shows no value."""

    values: dict[str, str] = field(default_factory=dict, repr=False)
    duplicates: list[str] = field(default_factory=list)


def parse(text: str) -> Parsed:
    """Read a whole file. Raises RequestError (BAD_ARGUMENT) naming the line; never showing what stands in it."""
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    parsed, position = Parsed(), 0
    while position < len(text):
        if blank := _BLANK.match(text, position):
            position = blank.end()
            continue
        start = _START.match(text, position)
        if start is None:
            raise _wrong(text, position, "it is no KEY=VALUE")
        key = start[1]
        value, position = _value(text, start.end())
        if key in parsed.values and key not in parsed.duplicates:
            parsed.duplicates.append(key)
        parsed.values[key] = value
    return parsed


def _value(text: str, position: int) -> tuple[str, int]:
    quote = text[position : position + 1]
    if quote not in ("'", '"') or not quote:
        match = _UNQUOTED.match(text, position)
        assert match is not None
        return _COMMENT.sub("", match[0]).strip(), match.end() + 1
    quoted = (_SINGLE if quote == "'" else _DOUBLE).match(text, position)
    if quoted is None:
        raise _wrong(text, position, f"its quote {quote} is not closed")
    rest = _BLANK.match(text, quoted.end())
    if rest is None:
        raise _wrong(text, quoted.end(), "something stands behind its closing quote")
    if quote == "'":
        return quoted[1].replace("\\'", "'"), rest.end()
    return _ESCAPE.sub(
        lambda found: _MEANS.get(found[1], found[1] if found[1] in "\"'\\$`" else found[0]), quoted[1]
    ), rest.end()


def _wrong(text: str, position: int, why: str) -> Exception:
    line = text.count("\n", 0, position) + 1
    return error(
        ErrorCode.BAD_ARGUMENT, f"line {line} of the .env file cannot be read: {why}",
        allowed='KEY=value, KEY="quoted value", # comment', next="put values with spaces, # or line breaks in double quotes",
    )  # fmt: skip
