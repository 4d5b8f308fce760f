"""The path to what stands in the way of saving a name: `state['pool'].lock`, not only `state`.

As `cellburst_jupyter.names_errors` finds it before a cell, here for names that cannot be saved with a parked session.
"""

from __future__ import annotations

import io
import time
import types
from typing import Any, Dict, Iterator, Tuple

from . import values_pickle

DEEPEST = 12
MOST_PARTS = 1000
MOST_BYTES = 64 * 1024 * 1024  # a part that writes so much without failing is not what stands in the way


class TooLarge(Exception):
    """A pickle grew beyond what it may take."""


class BoundedFile(io.BytesIO):
    """Memory for one pickle. Raises TooLarge instead of growing beyond `limit_bytes`."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes

    def write(self, data: Any) -> int:
        """As BytesIO.write."""
        if self.tell() + memoryview(data).nbytes > self._limit_bytes:
            raise TooLarge
        return super().write(data)


def find(name: str, value: Any, namespace: Dict[str, Any], seconds: float) -> Tuple[str, Any]:
    """The path to the innermost part that cannot be pickled, and that part. Bounded in time, depth and width."""
    until = time.monotonic() + seconds
    path, seen = name, {id(value)}
    for _ in range(DEEPEST):
        for step, part in _parts(value):
            if time.monotonic() > until:
                return path, value
            if id(part) in seen or _picklable(part, namespace):
                continue
            path, value = path + step, part
            seen.add(id(part))
            break
        else:
            return path, value
    return path, value


def _picklable(value: Any, namespace: Dict[str, Any]) -> bool:
    try:
        values_pickle.writer_class()(BoundedFile(MOST_BYTES), lambda buffer: False, namespace).dump(value)
    except TooLarge:
        return True
    except Exception:  # whatever a reducer raises
        return False
    return True


def _parts(value: Any) -> Iterator[Tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{k!r:.80}]", v) for k, v in list(value.items())[:MOST_PARTS])
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{i}]", v) for i, v in enumerate(value[:MOST_PARTS]))
    elif isinstance(value, (set, frozenset)):
        yield from (("{…}", v) for v in list(value)[:MOST_PARTS])
    elif isinstance(value, types.FunctionType):
        for free, cell in zip(value.__code__.co_freevars, value.__closure__ or ()):  # noqa: B905 - Python 3.9
            try:
                yield f".<closure>.{free}", cell.cell_contents
            except ValueError:
                continue
        yield from ((f".<default {i}>", v) for i, v in enumerate(value.__defaults__ or ()))
    elif isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
    attributes = getattr(value, "__dict__", None)
    if isinstance(attributes, (dict, types.MappingProxyType)) and not isinstance(value, types.ModuleType):
        yield from ((f".{k}", v) for k, v in list(attributes.items())[:MOST_PARTS])
    for slot in getattr(type(value), "__slots__", ()):
        if hasattr(value, str(slot)):
            yield f".{slot}", getattr(value, str(slot))
