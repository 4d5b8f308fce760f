"""Notebooks made ready for a run: what is skipped, parameters, what is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cellburst_protocol import notebooks
from cellburst_protocol.errors import CellburstError, ErrorCode


def cell(source: object, tags: list[str] | None = None, kind: str = "code") -> dict[str, Any]:
    return {
        "cell_type": kind,
        "metadata": {"tags": tags} if tags else {},
        "source": source,
        "outputs": [{"old": 1}],
        "execution_count": 7,
    }


def book(*cells: dict[str, Any]) -> dict[str, Any]:
    return {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": list(cells)}


@pytest.mark.parametrize(
    ("text", "code", "asked"),
    [
        ("%%modal gpu=A100\nx = 1", "# %%modal gpu=A100\nx = 1", "gpu=A100"), ("\n%%gpu\nx", "\n# %%gpu\nx", ""),
        ("%%modal gpu=T4\n%%time\nx", "%%time\nx", "gpu=T4"), ("%%modality\nx", "%%modality\nx", None), ("x = 1", "x = 1", None),
        ("%load_ext cellburst_jupyter\nx", "pass  # %load_ext cellburst_jupyter\nx", None),
        ("if a:\n    %modal park\ny", "if a:\n    pass  # %modal park\ny", None),
        ("t = '''\n%modal status\n'''", "t = '''\n%modal status\n'''", None), ("%time x\n!ls\n%pip install y", "%time x\n!ls\n%pip install y", None),
    ],
)  # fmt: skip
def test_lines_of_the_notebook_s_own_kernel_are_comments(text: str, code: str, asked: str | None) -> None:
    made, found, notes = notebooks.made_ready(text)
    assert (made, found) == (code, asked) and bool(notes) == ("pass  #" in code)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("%%modal gpu=A100\nx = 1", "%%modal gpu=A100\nx = 1"), ("x = 1\n%modal get a", "x = 1\n%modal get a"),
        ("%modal status\nx", "pass  # %modal status\nx"), ("%modal getter\nx", "pass  # %modal getter\nx"),
        ("%load_ext cellburst_jupyter", "pass  # %load_ext cellburst_jupyter"),
    ],
)  # fmt: skip
def test_where_modal_works_its_cells_stay_as_they_are(text: str, code: str) -> None:
    assert notebooks.made_ready(text, own_machines=True)[0] == code


def test_code_cells_are_numbered_as_people_count() -> None:
    found = notebooks.code_cells(
        book(cell("# t", kind="markdown"), cell(["x = 1\n", "y = 2"]), cell("  \n"), cell("z", ["raises-exception"]))
    )
    assert [(one.number, one.code, one.may_raise) for one in found] == [(2, "x = 1\ny = 2", False), (4, "z", True)]


def test_parameters_come_after_their_cell_and_old_ones_go() -> None:
    made = notebooks.with_parameters(
        book(cell("n = 1\nname = f'x'\nrate: float = 2\nneg = -1.5\nany = None", ["parameters"]), cell("n = 9", ["injected-parameters"]), cell("n")),
        {"n": 3, "name": "it's", "rate": 4, "neg": 1, "any": [True, None]},
    )  # fmt: skip
    assert [one["source"] for one in made["cells"]][
        1
    ] == '# Parameters\nn = 3\nname = "it\'s"\nrate = 4\nneg = 1\nany = [True, None]'
    assert len(made["cells"]) == 3 and all(
        one["outputs"] == [] and one["execution_count"] is None for one in made["cells"]
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [({"m": 1}, "no parameter"), ({"n": "1"}, "type str"), ({"n": True}, "type bool"), ({"n": 1.0}, "type float"), ({"n": None}, "type None"),
     ({"rate": float("nan")}, "JSON"), ({"s": 1}, "type int")],
)  # fmt: skip
def test_a_parameter_of_the_wrong_name_or_type_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(CellburstError, match=said):
        notebooks.check_parameters(book(cell("n = 1\nrate = 0.5\ns = ''", ["parameters"])), given)


def test_parameters_need_a_cell_that_has_them() -> None:
    with pytest.raises(CellburstError, match="tag"):
        notebooks.check_parameters(book(cell("n = 1")), {"n": 2})
    with pytest.raises(CellburstError, match="no plain Python"):
        notebooks.check_parameters(book(cell("n = (", ["parameters"])), {"n": 2})
    notebooks.check_parameters(book(cell("n = 1")), {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[1]",
        b"null",
        b'{"nbformat": 4}',
        b'{"nbformat": 4, "cells": [{"cell_type": "code", "source": 3}]}',
        b"\xff",
        b'{"nbformat": "4", "cells": []}',
    ],
)
def test_what_is_no_notebook_is_refused(data: bytes) -> None:
    with pytest.raises(CellburstError) as caught:
        notebooks.read(data)
    assert caught.value.code is ErrorCode.BAD_ARGUMENT


def test_a_huge_one_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "MAX_NOTEBOOK_BYTES", 10)
    with pytest.raises(CellburstError) as caught:
        notebooks.read(json.dumps(book()).encode())
    assert caught.value.code is ErrorCode.TOO_LARGE
