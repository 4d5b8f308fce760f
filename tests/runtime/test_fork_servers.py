"""The fork servers of a worker: which one is used, replaced, given up; and containers of the process engine out of them."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import msgspec
import pytest

from cellburst_protocol.messages import MirrorSpec, StartContainer
from cellburst_protocol.resources import Resources
from cellburst_runtime import fork_servers
from cellburst_runtime.fork_server import ForkedChild, ForkFailed
from cellburst_runtime.fork_servers import ForkServers
from cellburst_runtime.proc import MARK, is_same_process, marked, process_stat
from cellburst_runtime.runtime import RunningContainer, Runtime
from tests.fakes.containers import traces
from tests.fakes.forks import Forked, forked, make_plan, until, write_module

KEY = "k"


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[ForkServers]:
    made = ForkServers()
    made.note(make_plan(tmp_path, KEY))
    yield made
    await made.close()
    assert list((tmp_path / "containers").iterdir()) == []


def started(tmp_path: Path) -> list[str]:
    """The servers there are."""
    return sorted(path.name for path in (tmp_path / "containers").iterdir())


def use(servers: ForkServers, tmp_path: Path, **options: str) -> AbstractAsyncContextManager[Forked]:
    plan = make_plan(tmp_path, KEY)
    return forked(tmp_path, plan, lambda environment, folder: servers.fork(KEY, environment, folder, []), **options)


async def failing(servers: ForkServers, tmp_path: Path) -> ForkedChild | None:
    """A fork that cannot be set up."""
    environment = {**make_plan(tmp_path).environment, MARK: "failing-1"}
    return await servers.fork(KEY, environment, tmp_path, [tmp_path / "no" / "group"])


async def test_there_is_none_before_it_is_made(servers: ForkServers, tmp_path: Path) -> None:
    assert servers.knows(KEY) and not servers.knows("other") and servers.preloaded(KEY) is None
    assert await failing(servers, tmp_path) is None
    with pytest.raises(ForkFailed):
        await servers.warm("other", [], {})
    assert await servers.warm(KEY, ["json"], {}) == ["json"]
    assert servers.preloaded(KEY) == ["json"] and not servers.disabled(KEY)
    async with use(servers, tmp_path):
        pass


async def test_what_must_not_be_preloaded_is_left_out_with_what_is_below_it(
    servers: ForkServers, tmp_path: Path
) -> None:
    write_module(
        tmp_path, "threads", "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    write_module(tmp_path, "uses", "import threads\n")
    assert await servers.warm(KEY, ["threads", "threads.below", "json", "uses", "decimal"], {}) == ["json", "decimal"]
    assert len(started(tmp_path)) == 1


async def test_a_list_that_is_all_unfit_ends_with_nothing_preloaded(
    servers: ForkServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_servers, "MOST_REFUSALS", 1)
    write_module(tmp_path, "asks", "from IPython import get_ipython\nget_ipython()\n")
    assert await servers.warm(KEY, ["asks", "json"], {}) == []
    async with use(servers, tmp_path):
        pass


async def test_one_that_is_replaced_stays_while_it_has_forks(servers: ForkServers, tmp_path: Path) -> None:
    await servers.warm(KEY, [], {})
    (first,) = started(tmp_path)
    async with use(servers, tmp_path) as fork:
        await servers.warm(KEY, ["json"], {"MORE": "1"})
        assert len(started(tmp_path)) == 2 and servers.preloaded(KEY) == ["json"]
        os.kill(fork.child.pid, signal.SIGKILL)
        assert await asyncio.wait_for(fork.child.wait(), 30) == -9  # told by the first one
        await until(lambda: first not in started(tmp_path))
        assert marked(first) == []
        async with use(servers, tmp_path):
            pass


async def test_an_idle_one_ends_and_is_made_again_after_the_next_boot(
    servers: ForkServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await servers.warm(KEY, ["json"], {})
    async with use(servers, tmp_path) as fork:
        monkeypatch.setattr(fork_servers, "IDLE_SECONDS", 0.0)
        servers._look()
        assert len(started(tmp_path)) == 1  # it has a fork
        os.kill(fork.child.pid, signal.SIGKILL)
        await until(lambda: started(tmp_path) == [])
    assert servers.preloaded(KEY) == ["json"]  # not to be made again for who is there
    assert await failing(servers, tmp_path) is None
    assert servers.preloaded(KEY) is None


async def test_the_one_used_least_lately_makes_room(
    servers: ForkServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fork_servers, "MOST_SERVERS", 1)
    servers.note(make_plan(tmp_path, "other"))
    await servers.warm(KEY, [], {})
    await servers.warm("other", [], {})
    assert servers.preloaded(KEY) is None and servers.preloaded("other") == []
    await until(lambda: len(started(tmp_path)) == 1)


async def test_a_key_that_fails_again_and_again_is_booted_for_good(servers: ForkServers, tmp_path: Path) -> None:
    await servers.warm(KEY, [], {})
    for _ in range(fork_servers.MOST_FAILURES - 1):
        assert await failing(servers, tmp_path) is None
    async with use(servers, tmp_path):
        pass  # a success: counted anew
    for _ in range(fork_servers.MOST_FAILURES):
        assert not servers.disabled(KEY)
        assert await failing(servers, tmp_path) is None
    assert servers.disabled(KEY) and marked("failing-1") == []
    with pytest.raises(ForkFailed):
        await servers.warm(KEY, [], {})


async def test_a_dead_or_stale_one_is_given_up_and_can_be_made_anew(servers: ForkServers, tmp_path: Path) -> None:
    path = write_module(tmp_path, "edited", "x = 1\n")
    await servers.warm(KEY, ["edited"], {})
    path.write_text("x = 2\n")
    os.utime(path, (1_100_000_000, 1_100_000_000))
    assert await failing(servers, tmp_path) is None
    assert servers.preloaded(KEY) is None
    await servers.warm(KEY, ["edited"], {})
    async with use(servers, tmp_path) as fork:
        assert (await fork.worker.run("import edited\nprint(edited.x)")).text() == "2\n"
    (name,) = started(tmp_path)
    (pid,) = [pid for pid in marked(name) if process_stat(pid)]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: servers.preloaded(KEY) is None)
    await servers.warm(KEY, [], {})


async def test_a_cancelled_fork_leaves_nothing(servers: ForkServers, tmp_path: Path) -> None:
    await servers.warm(KEY, [], {})
    environment = {**make_plan(tmp_path).environment, MARK: "cancelled-1", "CELLBURST_VAR": str(tmp_path)}
    task = asyncio.create_task(servers.fork(KEY, environment, tmp_path, []))
    await asyncio.sleep(0)  # it has begun
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for pid in marked("cancelled-1"):  # the engine's part
        os.kill(pid, signal.SIGKILL)
    async with use(servers, tmp_path):
        pass


# -- containers ----------------------------------------------------------------------------------------------------------


def request_for(notebook: Path, **changes: object) -> StartContainer:
    image = MirrorSpec(
        executable=sys.executable, python_version="3.11.0", prefix=sys.prefix, base_prefix=sys.base_prefix,
        notebook_folder=str(notebook),
    )  # fmt: skip
    fields: dict[str, object] = {
        "container": f"fork-{secrets.token_hex(5)}", "lease": "l", "epoch": 1, "session": "s", "notebook": "n", "gpus": [],
        "image": image, "resources": Resources(memory_mib=512), **changes,
    }  # fmt: skip
    return StartContainer(**fields)  # type: ignore[arg-type]


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    (tmp_path / "nb").mkdir()
    made = await Runtime.create(
        run_folder=tmp_path / "r", data_folder=tmp_path / "d", simulate_gpus="T4:1", engine="process"
    )
    yield made
    await made.collect_garbage()
    await made.close()


async def test_a_container_comes_out_of_the_server_of_its_key(runtime: Runtime, tmp_path: Path) -> None:
    async def start(**changes: object) -> tuple[str, RunningContainer]:
        prepared = await runtime.prepare(request_for(tmp_path / "nb", **changes))
        said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        writers: list[asyncio.StreamWriter] = []

        async def on_dial(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            said.set_result(await reader.read(400))

        server = await asyncio.start_unix_server(on_dial, str(prepared.socket_path))
        try:
            running = await prepared.start()
            assert f'"container":"{running.container.id}"'.encode() in await asyncio.wait_for(said, 30)
        finally:
            server.close()  # first: a runner whose connection is gone dials again, and asyncio leaks what it accepts then
            for writer in writers:
                writer.close()
        return prepared.fork_key, running

    key, first = await start()
    assert not first.forked and runtime.fork_servers.preloaded(key) is None
    await runtime.fork_servers.warm(key, ["json"], {})
    same, second = await start(gpus=[runtime.inventory().gpus[0].uuid])
    other, third = await start(resources=Resources(memory_mib=512, cpu=2.0))  # other numbers of threads
    assert same == key and second.forked and other != key and not third.forked
    assert runtime.fork_servers.knows(other)
    child = marked(second.container.id)[0]
    if not any("limits do not hold" in note for note in second.notes):
        assert second.container.id in Path(f"/proc/{child}/cgroup").read_text()
    usage = await second.container.usage()
    assert usage.memory_bytes and usage.memory_bytes > 0
    stat = process_stat(child)
    assert stat is not None
    await second.container.kill()
    end = await second.container.wait()
    assert (end.cause, end.signal) == ("killed", 9) and not is_same_process(child, stat.start_ticks)
    for running in (first, second, third):
        await running.container.remove()
        assert traces(running.container.id, running.folder) == []


async def test_garbage_of_a_killed_worker_with_a_fork_server(runtime: Runtime, tmp_path: Path) -> None:
    request = request_for(tmp_path / "nb")
    told = tmp_path / "told"
    script = textwrap.dedent(f"""
        import asyncio, os
        from pathlib import Path
        import msgspec
        from cellburst_protocol.messages import StartContainer
        from cellburst_runtime.runtime import Runtime

        async def main():
            runtime = await Runtime.create(run_folder=Path({str(tmp_path / "r")!r}), data_folder=Path({str(tmp_path / "d")!r}),
                                           engine="process")
            first = msgspec.json.decode({msgspec.json.encode(request)!r}, type=StartContainer)
            prepared = await runtime.prepare(first)
            await prepared.start()
            await runtime.fork_servers.warm(prepared.fork_key, [], {{}})
            second = msgspec.structs.replace(first, container=first.container + "-2")
            running = await (await runtime.prepare(second)).start()
            assert running.forked
            Path({str(told)!r} + ".new").write_text("x")
            os.replace({str(told)!r} + ".new", {str(told)!r})
            await asyncio.Event().wait()

        asyncio.run(main())
    """)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, start_new_session=True)
    try:
        await until(lambda: told.exists() or process.returncode is not None)
        assert process.returncode is None
        process.kill()
        await process.wait()
        assert marked(f"{request.container}-2")  # containers live on until the next worker
        removed = await runtime.collect_garbage()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert {request.container, f"{request.container}-2"} < set(removed) and len(removed) == 3
    for id in removed:
        assert traces(id, tmp_path / "r" / "containers" / id) == [] and marked(id) == []
