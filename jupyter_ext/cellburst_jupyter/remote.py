"""A handle on a value that stayed in the session's container."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import RemoteName


class Remote:
    """Stands for a value that lives in a session's container: `type`, `shape`, `len()`, `head()` without fetching it.

    In later `%%modal` cells of the session its name is the value itself. Anything else done with it here raises, naming the
    way out: `fetch()` returns the value.
    """

    __slots__ = ("__weakref__", "_fetch", "_info", "lost", "session")

    def __init__(self, info: RemoteName, fetch: Callable[[str], Any], session: object) -> None:
        self._info = info
        self._fetch = fetch
        self.session = session
        self.lost = False

    @property
    def name(self) -> str:
        """The name it has in the container."""
        return self._info.name

    @property
    def type(self) -> str:
        """Its type's name."""
        return self._info.type

    @property
    def shape(self) -> str:
        """Its shape, or "" where it has none."""
        return self._info.shape

    def head(self) -> str:
        """The beginning of its repr."""
        return self._info.head

    def fetch(self) -> Any:
        """The value itself, brought here whatever its size. Raises RequestError or PlatformError with the reason."""
        if self.lost:
            raise error(
                ErrorCode.CONTAINER_LOST,
                f"`{self.name}` was in a container that is gone",
                next="run the cell that made it again",
            )
        return self._fetch(self.name)

    def __len__(self) -> int:
        if self._info.length is None:
            raise TypeError(f"`{self.name}` is a {self.type} in the session's container and has no len()")
        return self._info.length

    def __bool__(self) -> bool:
        self._fail("test")

    def __repr__(self) -> str:
        info = self._info
        facts = [info.type, *([f"shape {info.shape}"] if info.shape else [])]
        if info.length is not None and not info.shape:
            facts.append(f"len {info.length}")
        if info.size_bytes:
            facts.append(size_text(info.size_bytes))
        lost = "was in a container that is gone; run the cell that made it again"
        state = lost if self.lost else f"in the session's container; {info.name}.fetch() brings it here"
        first = f"<{info.name}: {', '.join(facts)}, {state}>"
        return f"{first}\n{info.head}" if info.head and not self.lost else first

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._fail("pickle or copy")

    def _fail(self, what: str) -> NoReturn:
        raise RemoteValueError.of(self.name, self.type, what, self.lost)

    def __getattr__(self, attribute: str) -> NoReturn:
        if attribute.startswith("_repr_") or attribute.startswith("_ipython_") or attribute.startswith("__"):
            raise AttributeError(attribute)  # IPython and libraries ask every object for these
        self._fail(f"read .{attribute} of")

    def __setattr__(self, attribute: str, value: Any) -> None:
        if attribute not in self.__slots__:
            self._fail(f"set .{attribute} of")
        object.__setattr__(self, attribute, value)


class RemoteValueError(CellburstError, TypeError):
    """Local code was handed a value that is not here."""

    @classmethod
    def of(cls, name: str, type_name: str, what: str, lost: bool = False) -> RemoteValueError:
        """For what was tried. `lost`: the container is gone, so there is nothing to fetch."""
        where, way = "the session's container", f"use it in a %%modal cell, or bring it here: `{name} = {name}.fetch()`"
        way += f" (or `out={name}` on the cell)"
        if lost:
            where, way = "a container that is gone", "run the cell that made it again"
        what = f"cannot {what} `{name}` here: it is a {type_name} that stayed in {where}"
        return cls(error(ErrorCode.BAD_ARGUMENT, what, next=way).info)


def _refuse(operation: str) -> Callable[..., NoReturn]:
    def method(self: Remote, *_: Any, **__: Any) -> NoReturn:
        self._fail(operation)

    return method


_OPERATIONS = {
    "iterate over": "iter next reversed contains",
    "take an item of": "getitem setitem delitem",
    "call": "call enter aenter await",
    "compute with": "add radd iadd sub rsub isub mul rmul imul matmul rmatmul truediv rtruediv floordiv rfloordiv mod rmod pow"
    " rpow lshift rlshift rshift rrshift and rand or ror xor rxor neg pos abs invert round divmod rdivmod",
    "compare": "lt le gt ge eq ne",
    "convert": "int float complex index bytes array array_ufunc array_function dlpack format",
}
for _what, _names in _OPERATIONS.items():
    for _name in _names.split():
        setattr(Remote, f"__{_name}__", _refuse(_what))
Remote.__hash__ = object.__hash__  # type: ignore[method-assign]  # a handle may lie in a set although it cannot be compared


def size_text(size_bytes: int) -> str:
    """A size for people: "8.0 MB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size_bytes >= size:
            return f"{size_bytes / size:.1f} {unit}"
    return f"{size_bytes} bytes"
