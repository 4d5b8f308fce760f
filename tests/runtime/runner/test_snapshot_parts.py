"""Parts of the runner's side of a snapshot alone: deadlines, dials, lists of files, imports, the time of timers."""

from __future__ import annotations

import asyncio
import importlib
import importlib.machinery
import os
import socket
import subprocess
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellburst_runner import (
    cell_imports,
    freeze_files,
    freeze_sources,
    hooks,
    restore,
    supervisor,
    wire,
    worker_link,
    zygote_preload,
)
from cellburst_runner.supervisor_snapshot import Freezer, Step

DAYS = 2 * 86400.0


class Clock:
    """Monotonic seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Child:
    """As much of an executor as deadlines need."""

    def __init__(self, now: float) -> None:
        self.started_at = self.alive_at = now
        self.closed_at: float | None = None
        self.ready = True
        self.kills = 0

    def kill(self) -> None:
        self.kills += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    return clock


@pytest.fixture
def house(tmp_path: Path, clock: Clock) -> Iterator[Any]:
    made: Any = supervisor.Supervisor(str(tmp_path), "c1")
    made._executor = Child(clock.now)
    made._start = {}
    yield made
    made._selector.close()


def _step(house: Any, clock: Clock, seconds: float) -> None:
    """One turn of the loop in which nothing happened, so many seconds after the last."""
    clock.now += seconds
    house._move_deadlines(house._pause.gap(clock.now))
    house._tick(clock.now)


@pytest.mark.parametrize("jump", [DAYS, -500.0])
def test_deadlines_move_with_a_jump_of_the_clock(house: Any, clock: Clock, jump: float) -> None:
    executor = house._executor
    house._running = "a call"
    house._kill_at = clock.now + 2.0
    _step(house, clock, 1.0)
    _step(house, clock, jump)  # restored
    assert executor.kills == 0
    _step(house, clock, 0.9)
    assert executor.kills == 0
    _step(house, clock, 0.2)
    assert executor.kills == 1


def test_an_executor_that_is_ending_gets_its_whole_second_after_a_jump(house: Any, clock: Clock) -> None:
    house._executor.closed_at = clock.now
    _step(house, clock, 0.5)
    _step(house, clock, DAYS)
    assert house._executor.kills == 0
    _step(house, clock, 0.6)
    assert house._executor.kills == 1


def test_a_ping_after_a_jump_does_not_say_that_the_executor_was_silent_for_days(house: Any, clock: Clock) -> None:
    said: list[bytes] = []
    house._link.control = said.append
    _step(house, clock, DAYS)
    house._on_ping({"number": 1}, b"")
    head = wire.decode_head(wire.split(said[0][4:])[0])
    assert head["executor_alive_seconds"] == 0.0


def test_an_ordinary_idle_tick_moves_nothing(house: Any, clock: Clock) -> None:
    house._executor.closed_at = clock.now
    _step(house, clock, supervisor.IDLE_TICK_SECONDS + 1.0)
    assert house._executor.kills == 1


def test_after_a_detach_it_is_dialled_every_two_milliseconds_whatever_the_clock_says(tmp_path: Path) -> None:
    link = worker_link.WorkerLink(str(tmp_path / "nobody"))
    now = 0.0
    for _ in range(20):
        link.dial(now, b"")
    assert link.redial_at == pytest.approx(worker_link.LAST_REDIAL_SECONDS)  # an ordinary loss of the link
    link.close()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    link = worker_link.WorkerLink(str(tmp_path / "s"))
    assert link.dial(now, b"hello")
    listener.close()
    (tmp_path / "s").unlink()
    link.detach()
    assert link.socket is None
    for dial in range(worker_link.DETACHED_DIALS):
        now = DAYS * dial  # restored again and again
        assert not link.dial(now, b"hello")
        assert link.redial_at - now == pytest.approx(worker_link.FIRST_REDIAL_SECONDS, abs=1e-5)
    for _ in range(20):
        link.dial(0.0, b"hello")
    assert link.redial_at == pytest.approx(worker_link.LAST_REDIAL_SECONDS)  # nobody came: no more haste


def test_what_waits_is_kept_over_a_detach(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        link = worker_link.WorkerLink(str(tmp_path / "s"))
        link.dial(0.0, wire.encode({"t": "runner_hello"}))
        link.credit_bytes = 0
        event = wire.encode({"t": "notice", "text": "late"})
        link.event(event)
        link.detach()
        link.dial(0.0, wire.encode({"t": "runner_hello"}))
        link.write()
        link.close()
        first, second = listener.accept()[0], listener.accept()[0]
        with first, second:
            assert b"late" not in first.recv(1000) and event in second.recv(1000)


def test_a_list_of_files_that_fails_is_one_that_never_fits(tmp_path: Path) -> None:
    def broken() -> list[str]:
        raise PermissionError(13, "no")

    said: list[dict[str, Any]] = []
    link: Any = types.SimpleNamespace(
        connections=1, socket=True, control=lambda body: said.append(wire.decode_head(wire.split(body[4:])[0]))
    )
    child: Any = types.SimpleNamespace(ready=True, work=types.SimpleNamespace(send=lambda body: None))
    freezer = Freezer(link, broken)
    freezer.freeze({"t": "runner_freeze"}, child, False)
    assert freezer.step is Step.FREEZING
    frozen = {"t": "frozen", "number": 1, "notes": []}
    assert not freezer.answered(frozen, wire.encode(frozen))
    assert freezer.step is Step.FROZEN and not Path(said[0]["files"][0]).exists()


def test_the_answer_to_a_worker_that_is_gone_is_given_to_nobody() -> None:
    said: list[bytes] = []
    link: Any = types.SimpleNamespace(connections=1, socket=True, control=said.append)
    child: Any = types.SimpleNamespace(ready=True, work=types.SimpleNamespace(send=lambda body: None))
    freezer = Freezer(link, list)
    freezer.freeze({"t": "runner_freeze"}, child, False)
    link.connections = 2  # another one is there, and has not said RunnerStart yet
    frozen = {"t": "frozen", "number": 1, "notes": []}
    freezer.answered(frozen, wire.encode(frozen))
    assert said == [] and freezer.step is Step.FROZEN


def _proc(folder: Path, pid: int, parent: int, maps: str) -> None:
    (folder / str(pid) / "fd").mkdir(parents=True)
    (folder / str(pid) / "stat").write_text(f"{pid} (a) b) S {parent} 1 1")
    (folder / str(pid) / "maps").write_text(maps)


def test_files_of_ours_and_not_of_others_without_memory_and_devices(tmp_path: Path) -> None:
    proc = tmp_path / "proc"
    me = os.getpid()
    line = "7f00-7f01 r--p 00000000 08:01 1    "
    maps = [
        f"{line}{path}\n"
        for path in ("/usr/lib/a b.so", "/tmp/in memory", "/memfd:x (deleted)", "[heap]", "/tmp/disk/y\\012z")
    ]
    _proc(proc, me, 1, "".join(maps) + "7f00-7f01 rw-p 00000000 00:00 0 \n")
    _proc(proc, 900001, 900000, f"{line}/usr/lib/grandchild.so\n")
    _proc(proc, 900000, me, "")
    _proc(proc, 900002, 1, f"{line}/usr/lib/stranger.so\n")
    (proc / "900003").mkdir()  # ended between the listing and the look
    (proc / "self").mkdir()
    (proc / "self" / "mounts").write_text(
        "d / ext4 rw 0 0\nt /tmp tmpfs rw 0 0\nd /tmp/disk ext4 rw 0 0\nt /with\\040space tmpfs rw 0 0\n"
    )
    for number, target in enumerate(("/dev/null", "pipe:[1]", "socket:[2]", "/with space/f", "/etc/open", "/etc")):
        os.symlink(target, proc / str(me) / "fd" / str(number))
    found = freeze_files.open_files(str(proc))
    assert found == ["/etc/open", "/tmp/disk/y\nz", "/usr/lib/a b.so", "/usr/lib/grandchild.so"]


def test_sources_are_the_files_that_modules_were_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cb_read.py").write_text("")
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("cb_packed.py", "")
    for name in ("cb_gone", "cb_relative", "cb_named", "cellburst_runner.cb_ours"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["cb_gone"].__file__ = str(tmp_path / "gone.py")
    sys.modules["cb_relative"].__file__ = "cb_read.py"
    sys.modules["cb_named"].__file__ = None
    sys.modules["cellburst_runner.cb_ours"].__file__ = str(tmp_path / "packed.zip" / "ours.py")
    before = set(freeze_sources.sources())
    assert not any(path.startswith(str(tmp_path)) for path in before)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path / "packed.zip"))
    for name in ("cb_read", "cb_packed"):
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.import_module(name)
    try:
        found = freeze_sources.sources()
    finally:
        del sys.modules["cb_read"], sys.modules["cb_packed"]
    assert set(found) - before == {str(tmp_path / "cb_read.py"), str(tmp_path / "packed.zip")}
    assert freeze_sources.__file__ not in found and asyncio.__file__ in found and found == sorted(found)


def test_what_stands_for_a_module_is_looked_into_and_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Lazy(types.ModuleType):
        def __getattribute__(self, name: str) -> Any:
            asked.append(name)
            raise RuntimeError(f"{name} cannot be imported here")

    class Nothing:
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("it has none")

        __slots__ = ()

    (tmp_path / "cb_lazy.py").write_text("")
    lazy = Lazy("cb_lazy")
    object.__getattribute__(lazy, "__dict__")["__file__"] = str(tmp_path / "cb_lazy.py")
    log = cell_imports.ImportLog("")
    monkeypatch.setitem(sys.modules, "cb_lazy", lazy)
    monkeypatch.setitem(sys.modules, "cb_lazy_too", Lazy("cb_lazy_too"))
    monkeypatch.setitem(sys.modules, "cb_nothing", Nothing())  # type: ignore[arg-type]
    assert str(tmp_path / "cb_lazy.py") in freeze_sources.sources()
    assert str(tmp_path / "cb_lazy.py") in zygote_preload.stamps()
    assert not any(name.startswith("cb_") for name in log.news())
    assert asked == []


def test_real_processes_may_end_while_they_are_listed() -> None:
    children = [subprocess.Popen(["true"]) for _ in range(5)]
    assert any(".so" in path for path in freeze_files.open_files())
    for child in children:
        child.wait()


async def test_timers_are_delayed_in_order() -> None:
    loop = asyncio.new_event_loop()
    fired: list[int] = []
    try:
        timers = [loop.call_later(delay, fired.append, number) for number, delay in enumerate((0.03, 0.01, 0.02))]
        before = [timer.when() for timer in timers]
        restore.delay_timers(loop, 100.0)
        assert [timer.when() - when for timer, when in zip(timers, before, strict=True)] == pytest.approx([100.0] * 3)
        assert loop._scheduled[0] is timers[1]  # type: ignore[attr-defined]
    finally:
        loop.close()


def test_seeds_of_what_is_imported_change_and_nothing_else_is_imported() -> None:
    code = """
import random, sys, tempfile
from cellburst_runner import restore
random.seed(1); first = random.random(); random.seed(1)
assert restore.reseed() == []
assert random.random() != first and not {'ssl', 'numpy', 'torch', 'uuid'} & set(sys.modules)
sys.modules['torch'] = object()
notes = restore.reseed()
assert len(notes) == 1 and notes[0].startswith('torch could not be re-seeded'), notes
"""
    folder = str(Path(restore.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=folder, env={"PATH": "/usr/bin:/bin"})


def test_torch_is_seeded_on_the_cpu_alone() -> None:
    seeds: list[int] = []
    generator = types.SimpleNamespace(manual_seed=seeds.append)
    restore._torch(types.SimpleNamespace(default_generator=generator))
    restore._torch(types.SimpleNamespace(default_generator=generator))
    assert len(set(seeds)) == 2 and all(0 <= seed < 2**63 for seed in seeds)


def test_above_the_limit_the_outer_modules_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cell_imports, "MOST_NAMES", 3)
    log = cell_imports.ImportLog(str(tmp_path / "nb"))
    names = ["q1", "q1.inner", "q1.inner.most", "q1.other", "q2", "mine", "nowhere"]
    for name in names:
        module = types.ModuleType(name)
        origin = {"mine": str(tmp_path / "nb" / "mine.py"), "nowhere": None}.get(name, f"/usr/lib/{name}.py")
        module.__spec__ = importlib.machinery.ModuleSpec(name, None, origin=origin)
        monkeypatch.setitem(sys.modules, name, module)
    assert log.news() == ["q1", "q1.inner", "q2"]
    assert log.news() == []


def test_the_installed_package_registers_where_a_runner_is_and_does_nothing_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import cellburst

    calls: list[int] = []
    monkeypatch.setitem(hooks._hooks, hooks.AFTER, [])
    monkeypatch.setitem(hooks._hooks, hooks.BEFORE, [])

    @cellburst.on_restore
    def after() -> None:
        calls.append(1)

    assert hooks.run(hooks.AFTER) == [] and calls == [1]
    monkeypatch.delitem(sys.modules, "cellburst_runner.hooks")

    @cellburst.before_snapshot
    def before() -> None:
        calls.append(2)

    assert hooks.run(hooks.BEFORE) == [] and calls == [1]
    before()
    assert calls == [1, 2]


def test_the_stand_in_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = hooks.StandIn()
    spec = finder.find_spec("cellburst", None)
    assert spec is not None and finder.find_spec("cellburst.x", None) is None
    module = types.ModuleType("cellburst")
    finder.exec_module(module)
    assert module.on_restore is hooks.on_restore
    with pytest.raises(AttributeError, match="install cellburst"):
        module.App
    count = len(sys.meta_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    hooks.install_stand_in()
    hooks.install_stand_in()
    assert len(sys.meta_path) == count + 1 and isinstance(sys.meta_path[-1], hooks.StandIn)


def test_a_restarted_executor_is_given_what_waited_for_it() -> None:
    sent: list[dict[str, Any]] = []
    link: Any = types.SimpleNamespace(connections=1, socket=True, control=lambda body: None)
    child: Any = types.SimpleNamespace(
        ready=False,
        work=types.SimpleNamespace(send=lambda body: sent.append(wire.decode_head(wire.split(body[4:])[0]))),
    )
    freezer = Freezer(link)
    freezer.thaw(child, {"environment": {"A": "1", "B": "1"}}, {"environment": {"A": "2"}, "reseed": True})
    assert sent == [] and freezer.holds
    child.ready = True
    assert not freezer.executor_ready(child)  # RunnerReady comes after it took that over
    assert (sent[0]["set"], sent[0]["unset"], sent[0]["reseed"]) == ({"A": "2"}, ["B"], True)
    thawed = {"t": "thawed", "number": sent[0]["number"]}
    assert freezer.answered(thawed, wire.encode(thawed)) and not freezer.holds
