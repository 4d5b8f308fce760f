"""The `%%modal` line: `key=value` or `--key value`, parsed into options. Pure: no I/O and no IPython.

    %%modal gpu=H100,A100 memory=16GiB cpu=4 timeout=2h session=train network=none budget=$3
    %%modal --gpu any in=x,y out=model mount=/data detach card=off

Every refusal says the column it is about; `errors_shown` draws the caret.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.resources import (
    DEFAULT_MAX_TIMEOUT_SECONDS,
    Resources,
    parse_cpu,
    parse_gpus,
    parse_memory_mib,
    parse_seconds,
    parse_usd,
)
from cellburst_protocol.secrets import NONE, parse_uses
from cellburst_protocol.volume_mounts import parse_volumes
from cellburst_protocol.volumes import VolumeMount

KEYS: dict[str, str] = {
    "gpu": "GPU type and count: A100, A100:2, H100,A100 (first that is free), any",
    "memory": "memory of the container: 16GiB",
    "cpu": "cores: 4, 0.5",
    "image": "the notebook's variable that holds a cellburst.Image: image=img",
    "timeout": "longest the cell may run: 30m, 2h",
    "scaledown_window": "idle time after which the session is parked: 10m, 2h (5m unless you say so)",
    "session": "name of the session: its names stay from cell to cell",
    "network": "outbound (default) or none",
    "in": "send only these names: in=x,y",
    "out": "bring these names home whatever their size: out=model",
    "mount": "show this folder of the host, read-only: mount=/data",
    "volumes": "volumes and where they are: volumes=/data:NAME,/models:NAME:ro (:last_write_wins tells no conflicts); a bucket:"
    " /data:s3://BUCKET/PREFIX?secret=NAME; a live-shared folder: /data:nfs://NAME; none",
    "secrets": "environment variables from secrets: secrets=hf,db (db:KEY must have KEY); none takes them away",
    "budget": "stop before this much is spent: $3",
    "detach": "return at once; the output arrives by itself, %modal attach follows it",
    "card": "on (default) or off: the card above the output",
}
FLAGS = frozenset({"detach"})
RESOURCE_KEYS = frozenset({"gpu", "memory", "cpu", "network", "timeout", "budget", "scaledown_window"})
T = TypeVar("T")
# What DESIGN section 5 promises and this version does not have yet.
NOT_YET: dict[str, str] = {
    "schedule": "schedules",
}
_SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
# A timeout is checked against the gateway's own limit once it is known; this only keeps the number sane.
_ANY_TIMEOUT_SECONDS = 3650 * 86400.0
_LONGEST_IDLE_SECONDS = 30 * 86400.0


@dataclass(frozen=True)
class CellOptions:
    """What one `%%modal` line asks for. `only` None means all names the cell needs, `secrets` None those
    that the session has; `image` is the
    name of a variable, "" for what the session has; `given` are the keys written."""

    text: str = ""
    resources: Resources = field(default_factory=Resources)
    session: str = "default"
    only: tuple[str, ...] | None = None
    out: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    secrets: tuple[str, ...] | None = None
    volumes: tuple[VolumeMount, ...] | None = None  # None: those that the session has
    detach: bool = False
    card: bool = True
    image: str = ""
    image_column: int = 0  # of its value in `text`
    given: frozenset[str] = frozenset()

    def in_session(self, has_container: bool, running: Resources | None) -> Resources | None:
        """What to ask for in a session: what the line leaves out stays as its container has it.

        `running` is what the container was asked for, None when that is not known; a line that asks for nothing then
        asks for None, which is what there is.
        """
        if not has_container:
            return self.resources
        if running is None:
            return self.resources if self.given & RESOURCE_KEYS else None
        asked = self.resources
        return Resources(
            gpus=asked.gpus if "gpu" in self.given else running.gpus,
            cpu=asked.cpu if "cpu" in self.given else running.cpu,
            memory_mib=asked.memory_mib if "memory" in self.given else running.memory_mib,
            network=asked.network if "network" in self.given else running.network,
            scaledown_seconds=asked.scaledown_seconds
            if "scaledown_window" in self.given
            else running.scaledown_seconds,
            timeout_seconds=asked.timeout_seconds,
            budget_usd=asked.budget_usd,
        )


@dataclass(frozen=True)
class _Item:
    """One `key=value`, with the columns (from 0) of key and value."""

    key: str
    value: str | None
    column: int
    value_column: int


def parse_cell_line(line: str, extra_gpu_types: tuple[str, ...] = ()) -> CellOptions:
    """Parse what stands after `%%modal`. Raises RequestError with `detail["column"]` (from 0, in `line`)."""
    values: dict[str, _Item] = {}
    for item in _items(line):
        _check_key(item, line)
        if item.key in values:
            raise _refuse(line, item.column, f"{item.key}= is given twice", next=f"keep one {item.key}=")
        values[item.key] = item
    return CellOptions(
        text=line.strip(),
        resources=_resources(line, values, extra_gpu_types),
        session=_session(line, values.get("session")),
        only=_names(line, values.get("in")) if "in" in values else None,
        out=_names(line, values.get("out")),
        mounts=_mounts(line, values.get("mount")),
        secrets=_secrets(line, values.get("secrets")),
        volumes=_volumes(line, values.get("volumes")),
        detach=_on_off(line, values.get("detach"), default=False),
        card=_on_off(line, values.get("card"), default=True),
        image=_image(line, values.get("image")),
        image_column=values["image"].value_column - (len(line) - len(line.lstrip())) if "image" in values else 0,
        given=frozenset(values),
    )


def check_timeout(options: CellOptions, max_seconds: float = DEFAULT_MAX_TIMEOUT_SECONDS) -> None:
    """Raises RequestError when the timeout is longer than this gateway allows."""
    asked = options.resources.timeout_seconds
    if asked is not None and asked > max_seconds:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"timeout={asked / 3600:g}h is longer than this gateway allows",
            allowed=f"at most {max_seconds / 3600:g}h", next="the operator can raise max_timeout",
        )  # fmt: skip


def _items(line: str) -> list[_Item]:
    items: list[_Item] = []
    position = 0
    while (match := re.compile(r"\S").search(line, position)) is not None:
        column = match.start()
        word, position = _word(line, column)
        dashed = word.startswith("--")
        key, equals, value = word[2:].partition("=") if dashed else word.partition("=")
        if equals and not key:
            what = f"{word!r} is no argument of %%modal: there is no name before the ="
            then = "write name and value without spaces, for example gpu=A100"
            raise _refuse(line, column, what, allowed=", ".join(KEYS), next=then)
        value_column = column + len(key) + 1 + 2 * dashed
        if equals:
            items.append(_Item(key, _unquote(line, value, value_column), column, value_column))
        elif dashed and key not in FLAGS and (following := re.compile(r"\s*(?!--)(?=\S)").match(line, position)):
            value, position = _word(line, following.end())
            items.append(_Item(key, _unquote(line, value, following.end()), column, following.end()))
        else:
            items.append(_Item(key, None, column, position))
    return items


def _word(line: str, start: int) -> tuple[str, int]:
    """The word that starts at `start`; quotes keep spaces together."""
    quote = ""
    for position in range(start, len(line)):
        char = line[position]
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'":
            quote = char
        elif char.isspace():
            return line[start:position], position
    if quote:
        raise _refuse(line, start, f"the quote {quote} is not closed", next=f"close it with {quote}")
    return line[start:], len(line)


def _unquote(line: str, value: str, column: int) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    if not value:
        raise _refuse(line, column, "a value is missing here", next="for example gpu=A100")
    return value


def _check_key(item: _Item, line: str) -> None:
    if item.key in NOT_YET:
        raise error(
            ErrorCode.NOT_YET, f"{item.key}= is not in this version: {NOT_YET[item.key]} come with a later one",
            allowed=", ".join(KEYS), next=f"leave {item.key}= out",
            column=str(item.column), line=line,
        )  # fmt: skip
    if item.key not in KEYS:
        near = difflib.get_close_matches(item.key.lower(), [*KEYS, *NOT_YET], n=1, cutoff=0.5)
        rest = "lists are written without spaces: gpu=H100,A100" if item.value is None else f"leave {item.key}= out"
        hint = f"did you mean {near[0]}=?" if near else rest
        what = f"{item.key!r} is no argument of %%modal"
        raise _refuse(line, item.column, what, allowed=", ".join(KEYS), next=hint)
    if item.value is None and item.key not in FLAGS:
        raise _refuse(
            line, item.column, f"{item.key} needs a value", allowed=KEYS[item.key], next=f"write {item.key}=…"
        )


def _resources(line: str, values: dict[str, _Item], extra: tuple[str, ...]) -> Resources:
    default = Resources()
    return Resources(
        gpus=_parsed(line, values.get("gpu"), lambda text: parse_gpus(text, extra), default.gpus),
        memory_mib=_parsed(line, values.get("memory"), parse_memory_mib, default.memory_mib),
        cpu=_parsed(line, values.get("cpu"), parse_cpu, default.cpu),
        timeout_seconds=_parsed(line, values.get("timeout"), _timeout, default.timeout_seconds),
        scaledown_seconds=_parsed(line, values.get("scaledown_window"), _scaledown, default.scaledown_seconds),
        budget_usd=_parsed(line, values.get("budget"), _budget, default.budget_usd),
        network=_network(line, values.get("network")),
    )


def _timeout(text: str) -> float | None:
    return parse_seconds(text, "timeout", _ANY_TIMEOUT_SECONDS)


def _scaledown(text: str) -> float:
    return parse_seconds(text, "scaledown_window", _LONGEST_IDLE_SECONDS)


def _budget(text: str) -> str | None:
    return parse_usd(text)


def _parsed(line: str, item: _Item | None, parse: Callable[[str], T], default: T) -> T:
    """`parse(value)` of a key that was given, with the column added to what it refuses."""
    if item is None or item.value is None:
        return default
    try:
        return parse(item.value)
    except CellburstError as refused:
        refused.info.detail.update(column=str(item.value_column), line=line)
        raise


def _network(line: str, item: _Item | None) -> str:
    if item is None or item.value is None:
        return Resources().network
    if item.value not in ("outbound", "none"):
        what = f"network={item.value!r} is not known"
        raise _refuse(line, item.value_column, what, allowed="outbound, none", next="for example network=none")
    return item.value


def _session(line: str, item: _Item | None) -> str:
    name = item.value if item is not None and item.value is not None else "default"
    if item is not None and not _SESSION_NAME.fullmatch(name):
        raise _refuse(
            line, item.value_column, f"session={name!r} is not a name for a session",
            allowed="1 to 64 letters, digits, '_', '-' and '.'", next="for example session=train",
        )  # fmt: skip
    return name


def _image(line: str, item: _Item | None) -> str:
    if item is None or item.value is None:
        return ""
    if not item.value.isidentifier():
        what = f"image={item.value!r} is not the name of a variable"
        raise _refuse(line, item.value_column, what, allowed=KEYS["image"], next="for example image=img")
    return item.value


def _names(line: str, item: _Item | None) -> tuple[str, ...]:
    if item is None or item.value is None:
        return ()
    names = tuple(name.strip() for name in item.value.split(",") if name.strip())
    for name in names:
        if not name.isidentifier():
            what = f"{item.key}={item.value!r}: {name!r} is not a name"
            raise _refuse(
                line, item.value_column, what, allowed="names with commas", next=f"for example {item.key}=x,y"
            )
    return tuple(dict.fromkeys(names))


def _mounts(line: str, item: _Item | None) -> tuple[str, ...]:
    if item is None or item.value is None:
        return ()
    paths = tuple(path for path in item.value.split(",") if path)
    for path in paths:
        if not path.startswith(("/", "~")):
            what = f"mount={path!r} is not an absolute path"
            raise _refuse(
                line, item.value_column, what, allowed="a path from / or ~", next="for example mount=/data/images"
            )
    return paths


def _volumes(line: str, item: _Item | None) -> tuple[VolumeMount, ...] | None:
    """None: as the session has them."""
    if item is None or item.value is None:
        return None
    if item.value == NONE:
        return ()
    none: tuple[VolumeMount, ...] = ()
    return _parsed(line, item, lambda text: tuple(parse_volumes(text)), none)


def _secrets(line: str, item: _Item | None) -> tuple[str, ...] | None:
    """None: as the session has them."""
    if item is None or item.value is None:
        return None
    texts = [text for text in item.value.split(",") if text]
    if texts == [NONE]:
        return ()
    none: tuple[str, ...] = ()
    return _parsed(line, item, lambda _: tuple(str(use) for use in parse_uses(texts)), none)


def _on_off(line: str, item: _Item | None, *, default: bool) -> bool:
    if item is None:
        return default
    if item.value is None:
        return True
    known = {"on": True, "true": True, "yes": True, "1": True, "off": False, "false": False, "no": False, "0": False}
    if item.value.lower() not in known:
        what = f"{item.key}={item.value!r} is neither on nor off"
        raise _refuse(line, item.value_column, what, allowed="on, off", next=f"for example {item.key}=off")
    return known[item.value.lower()]


def _refuse(line: str, column: int, message: str, *, allowed: str = "", next: str = "") -> CellburstError:
    return error(ErrorCode.BAD_ARGUMENT, message, allowed=allowed, next=next, column=str(column), line=line)
