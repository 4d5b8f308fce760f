"""The rules for names that need more than one cell: what is sent again, what stays, who wins, what is said."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellburst_jupyter.remote import Remote
from cellburst_protocol.errors import CellburstError, ErrorCode
from tests.names.other_side import CellFailed, Notebook

LARGE = 2_000_000  # 16 MB of float64: over the limit of what comes home unasked


def test_unchanged_names_are_sent_once(notebook: Notebook) -> None:
    notebook.local("x = [1]; n = 3; s = 'a'\ndef f(): return x")
    notebook.modal("y = f() + [n, s]")
    assert sorted(notebook.sent_names) == ["f", "n", "s", "x"]
    notebook.modal("y = f() + [n, s]")
    assert notebook.sent_names == []
    notebook.local("x.append(2)")
    notebook.modal("y = f() + [n, s]")
    assert notebook.sent_names == ["x"]
    assert notebook.ns["y"] == [1, 2, 3, "a"]


def test_what_came_home_is_not_sent_back(notebook: Notebook) -> None:
    notebook.modal("import numpy as np\na = np.arange(1000.0); d = {'k': [1]}; b = a[::2]")
    notebook.modal("t = a.sum() + d['k'][0] + b.sum()")
    assert notebook.sent_names == []
    notebook.modal("d['k'].append(1); a += 1")
    notebook.modal("t = sum(d['k']) + a[0]")
    assert notebook.sent_names == []
    assert notebook.ns["t"] == 3
    notebook.local("a[0] = 100")
    notebook.modal("t = a[0]")
    assert notebook.ns["t"] == 100


def test_a_new_container_gets_what_it_lacks(notebook: Notebook) -> None:
    notebook.local("import numpy as np\nx = [1]; a = np.ones(50_000)\ndef f(): return len(x) + a.sum()")
    notebook.modal("r = f(); home = [5]")
    notebook.modal("home.append(1)")
    notebook.new_container()
    notebook.modal("r = f() + len(home)")
    assert set(notebook.sent_names) == {"f", "x", "a", "home"}
    assert notebook.ns["r"] == 50_003


def test_redefined_helper_and_changed_global_are_seen(notebook: Notebook) -> None:
    notebook.local("k = 1\ndef h(): return k\ndef g(): return h()")
    notebook.modal("r = g()")
    notebook.local("k = 2")
    notebook.modal("r = g()")
    assert notebook.ns["r"] == 2
    notebook.local("def h(): return 10 * k")
    notebook.modal("r = g()")
    assert notebook.ns["r"] == 20
    assert notebook.sent_names == ["h"]


def test_class_defined_again_travels_with_its_instances(notebook: Notebook) -> None:
    notebook.local("class C:\n    def f(self): return 1\nc = C()")
    notebook.modal("r = c.f()")
    notebook.local("old = c\nclass C:\n    def f(self): return 2\nc = C()")
    notebook.modal("r = c.f(); o = old.f(); same = type(c) is C")
    assert (notebook.ns["r"], notebook.ns["o"], notebook.ns["same"]) == (2, 1, True)
    notebook.modal("c.x = 1")
    assert type(notebook.ns["c"]) is notebook.ns["C"]


@pytest.mark.parametrize("slots", ["'a', 'b'", "'a', '__dict__'", "['a']", "'a'", "'a', '__weakref__'"])
def test_a_class_with_slots_has_them_there_too_and_comes_home(notebook: Notebook, slots: str) -> None:
    brackets = slots if slots.startswith("[") or "," not in slots else f"({slots})"
    notebook.local(f"class S:\n    __slots__ = {brackets}\ns = S(); s.a = [1]; also = {{'s': s}}")
    notebook.modal("s.a.append(2); also['t'] = s; plain = hasattr(s, '__dict__')")
    assert notebook.ns["plain"] is ("__dict__" in slots)
    assert notebook.ns["also"]["t"].a == [1, 2] and type(notebook.ns["also"]["t"]) is notebook.ns["S"]
    notebook.modal("s.a = 3")
    assert notebook.ns["s"].a == 3 and type(notebook.ns["s"]) is notebook.ns["S"]


def test_a_dataclass_with_slots_is_changed_there(notebook: Notebook) -> None:
    notebook.local(
        "from dataclasses import dataclass\n@dataclass(slots=True)\nclass P:\n    share: int\n    rows: list\np = P(1, [1])"
    )
    lines = notebook.modal("p.share *= 3; p.rows.append(2)")
    assert lines == [] and notebook.ns["p"] == notebook.ns["P"](3, [1, 2])


def test_changed_on_both_sides_the_local_value_wins_and_it_is_said(notebook: Notebook) -> None:
    notebook.local("x = [1]; y = [1]; z = 1")
    notebook.during = lambda: notebook.local("x.append('here'); z = 'here'")
    lines = notebook.modal("x.append('there'); y.append('there'); z = 'there'")
    assert notebook.ns["x"] == [1, "here"]
    assert notebook.ns["z"] == "here"
    assert notebook.ns["y"] == [1, "there"]
    assert lines == ["changed here and there, the value here was kept: x, z"] or lines == [
        "changed here and there, the value here was kept: z, x"
    ]


def test_large_values_stay_as_handles_and_are_used_in_place(notebook: Notebook) -> None:
    lines = notebook.modal(f"import numpy as np\nbig = np.arange({LARGE}.0)")
    big = notebook.ns["big"]
    assert isinstance(big, Remote)
    assert (big.type, big.shape, len(big)) == ("numpy.ndarray", f"({LARGE},)", LARGE)
    assert "stayed there: big (numpy.ndarray, 16.0 MB)" in lines[0]
    assert "1999999" in big.head() or "1.999" in big.head()
    notebook.modal("s = float(big[3])")
    assert notebook.ns["s"] == 3.0
    assert notebook.sent_names == []
    value = big.fetch()
    assert value.shape == (LARGE,)
    assert value.flags.writeable
    notebook.local("big = big.fetch()")
    notebook.modal("s = float(big[4])")
    assert notebook.sent_names == [], "what was fetched is there already"


def test_out_brings_home_whatever_its_size(notebook: Notebook) -> None:
    lines = notebook.modal(f"import numpy as np\nbig = np.ones({LARGE})", out=("big",))
    assert lines == []
    assert notebook.ns["big"].sum() == LARGE
    notebook.ns["big"][0] = 5  # writable
    notebook.modal(f"other = np.zeros({LARGE})")
    notebook.modal("q = 1", out=("other",))
    assert notebook.ns["other"].sum() == 0


def test_large_value_changed_in_place_stays_and_is_said(notebook: Notebook) -> None:
    notebook.local(f"import numpy as np\nmodel = np.zeros({LARGE})")
    assert notebook.modal("model[0] = 1") == ["changed there, not here: model (`out=model`)"]
    assert notebook.ns["model"][0] == 0
    notebook.modal("r = float(model[0])")
    assert notebook.ns["r"] == 1, "the container's newer value is not written over"
    notebook.modal("r = float(model[0])", out=("model",))
    assert notebook.ns["model"][0] == 1


def test_unpicklable_values_stay(notebook: Notebook) -> None:
    lines = notebook.modal("import threading\nlock = threading.Lock(); gen = (i for i in range(3)); x = 1")
    assert isinstance(notebook.ns["lock"], Remote)
    assert any("gen" in line and "generator cannot be pickled" in line for line in lines)
    notebook.modal("y = next(gen)\nwith lock: pass")
    assert notebook.ns["y"] == 0


@pytest.mark.parametrize(
    "use",
    ["r.x", "r + 1", "list(r)", "r[0]", "r[0] == 1", "bool(r)", "r.y", "float(r)", "__import__('numpy').asarray(r)",
     "__import__('pickle').dumps(r)", "__import__('copy').copy(r)", "r()", "f'{r:>3}'", "3 in r", "-r", "r < 1"],
)  # fmt: skip
def test_handing_a_handle_to_local_code_raises_with_the_fix(notebook: Notebook, use: str) -> None:
    notebook.modal("r = (i for i in range(3))")
    with pytest.raises(TypeError, match=r"r = r\.fetch\(\)"):
        eval(use, notebook.ns)


def test_a_handle_inside_a_value_is_refused_before_sending(notebook: Notebook) -> None:
    notebook.modal("r = (i for i in range(3))")
    notebook.local("box = [r]; alias = r")
    with pytest.raises(CellburstError, match=r"fetch\(\)"):
        notebook.modal("box")
    with pytest.raises(CellburstError, match="`alias`"):
        notebook.modal("alias")


def test_handles_of_a_lost_container_say_so(notebook: Notebook) -> None:
    notebook.modal("r = (i for i in range(3))")
    notebook.sync.container_lost()
    assert "container that is gone; run the cell" in repr(notebook.ns["r"]) and "fetch" not in repr(notebook.ns["r"])
    with pytest.raises(TypeError, match=r"iterate over `r` here: .* in a container that is gone"):
        list(notebook.ns["r"])
    with pytest.raises(CellburstError, match="container that is gone"):
        notebook.ns["r"].fetch()
    with pytest.raises(CellburstError, match="run the cell that made it again"):
        notebook.modal("next(r)")


def test_in_sends_only_these(notebook: Notebook) -> None:
    notebook.local("x = 1; big = [1] * 1000")
    notebook.modal("y = x", only=["x"])
    assert notebook.sent_names == ["x"]
    with pytest.raises(CellburstError, match="did you mean `big`") as caught:
        notebook.modal("y = 1", only=["bigg"])
    assert caught.value.code is ErrorCode.UNKNOWN_NAME


def test_an_unpicklable_name_is_told_by_its_path(notebook: Notebook) -> None:
    notebook.local(
        "import threading\nclass L:\n    pass\nmodel = L(); model.loader = L(); model.loader._lock = threading.Lock()"
    )
    with pytest.raises(CellburstError) as caught:
        notebook.modal("model")
    assert caught.value.code is ErrorCode.UNPICKLABLE
    assert caught.value.info.detail == {"path": "model.loader._lock", "type": "_thread.lock"}
    assert "__getstate__" in caught.value.info.next
    notebook.local("jobs = {'a': [1, (i for i in range(3))]}")
    with pytest.raises(CellburstError, match=r"`jobs\['a'\]\[1\]` cannot be sent: a generator"):
        notebook.modal("jobs")


def test_a_name_over_the_limit_is_told_before_sending(notebook: Notebook) -> None:
    notebook.ns["huge"] = np.empty(300_000_000)  # never touched, so it takes no memory
    with pytest.raises(CellburstError, match=r"`huge` is 2.4 GB") as caught:
        notebook.modal("huge.shape")
    assert caught.value.code is ErrorCode.TOO_LARGE


def test_an_error_says_what_changed_there(notebook: Notebook) -> None:
    notebook.local("y = 1")
    with pytest.raises(CellFailed):
        notebook.modal("y; y = 2; 1 / 0")
    assert notebook.lines == ["changed there, not here: y (`out=y`)"]
    assert notebook.ns["y"] == 1


def test_writing_back_is_all_or_nothing(notebook: Notebook, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook.local("a = [1]; b = {'k': 1}")
    before = copy.deepcopy((notebook.ns["a"], notebook.ns["b"]))
    held = notebook.ns["a"]

    def fail(self: Any, info: Any) -> Any:
        raise RuntimeError("half-way")

    monkeypatch.setattr(type(notebook.sync), "handle", fail)
    with pytest.raises(RuntimeError, match="half-way"):
        notebook.modal("a.append(2); b['k'] = 2; c = 3; g = (i for i in a)")
    assert (notebook.ns["a"], notebook.ns["b"], "c" in notebook.ns) == (*before, False)
    assert notebook.ns["a"] is held


def test_changed_bytes_are_not_opened(notebook: Notebook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    real = notebook.container.finish_groups

    def tamper(groups: Any, inline: Any) -> Any:
        done = real(groups, inline)
        inline[:] = [b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."]
        return done

    monkeypatch.setattr(notebook.container, "finish_groups", tamper)
    with pytest.raises(CellburstError) as caught:
        notebook.modal("x = 1")
    assert caught.value.code is ErrorCode.INTEGRITY
    assert not canary.exists()
    assert "x" not in notebook.ns


def test_modules_beside_the_notebook_travel_and_again_when_edited(
    notebook: Notebook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "helpers_x.py").write_text("from inner_x import base\ndef f(): return base + 1\n")
    (tmp_path / "inner_x.py").write_text("base = 1\n")
    (tmp_path / "pack_x").mkdir()
    (tmp_path / "pack_x" / "__init__.py").write_text("")
    (tmp_path / "pack_x" / "deep.py").write_text("def g(): return 'deep'\n")
    notebook.modal("from helpers_x import f\nimport pack_x.deep\nr = f(); d = pack_x.deep.g()\ndel f, pack_x")
    assert (notebook.ns["r"], notebook.ns["d"]) == (2, "deep")
    notebook.modal("import helpers_x\nr = helpers_x.f()\ndel helpers_x")
    (tmp_path / "helpers_x.py").write_text("from inner_x import base\ndef f(): return base + 100\n")
    notebook.modal("from helpers_x import f\nr = f()\ndel f")
    assert notebook.ns["r"] == 101


def test_fetch_while_nothing_is_there(notebook: Notebook) -> None:
    with pytest.raises(AssertionError, match="KeyError"):
        notebook.container.ask("fetch", name="nothing")


def test_names_lists_the_users_names(notebook: Notebook) -> None:
    notebook.modal("class Bad:\n    def __repr__(self): raise ValueError\nbad = Bad(); n = 'x' * 100000; import os")
    names = {n["name"]: n for n in notebook.container.ask("names")[0]["names"]}
    assert set(names) == {"Bad", "bad", "n"}
    assert names["bad"]["head"] == "<Bad, whose repr fails>"
    assert len(names["n"]["head"]) < 3000


def test_no_thread_is_left(notebook: Notebook) -> None:
    before = set(threading.enumerate())  # of this process, in which other tests ran as well
    notebook.modal("x = 1")
    assert set(threading.enumerate()) <= before


def test_a_caught_exception_leaves_no_name(notebook: Notebook) -> None:
    notebook.local("e = 1")
    notebook.modal("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    text = str(e)")
    assert notebook.ns["text"] == "division by zero"
    assert "e" not in notebook.ns


def test_what_only_dill_can_write_travels_too(notebook: Notebook) -> None:
    notebook.local("import weakref\nclass N:\n    pass\nn = N(); n.v = 5; held = {'n': n, 'r': weakref.ref(n)}")
    notebook.modal("v = held['r']().v")
    assert notebook.ns["v"] == 5


def test_what_only_dill_can_write_comes_home_beside_what_the_kernel_has(notebook: Notebook) -> None:
    notebook.local("seen = []")
    notebook.modal(
        "import weakref\nclass N:\n    pass\nn = N(); n.v = 5; held = {'n': n, 'r': weakref.ref(n)}\nseen.append(1)"
    )
    assert notebook.ns["held"]["r"]().v == 5 and notebook.ns["seen"] == [1]


def test_the_table_of_names_stays_there(notebook: Notebook) -> None:
    notebook.local("seen = []")
    (line,) = notebook.modal("ns = globals(); seen.append(1)")
    assert line == "stayed there: ns, because a dict cannot be pickled (TypeError: it is the table of all names)"
    notebook.modal("many = len(ns) > 1; ns['seen'].append(2)")
    assert notebook.ns["many"] is True and isinstance(notebook.ns["ns"], Remote)


def test_an_open_file_is_refused_and_not_read(notebook: Notebook, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("x")
    with (tmp_path / "text").open() as notebook.ns["log"], pytest.raises(CellburstError, match="send its path"):
        notebook.modal("log.read()")
