"""Containers from images, with real sandboxes: what a cell finds in one, templates, parking, eviction, builds for the gateway."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cellburst.image import Image
from cellburst.image_packs import PackedFile, PackWriter
from cellburst_jupyter import names_pickle
from cellburst_jupyter.names_read import read_cell
from cellburst_jupyter.names_values import NameSync
from cellburst_protocol import mac
from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import AddPython, Copy, DebianSlim, FromScratch, ImageRecipe, RunCommands
from cellburst_protocol.peer import StreamEnded
from cellburst_protocol.states import EndReason
from cellburst_runtime.image_python import PythonPlaces, candidates
from cellburst_runtime.mounts import mounts_below
from cellburst_worker.image_watch import ImageWatch
from tests.fakes.fake_gateway import MASTER_KEY, FakeContainer
from tests.worker.test_parking_gvisor import House, cell, house, until

pytestmark = [pytest.mark.gvisor, pytest.mark.netns, pytest.mark.timeout(600)]


@pytest.fixture
def place(short_path: Path, debian_store: Path) -> Iterator[Path]:
    """A house's folder whose images, and what they are made from, are shared by the tests of this session."""
    (short_path / "data").mkdir()
    for name in ("images", "uv-cache", "bundles"):
        (debian_store / "data" / name).mkdir(parents=True, exist_ok=True)
        (short_path / "data" / name).symlink_to(debian_store / "data" / name)
    yield short_path
    assert mounts_below(short_path) == []
    assert [p for p in (debian_store / "data/images/drafts").glob("*") if p.is_dir()] == []


def recipe_of(image: Image, folder: Path) -> ImageRecipe:
    return image.recipe(folder / "packs").recipe


def blob(h: House, folder: Path, *entries: PackedFile) -> Any:
    """A pack of local files, as a kernel would have sent it to the gateway."""
    packs = PackWriter(folder / "packs")
    pack = packs.write(entries)
    target = h.gateway.folder / "blobs" / pack.hash[:2] / pack.hash
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(packs.files[pack.hash].read_bytes())
    return pack


async def failed(h: House, id: str, **fields: Any) -> m.ContainerEnded:
    await h.gateway.joined()
    container = await h.gateway.start(id, h.mirror(), **fields)
    _, ended = await container.until(m.ContainerEnded, seconds=120)
    await until(lambda: id not in h.worker.containers)
    return ended


LOOK = """
import getpass, os, subprocess, sys, time
import six, local
def can_write(path):
    try:
        open(os.path.join(os.path.expanduser(path), 'written'), 'w').write('mine'); return True
    except OSError as why:
        return why.strerror
print(six.__name__, local.said, 'cellburst/bundle' in __import__('ipykernel').__file__, sys.executable)
print(os.getcwd(), os.environ['COLOR'], os.environ['ASKED'], getpass.getuser(), os.getuid(), os.path.expanduser('~'))
print([can_write(path) for path in ('.', '~', '/srv/app', '/etc', '/usr/lib', '/')], open('/srv/app/f').read(), open('beside.txt').read())
print(subprocess.run(['python3', '-c', 'import six; print(six.__name__)'], capture_output=True, text=True).stdout.strip())
print(*(f'{os.stat(path).st_uid}:{oct(os.stat(path).st_mode)[-4:]}' for path in ('/', '/etc', '/usr', '/var', '/tmp', '/srv/app', '/opt/own')))
print('bookworm' in open('/etc/os-release').read(), 'www-data' in open('/etc/passwd').read(), time.tzname)
"""


async def test_a_cell_in_an_image_and_its_park_and_resume(place: Path) -> None:
    async with house(place) as h:
        (h.notebook / "beside.txt").write_text("beside")
        image = (
            Image.debian_slim("3.11").pip_install("six").run_commands("mkdir -p /srv/app; mkdir -m 0751 /opt/own; chown 7 /opt/own")
            .env({"COLOR": "blue", "TZ": "Etc/GMT+3"}).workdir("/srv/app")
        )  # fmt: skip
        recipe = recipe_of(image, place)
        pack = blob(h, place, PackedFile("local.py", content=b"said = 'hello'\n"))
        other = blob(h, place, PackedFile("f", content=b"added"))
        recipe.adds = [Copy(pack=pack, destination="/root"), Copy(pack=other, destination="/srv/app")]
        mirror = h.mirror()
        mirror.environment |= {"ASKED": "yes", "PYTHONPATH": "/nowhere"}
        h.mirror = lambda: mirror  # type: ignore[method-assign]
        container, ready = await h.ready("c1", recipe=recipe, prepare_call="call-0")
        assert ready.start == "boot" and ready.image_id and ready.python_version.startswith("3.11.")
        assert [phase.name for phase in ready.phases] == ["image", "boot", "enter"] and "steps made" in ready.phases[
            0
        ].detail
        logs = [event for got, event in container.of(m.BuildLog) if got.call == "call-0"]
        assert logs and logs[-1].step == 7 == logs[-1].steps and "to /srv/app" in logs[-1].title
        assert any("pip_install six" in line for event in logs for line in event.lines)
        said = (await cell(container, "call-1", LOOK)).splitlines()
        uid = mirror.uid or 1000
        assert said[0] == "six hello True /usr/bin/python3"
        assert said[1] == f"/cellburst/work blue yes {mirror.user if mirror.uid else 'user'} {uid} /home/user"
        assert (
            said[2] == "[True, True, True, 'Permission denied', 'Permission denied', 'Permission denied'] added beside"
        )
        assert said[3] == "six"
        assert said[4].split() == ["0:0755"] * 4 + [f"{uid}:1777", f"{uid}:0755", "7:0751"]
        assert said[5].startswith("True True")
        files = await container.ask("file_list")
        assert [change["path"] for change in files[0].content["files"]] == ["written"]  # type: ignore[index, union-attr]
        assert not (h.notebook / "written").exists()

        await h.gateway.request(m.PruneImages())  # it runs
        assert [row.used_by for row in (await images(h)).rows if row.id == ready.image_id] == [["c1"]]
        parked = await h.park(container, "p1")
        assert parked.parked.kind == "snapshot" and "six" in parked.parked.names
        await h.gateway.request(m.PruneImages())  # it is parked
        assert [row.used_by for row in (await images(h)).rows if row.id == ready.image_id] == [["parked p1"]]
        resumed, again = await h.ready("c2", recipe=recipe, parked="p1")
        assert (again.start, again.lost, again.image_id) == ("snapshot", [], ready.image_id)
        assert again.phases[0].detail == "built before"
        code = "print(local.said, open('/srv/app/written').read(), open(os.path.expanduser('~/written')).read(), six.__name__)"
        assert await cell(resumed, "call-2", code) == "hello mine mine six\n"
        # Another image: only names, into what the new one has.
        await h.park(resumed, "p2")
        bare = recipe_of(Image.debian_slim("3.11"), place)
        third, moved = await h.ready("c3", recipe=bare, parked="p2")
        assert moved.start == "names" and "environment is another one now" in next(
            p.detail for p in moved.phases if p.name == "restore"
        )
        await h.gateway.request(m.StopContainer(container="c3", reason=EndReason.STOPPED))
        await third.until(m.ContainerEnded)
        await until(lambda: not h.worker.containers)


async def images(h: House) -> m.ImageList:
    found = await h.gateway.request(m.ListImages())
    assert isinstance(found, m.ImageList)
    return found


async def test_a_template_of_an_image_serves_another_notebook(place: Path) -> None:
    async with house(place, templates=True, warm=False) as h:
        image = Image.debian_slim("3.11").pip_install("six", "tomli-w").run_commands("echo only here > /mine")
        with image.imports():
            import tomli_w  # noqa: F401  in the image only
        recipe = recipe_of(image, place)
        assert recipe.preload == ["tomli_w"]
        first, ready = await h.ready("c1", recipe=recipe)
        assert ready.start == "boot"
        await h.gateway.wait(lambda: any(b.snapshots and b.snapshots.template_count for b in h.gateway.heartbeats), 60)
        other = h.folder / "other"
        other.mkdir()
        (other / "mine.txt").write_text("mine")
        mirror = h.mirror()
        mirror.notebook_folder = str(other)
        h.mirror = lambda: mirror  # type: ignore[method-assign]
        second, ready = await h.ready("c2", recipe=recipe)
        assert ready.start == "template", [(p.name, p.detail) for p in ready.phases]
        code = "import os, sys; print('tomli_w' in sys.modules, open('mine.txt').read(), os.getcwd())"
        assert await cell(second, "call-1", code) == "True mine /cellburst/work\n"
        for container in (first, second):
            await h.gateway.request(m.StopContainer(container=container.id, reason=EndReason.STOPPED))
            await container.until(m.ContainerEnded)
        await until(lambda: not h.worker.containers)
        # An image that is deleted takes its templates along.
        manifest = h.runtime.snapshots.templates()[0]
        os.utime(place / "data/images/layers" / manifest.layers[-1] / "meta.json", (1000, 1000))
        pruned = await h.gateway.request(m.PruneImages(max_bytes=(await images(h)).size_bytes - 1))
        assert isinstance(pruned, m.ImagesPruned) and 0 < pruned.freed_bytes < 1_000_000
        assert h.runtime.snapshots.templates() == []


async def test_an_image_with_another_python(place: Path) -> None:
    async with house(place) as h:
        here = platform.python_version_tuple()[1]
        places = PythonPlaces(str(Path(sys.executable).with_name("uv")), place / "data" / "images" / "pythons")
        version = ""
        for minor in ("12", "13", "11"):
            if minor != here and [found async for found in candidates(places, f"3.{minor}", print)]:
                version = f"3.{minor}"
                break
        assert version, "this machine has no other Python"
        recipe = ImageRecipe(steps=[DebianSlim(), AddPython(python_version=version)])
        container, ready = await h.ready("c1", recipe=recipe)
        assert ready.python_version.startswith(f"{version}.")
        names: dict[str, Any] = {"d": {"k": [1, 2.5, "x", None]}, "f": lambda: 1}
        sync = NameSync(folder=h.notebook)
        code = "import sys; n = len(d['k']); d['k'].append(n); print(sys.version_info[1])"
        given = sync.prepare(read_cell(code, names), names, python=ready.python_version)
        home = await values(container, "call-1", code, given)
        assert container.text("call-1") == f"{version.partition('.')[2]}\n"
        assert home["n"] == 4 and home["d"]["k"] == [1, 2.5, "x", None, 4]
        with pytest.raises(CellburstError) as caught:
            sync.prepare(read_cell("f()", names), names, python=ready.python_version)
        assert caught.value.code is ErrorCode.PYTHON_DIFFERS


async def values(container: FakeContainer, call: str, code: str, given: Any) -> dict[str, Any]:
    """Run a cell with names, as a kernel does; what came home."""
    key = mac.value_key(MASTER_KEY, call)
    message = m.RunCell(
        call=call, code=code, value_key=key, names=given.groups, mac=mac.sign(key, "in", given.groups), used=given.used,
        bound=given.bound, python_version=platform.python_version(),
        header={"msg_id": call, "session": "s", "username": "u", "msg_type": "execute_request", "version": "5.3",
                "date": "2026-01-01T00:00:00Z"},
    )  # fmt: skip
    stream = await container.wait(lambda: container.stream)
    await stream.send(message, [bytes(buffer) for buffer in given.buffers])
    got, done = await container.until(m.CellDone, call)
    assert done.status == "ok", got.json()
    found: dict[str, Any] = {}
    buffers = list(got.buffers[1:])
    for group in done.home:
        parts, buffers = buffers[: len(group.parts)], buffers[len(group.parts) :]
        found |= names_pickle.read(parts[0], [bytearray(part) for part in parts[1:]], {}, False)[0]
    return found


async def test_images_that_cannot_run_say_why(place: Path) -> None:
    async with house(place) as h:
        bare = ImageRecipe(
            steps=[FromScratch(), Copy(pack=blob(h, place, PackedFile("x", content=b"")), destination="/")]
        )
        ended = await failed(h, "c1", recipe=bare)
        assert ended.reason is EndReason.START_FAILED and ended.error is not None
        assert "no Python" in ended.error.message and "add_python" in ended.error.next
        ended = await failed(
            h, "c2", recipe=recipe_of(Image.debian_slim("3.11").run_commands("echo so; exit 9"), place)
        )
        assert (
            ended.error is not None
            and ended.error.code is ErrorCode.IMAGE_BUILD
            and "exit code 9" in ended.error.message
        )
        ended = await failed(h, "c3", recipe=bare, engine="process")
        assert ended.error is not None and ended.error.code is ErrorCode.NO_SUCH_HARDWARE
        missing = ImageRecipe(steps=[FromScratch(), Copy(pack=m_pack(), destination="/")])
        ended = await failed(h, "c4", recipe=missing)
        assert ended.error is not None and ended.error.code is ErrorCode.INTEGRITY
        assert await asyncio.to_thread(lambda: list((place / "run" / "containers").iterdir())) == []


def m_pack() -> Any:
    from cellburst_protocol.images import FilePack

    return FilePack(hash="ab" * 32, size_bytes=10, files=1)


async def test_the_gateway_builds_lists_reads_logs_and_gives_up(place: Path) -> None:
    async with house(place) as h:
        await h.gateway.joined()
        peer = await h.gateway.wait(lambda: h.gateway.peer)
        image = Image.debian_slim("3.11").run_commands("echo said-by-the-step")
        stream = peer.open(m.BuildStream(recipe=recipe_of(image, place)))
        lines: list[str] = []
        while True:
            message, _ = await stream.recv()
            if isinstance(message, m.ImageBuilt):
                break
            assert isinstance(message, m.BuildLog)
            lines += message.lines
        assert (
            message.error is None and message.size_bytes > 1_000_000 and not message.cached and message.worker == "w1"
        )
        assert "said-by-the-step" in lines
        with pytest.raises(StreamEnded):
            await stream.recv()
        again = peer.open(m.BuildStream(recipe=recipe_of(image, place)))
        while not isinstance(built := (await again.recv())[0], m.ImageBuilt):
            pass
        assert built.cached and built.id == message.id
        row = next(row for row in (await images(h)).rows if row.id == built.id)
        assert (
            row.steps[-1].startswith("run_commands echo") and row.size_bytes == built.size_bytes and row.used_by == []
        )
        logs = await h.gateway.request(m.ImageLogs(id=built.id[:12]))
        assert isinstance(logs, m.Logs) and "there already" in logs.text
        with pytest.raises(CellburstError) as caught:
            await h.gateway.request(m.ImageLogs(id="0123456789"))
        assert caught.value.code is ErrorCode.NOT_FOUND
        # Given up: the build ends.
        endless = recipe_of(Image.debian_slim("3.11"), place)
        endless.steps.append(RunCommands(commands=["echo running; sleep 1000"]))
        given_up = peer.open(m.BuildStream(recipe=endless))
        seen: list[str] = []
        while "running" not in seen:
            part, _ = await given_up.recv()
            assert isinstance(part, m.BuildLog)
            seen += part.lines
        given_up.reset()
        drafts = place / "data/images/drafts"
        await until(lambda: not any(path.is_dir() for path in drafts.iterdir()))
        wrong = peer.open(m.BuildStream(recipe=ImageRecipe(steps=[])))
        while not isinstance(refused := (await wrong.recv())[0], m.ImageBuilt):
            pass
        assert refused.error is not None and refused.error.code is ErrorCode.BAD_ARGUMENT


def decay(path: Path) -> None:
    """Change one byte and nothing that a look without reading sees."""
    status, text = path.stat(), path.read_bytes()
    path.write_bytes(bytes([text[0] ^ 1]) + text[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


async def test_a_layer_that_decayed_is_put_aside_and_the_next_container_reads_what_was_built(place: Path) -> None:
    async with house(place) as h:
        image = Image.debian_slim("3.11").run_commands("echo whole > /srv/said")
        recipe, look = recipe_of(image, place), "print(open('/srv/said').read())"

        async def use(id: str) -> tuple[str, Path, str]:
            container, ready = await h.ready(id, recipe=recipe)
            [key] = [
                key for key in h.worker.containers[id].image.keys  # type: ignore[union-attr]
                if (place / "data/images/layers" / key / "fs/srv/said").exists()
            ]  # fmt: skip
            return await cell(container, f"call-{id}", look), place / "data/images/layers" / key, ready.image_id

        said, layer, _ = await use("c1")
        assert said == "whole\n\n"
        decay(layer / "fs/srv/said")
        peer = await h.gateway.wait(lambda: h.gateway.peer)
        answer = await peer.request(m.VerifyImages(), timeout_seconds=300.0)
        assert isinstance(answer, m.ImagesVerified) and answer.layer_count >= 2
        [damaged] = answer.damaged
        assert (
            damaged.id == layer.name and damaged.used_by == ["c1"] and damaged.problems == ["srv/said: another content"]
        )
        assert damaged.step.startswith("run_commands echo whole")
        assert (await use("c2"))[:2] == ("whole\n\n", layer)
        # By itself, when the machine has nothing else to do.
        decay(layer / "fs/srv/said")
        (layer / "verified").touch()
        os.utime(layer / "verified", (1000, 1000))
        watch = ImageWatch(
            h.runtime.images,
            lambda: False,
            h.worker._pool.release_images,
            look_seconds=0.01,
            machine_busy=lambda: False,
        )
        running = asyncio.create_task(watch.run())
        await until(lambda: not layer.exists())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert (await use("c3"))[:2] == ("whole\n\n", layer)
