"""Why a name cannot be sent, told by the path to the object that stands in the way."""

from __future__ import annotations

import time
import types
from collections.abc import Iterator
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from . import names_pickle
from .remote import Remote, RemoteValueError, size_text

_WALK_SECONDS = 2.0  # finding the path pickles parts again and again; a path cut short is still of use
_DEEPEST = 12
_SHOWN_NAMES = 6
_MOST_PARTS = 1000
TOO_LARGE_BYTES = 2_000_000_000  # what a person waits for without being asked first

_WAYS_OUT = {
    "lock": "make it where it is used, or leave it out in __getstate__",
    "RLock": "make it where it is used, or leave it out in __getstate__",
    "generator": "send a list of its items, or make it in the cell",
    "TextIOWrapper": "send its path, and open it in the cell",
    "BufferedReader": "send its path, and open it in the cell",
    "BufferedWriter": "send its path, and open it in the cell",
    "socket": "connect in the cell",
    "Connection": "connect in the cell",
    "module": "import it in the cell",
}


def unpicklable(name: str, value: Any, why: BaseException, namespace: dict[str, Any]) -> CellburstError:
    """The error for a name that cannot be pickled: path, type, reason and the way out."""
    if isinstance(why, RemoteValueError):
        return why
    path, culprit = find_culprit(name, value, namespace)
    kind = type(culprit)
    shown = kind.__name__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    way = _WAYS_OUT.get(kind.__name__, "make it in the cell instead, or give its class a __reduce__ or __getstate__")
    return error(
        ErrorCode.UNPICKLABLE,
        f"`{path}` cannot be sent: a {shown} cannot be pickled ({str(why)[:200]})",
        next=f"{way}; or send only what the cell needs with in=NAME,NAME",
        path=path,
        type=shown,
    )


def too_large(name: str, size_bytes: int) -> CellburstError:
    """The error for a name over the limit, told before anything is sent."""
    return error(
        ErrorCode.TOO_LARGE,
        f"`{name}` is {size_text(size_bytes)} and would have to be sent",
        allowed=f"up to {size_text(TOO_LARGE_BYTES)} a name",
        next="load or make it in the %%modal cell, where it can stay; or send the part that the cell needs",
        name=name,
        size_bytes=str(size_bytes),
    )


def python_differs(names: dict[str, set[str]], python: str) -> CellburstError:
    """The error for names (each with the functions and classes in it) that a container of another Python cannot read."""
    here, there = names_pickle.minor_text(names_pickle.PYTHON), ".".join(python.split(".")[:2])
    shown = [_with_code(name, inside) for name, inside in list(names.items())[:_SHOWN_NAMES]]
    more = f" and {len(names) - _SHOWN_NAMES} more" if len(names) > _SHOWN_NAMES else ""
    return error(
        ErrorCode.PYTHON_DIFFERS,
        f"{', '.join(shown)}{more} cannot be sent: functions and classes of a notebook need the same Python, and this "
        f"kernel has {here}, the container {there}",
        allowed="everything without code of the notebook: numbers, text, containers of them, arrays, data frames",
        next=f"use an image with python_version={here}, or define them in a %%modal cell; in=NAME,NAME sends only some names",
        names=",".join(names),
        kernel=here,
        container=there,
    )


def _with_code(name: str, inside: set[str]) -> str:
    others = sorted(inside - {name})
    return f"`{name}`" if name in inside or not others else f"`{name}` (which holds {', '.join(others[:2])})"


def find_culprit(name: str, value: Any, namespace: dict[str, Any]) -> tuple[str, Any]:
    """The path to the innermost part that cannot be pickled, and that part. Bounded in time, depth and width."""
    until = time.monotonic() + _WALK_SECONDS  # how long, not when: the injected clock is for lifecycles
    path, seen = name, {id(value)}
    for _ in range(_DEEPEST):
        for step, part in _parts(value):
            if id(part) in seen or _picklable(part, namespace):
                continue
            path, value = path + step, part
            seen.add(id(part))
            break
        else:
            return path, value
        if time.monotonic() > until:
            break
    return path, value


def _picklable(value: Any, namespace: dict[str, Any]) -> bool:
    if isinstance(value, Remote):
        return False
    try:
        names_pickle.write(value, namespace)
    except Exception:  # whatever a reducer raises
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{k!r}]", v) for k, v in list(value.items())[:_MOST_PARTS])
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", v) for i, v in enumerate(value[:_MOST_PARTS]))
    elif isinstance(value, set | frozenset):
        yield from (("{…}", v) for v in list(value)[:_MOST_PARTS])
    elif isinstance(value, types.FunctionType):
        names = value.__code__.co_freevars
        for free, cell in zip(names, value.__closure__ or (), strict=True):
            try:
                yield f".<closure>.{free}", cell.cell_contents
            except ValueError:
                continue
        yield from ((f".<default {i}>", v) for i, v in enumerate(value.__defaults__ or ()))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, dict | types.MappingProxyType) and not isinstance(value, types.ModuleType):
        yield from ((f".{k}", v) for k, v in list(attributes.items())[:_MOST_PARTS])
    for slot in getattr(type(value), "__slots__", ()):
        if hasattr(value, str(slot)):
            yield f".{slot}", getattr(value, str(slot))
