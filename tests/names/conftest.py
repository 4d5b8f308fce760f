"""One notebook with a container of its own."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.names.other_side import Notebook


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    """Its namespace is that of `__main__`, as an ipykernel's is."""
    made = Notebook(tmp_path)
    main = types.ModuleType("__main__")
    main.__dict__.update(made.ns)
    made.ns = main.__dict__
    monkeypatch.setitem(sys.modules, "__main__", main)
    yield made
    made.close()
