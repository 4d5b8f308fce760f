"""Which names a cell needs, by its text and by the notebook's functions."""

from __future__ import annotations

import ast
import types
from typing import Any

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from cellburst_jupyter.names_read import read_cell

NOTEBOOK = ["a", "b", "c", "d", "df", "model", "big", "x", "y", "z", "i", "n", "k", "e"]
NS: dict[str, Any] = {**dict.fromkeys(NOTEBOOK, 0), "In": [], "Out": {}, "_": 1, "_mine": 2, "__name__": "__main__"}

ROWS: list[tuple[str, str, str, str, str]] = [
    # cell, needed, bound, deleted, used
    ("x = 5; print(x)", "", "x", "", "x"),
    ("print(x); x = 5", "x", "x", "", "x"),
    ("if y: x = 1", "x y", "x", "", "y"),
    ("x += 1", "x", "x", "", "x"),
    ("df['a'] = y", "df y", "", "", "df y"),
    ("model.fit(x, y)", "model x y", "", "", "model x y"),
    ("df.a.b = 1", "df", "", "", "df"),
    ("del big", "", "", "big", ""),
    ("del df['a']", "df", "", "", "df"),
    ("for i in a: pass", "a i", "i", "", "a"),
    ("with x as y, z as (b, *c): pass", "x z", "b c y", "", "x z"),
    ("import os.path as p, sys\nfrom json import loads as l", "", "l p sys", "", ""),
    ("def f(a=b): return a + c", "b c", "f", "", "b c"),
    ("async def f():\n    async with x as q: return q", "x", "f", "", "x"),
    ("class D(model):\n    k = k\n    def m(self): return k + z", "k model z", "D", "", "k model z"),
    ("f = lambda a: a + b", "b", "f", "", "b"),
    ("[x for x in a if x > b]", "a b", "", "", "a b"),
    ("[(w := x) for x in a]", "a", "w", "", "a"),
    ("{i: n for i, n in a}", "a", "", "", "a"),
    ("try: x\nexcept E as e: print(e)", "x", "", "e", "E x"),
    ("match x:\n    case {'k': n, **d}: pass\n    case [a, *b] | (a, b): pass\n    case y: pass", "a b d n x y", "a b d n y", "", "x"),
    ("def f():\n    global x\n    x = y", "x y", "x f", "", "y"),
    ("def f():\n    x = 1\n    def g(): return x + y\n    return g", "y", "f", "", "y"),
    ("(a, [b, *c]), z = x", "x", "a b c z", "", "x"),
    ("x: int = y", "y", "x", "", "y"),
    ("_mine.append(_, In, Out)", "_mine", "", "", "_mine"),
    ("%time z = x + y", "x y", "z", "", "x y"),
    ("%timeit -n 1 x + y", "x y", "", "", "x y"),
    ("%%time\nz = x", "x", "z", "", "x"),
    ("!ls {x} $y", "x y", "", "", "x y"),
    ("z = !ls {x}", "x", "z", "", "x"),
    ("model?", "model", "", "", "model"),
    ("%%capture out\nprint(x)", "x", "out", "", "x"),
    ("len(x) + unknown", "x", "", "", "unknown x"),
    ("await x", "x", "", "", "x"),
    ("f'{x!r:>{n}}'", "n x", "", "", "n x"),
    ("a[i:n] = x", "a i n x", "", "", "a i n x"),
    ("type_ = x\n@model\ndef f(): pass", "model x", "f type_", "", "model x"),
]  # fmt: skip


@pytest.mark.parametrize(("cell", "needed", "bound", "deleted", "used"), ROWS, ids=[r[0] for r in ROWS])
def test_reading(cell: str, needed: str, bound: str, deleted: str, used: str) -> None:
    read = read_cell(cell, dict(NS))
    shell = types.SimpleNamespace(transform_cell=TransformerManager().transform_cell)
    assert read_cell(ast.parse(shell.transform_cell(cell)), dict(NS), shell) == read
    assert (set(read.needed), set(read.bound), set(read.deleted)) == (
        set(needed.split()), set(bound.split()), set(deleted.split()),
    )  # fmt: skip
    assert set(read.used) == set(used.split())


def test_through_functions_and_classes() -> None:
    ns: dict[str, Any] = {"__name__": "__main__"}
    code = """
import functools
k, unused, deep, base, default, wrapped, cnt = 1, 2, 3, 4, 5, 6, 0
def helper(x): return x + k
def outer(x, d=lambda: default): return helper(x)
def deco(f):
    @functools.wraps(f)
    def inner(*a): return f(*a) + wrapped
    return inner
@deco
def decorated(): return deep
class A:
    def m(self): return base
    @property
    def p(self): return outer(1)
class B(A): pass
obj = [B()]
part = functools.partial(outer, 1)
def counts():
    global cnt, made
    cnt += 1
    made = 1
def attribute(o): return o.unused
"""
    exec(code, ns)
    assert set(read_cell("outer(1)", ns).needed) == {"outer", "helper", "k", "default"}
    assert set(read_cell("decorated()", ns).needed) == {"decorated", "deep", "wrapped"}
    assert set(read_cell("obj", ns).needed) == {"obj", "base", "outer", "helper", "k", "default"}
    assert set(read_cell("part()", ns).needed) >= {"part", "helper", "k"}
    assert set(read_cell("attribute(1)", ns).needed) == {"attribute"}
    counts = read_cell("counts()", ns)
    assert set(counts.bound) == {"cnt", "made"}
    assert set(counts.needed) == {"counts", "cnt"}


def test_modules_are_references() -> None:
    import math

    read = read_cell("m.pi", {"m": math})
    assert read.modules == {"m": "math"}
    assert read.needed == ["m"]
    assert isinstance(math, types.ModuleType)


def test_a_syntax_error_is_the_cells_own() -> None:
    with pytest.raises(SyntaxError):
        read_cell("x = = 1", {})
