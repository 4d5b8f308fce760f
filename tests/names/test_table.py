"""The rules for names, as a table of cells that are run through both sides, in two processes.

Each row: what the notebook ran before, the %%modal cell, and what holds in the notebook afterwards. A row that says nothing else
must end as if the cell had run here: that is checked too, by running it here in a namespace of its own.
"""

from __future__ import annotations

import pytest

from tests.names.other_side import CellFailed, Notebook

# name, local cells before, the cell, expressions that must be true afterwards
ROWS: list[tuple[str, str, str, list[str]]] = [
    ("binds", "", "x = 41 + 1", ["x == 42"]),
    ("reads", "x = 20", "y = x * 2", ["y == 40"]),
    ("augments an int", "x = 1", "x += 1", ["x == 2"]),
    ("augments a list, aliases see it", "x = [1]; z = x", "x += [2]", ["x == [1, 2]", "z is x"]),
    ("appends in place", "x = [1]; z = x", "x.append(2)", ["x == [1, 2]", "z == [1, 2]", "z is x"]),
    ("item of a dict", "d = {'a': 1}; e = d", "d['b'] = 2", ["d == {'a': 1, 'b': 2}", "e is d"]),
    ("set", "s = {1}", "s.add(2)", ["s == {1, 2}"]),
    ("nested change", "d = {'a': [1]}; a = d['a']", "d['a'].append(a[0])", ["d == {'a': [1, 1]}", "a is d['a']"]),
    ("two names of one object", "a = [1]; b = a", "b.append(2); same = a is b", ["same", "a == [1, 2]", "a is b"]),
    ("an alias made there", "a = [1]", "b = a; b.append(2)", ["a == [1, 2]", "b is a"]),
    ("an inner object bound there", "d = {'k': [1]}", "k = d['k']; k.append(2)", ["d == {'k': [1, 2]}", "k is d['k']"]),
    ("swap", "a, b = [1], [2]", "a, b = b, a", ["a == [2]", "b == [1]"]),
    ("numpy in place", "import numpy as np; a = np.zeros(5); v = a", "a[1] = 7", ["a[1] == 7", "v is a"]),
    ("numpy view sent with its array", "import numpy as np; a = np.zeros(9); v = a[2:4]", "v[:] = 3; a[0] = 1",
     ["a.tolist() == [1, 0, 3, 3, 0, 0, 0, 0, 0]", "v.tolist() == [3, 3]", "np.shares_memory(a, v)"]),
    ("numpy view made there", "import numpy as np; a = np.zeros(9)", "v = a[::2]; v[1] = 5",
     ["a[2] == 5", "v[1] == 5", "np.shares_memory(a, v)"]),
    ("transposed and strided", "import numpy as np; a = np.arange(12).reshape(3, 4)", "t = a.T[::2].copy(); u = t[::-1]",
     ["t.tolist() == [[0, 4, 8], [2, 6, 10]]", "u.tolist() == [[2, 6, 10], [0, 4, 8]]"]),
    ("pandas column", "import pandas as pd; df = pd.DataFrame({'a': [1, 2]}); d2 = df", "df['b'] = df['a'] * 2",
     ["df['b'].tolist() == [2, 4]", "d2 is df"]),
    ("pandas keeps copy-on-write", "import pandas as pd; df = pd.DataFrame({'a': [1.0, 2.0]}); s = df['a']", "s.iloc[0] = 9",
     ["s.tolist() == [9, 2]", "df['a'].tolist() == [1, 2]"]),
    ("fit changes the model", "from sklearn.linear_model import LinearRegression\nimport numpy as np\nmodel = LinearRegression()\n"
     "X = np.arange(10.0).reshape(-1, 1); y = X[:, 0] * 2", "model.fit(X, y)", ["abs(model.coef_[0] - 2) < 1e-9"]),
    ("object of a notebook class", "class P:\n    def __init__(self): self.n = 0\n    def up(self): self.n += 1\np = P(); q = p", "p.up()",
     ["p.n == 1", "type(p) is P", "q is p"]),
    ("class made there", "", "class Q:\n    def f(self): return 7\nq = Q()", ["q.f() == 7", "isinstance(q, Q)"]),
    ("dataclass and super()", "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n    def f(self): return self.x\n"
     "class B(A):\n    def f(self): return super().f() + 1\nb = B(1)", "r = b.f(); b.x = 5; c = B(8)",
     ["r == 2", "b.x == 5", "type(b) is B", "type(c) is B", "c.f() == 9"]),
    ("class attribute", "class C:\n    count = 0", "C.count += 1; c = C()", ["C.count == 1", "type(c) is C"]),
    ("enum", "import enum\nclass E(enum.Enum):\n    A = 1\ne = E.A", "f = E.A; same = f is e", ["same", "f is E.A"]),
    ("globals of functions", "k = 3\ndef h(a): return a * k\ndef g(a): return h(a) + 1", "r = g(2)", ["r == 7"]),
    ("global statement", "n = 0\ndef tick():\n    global n\n    n += 1", "tick(); tick()", ["n == 2"]),
    ("closure with nonlocal", "def make():\n    n = 0\n    def up():\n        nonlocal n\n        n += 1\n        return n\n"
     "    def get(): return n\n    return up, get\nup, get = make()", "up(); r = get()", ["r == 1", "get() == 1", "up() == 2", "get() == 2"]),
    ("recursion and decorator", "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def w(*a): return f(*a)\n    return w\n"
     "@deco\ndef fact(n): return 1 if n < 2 else n * fact(n - 1)", "r = fact(5)", ["r == 120"]),
    ("lambda and default", "b = 2\nf = lambda x, y=[1]: x + b + len(y)", "r = f(1)", ["r == 4"]),
    ("function made there", "b = 2", "def f(x): return x + b", ["f(1) == 3", "f.__globals__ is globals()"]),
    ("generator expression and comprehension", "xs = [1, 2, 3]; k = 2", "r = [x * k for x in xs]; t = sum(x for x in xs)",
     ["r == [2, 4, 6]", "t == 6"]),
    ("import there", "", "import json as j\nfrom os.path import join", ["j.dumps([1]) == '[1]'", "join('a', 'b') == 'a/b'"]),
    ("submodule used as an attribute", "import concurrent.futures", "e = concurrent.futures.Future()\nr = e.done()\ndel e", ["r is False"]),
    ("del", "big = [1] * 10; keep = 1", "del big", ["'big' not in globals()", "keep == 1"]),
    ("del of what it bound", "", "t = 1; del t; u = 2", ["u == 2", "'t' not in globals()"]),
    ("conditional", "x = 7; flag = False", "if flag: x = 1", ["x == 7"]),
    ("for, with, walrus, star", "import io", "for i in range(3): pass\nwith io.StringIO('q') as f: s = f.read()\n"
     "a, *rest = [1, 2, 3]\nif (n := len(rest)): pass\ndel f", ["i == 2", "s == 'q'", "rest == [2, 3]", "n == 2"]),
    ("match", "v = {'a': 1, 'b': 2}", "match v:\n    case {'a': p, **others}: pass", ["p == 1", "others == {'b': 2}"]),
    ("exec binds", "", "exec('hid = 5')", ["hid == 5"]),
    ("underscore names", "_mine = [1]", "_mine.append(2); _yours = 3", ["_mine == [1, 2]", "_yours == 3"]),
    ("cyclic", "a = []; a.append(a)", "a.append(1)", ["a[0] is a", "a[1] == 1"]),
    ("exception object", "", "try:\n    1 / 0\nexcept ZeroDivisionError as e: kept = e", ["type(kept) is ZeroDivisionError"]),
    ("partial and bound method", "import functools\nclass M:\n    k = 2\n    def f(self, x): return x * self.k\nm = M()\nb = m.f\n"
     "p = functools.partial(b, 4)", "r = p(); m.k = 3; t = p()", ["r == 8", "t == 12", "m.k == 3", "b(1) == 3"]),
]  # fmt: skip


@pytest.mark.parametrize(("before", "cell", "holds"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_cell(notebook: Notebook, before: str, cell: str, holds: list[str]) -> None:
    plain: dict[str, object] = {"__name__": "__main__"}
    notebook.local(before)
    lines = notebook.modal(cell)
    for expression in holds:
        assert eval(expression, notebook.ns), (expression, lines)
    exec(f"{before}\n{cell}", plain)
    for expression in holds:
        assert eval(expression, plain), f"the row itself is wrong: {expression}"
    assert {n for n in plain if n[:2] != "__"} == {n for n in notebook.ns if n[:2] != "__"}


def test_an_error_leaves_the_notebook_as_it_was(notebook: Notebook) -> None:
    notebook.local("x = [1]; y = 1")
    with pytest.raises(CellFailed, match="ZeroDivisionError"):
        notebook.modal("x.append(2); y = 2; z = 3; 1 / 0")
    assert (notebook.ns["x"], notebook.ns["y"], "z" in notebook.ns) == ([1], 1, False)
    assert notebook.container.value("(x, y, z)") == "([1, 2], 2, 3)"
