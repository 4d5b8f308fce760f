"""What both sides must do alike lies in two packages word for word, because neither may import the other."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["pickle", "share"])
def test_both_copies_are_the_same(name: str) -> None:
    kernel = (ROOT / f"jupyter_ext/cellburst_jupyter/names_{name}.py").read_text()
    runner = (ROOT / f"runtime/cellburst_runner/values_{name}.py").read_text()
    assert kernel.replace("from . import names_pickle", "from . import values_pickle") == runner
