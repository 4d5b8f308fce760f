"""The gvisor engine on real sandboxes: what is inside, its limits, and that nothing is left."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine import ContainerExit, ContainerSpec, Mount
from cellburst_runtime.engine_gvisor import GvisorEngine, GvisorSettings
from cellburst_runtime.tools import find_runsc
from tests.fakes.containers import make_spec, traces

pytestmark = pytest.mark.gvisor


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[GvisorEngine]:
    settings = GvisorSettings(find_runsc(tmp_path), tmp_path / "runsc", "test")
    yield GvisorEngine(settings, Cgroups(), None, no_network="a test without one")
    assert not list((tmp_path / "runsc").glob("*.state")), "runsc still has a container"


async def run_to_end(engine: GvisorEngine, spec: ContainerSpec, *, remove: bool = True) -> ContainerExit:
    container = await engine.start(spec)
    try:
        return await asyncio.wait_for(container.wait(), 60)
    finally:
        await container.kill()
        if remove:
            await container.remove()
            assert traces(spec.id, spec.folder) == []


async def outcome(engine: GvisorEngine, spec: ContainerSpec) -> dict[str, object]:
    """What the script wrote as JSON to OUT/result."""
    end = await run_to_end(engine, spec, remove=False)
    assert end.exit_code == 0, end
    try:
        return dict(json.loads((spec.folder / "var/out/result").read_text()))
    finally:
        (await engine_removed(engine, spec))


async def engine_removed(engine: GvisorEngine, spec: ContainerSpec) -> None:
    await engine.collect_garbage(spec.folder)
    assert traces(spec.id, spec.folder) == []


def script(body: str) -> str:
    """A script that writes its dict `r` to OUT/result."""
    return f"import json, os\nr = {{}}\n{body}\nopen(os.environ['OUT'] + '/result', 'w').write(json.dumps(r))\n"


async def test_what_is_inside(engine: GvisorEngine, tmp_path: Path) -> None:
    body = """
import resource, socket
r["uid"], r["gid"], r["groups"] = os.getuid(), os.getgid(), os.getgroups()
r["root"] = sorted(os.listdir("/"))
r["capabilities"] = [l.split()[1] for l in open("/proc/self/status") if l.startswith("CapEff")]
r["core"] = resource.getrlimit(resource.RLIMIT_CORE)
r["shm_mode"] = oct(os.stat("/dev/shm").st_mode & 0o7777)
r["hostname"] = socket.gethostname()
r["memory_kib"] = int(open("/proc/meminfo").read().split()[1])
for place in ("/", "/etc", "/usr", "/cellburst/var/in", "/cellburst/var/ctl", "/tmp", "/var/tmp", "/home/user", "/dev/shm",
              "/cellburst/var/out"):
    try:
        open(place + "/probe", "w").close(); r[place] = "written"
    except OSError as e:
        r[place] = "refused"
"""
    r = await outcome(engine, make_spec(tmp_path / "c", script(body)))
    assert (r["uid"], r["gid"]) == (1000, 1000)
    assert r["capabilities"] == ["0000000000000000"]
    assert r["core"] == [0, 0]
    assert r["shm_mode"] == "0o1777"
    assert r["hostname"] == "cellburst"
    assert int(str(r["memory_kib"])) <= 512 * 1024
    for place in ("/", "/etc", "/usr", "/cellburst/var/in", "/cellburst/var/ctl"):
        assert r[place] == "refused", place
    for place in ("/tmp", "/var/tmp", "/home/user", "/dev/shm", "/cellburst/var/out"):
        assert r[place] == "written", place


async def test_no_host_file_beyond_its_mounts(engine: GvisorEngine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the host")
    body = f"""
r["seen"] = [p for p in ({str(tmp_path / "secret")!r}, "/etc/shadow", "/etc/hostname", "/proc/1/root/etc/shadow", "/var/log", "/boot")
             if os.path.exists(p)]
r["etc"] = sorted(os.listdir("/etc"))
r["processes"] = sum(p.isdigit() for p in os.listdir("/proc"))
"""
    r = await outcome(engine, make_spec(tmp_path / "c", script(body)))
    assert r["seen"] == []
    assert r["etc"] == ["passwd"]
    assert r["processes"] == 1


async def test_memory_limit_ends_it_and_is_named(engine: GvisorEngine, tmp_path: Path) -> None:
    spec = make_spec(
        tmp_path / "c", "import os\nkept = []\nwhile True: kept.append(os.urandom(1 << 22))", memory_mib=128
    )
    assert (await run_to_end(engine, spec)).cause == "oom"


async def test_a_fork_bomb_gets_eagain_inside(engine: GvisorEngine, tmp_path: Path) -> None:
    body = """
import errno, signal
children = []
try:
    while True:
        pid = os.fork()
        if pid == 0:
            signal.pause()
            os._exit(0)
        children.append(pid)
except OSError as e:
    r["error"] = errno.errorcode[e.errno]
for pid in children: os.kill(pid, 9)
for pid in children: os.waitpid(pid, 0)
r["children"] = len(children)
"""
    r = await outcome(engine, make_spec(tmp_path / "c", script(body), pids=48))
    assert r["error"] == "EAGAIN"
    assert 40 <= int(str(r["children"])) < 48


async def test_a_full_place_is_enospc(engine: GvisorEngine, tmp_path: Path) -> None:
    body = """
import errno
for place in ("/tmp", "/home/user", "/dev/shm", "/var/tmp"):
    size = 0
    try:
        with open(place + "/big", "wb", buffering=0) as f:
            while True: size += f.write(b"x" * (1 << 20))
    except OSError as e:
        r[place] = [errno.errorcode[e.errno], size]
    os.unlink(place + "/big")
"""
    r = await outcome(engine, make_spec(tmp_path / "c", script(body), memory_mib=256))
    for place in ("/tmp", "/home/user", "/dev/shm", "/var/tmp"):
        name, size = r[place]  # type: ignore[misc]
        assert name == "ENOSPC" and 8 << 20 <= size <= 64 << 20, (place, name, size)


async def test_a_tmpfs_larger_than_the_memory_is_made_smaller(engine: GvisorEngine, tmp_path: Path) -> None:
    spec = make_spec(
        tmp_path / "c", script('s = os.statvfs("/big"); r["bytes"] = s.f_blocks * s.f_frsize'), memory_mib=128
    )
    big = Mount("/big", kind="tmpfs", read_only=False, size_bytes=8 << 30)
    r = await outcome(engine, replace(spec, mounts=(*spec.mounts, big)))
    assert r["bytes"] == 32 << 20


async def test_it_dials_the_socket_of_the_worker(engine: GvisorEngine, tmp_path: Path) -> None:
    body = "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('/cellburst/var/ctl/s'); s.send(b'hello'); s.recv(9)"
    spec = make_spec(tmp_path / "c", body)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(spec.folder / "var/ctl/s"))
    os.chmod(spec.folder / "var/ctl/s", 0o666)
    listener.listen(1)
    listener.setblocking(False)
    container = await engine.start(spec)
    loop = asyncio.get_running_loop()
    connection, _ = await asyncio.wait_for(loop.sock_accept(listener), 20)
    assert await asyncio.wait_for(loop.sock_recv(connection, 9), 20) == b"hello"
    usage = await container.usage()
    assert usage.cpu_seconds and usage.cpu_seconds > 0
    assert usage.memory_bytes and usage.memory_bytes > 1 << 20
    assert usage.memory_limit_bytes == 512 << 20
    waiting = [asyncio.create_task(container.wait()) for _ in range(3)]
    await container.kill()
    ends = await asyncio.gather(*waiting)
    assert {end.cause for end in ends} == {"killed"}
    await container.remove()
    await container.remove()
    await container.kill()
    assert (await container.usage()).cpu_seconds is None
    assert traces(spec.id, spec.folder) == []
    connection.close()
    listener.close()


async def test_exit_codes_and_last_words(engine: GvisorEngine, tmp_path: Path) -> None:
    end = await run_to_end(
        engine, make_spec(tmp_path / "c", "import sys; print('last words', file=sys.stderr); sys.exit(7)")
    )
    assert (end.exit_code, end.cause) == (7, "exit")
    assert "last words" in end.detail


async def test_a_start_that_fails_says_why_and_leaves_nothing(engine: GvisorEngine, tmp_path: Path) -> None:
    spec = replace(make_spec(tmp_path / "c", ""), arguments=("/no/such/program",))
    with pytest.raises(PlatformError) as caught:
        end = await run_to_end(engine, spec)
        pytest.fail(f"it ran: {end}")
    assert caught.value.code is ErrorCode.START_FAILED
    assert "/no/such/program" in str(caught.value)
    assert traces(spec.id, spec.folder) == [f"folder {spec.folder}"]


@pytest.mark.parametrize("code", [0, 7])
async def test_one_that_is_over_before_anyone_looked(
    engine: GvisorEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr("cellburst_runtime.engine_gvisor._is_running", lambda state: False)
    end = await run_to_end(engine, make_spec(tmp_path / "c", f"import os; os._exit({code})"))
    assert (end.exit_code, end.cause) == (code, "exit")
    with pytest.raises(PlatformError):
        await run_to_end(engine, replace(make_spec(tmp_path / "d", ""), arguments=("/no/such/program",)))


@pytest.mark.parametrize("steps", [1, 3, 10, 40, 120])
async def test_a_cancelled_start_leaves_nothing(engine: GvisorEngine, tmp_path: Path, steps: int) -> None:
    """Cancelled after that many turns of the event loop: in each stage of a start."""
    spec = make_spec(tmp_path / "c", "import signal; signal.pause()")
    task = asyncio.create_task(engine.start(spec))
    for _ in range(steps):
        await asyncio.sleep(0)
        if (spec.folder / "container.json").exists() and steps >= 40:
            await asyncio.sleep(0.002)
        if task.done():
            break
    task.cancel()
    try:
        container = await task
    except asyncio.CancelledError:
        pass
    else:
        await container.remove()
    assert [trace for trace in traces(spec.id, spec.folder) if not trace.startswith("folder")] == []


async def test_a_container_with_many_processes_is_ended_whole(engine: GvisorEngine, tmp_path: Path) -> None:
    body = (
        "import os, signal\nfor _ in range(20):\n  if os.fork() == 0: break\n"
        "open(os.environ['OUT'] + f'/{os.getpid()}', 'w')\nsignal.pause()"
    )
    spec = make_spec(tmp_path / "c", body)
    container = await engine.start(spec)
    async with asyncio.timeout(30):
        while len(list((spec.folder / "var/out").iterdir())) < 21:
            await asyncio.sleep(0.01)
    await container.remove()
    assert traces(spec.id, spec.folder) == []
