"""The true runner through a checkpoint of a real sandbox: a session that goes on, and two copies of one template."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.resources import Resources
from cellburst_runtime.engine import CheckpointFailed
from cellburst_runtime.runtime import RunningContainer, Runtime
from tests.fakes.containers import traces
from tests.fakes.runner_harness import FakeWorker

pytestmark = [pytest.mark.gvisor, pytest.mark.netns]
RUN = f"ice-{secrets.token_hex(4)}"
_tested: list[bytes] = []  # what the engine's self-test found: once is enough for this file


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    (tmp_path / "d").mkdir()
    if _tested:
        (tmp_path / "d" / "engines.json").write_bytes(_tested[0])
    made = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d", engine="gvisor")
    _tested[:] = [(tmp_path / "d" / "engines.json").read_bytes()]
    yield made
    await made.collect_garbage()
    await made.close()


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    folder = tmp_path / "nb"
    folder.mkdir()
    (folder / "data.txt").write_text("one\ntwo\n")
    return folder


class Session:
    """A container with a fake worker at its runner. Remove it, whatever happened."""

    def __init__(self, runtime: Runtime, notebook: Path) -> None:
        self.runtime, self.notebook = runtime, notebook
        self.id = f"{RUN}-{secrets.token_hex(3)}"
        self.key = ""
        self.running: RunningContainer
        self.worker: FakeWorker
        self.ready: m.RunnerReady

    async def start(self, checkpoint: Path | None = None, *, store: Path | None = None, reseed: bool = False) -> None:
        image = m.MirrorSpec(
            executable=sys.executable, python_version="3.11.0", prefix=sys.prefix, base_prefix=sys.base_prefix,
            notebook_folder=str(self.notebook),
        )  # fmt: skip
        request = m.StartContainer(
            container=self.id, lease="l", epoch=1, session="s", notebook="n", gpus=[], image=image,
            resources=Resources(memory_mib=1024, network="none"),
        )  # fmt: skip
        prepared = await self.runtime.prepare(request, store_image=store)
        self.worker, self.key = FakeWorker(prepared.folder / "var"), prepared.snapshot_key
        try:
            await self.worker.listen()
            self.running = await prepared.start(checkpoint)
            await self.worker.wait_for(m.RunnerHello)
            self.worker.start_fields = {
                "environment": self.running.environment, "links": self.running.links,
                "folder": self.running.working_folder, "python": self.running.python,
            }  # fmt: skip
            start = m.RunnerStart(restored=checkpoint is not None, reseed=reseed, **self.worker.start_fields)
            self.worker.send(start)
            ready = (await self.worker.wait_for(m.RunnerReady)).message
            assert isinstance(ready, m.RunnerReady)
            self.ready = ready
        except BaseException:
            self.worker.close()
            await prepared.remove()
            raise

    async def remove(self) -> None:
        self.worker.close()
        await self.running.container.remove()
        assert traces(self.id, self.running.folder) == []

    async def put_away(self, folder: Path, **freeze: object) -> m.RunnerFrozen:
        """Freeze, detach, checkpoint."""
        frozen = (await self.worker.freeze(**freeze)).message
        assert isinstance(frozen, m.RunnerFrozen) and frozen.error is None
        await self.worker.detach()
        await self.running.container.checkpoint(folder)
        assert (await self.running.container.wait()).cause == "checkpointed"
        return frozen

    async def value(self, code: str) -> object:
        """What a cell prints, as JSON."""
        cell = await self.worker.run(f"import json\nprint(json.dumps({code}))")
        assert cell.done.status == "ok", cell.messages("error")
        return json.loads(cell.text())


LIFE = """
import subprocess, threading, time, cellburst
import numpy as np
x = {'list': [1, 2]}
file = open('data.txt'); line = file.readline()
ticks, hooks, speak = [0], [], threading.Event()
def tick():
    while True:
        ticks[0] += 1; time.sleep(0.002)
threading.Thread(target=tick, daemon=True).start()
speaker = threading.Thread(target=lambda: speak.wait() and print('from the thread', flush=True))
speaker.start()
child = subprocess.Popen(['/bin/cat'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
lock = threading.Lock()
with open('written.txt', 'w') as f: f.write('in the layer')
cellburst.before_snapshot(lambda: hooks.append('before'))
cellburst.on_restore(lambda: hooks.append('after'))
"""


async def test_a_session_comes_back_as_it_was(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    os.chown(notebook, 1000, 1000)
    first, second = Session(runtime, notebook), Session(runtime, notebook)
    await first.start()
    try:
        assert (await first.worker.run(LIFE)).done.status == "ok"
        frozen = await first.put_away(tmp_path / "image", save_names=True)
        # every mapped or open file of a live mount is found again on the host
        files = {file.path: file for file in first.running.live_files(frozen.files)}
        assert str(notebook / "data.txt") in files and any("numpy" in path for path in files)
        assert all(file.inode for file in files.values()), [f for f in files.values() if not f.inode]
        assert {n for g in frozen.groups for n in g.names} >= {"x", "np", "line", "tick"}
        assert {"lock", "file", "child"} <= {entry.name for entry in frozen.lost}
        assert await first.running.keep_store(tmp_path / "store.img")
    finally:
        await first.remove()
    await second.start(tmp_path / "image", store=tmp_path / "store.img")
    try:
        assert second.key == first.key and second.ready.notes == []
        assert await second.value("[x, line, hooks]") == [{"list": [1, 2]}, "one\n", ["before", "after"]]
        ticks = await second.value("ticks[0]")
        cell = await second.worker.run(f"while ticks[0] <= {ticks}: time.sleep(0.001)")
        assert cell.done.status == "ok"
        assert (await second.worker.run("speak.set(); speaker.join()")).text() == "from the thread\n"
        assert await second.value("[file.readline(), child.communicate(b'hi')[0].decode()]") == ["two\n", "hi"]
        assert await second.value("[open('written.txt').read(), lock.acquire(False)]") == ["in the layer", True]
        assert await second.value("__import__('os').environ['CELLBURST_CONTAINER']") == second.id
    finally:
        await second.remove()


async def test_a_session_lives_on_when_its_checkpoint_fails(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "checkpoint.img").write_text("in the way")
    session = Session(runtime, notebook)
    await session.start()
    try:
        await session.worker.run(
            "import cellburst\nx, hooks = 1, []\ncellburst.on_restore(lambda: hooks.append('after'))"
        )
        await session.worker.freeze(save_names=True)
        await session.worker.detach()
        with pytest.raises(CheckpointFailed) as failed:
            await session.running.container.checkpoint(tmp_path / "image")
        assert failed.value.still_running
        await session.worker.listen_again()
        assert (await session.worker.thaw()).notes == []
        assert await session.value("[x, hooks]") == [1, ["after"]]
        assert not list((session.worker.folder / "out").iterdir())
    finally:
        await session.remove()


DRAWS = "[random.random(), float(np.random.random()), ssl.RAND_bytes(8).hex(), next(tempfile._get_candidate_names()), os.urandom(8).hex()]"


async def test_two_copies_of_a_template_draw_different_numbers(
    runtime: Runtime, notebook: Path, tmp_path: Path
) -> None:
    template = Session(runtime, notebook)
    await template.start()
    try:
        modules = ["random", "numpy.random", "ssl", "tempfile", "no.such.module"]
        frozen = await template.put_away(tmp_path / "image", preload=modules)
        assert frozen.preloaded == modules[:-1]
    finally:
        await template.remove()
    draws = []
    for _ in range(2):
        copy = Session(runtime, notebook)
        await copy.start(tmp_path / "image", reseed=True)
        try:
            cell = await copy.worker.run(
                "import os, random, ssl, sys, tempfile\nloaded = 'numpy' in sys.modules\nimport numpy as np"
            )
            assert cell.done.status == "ok"
            draws.append(await copy.value(f"[*{DRAWS}, loaded]"))
        finally:
            await copy.remove()
    one, two = draws
    assert isinstance(one, list) and isinstance(two, list) and one[-1] is two[-1] is True
    assert all(a != b for a, b in zip(one[:-1], two[:-1], strict=True)), draws
