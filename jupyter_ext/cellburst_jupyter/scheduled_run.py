"""`%%modal` inside a scheduled run: what the gateway asks of the run's own container before the notebook's first cell.

There the shell is an executor's, into which our extension is not loaded by itself, and the notebook's own file is not there: its
path and what its metadata says are told.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .notebook_uses import NotebookUses


class ToldUses(NotebookUses):
    """Volumes and secrets of each `%%modal` cell, as the notebook said them when it was scheduled."""

    def __init__(self, path: str, uses: Mapping[str, str]) -> None:
        super().__init__(path)
        self._told = dict(uses)

    def now(self) -> dict[str, str]:
        """As they were told."""
        return self._told


def begin(shell: Any, notebook: str, uses: Mapping[str, str]) -> None:
    """Make `%%modal` work in this shell. Raises RuntimeError, in a few words, where it cannot."""
    from . import load_ipython_extension, loaded

    link = os.path.join(os.environ.get("CELLBURST_VAR", ""), "ctl", "gateway")  # noqa: PTH118 - no pathlib in a cold executor
    if not os.environ.get("CELLBURST_LINK") or not os.path.exists(link):  # noqa: PTH110
        raise RuntimeError("this container has no link to the gateway")
    load_ipython_extension(shell)
    state = loaded(shell)
    if state is None:
        raise RuntimeError("cellburst could not be loaded here")
    state.place = (notebook, os.getcwd())  # noqa: PTH109
    state.uses = ToldUses(notebook, uses)
