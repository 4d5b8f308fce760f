"""Putting a value that was changed in the container into the object that the notebook already has.

What changed in place there changes in place here, so that every other reference to the object sees it too, as it would have
had the cell run here. Each update can be undone, because writing back is all or nothing.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

from . import names_share

Undo = Callable[[], object]


def update(old: Any, new: Any) -> Undo | None:
    """Make `old` equal to `new` in place. None when there is no safe way: then the names are bound anew."""
    kind = type(old)
    if type(new) is not kind:
        return None
    if kind is list or kind is bytearray:
        was = old[:]
        old[:] = new
        return lambda: old.__setitem__(slice(None), was)
    if kind is dict or kind is set:
        was = old.copy()
        _replace(old, new)
        return lambda: _replace(old, was)
    numpy = sys.modules.get("numpy")
    if numpy is not None and kind is numpy.ndarray:
        return _update_array(old, new)
    pandas = sys.modules.get("pandas")
    if pandas is not None and kind in (pandas.DataFrame, pandas.Series):
        was = old.copy(deep=False)
        old._update_inplace(new)  # what pandas' own in-place methods call
        return lambda: old._update_inplace(was)
    return _update_attributes(old, new)


def _replace(container: Any, new: Any) -> None:
    container.clear()
    container.update(new)


def _update_array(old: Any, new: Any) -> Undo | None:
    if old.dtype != new.dtype or old.shape != new.shape or not old.flags.writeable:
        return None
    was = old.copy()
    old[...] = new
    return lambda: old.__setitem__(..., was)


def _update_attributes(old: Any, new: Any) -> Undo | None:
    state = getattr(old, "__dict__", None)
    if type(state) is not dict or not names_share.is_plain(type(old)):
        return None
    was = state.copy()
    _replace(state, new.__dict__)
    return lambda: _replace(state, was)


def update_class(cls: type, state: Any) -> Undo:
    """Set the attributes of a class that differ from the state it has in the container."""
    attributes, _ = state
    was = dict(vars(cls))
    changed = [k for k, v in attributes.items() if k not in _MADE_BY_PYTHON and not _same(was.get(k), v)]
    gone = [k for k in was if k not in attributes and k not in _MADE_BY_PYTHON and not _is_slot(was[k])]
    for key in changed:
        setattr(cls, key, attributes[key])
    for key in gone:
        delattr(cls, key)

    def undo() -> None:
        for key in [*changed, *gone]:
            if key in was:
                setattr(cls, key, was[key])
            else:
                delattr(cls, key)

    return undo


_MADE_BY_PYTHON = {
    "__dict__",
    "__weakref__",
    "__module__",
    "__doc__",
    "_abc_impl",
    "__slots__",
    "__annotations__",
    "__firstlineno__",
}


def _is_slot(value: Any) -> bool:
    return isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType)


def _same(here: Any, there: Any) -> bool:
    """Whether an attribute is the same definition; a value that cannot say so counts as different."""
    if isinstance(here, types.FunctionType) and isinstance(there, types.FunctionType):
        return here.__code__ == there.__code__ and here.__defaults__ == there.__defaults__
    if isinstance(here, classmethod | staticmethod) and type(here) is type(there):
        return _same(here.__func__, there.__func__)
    if isinstance(here, property) and isinstance(there, property):
        return _same(here.fget, there.fget) and _same(here.fset, there.fset)
    try:
        return type(here) is type(there) and bool(here == there)
    except Exception:  # arrays and the like
        return False
