"""The executor's store alone: what is only ever told apart there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cellburst_runner import values_pickle, values_share
from cellburst_runner.values import ValueStore


@pytest.fixture
def store(tmp_path: Path) -> ValueStore:
    for name in ("in", "out"):
        (tmp_path / name).mkdir()
    return ValueStore({}, str(tmp_path / "in"), str(tmp_path / "out"))


def group(hash: str, **names: Any) -> tuple[dict[str, Any], bytes]:
    data = pickle.dumps(names, 5)
    return {
        "names": list(names),
        "hash": hash,
        "parts": [{"hash": "p" + hash, "size_bytes": len(data), "at": "inline"}],
    }, data


def there(head: dict[str, Any], **more: str) -> dict[str, Any]:
    return {**head, "parts": [{"hash": p["hash"], "size_bytes": p["size_bytes"]} for p in head["parts"]], **more}


def run(
    store: ValueStore,
    code: str,
    *,
    used: tuple[str, ...] = (),
    bound: tuple[str, ...] = (),
    out: tuple[str, ...] = (),
    limit: int = 10**7,
) -> Any:
    store.before_cell(used)
    exec(code, store.namespace)
    return store.after_cell(bound=bound, used=used, deleted=(), out=out, home_limit_bytes=limit, ok=True)


def test_missing_until_applied_and_again_when_deleted(store: ValueStore) -> None:
    head, data = group("h1", x=[1])
    assert store.missing([there(head)]) == ["h1"]
    assert store.missing([head]) == [], "it comes with the message"
    store.apply([head], [data])
    assert store.missing([there(head)]) == []
    del store.namespace["x"]
    assert store.missing([there(head)]) == ["h1"]


def test_several_groups_are_set_all_or_none(store: ValueStore) -> None:
    good, data = group("h1", x=1)
    bad = {"names": ["y"], "hash": "h2", "parts": [{"hash": "p", "size_bytes": 3, "at": "inline"}]}
    with pytest.raises(pickle.UnpicklingError):
        store.apply([good, bad], [data, b"bad"])
    assert store.namespace == {}


def test_blobs_are_read_into_writable_memory(store: ValueStore, tmp_path: Path) -> None:
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps({"a": np.arange(100_000)}, 5, buffer_callback=buffers.append)
    (tmp_path / "in" / "blob").write_bytes(buffers[0].raw())
    size = buffers[0].raw().nbytes
    parts = [
        {"hash": "s", "size_bytes": len(stream), "at": "inline"},
        {"hash": "blob", "size_bytes": size, "at": "blob"},
    ]
    store.apply([{"names": ["a"], "hash": "h", "parts": parts}], [stream])
    store.namespace["a"][0] = 7
    assert store.namespace["a"][:2].tolist() == [7, 1]


def test_a_short_blob_is_refused(store: ValueStore, tmp_path: Path) -> None:
    (tmp_path / "in" / "blob").write_bytes(b"short")
    with pytest.raises(EOFError, match="5 bytes, not 100000"):
        store.apply(
            [{"names": ["a"], "hash": "h", "parts": [{"hash": "blob", "size_bytes": 100_000, "at": "blob"}]}], []
        )
    assert store.namespace == {}


def test_large_parts_are_files_and_small_ones_inline(store: ValueStore, tmp_path: Path) -> None:
    done, inline = run(store, "import numpy\na = numpy.ones(100_000); s = 'x' * 70_000; t = 1", bound=("a", "s", "t"))
    parts = {g["names"][0]: g["parts"] for g in done["home"]}
    assert [p["at"] for p in parts["a"]] == ["inline", "blob"]
    assert [p["at"] for p in parts["s"]] == ["blob"]
    assert [p["at"] for p in parts["t"]] == ["inline"]
    names = {p["hash"].removeprefix("file:") for ps in parts.values() for p in ps if p["at"] == "blob"}
    assert set(os.listdir(tmp_path / "out")) == names
    assert all(p["hash"] == "" for ps in parts.values() for p in ps if p["at"] == "inline")
    assert sum(len(b) for b in inline) < 1024 * 1024


def test_inline_parts_of_one_message_stay_under_a_mebibyte(store: ValueStore) -> None:
    code = "\n".join(f"v{i} = 'x' * 60_000" for i in range(40))
    done, inline = run(store, code, bound=tuple(f"v{i}" for i in range(40)))
    assert len(done["home"]) == 40
    assert sum(len(b) for b in inline) < 1024 * 1024


def test_only_what_the_kernel_has_and_could_change_is_hashed(
    store: ValueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, data = group("h", n=1, s="x", t=(1, 2), x=[1])
    store.apply([head], [data])
    store.namespace["mine"] = [1]
    packed: list[str] = []
    real = values_share.pack_one

    def spy(name: str, value: Any, namespace: dict[str, Any]) -> Any:
        packed.append(name)
        return real(name, value, namespace)

    monkeypatch.setattr(values_share, "pack_one", spy)
    run(store, "pass", used=("n", "s", "t", "x", "mine", "absent"))
    assert packed == ["x", "x"], "before and after"
    run(store, "pass", used=("n", "x"))
    assert packed == ["x"] * 3, "what is known from the last cell is not hashed again"
    run(store, "pass", used=())
    run(store, "pass", used=("x",))
    assert packed == ["x"] * 4, "nor after a cell that does not name it"


def test_a_number_goes_home_without_a_look_at_what_else_was_used(
    store: ValueStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, data = group("h", x=[1])
    store.apply([head], [data])
    run(store, "len(x)", used=("x",))
    packed: list[list[str]] = []
    real = values_pickle.write

    def spy(value: Any, *more: Any) -> Any:
        packed.append(list(value))
        return real(value, *more)

    monkeypatch.setattr(values_pickle, "write", spy)
    done, _ = run(store, "n = len(x)", used=("x",), bound=("n",))
    assert [g["names"] for g in done["home"]] == [["n"]]
    assert packed == [["x"]], "once, to see whether it changed"
    done, _ = run(store, "m = [x]", used=("x",), bound=("m",))
    assert [sorted(g["names"]) for g in done["home"]] == [["m", "x"]], "what holds it goes with it"


def test_what_is_unchanged_does_not_go_home(store: ValueStore) -> None:
    head, data = group("h", x=[1], y=[2])
    store.apply([head], [data])
    done, _ = run(store, "x.append(2)", used=("x", "y"))
    assert [g["names"] for g in done["home"]] == [["x"]]
    assert done["stayed"] == done["changed_there"] == done["gone"] == []


def test_what_a_cell_changed_unseen_goes_home_with_the_next_one_that_names_it(store: ValueStore) -> None:
    head, data = group("h", x=[1], y=[2])
    store.apply([head], [data])
    run(store, "len(x), len(y)", used=("x", "y"))
    done, _ = run(store, "x.append(2)")
    assert done["home"] == []
    done, _ = run(store, "len(x), len(y)", used=("x", "y"))
    assert [g["names"] for g in done["home"]] == [["x"]]
    done, _ = run(store, "len(x)", used=("x",))
    assert done["home"] == []


def test_what_comes_again_is_not_held_against_the_earlier_value(store: ValueStore) -> None:
    for text, value in (("h1", [1]), ("h2", [1, 2])):
        head, data = group(text, x=value)
        store.apply([head], [data])
        done, _ = run(store, "len(x)", used=("x",))
        assert done["home"] == []


def test_after_an_error_changes_stay(store: ValueStore) -> None:
    head, data = group("h", x=[1])
    store.apply([head], [data])
    store.before_cell(["x"])
    store.namespace["x"].append(2)
    store.after_cell(bound=(), used=("x",), deleted=(), out=(), home_limit_bytes=10**7, ok=False)
    done, _ = run(store, "len(x)", used=("x",))
    assert done["home"] == []


def test_a_value_bound_again_and_then_changed_goes_home(store: ValueStore) -> None:
    head, data = group("h", x=[1])
    store.apply([head], [data])
    run(store, "len(x)", used=("x",))
    for code, bound in (("x = [2]", ("x",)), ("x.append(3)", ())):
        done, _ = run(store, code, used=("x",), bound=bound)
        assert [g["names"] for g in done["home"]] == [["x"]]
    run(store, "del x")
    done, _ = run(store, "x = [2, 3]", used=("x",), bound=("x",))
    assert [g["names"] for g in done["home"]] == [["x"]]


def test_values_that_went_home_are_known_by_their_token(store: ValueStore) -> None:
    done, inline = run(store, "x = [1]", bound=("x",))
    meta = pickle.loads(inline[0][len(pickle.dumps({"x": [1]}, 5)) :])
    head = {**there(done["home"][0]), "hash": "of the kernel"}
    assert store.missing([head]) == ["of the kernel"]
    assert store.missing([{**head, "known_as": meta["token"]}]) == []


def test_limit_holds_for_each_name(store: ValueStore) -> None:
    done, _ = run(store, "import numpy\na = numpy.ones(1000)\nb = numpy.ones(2000)", bound=("a", "b"), limit=10_000)
    assert ["a"] in [g["names"] for g in done["home"]]
    (stayed,) = done["stayed"]
    assert (stayed["name"], stayed["why"], stayed["shape"], stayed["length"]) == ("b", "too_large", "(2000,)", 2000)
    assert stayed["size_bytes"] > 16_000


def test_ipythons_names_never_go_home(store: ValueStore) -> None:
    done, _ = run(store, "_ = 1; _i3 = 'x'; _3 = 2; In = []; _user = 3", bound=("_user",))
    assert [g["names"] for g in done["home"]] == [["_user"]]


def test_without_blake3_what_just_arrived_counts_as_unchanged(
    store: ValueStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "blake3", None)
    buffers: list[pickle.PickleBuffer] = []
    stream = pickle.dumps({"a": np.arange(100_000)}, 5, buffer_callback=buffers.append)
    (tmp_path / "in" / "blob").write_bytes(buffers[0].raw())
    sizes = [("s", len(stream), "inline"), ("blob", buffers[0].raw().nbytes, "blob")]
    parts = [{"hash": name, "size_bytes": size, "at": at} for name, size, at in sizes]
    store.apply([{"names": ["a"], "hash": "h", "parts": parts}], [stream])
    done, _ = run(store, "a.sum()", used=("a",))
    assert done["home"] == done["changed_there"] == []
    done, _ = run(store, "a[0] = 5", used=("a",))
    assert [g["names"] for g in done["home"]] == [["a"]]


def test_without_blake3_changes_are_still_seen() -> None:
    data = bytearray(40_000_000)
    one = values_share._digest_without_blake3(memoryview(data))
    data[-1] = 1
    assert values_share._digest_without_blake3(memoryview(data)) != one
    assert one.startswith("b2:")


def test_only_the_standard_library_is_imported_at_first() -> None:
    code = "import sys; from cellburst_runner import values; print([m for m in ('numpy', 'cloudpickle', 'dill', 'blake3') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
