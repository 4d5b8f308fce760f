"""What the executor adds to the end of `sys.path` before it imports anything that is not the standard library's.

Environment: CELLBURST_SYS_PATH (what the notebook had put on its own path), CELLBURST_BUNDLE (a folder with ipykernel and
cloudpickle, for an environment that has none). Both are taken out again: user code and its children do not see them.
"""

from __future__ import annotations

import importlib
import os
import sys

_NEEDED = ("ipykernel", "cloudpickle")


def extend_path() -> None:
    """Append the notebook's entries, and after them the bundle where what the executor needs cannot be imported without it.

    Last, so that a package that the environment has itself is never the bundle's.
    """
    for entry in os.environ.pop("CELLBURST_SYS_PATH", "").split(os.pathsep):
        if entry and entry not in sys.path:
            sys.path.append(entry)
    bundle = os.environ.pop("CELLBURST_BUNDLE", "")
    if not bundle:
        return
    try:
        for name in _NEEDED:
            importlib.import_module(name)
    except ImportError:
        sys.path.append(bundle)
