"""A Python function on its way into an image's build: pickled here, called there. Nothing is unpickled here."""

from __future__ import annotations

import io
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cloudpickle

from cellburst_protocol.errors import ErrorCode, error


def pickle_call(function: Callable[..., object], args: Sequence[object], kwargs: Mapping[str, object]) -> bytes:
    """(function, args, kwargs) by cloudpickle, the function and its module by value.

    Raises RequestError (UNPICKLABLE) naming what cannot be pickled.
    """
    module = sys.modules.get(str(getattr(function, "__module__", "")))
    by_value = module is not None and module.__name__ != "__main__" and _is_users(getattr(module, "__file__", None))
    if by_value:
        cloudpickle.register_pickle_by_value(module)
    sink = io.BytesIO()
    try:
        # Protocol 4: the image's Python may be older than this one.
        cloudpickle.CloudPickler(sink, protocol=4).dump((function, tuple(args), dict(kwargs)))
    except Exception as why:  # pickling runs the objects' own code, which may raise anything
        raise error(
            ErrorCode.UNPICKLABLE, f"run_function({function.__name__}) cannot be sent to the build: {why}",
            next="import and open what it needs inside the function",
        ) from None  # fmt: skip
    finally:
        if by_value:
            cloudpickle.unregister_pickle_by_value(module)
    return sink.getvalue()


def _is_users(file: str | None) -> bool:
    """Whether a module's file is the user's own: it is not in the image, unlike the standard library and, often, packages."""
    if file is None:
        return False
    installed = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(Path(file).is_relative_to(folder) for folder in installed if folder)
