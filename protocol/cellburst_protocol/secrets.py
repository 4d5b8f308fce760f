"""Secrets: the rules for names, keys and sizes, and how a cell names those that it uses. Pure.

A secret is a named set of environment variables. Values go one way only: in by `PutSecret`, out by `ReleaseSecrets` to a
container whose cell names the secret. No message brings one back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .errors import ErrorCode, error

MAX_VALUE_BYTES = (
    64 * 1024
)  # half of what Linux lets one variable have (MAX_ARG_STRLEN), so that a child can be started with it
MAX_KEYS = 128
MAX_SECRET_BYTES = 256 * 1024  # keys and values together; eight of them are still one message
MAX_USED = 32  # secrets that one session can have
MIN_HIDDEN_CHARACTERS = 6  # shorter values are not hidden in output: they stand in ordinary text too often
NONE = "none"  # in a cell's line: no secret at all
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# Variables that decide what runs in a container before its user's code does, or that are ours.
_RESERVED = re.compile(r"CELLBURST_.*|LD_.*|PYTHON(HOME|PATH|STARTUP)|PATH|HOME|PWD")


@dataclass(frozen=True)
class SecretUse:
    """A secret that a cell names, and the keys that it must have."""

    name: str
    required: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ":".join((self.name, *self.required))


def check_name(name: str) -> str:
    """A secret's name. Raises RequestError (BAD_ARGUMENT)."""
    if not _NAME.fullmatch(name) or name == NONE:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(name)} is no name for a secret",
            allowed=f"1 to 64 letters, digits, '.', '_' and '-', a letter or digit first, and not {NONE!r}",
        )  # fmt: skip
    return name


def check_key(key: str) -> str:
    """A key: it becomes an environment variable. Raises RequestError (BAD_ARGUMENT)."""
    if not _KEY.fullmatch(key):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(key)} is no key of a secret: it becomes an environment variable",
            allowed="1 to 128 letters, digits and '_', no digit first",
        )  # fmt: skip
    if _RESERVED.fullmatch(key):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{key} cannot be a key of a secret: containers use that variable themselves",
            allowed="any other name",
        )  # fmt: skip
    return key


def check_values(values: Mapping[str, str]) -> None:
    """Keys, values and sizes of one secret. Raises RequestError (BAD_ARGUMENT, TOO_LARGE); no message contains a value."""
    if not values:
        raise error(ErrorCode.BAD_ARGUMENT, "a secret needs at least one KEY=VALUE", next="for example HF_TOKEN=hf_...")
    if len(values) > MAX_KEYS:
        raise error(ErrorCode.TOO_LARGE, f"a secret with {len(values)} keys", allowed=f"at most {MAX_KEYS}")
    total = 0
    for key, value in values.items():
        check_key(key)
        if not isinstance(value, str):
            raise error(ErrorCode.BAD_ARGUMENT, f"the value of {key} is {type(value).__name__}", allowed="text")
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise error(ErrorCode.BAD_ARGUMENT, f"the value of {key} is not valid Unicode") from None
        if "\0" in value:
            raise error(ErrorCode.BAD_ARGUMENT, f"the value of {key} contains a NUL, which no variable can")
        if size > MAX_VALUE_BYTES:
            raise error(
                ErrorCode.TOO_LARGE, f"the value of {key} has {size} bytes", allowed=f"at most {MAX_VALUE_BYTES}",
                next="keep a file of that size in a volume",
            )  # fmt: skip
        total += size + len(key)
    if total > MAX_SECRET_BYTES:
        raise error(
            ErrorCode.TOO_LARGE, f"a secret of {total} bytes", allowed=f"at most {MAX_SECRET_BYTES}",
            next="make two of it",
        )  # fmt: skip


def parse_use(text: str) -> SecretUse:
    """`NAME`, or `NAME:KEY:KEY` with keys that it must have. Raises RequestError (BAD_ARGUMENT)."""
    name, *required = text.split(":")
    return SecretUse(check_name(name), tuple(check_key(key) for key in required))


def parse_uses(texts: Sequence[str]) -> list[SecretUse]:
    """Those that a cell names, each once. Raises RequestError (BAD_ARGUMENT)."""
    uses: dict[str, SecretUse] = {}
    for text in texts:
        use = parse_use(text)
        before = uses.get(use.name, use)
        uses[use.name] = SecretUse(use.name, tuple(dict.fromkeys((*before.required, *use.required))))
    if len(uses) > MAX_USED:
        raise error(ErrorCode.BAD_ARGUMENT, f"{len(uses)} secrets for one session", allowed=f"at most {MAX_USED}")
    return list(uses.values())


def check_required(use: SecretUse, keys: Iterable[str]) -> None:
    """Refuse a secret that lacks a key that its user needs. Raises RequestError (NOT_FOUND) naming it."""
    there = sorted(keys)
    if missing := [key for key in use.required if key not in there]:
        raise error(
            ErrorCode.NOT_FOUND, f"secret {use.name!r} has no key {', '.join(missing)}",
            allowed=f"its keys are {', '.join(there)}", next=f"`cellburst secret create {use.name} {missing[0]}=... --update`",
        )  # fmt: skip


def missing_secret(name: str, known: Sequence[str] = ()) -> Exception:
    """There is no secret of that name."""
    return error(
        ErrorCode.NOT_FOUND, f"there is no secret {shown(name)}",
        allowed=f"there are {', '.join(sorted(known)[:20])}" if known else "there are none yet",
        next=f"`cellburst secret create {name} KEY=VALUE` makes it",
    )  # fmt: skip


def shown(text: str) -> str:
    """Somebody's text in a message: quoted, at most 80 characters."""
    return repr(text if len(text) <= 80 else text[:77] + "...")
