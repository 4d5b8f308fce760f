"""Checkpoints of real sandboxes through `Runtime`: what comes back in a restored one, and what keeps one from it."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_protocol.resources import Resources
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.live_files import changed
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.network import NAMESPACES
from cellburst_runtime.proc import all_processes
from cellburst_runtime.runtime import RunningContainer, Runtime
from cellburst_runtime.snapshots import Manifest, SnapshotUnusable
from tests.fakes.containers import traces
from tests.fakes.talking import Talking, TalkingEngine
from tests.runtime.test_runtime import request_for

pytestmark = [pytest.mark.gvisor, pytest.mark.netns]
RUN = f"snap-{secrets.token_hex(4)}"
_tested: list[bytes] = []  # what the engine's self-test found: once is enough for this file


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    (tmp_path / "d").mkdir()
    if _tested:
        (tmp_path / "d" / "engines.json").write_bytes(_tested[0])
    made = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d", engine="gvisor")
    _tested[:] = [(tmp_path / "d" / "engines.json").read_bytes()]
    assert made.engines[0].snapshot
    yield made
    await made.collect_garbage()
    await made.close()


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    folder = tmp_path / "nb"
    folder.mkdir()
    (folder / "a.txt").write_text("of the host")
    return folder


class Session:
    """A container that talks."""

    def __init__(self, runtime: Runtime, notebook: Path) -> None:
        self.runtime, self.notebook = runtime, notebook
        self.id = f"{RUN}-{secrets.token_hex(3)}"
        self.key = ""
        self.sys_path: list[str] = []
        self.running: RunningContainer

    async def start(
        self, checkpoint: Path | None = None, *, store_image: Path | None = None, **resources: object
    ) -> Session:
        asked = Resources(memory_mib=512, **resources)  # type: ignore[arg-type]
        request = request_for(self.notebook, self.id, resources=asked)
        request.image.sys_path = self.sys_path
        prepared = await self.runtime.prepare(request, store_image=store_image)
        prepared.engine = TalkingEngine(prepared.engine)
        self.key = prepared.snapshot_key
        self.talk = Talking(prepared.socket_path)
        await self.talk.listen()
        try:
            self.running = await prepared.start(checkpoint)
        except BaseException:
            await self.talk.close()
            await prepared.remove()
            raise
        return self

    async def ask(self, code: str) -> object:
        return await self.talk.ask(code)

    async def checkpoint(self, folder: Path) -> None:
        await self.talk.detach()
        await self.running.container.checkpoint(folder)
        assert (await self.running.container.wait()).cause == "checkpointed"

    async def remove(self) -> None:
        await self.talk.close()
        await self.running.container.remove()
        assert traces(self.id, self.running.folder) == []


async def test_a_session_goes_on_where_it_was(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    first = await Session(runtime, notebook).start(network="none")
    assert first.key
    await first.ask(f"""
import subprocess
x = [41]; count = [0]
def tick():
    while True:
        count[0] += 1; time.sleep(0.002)
threading.Thread(target=tick, daemon=True).start()
child = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
os.chdir({str(notebook)!r})
written = open("mine.txt", "w"); written.write("before "); written.flush()
read = open("a.txt"); _ = read.read(3)
open("/tmp/t", "w").write("in memory"); kept = open("/tmp/t")
open("/cellburst/var/out/o", "w").write("out")
os.environ["SECRET"] = "s"
""")  # fmt: skip
    await asyncio.to_thread(first.running.layer.file_put, "put.txt", notebook / "a.txt")
    await first.checkpoint(tmp_path / "image")
    store = await first.running.keep_store(tmp_path / "store.img")
    assert store == str(tmp_path / "store.img") and (await first.running.keep_store(tmp_path / "again")) == ""
    await first.remove()
    second = await Session(runtime, notebook).start(
        tmp_path / "image", store_image=tmp_path / "store.img", network="none"
    )
    assert second.key == first.key
    before = await second.ask("_ = count[0]")
    assert isinstance(before, int) and before > 0
    said = await second.ask(f"""
until = time.monotonic() + 20
while count[0] <= {before} and time.monotonic() < until: time.sleep(0.001)
child.stdin.write(b"hello"); child.stdin.close()
written.write("after"); written.close()
_ = [count[0] > {before}, x, child.stdout.read().decode(), read.read(), kept.read(), open("/cellburst/var/out/o").read(),
     os.getcwd(), os.environ["SECRET"], open("mine.txt").read(),
     open("put.txt").read()]
""")
    files = ["before after", "of the host"]
    assert said == [True, [41], "hello", "the host", "in memory", "out", str(notebook), "s", *files]
    assert [change.path for change in second.running.layer.file_list()] == ["mine.txt"]
    assert not (notebook / "mine.txt").exists() and not (tmp_path / "store.img").exists()
    await second.remove()
    assert list((tmp_path / "d" / "stores").iterdir()) == []


MAPPED = """
import importlib.machinery, importlib.util
loader = importlib.machinery.ExtensionFileLoader("_bisect", {library!r})
module = importlib.util.module_from_spec(importlib.util.spec_from_loader("_bisect", loader)); loader.exec_module(module)
lower, own = open("a.txt"), open("own.txt", "w+")
tmp, gone = open("/tmp/t", "w"), open("gone.txt", "w"); os.unlink("gone.txt")
_ = sorted({{line.rstrip("\\n").split(maxsplit=5)[5] for line in open("/proc/self/maps") if "/" in line}})
"""


async def test_live_files_are_those_that_others_can_change(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    spec = importlib.util.find_spec("_bisect")
    assert spec is not None and spec.origin is not None
    site = tmp_path / "site"
    site.mkdir()
    library = Path(shutil.copy(spec.origin, site / "_bisect.so"))
    session = Session(runtime, notebook)
    session.sys_path = [str(site)]
    await session.start(network="none")
    try:
        await session.ask(f"os.chdir({str(notebook)!r})")
        mapped = await session.ask(MAPPED.format(library=str(library)))
        assert isinstance(mapped, list) and str(library) in mapped
        folder = str(notebook)
        opened = [f"{folder}/a.txt", f"{folder}/own.txt", "/tmp/t", "/cellburst/var/ctl/s", "/etc/passwd", "pipe:[1]"]
        gone = f"{folder}/gone.txt (deleted)"
        files = {file.path: file for file in session.running.live_files([*mapped, *opened, gone])}
        assert {str(library), f"{folder}/a.txt", gone} <= set(files)
        assert not {f"{folder}/own.txt", "/tmp/t", "/cellburst/var/ctl/s", "/etc/passwd", "pipe:[1]"} & set(files)
        assert files[gone].inode == 0
        assert (files[f"{folder}/a.txt"].host_path, files[f"{folder}/a.txt"].inode) == (
            f"{folder}/a.txt", (notebook / "a.txt").stat().st_ino,
        )  # fmt: skip
        assert all(file.inode for path, file in files.items() if path != gone)
        assert all(changed(file) == "" for path, file in files.items() if path != gone)
        shutil.copy2(library, site / "other")
        (site / "other").rename(library)
        assert changed(files[str(library)]) == f"{library} was replaced"
    finally:
        await session.remove()


async def test_twenty_restores_leave_nothing(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    first = await Session(runtime, notebook).start()
    await first.ask("x = 41")
    await first.checkpoint(tmp_path / "image")
    await first.remove()

    def left() -> list[object]:
        loops = [f for f in Path("/sys/block").glob("loop*/loop/backing_file") if str(tmp_path) in read(f)]
        ours = os.getpid()
        return [
            sorted(os.listdir("/proc/self/fd")), [str(p) for p in mounts_below(tmp_path)],
            [p.name for p in NAMESPACES.glob("*") if RUN in p.name], [str(f) for f in loops],
            sorted(stat.pid for stat in all_processes().values() if stat.parent == ours),
            sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")), [n for n in Cgroups().names() if RUN in n],
            len(asyncio.all_tasks()),
        ]  # fmt: skip

    before: list[object] = []
    for number in range(20):
        session = await Session(runtime, notebook).start(tmp_path / "image")
        assert session.key == first.key
        assert await session.ask("x += 1; _ = x") == 42
        await session.remove()
        if number == 0:
            before = left()  # what the first one makes for all: the network's table, threads
    for _ in range(500):  # transports that were closed are gone a turn of the loop later
        if left() == before:
            break
        await asyncio.sleep(0.01)
    assert left() == before


async def test_after_a_restore_that_failed_it_boots_in_the_same_place(
    runtime: Runtime, notebook: Path, tmp_path: Path
) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image/checkpoint.img").write_bytes(b"nothing")
    session = Session(runtime, notebook)
    prepared = await runtime.prepare(
        request_for(notebook, session.id, resources=Resources(memory_mib=512, network="none"))
    )
    prepared.engine = TalkingEngine(prepared.engine)
    session.talk = Talking(prepared.socket_path)
    await session.talk.listen()
    try:
        with pytest.raises(PlatformError) as failed:
            await prepared.start(tmp_path / "image")
        assert failed.value.code == ErrorCode.START_FAILED
        session.running = await prepared.start()
        assert await session.ask("_ = os.getpid()") == 1
    finally:
        await session.talk.close()
        await prepared.remove()
    assert traces(session.id, prepared.folder) == []


async def test_a_damaged_parked_session_of_the_store(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    session = await Session(runtime, notebook).start(network="none")
    await session.ask(f"open({str(notebook / 'own.txt')!r}, 'w').write('mine'); x = 1")
    draft = runtime.snapshots.draft("session", "p", 64 << 20)
    await session.checkpoint(draft.folder / "checkpoint")
    await session.running.keep_store(draft.folder / "store.img")
    kept = await asyncio.to_thread(draft.commit, Manifest(kind="session", id="p", key=session.key))
    await session.remove()
    assert kept.size_bytes < 256 << 20
    runtime.snapshots.check(kept, checkpoint=True)
    for _ in range(2):  # what a resume writes does not change what is parked
        again = Session(runtime, notebook)
        copy = await asyncio.to_thread(runtime.snapshots.store_copy, kept, tmp_path / "d" / "stores")
        await again.start(runtime.snapshots.checkpoint(kept), store_image=copy, network="none")
        path = str(notebook / "own.txt")
        assert await again.ask(f"_ = [x, open({path!r}).read()]; open({path!r}, 'w').write('changed')") == [1, "mine"]
        await again.remove()
    os.truncate(runtime.snapshots.path(kept) / "checkpoint/pages.img", 4096)
    with pytest.raises(SnapshotUnusable, match="4096 bytes"):
        runtime.snapshots.check(kept, checkpoint=True)


KILLED = """
import asyncio, sys
from pathlib import Path
from cellburst_runtime.engine_checkpoint import GvisorContainer
from cellburst_runtime.runtime import Runtime
from tests.runtime.test_snapshots_restore import Session
runsc = GvisorContainer._runsc
async def only_pause(self, verb, *arguments, seconds):
    result = await runsc(self, verb, *arguments, seconds=seconds)
    print(verb, result.exit_code, flush=True)
    await asyncio.Event().wait()
GvisorContainer._runsc = only_pause
async def main():
    runtime = await Runtime.create(run_folder=Path({run!r}), data_folder=Path({data!r}), engine="gvisor")
    session = Session(runtime, Path({notebook!r}))
    session.id = {id!r}
    await session.start()
    await session.ask("x = 1")
    await session.checkpoint(runtime.snapshots.draft("session", "p", 1).folder / "checkpoint")
asyncio.run(main())
"""


async def test_a_worker_killed_while_it_checkpoints(runtime: Runtime, notebook: Path, tmp_path: Path) -> None:
    container = f"{RUN}-killed"
    code = KILLED.format(run=str(tmp_path / "r"), data=str(tmp_path / "d"), notebook=str(notebook), id=container)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).resolve().parents[2]
    )
    assert worker.stdout is not None
    try:
        assert await asyncio.wait_for(worker.stdout.readline(), 60) == b"pause 0\n"
    finally:
        worker.kill()
        await worker.wait()
    folder = tmp_path / "r" / "containers" / container
    assert [trace for trace in traces(container, folder) if trace.startswith("process")], "it outlives its worker"
    assert len(list((tmp_path / "d/snapshots/drafts").iterdir())) == 1
    assert await runtime.collect_garbage() == [container]
    assert traces(container, folder) == []
    assert list((tmp_path / "d/snapshots/drafts").iterdir()) == [] and runtime.snapshots.parked_all() == []


def read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""  # gone while we look
