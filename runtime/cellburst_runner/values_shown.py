"""What a person is told of a value that stays in the container: bounded, and whatever its `repr` does."""

from __future__ import annotations

import re
import reprlib
import sys
from typing import Any, Dict, Optional

HEAD_CHARACTERS = 2000  # one screen
_hidden = re.compile(r"(In|Out|open|get_ipython|exit|quit|_{1,3}|_i{1,3}|_i\d+|_\d+|_[iod]h|__\w+__)\Z")


class _Short(reprlib.Repr):
    """As the standard one, which would write out all bytes of a value that it shows 400 letters of."""

    def repr_bytes(self, value: Any, level: int) -> str:
        """The beginning of bytes and bytearrays."""
        if len(value) <= self.maxother:
            return self.repr_instance(value, level)
        return repr(value[: self.maxother])[: self.maxother] + "..."

    repr_bytearray = repr_bytes


_short = _Short()
_short.maxlist = _short.maxdict = _short.maxtuple = _short.maxset = 20
_short.maxstring = _short.maxother = 400


def hidden(name: str) -> bool:
    """Whether a name is IPython's own and not the user's."""
    return _hidden.match(name) is not None


def describe(name: str, value: Any, why: str, size_bytes: int = 0, detail: str = "") -> Dict[str, Any]:
    """A RemoteName object. Nothing here raises: `repr`, `len` and `shape` are the user's code."""
    shown: Dict[str, Any] = {"name": name, "type": type_name(value), "size_bytes": size_bytes or _size(value)}
    shape = _quietly(lambda: value.shape if not isinstance(value, type) else None)
    if isinstance(shape, tuple):
        shown["shape"] = _quietly(lambda: str(tuple(shape))[:200]) or ""
    length = _quietly(lambda: len(value) if not isinstance(value, type) else None)
    if isinstance(length, int):
        shown["length"] = length
    shown["head"] = head(value)
    shown["why"] = why
    if detail:
        shown["detail"] = detail
    return shown


def type_name(value: Any) -> str:
    """The type as a person would write it."""
    kind = type(value)
    module = str(getattr(kind, "__module__", ""))
    name = str(getattr(kind, "__qualname__", kind.__name__))
    return name if module in ("builtins", "__main__", "") else f"{module}.{name}"[:200]


def head(value: Any) -> str:
    """The beginning of a value's `repr`, of the first five rows where it has `head()`."""
    module = type(value).__module__ or ""
    if module.startswith(("pandas.", "polars.")) and hasattr(value, "head"):
        text = _quietly(lambda: repr(value.head()))
    elif module == "builtins":
        text = _quietly(lambda: _short.repr(value))
    else:
        text = _quietly(lambda: repr(value))
    if not isinstance(text, str):
        return f"<{type_name(value)}, whose repr fails>"
    return text if len(text) <= HEAD_CHARACTERS else text[:HEAD_CHARACTERS] + "…"


def _size(value: Any) -> int:
    found = _quietly(lambda: value.nbytes)
    if not isinstance(found, int):
        found = _quietly(lambda: sys.getsizeof(value))
    return int(found) if isinstance(found, int) else 0


def _quietly(get: Any) -> Optional[Any]:
    try:
        return get()
    except Exception:  # the user's own code; a handle without this part is still of use
        return None
