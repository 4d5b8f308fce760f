"""Containers from request to removal through `Runtime`, on real engines, with the true runner."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cellburst_protocol.errors import CapacityError, CellburstError, RequestError
from cellburst_protocol.messages import MirrorSpec, StartContainer
from cellburst_protocol.resources import Resources
from cellburst_runtime.runtime import PreparedContainer, RunningContainer, Runtime
from tests.fakes.containers import traces

RUN = f"test-{secrets.token_hex(4)}"  # in every container's id: another run of these tests has other groups
ENGINES = [pytest.param("gvisor", marks=pytest.mark.gvisor), "process"]


def request_for(notebook: Path, container: str, **changes: object) -> StartContainer:
    image = MirrorSpec(
        executable=sys.executable,
        python_version="3.11.0",
        prefix=sys.prefix,
        base_prefix=sys.base_prefix,
        notebook_folder=str(notebook),
    )
    fields: dict[str, object] = {
        "container": container, "lease": "l", "epoch": 1, "session": "s", "notebook": "n", "gpus": [], "image": image,
        "resources": Resources(memory_mib=512), **changes,
    }  # fmt: skip
    return StartContainer(**fields)  # type: ignore[arg-type]


async def first_message(prepared: PreparedContainer) -> tuple[RunningContainer, bytes]:
    """Listen, start, and return what the runner says first."""
    said: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def on_dial(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not said.done():
            said.set_result(await reader.read(400))
        writer.close()

    async with await asyncio.start_unix_server(on_dial, str(prepared.socket_path)):
        running = await prepared.start()
        return running, await asyncio.wait_for(said, 30)


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    folder = tmp_path / "nb"
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    return folder


@pytest.fixture(params=ENGINES)
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    made = await Runtime.create(
        run_folder=tmp_path / "r", data_folder=tmp_path / "d", simulate_gpus="A100:2,T4:1", engine=request.param
    )
    yield made
    await made.collect_garbage()
    await made.close()


async def test_a_container_runs_and_leaves_nothing(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    gpu = runtime.inventory().gpus[2]
    prepared = await runtime.prepare(
        request_for(notebook, f"{RUN}-1", gpus=[gpu.uuid], resources=Resources(memory_mib=512, network="none"))
    )
    running, said = await first_message(prepared)
    assert b'"runner_hello"' in said and f'"container":"{RUN}-1"'.encode() in said
    assert running.engine.name == runtime.engines[0].name
    assert running.python == [sys.executable] and running.working_folder == str(notebook)
    assert running.environment["CELLBURST_SIMULATED_GPUS"] == "T4:1"
    assert running.environment["CUDA_VISIBLE_DEVICES"] == ""
    assert running.network == ("none" if running.engine.isolates else "outbound")
    assert running.layer.file_list() == []
    source = tmp_path / "source"
    source.write_text("put")
    running.layer.file_put("put", source)
    assert running.layer.file_list() == []
    assert (notebook / "put").exists() is not running.engine.isolates
    await running.container.remove()
    assert traces(f"{RUN}-1", running.folder) == []
    assert list((tmp_path / "d" / "stores").glob("*")) == []


async def test_a_prepared_container_that_never_starts(runtime: Runtime, notebook: Path) -> None:
    prepared = await runtime.prepare(request_for(notebook, f"{RUN}-2"))
    await prepared.remove()
    await prepared.remove()
    assert traces(f"{RUN}-2", prepared.folder) == []


async def test_what_cannot_be_is_refused_and_leaves_nothing(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    with pytest.raises(CapacityError):
        await runtime.prepare(request_for(notebook, f"{RUN}-3", gpus=["GPU-none"]))
    with pytest.raises(CapacityError):
        await runtime.prepare(request_for(notebook, f"{RUN}-3", engine="runc"))
    with pytest.raises(CellburstError):
        await runtime.prepare(request_for(tmp_path / "missing", f"{RUN}-3"))
    with pytest.raises(CellburstError) as caught:
        await runtime.prepare(request_for(notebook, f"{RUN}-3"), folder_name="n" * 90)
    assert "CELLBURST_RUN" in str(caught.value)
    assert list((tmp_path / "r" / "containers").iterdir()) == []


async def test_garbage_of_a_killed_worker(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    """A worker is killed by SIGKILL with a running and a prepared container; the next worker ends both."""
    engine = runtime.engines[0].name
    script = textwrap.dedent(f"""
        import asyncio, signal, sys
        from pathlib import Path
        from cellburst_runtime.runtime import Runtime
        from tests.runtime.test_runtime import first_message, request_for
        async def main():
            folders = dict(run_folder=Path({str(tmp_path / "r")!r}), data_folder=Path({str(tmp_path / "d")!r}))
            runtime = await Runtime.create(**folders, engine={engine!r})
            await first_message(await runtime.prepare(request_for(Path({str(notebook)!r}), "{RUN}-k1")))
            await runtime.prepare(request_for(Path({str(notebook)!r}), "{RUN}-k2"))
            print("ready", flush=True)
            signal.pause()
        asyncio.run(main())
    """)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    worker = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment)
    assert worker.stdout is not None
    assert await asyncio.to_thread(worker.stdout.readline) == "ready\n"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    folders = {name: tmp_path / "r" / "containers" / name for name in (f"{RUN}-k1", f"{RUN}-k2")}
    assert len(traces(f"{RUN}-k1", folders[f"{RUN}-k1"])) > 1
    assert await runtime.collect_garbage({f"{RUN}-k1"}) == [f"{RUN}-k2"]
    assert len(traces(f"{RUN}-k1", folders[f"{RUN}-k1"])) > 1
    assert await runtime.collect_garbage(set()) == [f"{RUN}-k1"]
    assert {name: traces(name, folder) for name, folder in folders.items()} == {f"{RUN}-k1": [], f"{RUN}-k2": []}
    assert list((tmp_path / "d" / "stores").glob("*.img")) == []


async def test_gpu_usage_and_inventory(runtime: Runtime) -> None:
    inventory = runtime.inventory()
    assert [gpu.type for gpu in inventory.gpus if gpu.simulated] == ["A100-40GB", "A100-40GB", "T4"]
    assert inventory.cpu_cores >= 1 and inventory.memory_mib > 256
    assert [info.name for info in inventory.engines] == [runtime.engines[0].name]
    usage = runtime.gpu_usage([gpu.uuid for gpu in inventory.gpus])
    assert [figures.simulated for figures in usage] == [True, True, True]


@pytest.mark.gvisor
async def test_gvisor_is_preferred_and_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d")
    assert [info.name for info in first.engines] == ["gvisor", "process"]
    assert [info.isolates for info in first.engines] == [True, False]

    async def never(*_: object) -> str:
        raise AssertionError("tried again")

    monkeypatch.setattr("cellburst_runtime.engines.self_test", never)
    second = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d")
    assert second.engines == first.engines
    await first.close()


async def test_without_runsc_there_is_only_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELLBURST_RUNSC", "")
    runtime = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d")
    assert [info.name for info in runtime.engines] == ["process"]
    assert any("gvisor" in note for note in runtime.inventory().notes)
    for engine in ("gvisor", "runc"):
        with pytest.raises(RequestError):
            await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d", engine=engine)
    await runtime.close()


@pytest.mark.netns
@pytest.mark.gvisor
async def test_outbound_network_is_removed_with_its_container(tmp_path: Path, notebook: Path) -> None:
    runtime = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d", engine="gvisor")
    assert runtime.engines[0].network
    running, _ = await first_message(await runtime.prepare(request_for(notebook, f"{RUN}-n1")))
    assert running.network == "outbound"
    assert any(f"{RUN}-n1" in path.name for path in Path("/run/netns").iterdir())
    await running.container.remove()
    assert traces(f"{RUN}-n1", running.folder) == []
    await runtime.close()
