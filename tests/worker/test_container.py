"""A container's life: start, cells, ends. The runner is the real one, in plain processes."""

from __future__ import annotations

import asyncio
import os
import signal

from cellburst_protocol import mac
from cellburst_protocol import messages as m
from cellburst_protocol.states import EndReason
from tests.fakes.fake_gateway import MASTER_KEY
from tests.worker.conftest import MIRROR, Setup


async def test_a_cell_from_start_to_end(setup: Setup) -> None:
    container = await setup.ready(prepare_call="call-0")
    got, ready = await container.until(m.ContainerReady)
    assert [phase.name for phase in ready.phases] == ["image", "boot", "enter"]
    assert got.call == "call-0" and ready.engine.name == "plain" and "a note of the engine" in ready.notes
    await container.run("call-1", "print('hello'); x = 41 + 1")
    done, cell = await container.until(m.CellDone, "call-1")
    assert cell.status == "ok" and done.json()["status"] == "ok"
    assert container.text("call-1") == "hello\n"
    mac.verify(mac.value_key(MASTER_KEY, "call-1"), "out", cell.home, cell.mac)
    assert [g.sequence for g in container.events] == list(range(1, len(container.events) + 1))
    assert container.duplicates == 0


async def test_files_are_listed_and_fetched_and_put(setup: Setup) -> None:
    container = await setup.ready()
    await container.run("call-1", "open('report.csv', 'w').write('a,b')")
    _, cell = await container.until(m.CellDone, "call-1")
    assert ("report.csv", 3) in [(f.path, f.size_bytes) for f in cell.files]
    reply, _ = await container.ask("file_get", path="report.csv")
    assert reply.blob is not None
    blobs = setup.gateway.folder / "blobs"
    source = blobs / reply.blob.hash[:2] / reply.blob.hash
    assert source.read_bytes() == b"a,b"
    await container.ask("file_put", path="copy.csv", hash=reply.blob.hash, size_bytes=3)
    await container.run("call-2", "print(open('copy.csv').read())")
    await container.until(m.CellDone, "call-2")
    assert container.text("call-2") == "a,b\n"
    reply, _ = await container.ask("file_get", path="nowhere")
    assert reply.error is not None and reply.error.code == "request.not_found"


async def test_no_way_out_shows_a_secret(setup: Setup) -> None:
    """Files' paths, names, modules, binary states of widgets, errors and last words, in all that the worker sends or writes."""
    value = "sentinel_7c2e"
    container = await setup.ready()
    stream = await container.wait(lambda: container.stream)
    await stream.send(m.ReleaseSecrets(environment={"TOKEN": value}, origins={"TOKEN": "hub"}))
    code = (
        "import os, sys, ipywidgets\nvalue = os.environ['TOKEN']\n"
        "open(f'f-{value}.txt', 'w').write('kept')\nopen(f'f-{value.encode().hex()}.txt', 'w').write('too')\n"
        "with __import__('tempfile').TemporaryDirectory() as folder:\n"
        "    open(f'{folder}/{value}.py', 'w').write(''); sys.path.insert(0, folder); __import__(value)\n"
        "globals()[f'n_{value}'] = 1\nimage = ipywidgets.Image(value=b'GIF' + value.encode())"
    )
    await container.run("call-1", code, bound=["image", f"n_{value}"], out=[f"n_{value}"])
    _, cell = await container.until(m.CellDone, "call-1")
    assert cell.status == "ok" and not any(group.names == [f"n_{value}"] for group in cell.home)
    assert {"f-****(hub.TOKEN).txt", "f-****(hub.TOKEN).txt~2"} == {file.path for file in cell.files}
    listed, _ = await container.ask("file_list")
    assert "f-****(hub.TOKEN).txt" in str(listed.content)
    got = [(await container.ask("file_get", path=file.path))[0] for file in cell.files]  # as they are shown
    assert sorted(reply.blob.size_bytes for reply in got if reply.blob is not None) == [3, 4]
    widgets, buffers = await container.ask("widgets")
    assert buffers[0] == b"GIF" + b"*" * len(value), widgets
    lost, _ = await container.ask("fetch", name=f"absent_{value}")
    assert lost.error is not None and "absent_****(hub.TOKEN)" in lost.error.message
    await container.run("call-2", "sys.__stderr__.write(value); sys.__stderr__.flush(); os._exit(3)")
    await container.until(m.ExecutorEnded)
    for got_event in container.events:
        assert value not in str(got_event.event) and value.encode() not in b"".join(got_event.buffers)
    for reply, raw in container.replies.values():
        assert value not in str(reply) and value.encode() not in b"".join(raw)
    for folder in ("spool", "imports"):
        for path in (setup.folder / "data" / folder).rglob("*"):
            assert not path.is_file() or value.encode() not in path.read_bytes(), path


async def test_a_timeout_interrupts_and_is_said(setup: Setup) -> None:
    container = await setup.ready()
    await container.run("call-1", "import time\ntime.sleep(60)", timeout_seconds=0.3)
    got, cell = await container.until(m.CellDone, "call-1", 20)
    assert cell.ended_by is EndReason.TIMEOUT and got.json()["ename"] == "KeyboardInterrupt"
    assert "timeout=0.3s" in container.of(m.Notice, "call-1")[0][1].text


async def test_an_interrupt_reaches_the_code(setup: Setup) -> None:
    container = await setup.ready()
    await container.run("call-1", "import time\ntime.sleep(60)")
    await container.until(m.CellStarted, "call-1")
    setup.gateway.notify(m.Interrupt(container="c1", call="call-1", level=1))
    got, cell = await container.until(m.CellDone, "call-1", 10)
    assert got.json()["ename"] == "KeyboardInterrupt" and cell.ended_by is None


async def test_a_cell_cancelled_during_the_start_never_runs(setup: Setup) -> None:
    setup.runtime.start_gate = asyncio.Event()
    await setup.gateway.joined()
    container = await setup.gateway.start("c1", MIRROR)
    await container.run("call-1", "open('ran', 'w')")
    setup.gateway.notify(m.Interrupt(container="c1", call="call-1", level=1))
    _, cell = await container.until(m.CellDone, "call-1", 10)
    assert cell.status == "aborted" and cell.ended_by is EndReason.CANCELLED
    setup.runtime.start_gate.set()
    await container.until(m.ContainerReady)
    await container.run("call-2", "import os; print(os.path.exists('ran'))")
    await container.until(m.CellDone, "call-2")
    assert container.text("call-2") == "False\n"


async def test_a_killed_sandbox_ends_at_once_and_leaves_nothing(setup: Setup) -> None:
    container = await setup.ready(gpus=["SIM-0"])
    process = setup.runtime.containers["c1"].process
    os.killpg(process.pid, signal.SIGKILL)
    _, ended = await container.until(m.ContainerEnded, seconds=10)
    assert ended.reason is EndReason.CONTAINER_LOST and ended.error is not None
    async with asyncio.timeout(10):
        while setup.worker.containers:
            await asyncio.sleep(0.01)
    assert not (setup.folder / "run" / "c1").exists()
    assert not (setup.folder / "data" / "spool" / "c1").exists()
    await setup.ready("c2", gpus=["SIM-0"])  # its GPU is free again


async def test_a_silent_runner_is_lost(setup: Setup) -> None:
    container = await setup.ready()
    process = setup.runtime.containers["c1"].process
    os.kill(process.pid, signal.SIGSTOP)
    _, ended = await container.until(m.ContainerEnded, seconds=20)
    assert ended.reason is EndReason.CONTAINER_LOST
    assert ended.error is not None and "no sign" in ended.error.message


async def test_out_of_memory_names_the_limit(setup: Setup) -> None:
    container = await setup.ready()
    setup.runtime.containers["c1"].cause = "oom"
    os.killpg(setup.runtime.containers["c1"].process.pid, signal.SIGKILL)
    _, ended = await container.until(m.ContainerEnded, seconds=10)
    assert ended.reason is EndReason.OUT_OF_MEMORY
    assert ended.error is not None and "4096 MiB" in ended.error.message


async def test_a_runner_that_cannot_start_is_told_with_its_words(setup: Setup) -> None:
    setup.runtime.command = ["/bin/sh", "-c", "exit 7"]
    await setup.gateway.joined()
    container = await setup.gateway.start("c1", MIRROR)
    _, ended = await container.until(m.ContainerEnded, seconds=10)
    assert ended.reason is EndReason.START_FAILED
    assert ended.error is not None and "exit code 7" in ended.error.message
    assert not (setup.folder / "run" / "c1").exists()


async def test_a_stop_ends_with_its_reason(setup: Setup) -> None:
    container = await setup.ready()
    await container.run("call-1", "import time\ntime.sleep(60)")
    await container.until(m.CellStarted, "call-1")
    await setup.gateway.request(m.StopContainer(container="c1", reason=EndReason.STOPPED, grace_seconds=5))
    _, ended = await container.until(m.ContainerEnded, seconds=10)
    assert ended.reason is EndReason.STOPPED
    assert container.of(m.CellDone, "call-1")  # the grace let the interrupted cell end


async def test_a_stop_while_starting_cancels_the_start(setup: Setup) -> None:
    setup.runtime.start_gate = asyncio.Event()
    await setup.gateway.joined()
    container = await setup.gateway.start("c1", MIRROR)
    await setup.gateway.request(m.StopContainer(container="c1", reason=EndReason.CANCELLED))
    _, ended = await container.until(m.ContainerEnded, seconds=10)
    assert ended.reason is EndReason.CANCELLED
    assert not (setup.folder / "run" / "c1").exists()


async def test_the_heartbeat_tells_usage(setup: Setup) -> None:
    await setup.ready(gpus=["SIM-1"])
    beat = await setup.gateway.wait(
        lambda: next((b for b in setup.gateway.heartbeats if b.usage and b.usage[0].cpu_cores is not None), None)
    )
    usage = beat.usage[0]
    assert (usage.container, usage.cpu_cores, usage.memory_bytes) == ("c1", 0.0, 64 << 20)
    assert [gpu.uuid for gpu in usage.gpus] == ["SIM-1"] and usage.uptime_seconds > 0
