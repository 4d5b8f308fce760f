"""What a notebook imported is remembered, in order, and not for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_worker.imports import MAX_NAMES, Imports


def test_names_are_kept_in_order_and_by_notebook(tmp_path: Path) -> None:
    imports = Imports(tmp_path / "imports")
    imports.add("/a.ipynb", ["numpy", "numpy.linalg"])
    imports.add("/a.ipynb", ["torch", "numpy"])
    imports.add("/b.ipynb", ["pandas"])
    for known in (imports, Imports(tmp_path / "imports")):  # also by the next worker
        assert known.of("/a.ipynb") == ["numpy", "numpy.linalg", "torch"]
        assert (known.of("/b.ipynb"), known.of("/c.ipynb")) == (["pandas"], [])


def test_what_is_no_module_is_left_out(tmp_path: Path) -> None:
    imports = Imports(tmp_path)
    imports.add("n", ["", "a b", "x" * 500, "a..b", "../etc", "good.one"])
    assert imports.of("n") == ["good.one"]


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    imports = Imports(tmp_path)
    imports.add("n", [f"m{number}" for number in range(MAX_NAMES + 5)])
    assert imports.of("n") == [f"m{number}" for number in range(5, MAX_NAMES + 5)]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1}', b"[1, 2]"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    Imports(tmp_path).add("n", ["numpy"])
    for path in tmp_path.glob("*.json"):
        path.write_bytes(content)
    imports = Imports(tmp_path)
    assert imports.of("n") == []
    imports.add("n", ["torch"])
    assert Imports(tmp_path).of("n") == ["torch"]
