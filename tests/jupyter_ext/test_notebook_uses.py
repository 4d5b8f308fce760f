"""Volumes and secrets that a notebook's metadata names, in its cells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cellburst_jupyter.magic_line import parse_cell_line
from cellburst_jupyter.notebook_uses import NotebookUses, with_uses
from cellburst_protocol.errors import CellburstError


def write(path: Path, uses: Any) -> None:
    path.write_text(json.dumps({"cells": [], "metadata": {"cellburst": uses}, "nbformat": 4}))


def test_what_the_metadata_names_is_in_every_cell_that_says_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    uses = NotebookUses(str(path))
    assert uses.now() == {}  # no file yet
    write(path, {"volumes": {"/data": "sets", "/models": "m"}, "secrets": ["hf", "db"]})
    line = with_uses("gpu=A100  ", uses.now(), frozenset({"gpu"}))
    options = parse_cell_line(line)
    assert [(v.path, v.name) for v in options.volumes or ()] == [("/data", "sets"), ("/models", "m")]
    assert options.secrets == ("hf", "db") and "gpu" in options.given
    assert (
        with_uses("secrets=none volumes=/x:y", uses.now(), frozenset({"secrets", "volumes"}))
        == "secrets=none volumes=/x:y"
    )
    write(path, {"secrets": ["other-one"]})
    assert uses.now() == {"secrets": "other-one"}  # read again: the file has changed
    write(path, {})
    assert uses.now() == {} and with_uses("gpu=A100", uses.now(), frozenset()) == "gpu=A100"


@pytest.mark.parametrize(
    "uses", [[], "x", {"volumes": ["/data"]}, {"secrets": "hf"}, {"secrets": [1]}, {"secrets": ['a" gpu="H100']}]
)
def test_another_shape_is_said(tmp_path: Path, uses: Any) -> None:
    path = tmp_path / "n.ipynb"
    write(path, uses)
    with pytest.raises(CellburstError) as why:
        NotebookUses(str(path)).now()
    assert "metadata" in why.value.info.message and "Use in this notebook" in why.value.info.next


def test_a_path_is_in_the_line_as_it_was_given_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "n.ipynb"
    given = {"/it's here": "sets", "/models": "nfs://m?ro", "/b": "s3://abc/x?secret=k&ro"}
    write(path, {"volumes": given})
    options = parse_cell_line(with_uses("gpu=A100", NotebookUses(str(path)).now(), frozenset()))
    assert [(v.path, v.name, v.kind, v.read_only) for v in options.volumes or ()] == [
        ("/it's here", "sets", "volume", False), ("/models", "nfs://m", "shared", True), ("/b", "s3://abc/x", "bucket", True),
    ]  # fmt: skip
    for bad in ("/a,b", "/a:b", "/a,/c:x", "data", "/usr/x"):
        write(path, {"volumes": {bad: "sets"}})
        with pytest.raises(CellburstError) as why:
            NotebookUses(str(path)).now()
        assert "the notebook's own volumes" in why.value.info.message and repr(bad) in why.value.info.message
        assert "Use in this notebook" in why.value.info.next


def test_what_is_no_notebook_uses_nothing(tmp_path: Path) -> None:
    for name, text in (
        ("half.ipynb", '{"metadata": {"cellb'),
        ("list.ipynb", "[]"),
        ("n.py", '{"metadata": {"cellburst": 1}}'),
    ):
        (tmp_path / name).write_text(text)
        assert NotebookUses(str(tmp_path / name)).now() == {}
