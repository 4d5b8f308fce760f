"""Secrets of a build's steps: in the environment of what a step starts, and nowhere else.

They lie in memory (a tmpfs below the draft, gone with the step) and are read by the step's own first program, so that neither the
sandbox's configuration nor its engine's state has them. A layer's key has the secret's name and version; what a program prints
passes `stream` before a line of it is cut, and all that is said of a build passes `hide`, before it is shown, kept or part of an
error. What a command itself writes into the image is in the image.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.images import expand
from cellburst_protocol.secrets import check_required, parse_use

from .sealed_files import forget_memory_folder, memory_folder

ENVIRONMENT = "environment"  # the file with shell assignments
AS_JSON = "environment.json"
USERNAME, PASSWORD = "REGISTRY_USERNAME", "REGISTRY_PASSWORD"
_NAMES = re.compile(r"(?<!\\)\$\{?([A-Za-z_][A-Za-z0-9_]*)")
# The image's shell reads them and becomes the command; it has no other part in it.
_WITH = 'set -a; . "$1"; set +a; shift; exec "$@"'


def _as_it_is(text: str) -> str:
    return text


class Hider(Protocol):
    """One program's output on its way to a log: each method gives what may be shown now, with values of secrets hidden, also
    those that come in pieces. `now`: seconds of any clock that does not go back."""

    def write(self, text: str, now: float) -> str:
        """More text. Its end is held back where a value may begin in it."""

    def due(self, now: float) -> str:
        """What was held back for long enough, "" before `due_at`."""

    def settle(self) -> str:
        """What is held back: the output is over."""

    @property
    def due_at(self) -> float | None:
        """When `due` should be called, None: never."""


@dataclass(frozen=True)
class BuildSecrets:
    """What a build was given: values and version by the secret's name. `hide` takes every value out of a text; `stream` makes
    what does so with the output of one program, None where there is no value."""

    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    versions: Mapping[str, int] = field(default_factory=dict)
    hide: Callable[[str], str] = field(default=_as_it_is, repr=False)
    stream: Callable[[], Hider] | None = field(default=None, repr=False)

    def environment(self, uses: Sequence[str]) -> dict[str, str]:
        """The variables of these secrets (`NAME` or `NAME:KEY`); the later one wins. Raises RequestError (NOT_FOUND)."""
        found: dict[str, str] = {}
        for text in uses:
            use = parse_use(text)
            if use.name not in self.values:
                raise error(
                    ErrorCode.NOT_FOUND, f"the secret {use.name!r} did not come with this build",
                    next="build it with `image.build()`, `cellburst image build`, or by a cell",
                )  # fmt: skip
            check_required(use, self.values[use.name])
            found |= self.values[use.name]
        return found

    def hidden(self, problem: CellburstError) -> CellburstError:
        """The same error without a value in it."""
        info: ErrorInfo = msgspec.structs.replace(
            problem.info, message=self.hide(problem.info.message),
            detail={name: self.hide(value) for name, value in problem.info.detail.items()},
        )  # fmt: skip
        return from_info(info)


@asynccontextmanager
async def shown_in_memory(draft: Path, values: Mapping[str, str], uid: int, gid: int) -> AsyncIterator[Path]:
    """A folder in memory with the values as shell assignments and as JSON, readable by one user of an image; gone afterwards."""
    text = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    data = json.dumps(dict(values))
    folder = await memory_folder(draft, len(text.encode()) + len(data.encode()))
    try:
        for name, content in ((ENVIRONMENT, text), (AS_JSON, data)):
            _write(folder / name, content, uid, gid)
        os.chown(folder, uid, gid)
        yield folder
    finally:
        await forget_memory_folder(draft)


def with_environment(place: str, arguments: Sequence[str]) -> list[str]:
    """A command that runs with the variables that `shown_in_memory` shows at `place` of its root."""
    return ["/bin/sh", "-c", _WITH, "sh", f"{place}/{ENVIRONMENT}", *arguments]


def with_values(text: str, values: Mapping[str, str]) -> str:
    """The text with the values of secrets for their `$NAME`. Raises RequestError (BAD_ARGUMENT) for any other name."""
    for name in _NAMES.findall(text):
        if name not in values:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{text!r}: the step's secrets have no key {name}", allowed=", ".join(sorted(values)),
                next="give the step the secret that has it: secrets=[...]",
            )  # fmt: skip
    return expand(text, dict(values))


@asynccontextmanager
async def login_file(draft: Path, reference: str, values: Mapping[str, str]) -> AsyncIterator[Path]:
    """A file in memory with a registry's login, as skopeo's --authfile takes it (containers-auth.json(5)).

    Raises RequestError (NOT_FOUND) for a secret that lacks one of its keys.
    """
    if missing := [key for key in (USERNAME, PASSWORD) if key not in values]:
        raise error(
            ErrorCode.NOT_FOUND, f"the secret for {reference.partition('/')[0]} has no key {' and no key '.join(missing)}",
            allowed=f"a secret with the keys {USERNAME} and {PASSWORD}",
        )  # fmt: skip
    login = base64.b64encode(f"{values[USERNAME]}:{values[PASSWORD]}".encode()).decode()
    text = json.dumps({"auths": {reference.partition("/")[0]: {"auth": login}}})
    folder = await memory_folder(draft, len(text))
    try:
        _write(folder / "auth.json", text, 0, 0)
        yield folder / "auth.json"
    finally:
        await forget_memory_folder(draft)


def _write(path: Path, text: str, uid: int, gid: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        os.fchown(fd, uid, gid)
        file.write(text)
