"""Names kept by value beside a snapshot: saved by one runner, loaded by another that knows nothing. Real processes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from tests.fakes.runner_harness import FakeWorker, started


async def _save(worker: FakeWorker, limit_bytes: int = 0) -> tuple[m.RunnerFrozen, list[bytes]]:
    for path in (worker.folder / "out").iterdir():
        path.unlink()  # what cells sent home
    incoming = await worker.freeze(save_names=True, limit_bytes=limit_bytes)
    assert isinstance(incoming.message, m.RunnerFrozen)
    return incoming.message, [bytes(b) for b in incoming.buffers]


async def _load(worker: FakeWorker, groups: list[m.NameGroup], buffers: list[bytes], out: Path) -> m.RunnerNamesLoaded:
    """As the worker does: files go from the one's out/ to the other's in/, under another name."""
    for group in groups:
        for part in group.parts:
            if part.hash.startswith("file:"):
                name = part.hash.removeprefix("file:")
                shutil.move(out / name, worker.folder / "in" / f"moved-{name}")
                part.hash = f"moved-{name}"
    worker.send(m.RunnerLoadNames(groups=groups), buffers)
    loaded = (await worker.wait_for(m.RunnerNamesLoaded)).message
    assert isinstance(loaded, m.RunnerNamesLoaded)
    return loaded


async def _through(tmp_path: Path, code: str, check: str) -> tuple[str, m.RunnerFrozen, m.RunnerNamesLoaded]:
    """Run `code` in one runner, save, load into another, and return what `check` prints there."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with started(tmp_path / "a") as one:
        cell = await one.run(code)
        assert cell.done.status == "ok", cell.messages("error")
        frozen, buffers = await _save(one)
        assert frozen.error is None
        async with started(tmp_path / "b") as two:
            loaded = await _load(two, frozen.groups, buffers, tmp_path / "a" / "out")
            cell = await two.run(check)
            assert cell.done.status == "ok", cell.messages("error")
        assert not list((tmp_path / "a" / "out").iterdir())
    return cell.text(), frozen, loaded


VALUES = """
import math, threading
import numpy as np
class Point:
    scale = 2
    def __init__(self, x): self.x = x
    def scaled(self): return self.x * self.scale * factor
factor = 10
p = Point(3)
def double(v): return v * 2 * factor
half = lambda v: v / 2
shared = [1]
alias = {'inner': shared}
big = np.arange(100_000.)
view = big[10:20]
text = 'ä' * 10
"""
CHECK = """
shared.append(2)
view[0] = -1
print(math.pi > 3, type(p) is Point, p.scaled(), double(1), half(3), alias['inner'] is shared, len(alias['inner']))
print(big[10], big.sum() > 1e9, big.flags.writeable, text)
"""


async def test_values_functions_classes_modules_and_aliases_come_back(tmp_path: Path) -> None:
    text, frozen, loaded = await _through(tmp_path, VALUES, CHECK)
    assert text == "True True 60 20 1.5 True 2\n-1.0 True True ää\n".replace("ää", "ä" * 10)
    assert frozen.lost == [] and loaded.lost == []
    names = {
        "math",
        "threading",
        "np",
        "Point",
        "factor",
        "p",
        "double",
        "half",
        "shared",
        "alias",
        "big",
        "view",
        "text",
    }
    assert set(loaded.names) == names == {n for g in frozen.groups for n in g.names}
    assert any(
        part.hash.startswith(("file:", "moved-")) and part.at == "blob" for g in frozen.groups for part in g.parts
    )


async def test_a_lock_is_lost_by_name_and_path_and_the_others_come(tmp_path: Path) -> None:
    code = "import threading\nstate = {'pool': [1, threading.Lock()]}\nclass C: pass\nc = C()\nc.inner = open('/dev/null')\nx = 1"
    text, frozen, loaded = await _through(tmp_path, code, "print(x, 'state' in globals())")
    assert text == "1 False\n" and "x" in loaded.names
    lost = {entry.name: entry for entry in frozen.lost}
    assert set(lost) == {"state", "c"} and {e.why for e in frozen.lost} == {"unpicklable"}
    assert lost["state"].detail.startswith("state['pool'][1]: _thread.lock: TypeError")
    assert lost["c"].detail.startswith("c.inner: _io.TextIOWrapper")


async def test_what_only_dill_can_write_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("dill")
    code = "import types\nframe = types.SimpleNamespace(code=types.MappingProxyType({'k': 1}))"
    text, frozen, _ = await _through(tmp_path, code, "print(frame.code['k'])")
    assert text == "1\n" and frozen.lost == []


async def test_modules_that_travelled_are_saved_with_what_needs_them(tmp_path: Path) -> None:
    import hashlib
    import pickle

    source = {"beside": ("class Thing:\n    n = 5\n", "/nowhere/beside.py")}
    data = pickle.dumps(source, 5) + pickle.dumps({"kind": "modules"}, 5)
    digest = hashlib.sha256(data).hexdigest()
    group = m.NameGroup(
        names=["beside"], hash=digest, parts=[m.ValuePart(hash=digest, size_bytes=len(data), at="inline")]
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with started(tmp_path / "a") as one:
        cell = await one.run("import beside\nt = beside.Thing()", [data], modules=[group])
        assert cell.done.status == "ok" and "beside" not in cell.done.imported
        frozen, buffers = await _save(one)
    async with started(tmp_path / "b") as two:
        loaded = await _load(two, frozen.groups, buffers, tmp_path)
        assert set(loaded.names) == {"beside", "t"} and loaded.lost == []
        assert (await two.run("print(t.n, beside.__file__)")).text() == "5 /nowhere/beside.py\n"


async def test_over_the_limit_the_smallest_survive_and_the_rest_is_said(tmp_path: Path) -> None:
    code = "import numpy as np\nlarge = np.zeros(50_000)\na, b, c = (np.zeros(10_000) for _ in range(3))\nslow = list(range(200_000))"
    async with started(tmp_path) as worker:
        await worker.run(code)
        # the two large ones would fit alone; `slow` is one pickle in memory, and is stopped while it is written
        frozen, _ = await _save(worker, 500_000)
        assert {n for g in frozen.groups for n in g.names} == {"np", "a", "b", "c"}
        assert sum(g.size_bytes for g in frozen.groups) <= 500_000
        assert {(e.name, e.why) for e in frozen.lost} == {("large", "too_large"), ("slow", "too_large")}
        assert all("500000" in e.detail for e in frozen.lost)
        assert len(list((tmp_path / "out").iterdir())) == 3
        await worker.thaw()
        assert not list((tmp_path / "out").iterdir())  # nobody took them


async def test_names_that_came_with_a_cell_are_saved_and_stay_known(tmp_path: Path) -> None:
    import hashlib
    import pickle

    data = pickle.dumps({"given": [1, 2]}, 5)
    digest = hashlib.sha256(data).hexdigest()
    part = m.ValuePart(hash=digest, size_bytes=len(data), at="inline")
    group = m.NameGroup(names=["given"], hash=digest, parts=[part])
    there = m.NameGroup(names=["given"], hash=digest, parts=[m.ValuePart(hash=digest, size_bytes=1, at="there")])
    async with started(tmp_path) as worker:
        await worker.run("1", [data], names=[group], used=["given"])
        frozen, _ = await _save(worker)
        assert [g.names for g in frozen.groups] == [["given"]]
        await worker.thaw()
        # the process went on: what the kernel knows of it holds
        cell = await worker.run("print(given)", names=[there], used=["given"])
        assert cell.text() == "[1, 2]\n" and not any(isinstance(e.message, m.NamesNeeded) for e in cell.events)


async def test_loaded_names_are_not_taken_for_the_kernels(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with started(tmp_path / "a") as one:
        await one.run("y = [1]", bound=["y"])
        frozen, buffers = await _save(one)
    async with started(tmp_path / "b") as two:
        await _load(two, frozen.groups, buffers, tmp_path)
        there = m.NameGroup(names=["y"], hash="ab" * 32, parts=[m.ValuePart(hash="ab" * 32, size_bytes=1, at="there")])
        call = two.begin("y", names=[there], used=["y"])
        await two.wait_for(m.NamesNeeded, call=call)
        two.send(m.Interrupt(call=call, level=1))
        await two.finish(call)


async def test_a_group_that_cannot_be_read_is_lost_and_the_others_come(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    module = tmp_path / "a" / "home" / "only_here.py"
    async with started(tmp_path / "a") as one:
        module.write_text("class K: pass\n")
        cell = await one.run(
            "import only_here\nk = only_here.K()\ngood = 1\nimport numpy as np\nfile = np.zeros(100_000)"
        )
        assert cell.done.status == "ok", cell.messages("error")
        frozen, buffers = await _save(one)
        shutil.rmtree(tmp_path / "a" / "out")
    async with started(tmp_path / "b") as two:
        two.send(m.RunnerLoadNames(groups=frozen.groups), buffers)
        loaded = (await two.wait_for(m.RunnerNamesLoaded)).message
        assert isinstance(loaded, m.RunnerNamesLoaded) and set(loaded.names) == {"good", "np"}
        lost = {e.name: e.detail for e in loaded.lost}
        assert (
            set(lost) == {"only_here", "k", "file"} and "only_here" in lost["k"] and "FileNotFoundError" in lost["file"]
        )
        assert (await two.run("print(good)")).text() == "1\n"


async def test_an_executor_that_dies_while_it_reads_loses_them_and_is_replaced(tmp_path: Path) -> None:
    import pickle

    class Deadly:
        def __reduce__(self) -> Any:
            import os

            return os._exit, (3,)

    data = pickle.dumps({"d": Deadly()}, 5)
    group = m.NameGroup(names=["d"], hash="", parts=[m.ValuePart(hash="", size_bytes=len(data), at="inline")])
    async with started(tmp_path) as worker:
        start = len(worker.received)
        worker.send(m.RunnerLoadNames(groups=[group]), [data])
        loaded = (await worker.wait_for(m.RunnerNamesLoaded)).message
        assert isinstance(loaded, m.RunnerNamesLoaded) and [e.name for e in loaded.lost] == ["d"]
        await worker.wait_for(m.RunnerReady, start)
        assert (await worker.run("1")).done.status == "ok"


async def test_a_pickling_that_hangs_can_be_interrupted_and_leaves_no_file(tmp_path: Path) -> None:
    code = """
import numpy as np, threading
written = np.zeros(100_000)
class Slow:
    def __reduce__(self):
        if armed:
            print('pickling', flush=True)
            threading.Event().wait()
        return Slow, ()
armed = False
slow = Slow()
"""
    async with started(tmp_path) as worker:
        await worker.run(code)
        call = worker.begin("armed = True")
        await worker.finish(call)
        for path in (tmp_path / "out").iterdir():
            path.unlink()
        worker.send(m.RunnerFreeze(save_names=True))
        await worker.wait_text("pickling", call)
        worker.send(m.Interrupt(call="", level=1))
        frozen = (await worker.wait_for(m.RunnerFrozen)).message
        assert isinstance(frozen, m.RunnerFrozen) and frozen.error is not None
        assert frozen.error.code == ErrorCode.INTERRUPTED and frozen.groups == []
        assert not list((tmp_path / "out").iterdir())
        assert (await worker.run("print(written.size)")).text() == "100000\n"
