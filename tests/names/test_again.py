"""What is cheap the second time must be what it was the first time: arrays whose pickle is known, texts that were sent."""

from __future__ import annotations

import copyreg
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cellburst_jupyter import names_pickle, names_share
from tests.names.other_side import Notebook

COUNT = 20_000  # 160 KB of float64: more than stays in a pickle


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_share, "_array_streams", {})


def arrays() -> Iterator[Any]:
    """Arrays that differ in one thing each, one of them in its values only."""
    yield np.zeros(COUNT)
    yield np.ones(COUNT)
    yield np.zeros(COUNT, "f4")
    yield np.zeros(COUNT, "i8")
    yield np.zeros(COUNT, ">i8")
    yield np.zeros(COUNT, "M8[ns]")
    yield np.zeros(COUNT, "M8[s]")
    yield np.zeros(COUNT, [("a", "f8")])
    yield np.zeros((COUNT // 2, 2))
    yield np.zeros((2, COUNT // 2)).T
    yield np.zeros(COUNT * 2)[::2]
    yield np.zeros(COUNT, object)
    yield np.zeros(10)
    yield np.ma.masked_array(np.zeros(COUNT))
    readonly = np.zeros(COUNT)
    readonly.flags.writeable = False
    yield readonly


def test_the_second_time_gives_the_same_bytes() -> None:
    every = list(arrays())
    whole = [names_pickle.write({"a": array}, {}) for array in every]
    for _ in range(3):
        for array, (writer, stream, buffers) in zip(every, whole, strict=True):
            packed = names_share.pack_one("a", array, {})
            assert bytes(packed.stream) == bytes(stream)
            assert packed.buffers == buffers
            assert packed.digests() == tuple(names_share.digest(p) for p in [stream, *buffers])
            assert [id(a) for w in packed.writers for a in w.arrays] == [id(a) for a in writer.arrays]
            assert packed.writers[0].modules_used == writer.modules_used
    known = len(names_share._array_streams)
    assert known == 6, "zeros and ones, f4, i8, two orders of a matrix, read-only"


def test_what_is_known_does_not_keep_arrays_alive() -> None:
    array = np.zeros(COUNT)
    for _ in range(2):
        names_share.pack_one("a", array, {})
    gone = weakref.ref(array)
    del array
    gc.collect()
    assert gone() is None and names_share._array_streams


def test_a_reducer_of_the_users_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.zeros(COUNT)
    names_share.pack_one("a", array, {})
    monkeypatch.setitem(copyreg.dispatch_table, np.ndarray, lambda value: (bytearray, (5,)))
    assert names_pickle.read(names_share.pack_one("a", array, {}).stream, [], {}, False)[0] == {"a": bytearray(5)}


def test_what_shares_with_a_known_array_still_travels_with_it(notebook: Notebook) -> None:
    notebook.local(f"import numpy as np\na = np.zeros({COUNT})\nbox = [a]\nhalf = a[:{COUNT // 2}]")
    for _ in range(2):
        notebook.modal("n = a.size")
    notebook.modal("same = box[0] is a; box[0][0] = 1; half[1] = 2; r = (a[0], a[1])")
    assert notebook.ns["same"] and notebook.ns["r"] == (1, 2)
    assert notebook.ns["a"][:2].tolist() == notebook.ns["half"][:2].tolist() == [1, 2]
    assert notebook.ns["box"][0] is notebook.ns["a"]


def test_a_known_array_that_changes_is_seen_on_both_sides(notebook: Notebook) -> None:
    notebook.local(f"import numpy as np\na = np.zeros({COUNT})")
    for _ in range(3):
        notebook.modal("s = a.sum()")
    assert notebook.sent_names == []
    notebook.local("a[-1] = 1")
    notebook.modal("s = a.sum()")
    assert notebook.sent_names == ["a"] and notebook.ns["s"] == 1
    held = notebook.ns["a"]
    notebook.modal("a[0] = 5")
    assert notebook.ns["a"] is held and held[0] == 5
    notebook.modal(f"a.shape = (2, {COUNT // 2})")
    assert notebook.ns["a"].shape == (2, COUNT // 2)
    notebook.modal("s = a.sum()")
    assert notebook.sent_names == [] and notebook.ns["s"] == 6


def test_a_change_that_no_cell_named_comes_home_with_the_next_that_does(notebook: Notebook) -> None:
    notebook.local("x = [1]")
    notebook.modal("n = len(x)")
    notebook.modal("globals()['x'].append(2)")
    notebook.modal("n = len(x)")
    assert (notebook.ns["n"], notebook.ns["x"]) == (2, [1, 2])
    notebook.modal("n = len(x)")
    assert notebook.sent_names == []


@pytest.mark.parametrize("size", [100_000, 2_000_000])
def test_a_large_text_is_sent_again_where_it_is_lacking(notebook: Notebook, size: int) -> None:
    notebook.local(f"text = 'x' * {size}")
    for _ in range(2):
        notebook.modal("n = len(text)")
    assert notebook.sent_names == []
    notebook.new_container()
    notebook.modal("n = len(text), text[-1]")
    assert notebook.sent_names == ["text"] and notebook.ns["n"] == (size, "x")
    notebook.local("text = text + 'y'")
    notebook.modal("n = len(text), text[-1]")
    assert notebook.sent_names == ["text"] and notebook.ns["n"] == (size + 1, "y")


def test_a_text_that_is_gone_is_not_kept(notebook: Notebook) -> None:
    notebook.local("text = 'x' * 100_000")
    notebook.modal("n = len(text)")
    assert "text" in notebook.sync._atoms
    notebook.local("del text")
    notebook.modal("n = 1")
    assert "text" not in notebook.sync._atoms
