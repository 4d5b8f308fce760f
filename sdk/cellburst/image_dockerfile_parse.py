"""The text of a Dockerfile as instructions: lines joined, flags taken off, here-documents gathered. Nothing is looked up here.

Source of the rules: the Dockerfile reference ("Format", "Here-Documents").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from cellburst_protocol.errors import CellburstError, ErrorCode, error

IGNORED = frozenset({"LABEL", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "MAINTAINER", "VOLUME"})
KNOWN = ("FROM", "ARG", "RUN", "COPY", "ADD", "ENV", "WORKDIR", "USER", "SHELL", "ENTRYPOINT", "CMD")
_WITH_DOCUMENTS = ("RUN", "COPY", "ADD")
_DOCUMENT = re.compile(r"(\d*)<<(-?)([^<]+)")


@dataclass(frozen=True)
class Document:
    """A here-document: `word` is how the line names it (`<<-"EOF"`), `name` its delimiter, `expands` whether variables in it are
    replaced, `text` what it holds, without the tabs that `<<-` takes off."""

    word: str
    name: str
    expands: bool
    text: str


@dataclass(frozen=True)
class Instruction:
    """One instruction: `flags` are its `--name=value` words, `text` the rest, `line` where it begins."""

    name: str
    flags: dict[str, str]
    text: str
    line: int
    documents: tuple[Document, ...] = ()

    def words(self) -> list[str] | None:
        """The JSON form's words; None for the shell form."""
        if not self.text.startswith("["):
            return None
        try:
            words = json.loads(self.text)
        except ValueError:
            return None
        return words if isinstance(words, list) and all(isinstance(word, str) for word in words) else None


def parse(text: str, name: str) -> list[Instruction]:
    """The instructions of a Dockerfile. Raises RequestError with the line number."""
    escape = "\\"
    directive = re.match(r"\s*#\s*escape\s*=\s*(\S)", text, re.IGNORECASE)
    if directive and directive[1] == "`":
        escape = "`"
    found: list[Instruction] = []
    pending, begun = "", 0
    lines = enumerate(text.splitlines(), 1)
    for number, raw in lines:
        line = raw.rstrip() if pending else raw.strip()
        if line.strip().startswith("#") or (pending and not line.strip()):
            continue  # comments and empty lines do not end an instruction
        if not line:
            continue
        begun = begun or number
        if line.endswith(escape):
            pending += line[: -len(escape)]
            continue
        instruction = _instruction(pending + line, begun, name)
        found.append(_with_documents(instruction, (text for _, text in lines), name))
        pending, begun = "", 0
    if pending.strip():
        found.append(_instruction(pending, begun, name))
    return found


def shell_words(text: str, *, raw: bool = False) -> list[str]:
    """Words with quotes taken off; a `$` in single quotes is escaped, since it stands for itself. `raw`: as they are written."""
    words: list[str] = []
    current, quote, begun, place = "", "", False, 0
    while place < len(text):
        char = text[place]
        if char == "\\" and quote != "'" and place + 1 < len(text):
            following = text[place + 1]
            current += f"\\{following}" if following == "$" or raw else following
            place += 1
            begun = True
        elif quote:
            if char == quote:
                quote = ""
                current += char if raw else ""
            else:
                current += "\\$" if char == "$" and quote == "'" and not raw else char
        elif char in "\"'":
            quote, begun = char, True
            current += char if raw else ""
        elif char.isspace():
            if begun:
                words.append(current)
            current, begun = "", False
        else:
            current, begun = current + char, True
        place += 1
    return [*words, current] if begun else words


def _instruction(text: str, line: int, name: str) -> Instruction:
    word, _, rest = text.strip().partition(" ")
    word, rest = word.upper(), rest.strip()
    if not re.fullmatch(r"[A-Z]+", word) or (word not in KNOWN and word not in IGNORED and word != "ONBUILD"):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{name}, line {line}: {text.strip()[:120]!r} is no instruction", allowed=", ".join(KNOWN),
            next="end a line with \\ where its instruction goes on",
        )  # fmt: skip
    if not rest and word not in IGNORED:
        raise error(ErrorCode.BAD_ARGUMENT, f"{name}, line {line}: {word} needs an argument")
    flags: dict[str, str] = {}
    while (flag := re.match(r"--([a-z-]+)(?:=(\S*))?\s+", rest)) and word in ("FROM", "RUN", "COPY", "ADD"):
        flags[flag[1]] = flag[2] or ""
        rest = rest[flag.end() :]
    return Instruction(word, flags, rest, line)


def _with_documents(instruction: Instruction, lines: Iterator[str], name: str) -> Instruction:
    """The instruction with the here-documents that it names, whose lines follow it."""
    if instruction.name not in _WITH_DOCUMENTS or instruction.words() is not None:
        return instruction
    documents = []
    for word in shell_words(instruction.text, raw=True):
        named = _DOCUMENT.fullmatch(word)
        if named is None:
            continue
        [delimiter] = shell_words(named[3]) or [""]
        if not delimiter:
            raise _wrong(instruction, name, f"{word} names no delimiter")
        documents.append(
            Document(word, delimiter, delimiter == named[3], _document(instruction, name, delimiter, named[2], lines))
        )
    if not documents:
        return instruction
    return Instruction(instruction.name, instruction.flags, instruction.text, instruction.line, tuple(documents))


def _document(instruction: Instruction, name: str, delimiter: str, dash: str, lines: Iterator[str]) -> str:
    text = ""
    for raw in lines:
        line = raw.lstrip("\t") if dash else raw
        if line == delimiter:
            return text
        text += f"{line}\n"
    raise _wrong(instruction, name, f"the here-document {delimiter} does not end")


def _wrong(instruction: Instruction, name: str, why: str) -> CellburstError:
    return error(ErrorCode.BAD_ARGUMENT, f"{name}, line {instruction.line}: {instruction.name}: {why}")
