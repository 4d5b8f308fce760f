"""Kernel and container of different Python minor versions: plain data travels both ways, code is refused before it is sent.

Both processes here are the same Python; one is made to say another version. `tests/runtime/test_bundle_run.py` has two.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cellburst_jupyter import names_pickle, names_share
from cellburst_jupyter.remote import Remote
from cellburst_protocol.errors import CellburstError, ErrorCode, RequestError
from tests.names.other_side import Notebook

HERE = ".".join(map(str, sys.version_info[:2]))
OTHER = "3.99.4"
PLAIN = """
import numpy as np, pandas as pd, collections, datetime
n, s, d = 1, "a", {"k": [1, (2, None)], "day": datetime.date(2026, 1, 1)}
a, frame, count = np.arange(30_000.0), pd.DataFrame({"x": [1, 2]}), collections.Counter("aab")
"""
CODE = {
    "a function": "def f(): return 1",
    "a lambda": "f = lambda: 1",
    "a class": "class f:\n    x = 1",
    "an instance": "class C:\n    def m(self): return 1\nf = C()",
    "a function in a list": "def g(): return 1\nf = [1, {'k': g}]",
    "a bound method": "class C:\n    def m(self): return 1\nf = C().m",
    "an enum": "import enum\nclass E(enum.Enum):\n    A = 1\nf = E.A",
    "a dataclass": "import dataclasses\n@dataclasses.dataclass\nclass D:\n    x: int\nf = D(1)",
    "a partial": "import functools\ndef g(x): return x\nf = functools.partial(g, 1)",
    "a code object": "f = compile('1', '<c>', 'eval')",
    "a module made here": "import types\nf = types.ModuleType('made')\nexec('def g(): return 1', f.__dict__)\nf = [f]",
}


def test_plain_data_travels_both_ways(notebook: Notebook) -> None:
    notebook.python, notebook.python_there = OTHER, OTHER
    notebook.local(PLAIN + "import math\nroot = math.sqrt")
    assert (
        notebook.modal("t = (n, s, d, count, float(a.sum()), int(frame.x.sum()), root(4)); d['k'].append(5); e = a * 2")
        == []
    )
    assert notebook.ns["t"][4:] == (float(np.arange(30_000.0).sum()), 3, 2.0) and notebook.ns["d"]["k"][-1] == 5
    assert notebook.ns["e"][1] == 2 and isinstance(notebook.ns["frame"], pd.DataFrame)


@pytest.mark.parametrize("code", CODE.values(), ids=CODE)
def test_code_is_refused_before_anything_is_sent(notebook: Notebook, code: str) -> None:
    notebook.local(f"plain = [1]\n{code}")
    notebook.python_there = OTHER
    with pytest.raises(RequestError) as caught:
        notebook.modal("r = (plain, f)")
    assert caught.value.code is ErrorCode.PYTHON_DIFFERS
    said = str(caught.value)
    assert (
        "`f`" in said and "`plain`" not in said and HERE in said and "3.99" in said and f"python_version={HERE}" in said
    )
    assert caught.value.info.detail == {"names": "f", "kernel": HERE, "container": "3.99"}
    assert notebook.sent_names == [] and "plain" not in notebook.container.value("list(globals())")
    notebook.modal("r = plain", only=["plain"])
    assert notebook.ns["r"] == [1]


def test_the_same_minor_version_or_an_unknown_one_is_not_refused(notebook: Notebook) -> None:
    notebook.local("def f(): return 1")
    for version in (f"{HERE}.0", ""):
        notebook.python = notebook.python_there = version
        notebook.modal("def g(): return f() + 1\nr = g()")
        assert notebook.ns["r"] == 2 and notebook.ns["g"]() == 2
        notebook.local("def f(): return 1")


def test_all_names_are_told_and_what_holds_the_code(notebook: Notebook) -> None:
    notebook.local("def g(): return h()\ndef h(): return 1\ntable = {'g': g}")
    notebook.python_there = OTHER
    with pytest.raises(RequestError) as caught:
        notebook.modal("r = g() + table['g']()")
    assert "`g`" in str(caught.value) and "`h`" in str(caught.value) and "`table` (which holds g)" in str(caught.value)


def test_what_was_defined_there_stays_there(notebook: Notebook) -> None:
    notebook.python = OTHER
    lines = notebook.modal("def f(): return 7\nclass C: pass\nc = C()\nn = f()")
    assert notebook.ns["n"] == 7 and all(isinstance(notebook.ns[name], Remote) for name in ("f", "C", "c"))
    (line,) = lines
    assert line.startswith("stayed there: C, c, f, because functions and classes of Python") and HERE in line
    assert notebook.modal("r = f() + isinstance(c, C)") == []
    assert notebook.ns["r"] == 8


def test_a_changed_list_that_got_a_function_stays_as_it_is_here(notebook: Notebook) -> None:
    notebook.local("found = [1]")
    notebook.python = OTHER
    (line,) = notebook.modal("found.append(lambda: 2)")
    assert line.startswith("stayed there: found, because") and notebook.ns["found"] == [1]


def test_fetching_what_another_python_made_says_so(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook.python = OTHER
    notebook.modal("def f(): return 7")
    monkeypatch.setattr(names_pickle, "PYTHON", (3, 99))
    with pytest.raises(CellburstError) as caught:
        notebook.ns["f"].fetch()
    assert caught.value.code is ErrorCode.PYTHON_DIFFERS and HERE in str(caught.value)


def test_code_that_was_sent_all_the_same_is_not_run(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading side refuses too: another version's byte code would crash it."""
    notebook.local("def f(): return 1\nclass C: pass")
    monkeypatch.setattr(names_pickle, "PYTHON", (3, 99))
    for name in ("f", "C"):
        with pytest.raises(AssertionError, match=r"PythonDiffers: its code is of Python 3\.99"):
            notebook.modal(f"r = {name}")
    assert notebook.container.value("[n for n in globals() if n in 'fC']") == "[]"


def test_what_only_dill_writes_is_code_too(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_pickle, "write", _fails_once(names_pickle.write))
    packed = names_share.pack_one("x", [1, 2], notebook.ns)
    assert packed.by_value == {"list"}
    monkeypatch.undo()
    monkeypatch.setattr(names_pickle, "PYTHON", (3, 99))
    with pytest.raises(names_pickle.PythonDiffers):
        names_pickle.read(packed.stream, packed.buffers, notebook.ns, False)


def _fails_once(write: Any) -> Any:
    calls = []

    def replaced(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise TypeError("cannot pickle it")
        return write(*arguments)

    return replaced


def test_a_cached_class_is_still_marked(notebook: Notebook) -> None:
    """A class's bytes are kept from cell to cell; the mark must not be lost with that."""
    notebook.local("class C:\n    x = 1\n    def m(self): return self.x\nc = C()")
    notebook.modal("r = c.m()")
    notebook.local("c = C(); c.x = 2")
    notebook.python_there = OTHER
    with pytest.raises(RequestError, match=r"`c` \(which holds C\)"):
        notebook.modal("r = c.m()")
