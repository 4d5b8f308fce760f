"""The process engine on real processes."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine import ContainerSpec
from cellburst_runtime.engine_process import ProcessEngine
from cellburst_runtime.proc import marked
from tests.fakes.containers import make_spec, traces


@pytest.fixture(params=["limited", "unlimited"])
def engine(request: pytest.FixtureRequest) -> ProcessEngine:
    cgroups = Cgroups()
    why = cgroups.probe() if request.param == "limited" and os.geteuid() == 0 else "a test without groups"
    return ProcessEngine(cgroups, no_limits=why)


def spec_of(tmp_path: Path, script: str) -> ContainerSpec:
    spec = make_spec(tmp_path / "c", script)
    return replace(spec, environment={**spec.environment, "OUT": str(spec.folder / "var/out")})


async def until(condition: object, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


async def test_it_runs_and_its_end_is_told(engine: ProcessEngine, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "import sys; print('last words'); sys.exit(7)")
    container = await engine.start(spec)
    end = await asyncio.wait_for(container.wait(), 20)
    assert (end.exit_code, end.signal, end.cause, end.detail) == (7, None, "exit", "last words")
    assert any("isolates nothing" in note for note in container.notes)
    assert not engine.info.isolates and engine.info.warning
    await container.remove()
    await container.remove()
    assert traces(spec.id, spec.folder) == []


async def test_processes_that_left_their_session_are_ended_too(engine: ProcessEngine, tmp_path: Path) -> None:
    body = """
import os, signal
for n in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        break
open(os.environ["OUT"] + f"/{os.getpid()}", "w")
signal.pause()
"""
    spec = spec_of(tmp_path, body)
    container = await engine.start(spec)
    await until(lambda: len(list((spec.folder / "var/out").iterdir())) == 4)
    pids = [int(path.name) for path in (spec.folder / "var/out").iterdir()]
    usage = await container.usage()
    assert usage.memory_bytes and usage.memory_bytes > 1 << 20 and usage.cpu_seconds is not None
    await container.kill()
    assert [pid for pid in pids if pid in marked(spec.id)] == []
    end = await container.wait()
    assert (end.cause, end.signal) == ("killed", 9)
    await container.remove()
    assert traces(spec.id, spec.folder) == []


async def test_a_start_that_fails_says_why(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "")
    with pytest.raises(PlatformError) as caught:
        await ProcessEngine(Cgroups(tmp_path / "no-groups-here")).start(spec)
    assert caught.value.code is ErrorCode.START_FAILED
    assert "no-groups-here" in str(caught.value)
    assert traces(spec.id, spec.folder) == [f"folder {spec.folder}"]


@pytest.mark.gvisor
async def test_limits_hold_as_root(tmp_path: Path) -> None:
    engine = ProcessEngine(Cgroups())
    spec = replace(spec_of(tmp_path, "k = []\nwhile True: k.append(b'x' * (1 << 20))"), memory_mib=64)
    container = await engine.start(spec)
    assert (await asyncio.wait_for(container.wait(), 30)).cause == "oom"
    await container.remove()
    assert traces(spec.id, spec.folder) == []


@pytest.mark.gvisor
async def test_a_fork_bomb_stays_within_its_pids(tmp_path: Path) -> None:
    body = """
import os, signal
n = 0
try:
    while True:
        if os.fork() == 0: signal.pause()
        n += 1
except OSError as e:
    open(os.environ["OUT"] + "/result", "w").write(f"{e.errno} {n}")
signal.pause()
"""
    spec = replace(spec_of(tmp_path, body), pids=30)
    container = await ProcessEngine(Cgroups()).start(spec)
    result = spec.folder / "var/out/result"
    await until(lambda: result.exists() and result.read_text())
    assert result.read_text() == "11 29"
    await container.remove()
    assert traces(spec.id, spec.folder) == []


async def test_garbage_of_another_process_is_ended_and_removed(engine: ProcessEngine, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, "import signal; signal.pause()")
    container = await engine.start(spec)
    await ProcessEngine(Cgroups()).collect_garbage(spec.folder)
    assert traces(spec.id, spec.folder) == []
    await asyncio.wait_for(container.wait(), 10)
    await container.remove()
