"""Which local files an image leaves out: the patterns of `.dockerignore`, or a function of the user's.

Rules (Docker's "dockerignore" reference): a pattern is relative to the folder that is added; `*` and `?` stop at `/`, `**`
does not; a pattern that matches a folder covers all below it; `!` takes back; the last pattern that matches decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

Ignore = Sequence[str] | Callable[[Path], bool]


class FilePatternMatcher:
    """A set of patterns, to be given as `ignore=`: called with a relative path, it says whether that is left out.

    `~matcher` leaves out everything else: `ignore=~FilePatternMatcher("**/*.py")` adds Python files only.
    """

    def __init__(self, *patterns: str) -> None:
        rules = [_rule(pattern) for pattern in patterns]
        self._rules = [rule for rule in rules if rule is not None]
        self._inverted = False

    @classmethod
    def from_file(cls, path: str | Path) -> FilePatternMatcher:
        """The patterns in a file, one a line; lines that begin with # are comments. Raises RequestError (NOT_FOUND)."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as why:
            raise error(ErrorCode.NOT_FOUND, f"the ignore file {str(path)!r} cannot be read: {why.strerror}") from None
        return cls(*(line for line in text.splitlines() if not line.startswith("#")))

    def __call__(self, path: Path) -> bool:
        names = path.as_posix().split("/")
        parents = ["/".join(names[: count + 1]) for count in range(len(names))]
        ignored = False
        for negated, expression in self._rules:
            if ignored == negated and any(expression.fullmatch(parent) for parent in parents):
                ignored = not negated
        return ignored != self._inverted

    def __invert__(self) -> FilePatternMatcher:
        inverse = FilePatternMatcher()
        inverse._rules, inverse._inverted = self._rules, not self._inverted
        return inverse

    def covers(self, folder: Path) -> bool:
        """Whether everything below the folder is left out, so that it need not be looked at."""
        if self._inverted or any(negated for negated, _ in self._rules):
            return False
        return self(folder)


def matcher(ignore: Ignore) -> Callable[[Path], bool]:
    """What `ignore=` means. Raises RequestError (BAD_ARGUMENT) for what is neither patterns nor a function."""
    if callable(ignore):
        return ignore
    if isinstance(ignore, str) or not all(isinstance(pattern, str) for pattern in ignore):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"ignore={ignore!r} is no list of patterns",
            allowed='a list such as ["*.csv", "!keep.csv"], or a function of a path',
        )  # fmt: skip
    return FilePatternMatcher(*ignore)


def _rule(pattern: str) -> tuple[bool, re.Pattern[str]] | None:
    text = pattern.strip()
    negated = text.startswith("!")
    text = text.removeprefix("!").strip().strip("/")
    while text.startswith("./"):
        text = text[2:]
    if text in ("", "."):
        return None
    return negated, re.compile(_expression(text), re.DOTALL)


def _expression(text: str) -> str:
    result, place = "", 0
    while place < len(text):
        char = text[place]
        if text.startswith("**", place):
            place += 2
            if text.startswith("/", place):
                place += 1
                result += "(?:.*/)?"
            else:
                result += ".*"
            continue
        if char == "[" and (close := text.find("]", place + 2)) > 0:
            inside = text[place + 1 : close]
            result += f"[{'^' + inside[1:] if inside[0] in '!^' else inside}]"
            place = close
        elif char == "\\" and place + 1 < len(text):
            place += 1
            result += re.escape(text[place])
        else:
            result += {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char))
        place += 1
    return result


NON_PYTHON_FILES = ~FilePatternMatcher("**/*.py")
