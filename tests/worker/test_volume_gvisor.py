"""Volumes in real sandboxes: what a container sees, what it publishes, and what parking, templates and ends leave of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.states import EndReason
from cellburst_protocol.volumes import VolumeMount
from cellburst_runtime.mounts import mounts_below
from tests.fakes.fake_gateway import TOKEN, FakeContainer
from tests.fakes.volume_server import Volume, VolumeServer
from tests.worker.test_parking_gvisor import House, cell, house, until

pytestmark = pytest.mark.gvisor

DOOR = "from cellburst.volume_door import commit, reload, DoorError\nimport os\n"
_tested: list[bytes] = []
DATA = VolumeMount(volume="v", name="data", path="/data")


@pytest.fixture
def server() -> Iterator[VolumeServer]:
    made = VolumeServer(TOKEN)
    made.volumes["v"] = Volume()
    made.volumes["w"] = Volume()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def tested(short_path: Path) -> Iterator[None]:
    """The engine's self-test once is enough for this file."""
    kept = short_path / "data" / "engines.json"
    kept.parent.mkdir()
    if _tested:
        kept.write_bytes(_tested[0])
    yield
    if kept.exists():
        _tested[:] = [kept.read_bytes()]


@pytest.fixture(autouse=True)
def rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is committed by time: only what a test makes happen."""
    monkeypatch.setattr("cellburst_worker.volumes.COMMIT_SECONDS", 3600.0)


async def stop(h: House, container: FakeContainer) -> None:
    h.gateway.notify(m.StopContainer(container=container.id, reason=EndReason.STOPPED))
    await container.until(m.ContainerEnded, seconds=60)
    await until(lambda: container.id not in h.worker.containers)


def told(container: FakeContainer) -> list[str]:
    return [notice.text for _, notice in container.of(m.Notice)]


async def test_two_sessions_share_a_volume(short_path: Path, server: VolumeServer) -> None:
    server.write("v", {"old.txt": b"old", "d/x": b"x"})
    server.write("w", {"model": b"weights"})
    models = VolumeMount(volume="w", name="models", path="/home/models", read_only=True)
    async with house(short_path, volumes_url=server.url) as h:
        one, _ = await h.ready("c1", session="s-one", volumes=[DATA, models])
        two, _ = await h.ready("c2", session="s-two", volumes=[DATA])
        seen = "print(sorted(os.listdir('/data')), open('/data/old.txt').read(), open('/home/models/model').read())"
        assert await cell(one, "1", DOOR + seen) == "['d', 'old.txt'] old weights\n"
        # What one writes is its own until it is committed.
        await cell(one, "2", "open('/data/new.txt', 'w').write('new'); os.remove('/data/d/x'); os.mkdir('/data/e')")
        assert (
            await cell(two, "1", DOOR + "print(os.path.exists('/data/new.txt'), os.listdir('/data/d'))")
            == "False ['x']\n"
        )
        await until(lambda: server.volumes["v"].version == 2)  # at the cell's end, by itself
        assert server.read("v") == {"old.txt": b"old", "new.txt": b"new", "d": b"", "e": b""}
        # An open file keeps a reload away, and the folder that a program works in.
        refused = "\ntry: reload('data')\nexcept DoorError as e: print(e.info['code'], e.info['message'])\n"
        assert "request.busy" in await cell(two, "2", "f = open('/data/old.txt')" + refused)
        assert "open files" in await cell(two, "3", "f.close(); os.chdir('/data/d')" + refused + "os.chdir('/')")
        assert await cell(
            two, "4", "print(reload('data'), sorted(os.listdir('/data')), open('/data/new.txt').read())"
        ) == ("2 ['d', 'e', 'new.txt', 'old.txt'] new\n")
        assert await cell(two, "5", "print(reload('data'), reload('v'))") == "2 2\n"
        # Read-only is so, whatever the code tries.
        bad = "\nfor f in (lambda: open('/home/models/model', 'a'), lambda: open('/home/models/n', 'w'), lambda: os.remove('/home/models/model')):\n    try: f(); print('done')\n    except OSError as e: print(e.errno)\n"
        assert await cell(one, "3", bad) == "30\n30\n30\n"
        say = "\ntry: commit('models')\nexcept DoorError as e: print(e)\ntry: commit('else')\nexcept DoorError as e: print(e)\n"
        assert "read-only" in (text := await cell(one, "4", say)) and "data, models" not in text.splitlines()[0]
        assert "no volume 'else'" in text
        # Both write one file: the second is told, and nothing is lost.
        await cell(one, "5", "open('/data/old.txt', 'w').write('of one'); v = commit('data')")
        code = "open('/data/old.txt', 'w').write('of two')\ntry: commit('data')\nexcept DoorError as e: print(e.info['code'], e.info['message'])"
        text = await cell(two, "6", code)
        assert text.startswith("request.volume_conflict") and "'old.txt'" in text and "session one" in text
        await until(lambda: "old.txt.conflict-two" in server.read("v"))
        assert server.read("v")["old.txt"] == b"of one" and server.read("v")["old.txt.conflict-two"] == b"of two"
        await cell(two, "7", "print(reload('data'))")
        assert [t for t in told(two) if "old.txt.conflict-two" in t]
        assert (
            await cell(two, "8", "print(open('/data/old.txt').read(), open('/data/old.txt.conflict-two').read())")
            == "of one of two\n"
        )
        # The end publishes what is left.
        await cell(
            two,
            "9",
            "import subprocess; p = subprocess.Popen(['sh', '-c', 'sleep 0.2; echo late > /data/late; sleep 1000'])\nwhile not os.path.exists('/data/late'): pass",
        )
        await stop(h, two)
        assert server.read("v")["late"] == b"late\n"
        folder = short_path / "run" / "containers" / "c1"
        assert mounts_below(folder / "volumes")
        await stop(h, one)
        assert not mounts_below(short_path) and not folder.exists()


async def test_a_template_and_a_parked_session_have_their_volumes(
    short_path: Path, server: VolumeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cellburst_worker.template_policy.QUIET_SECONDS", 0.1)
    server.write("v", {"a": b"1"})
    async with house(short_path, templates=True, warm=False, volumes_url=server.url) as h:
        await h.ready("c0")
        await h.gateway.wait(lambda: any(b.snapshots and b.snapshots.template_count for b in h.gateway.heartbeats), 60)
        # The template was made without a volume; the container out of it has one.
        one, ready = await h.ready(
            "c1", session="s-one", volumes=[DATA, VolumeMount(volume="w", name="w", path="/home/user/deep/w")]
        )
        assert ready.start == "template", [(p.name, p.detail) for p in ready.phases]
        code = (
            DOOR
            + "print(open('/data/a').read(), os.listdir('/home/user/deep/w'))\nf = open('/data/a'); g = open('/data/log', 'a'); g.write('before '); g.flush()"
        )
        assert await cell(one, "1", code) == "1 []\n"
        await until(lambda: "log" in server.read("v"))
        server.write("v", {"a": b"2"}, by="they")
        server.refusals = 10**6  # what is written now cannot be published before the park
        await cell(one, "2", "open('/data/unpublished', 'w').write('kept'); os.mkdir('/home/user/deep/w/folder')")
        await h.park(one, "p1")
        server.refusals = 0
        assert "unpublished" not in server.read("v")
    async with house(short_path, warm=False, volumes_url=server.url) as h:
        two, ready = await h.ready(
            "c2",
            session="s-one",
            parked="p1",
            volumes=[DATA, VolumeMount(volume="w", name="w", path="/home/user/deep/w")],
        )
        assert ready.start == "snapshot", [(p.name, p.detail) for p in ready.phases]
        # As it was: its files are open, others' commits are not there until it asks for them.
        code = "g.write('after'); g.flush(); print(f.read(), open('/data/a').read(), open('/data/log').read(), open('/data/unpublished').read())"
        assert await cell(two, "3", code) == "1 1 before after kept\n"
        await until(
            lambda: server.read("v").get("unpublished") == b"kept" and server.read("v")["log"] == b"before after"
        )
        await until(lambda: "folder" in server.read("w"))
        await cell(two, "4", "f.close(); g.close(); v = reload('data')")
        assert await cell(two, "5", "print(open('/data/a').read(), open('/data/log').read())") == "2 before after\n"
        await cell(two, "6", "open('/data/a', 'w').write('3')")
        await until(lambda: server.read("v")["a"] == b"3")
        await h.park(two, "p2")
        del server.volumes["v"]
        three, ready = await h.ready(
            "c3",
            session="s-one",
            parked="p2",
            volumes=[DATA, VolumeMount(volume="w", name="w", path="/home/user/deep/w")],
        )
        assert ready.start == "snapshot" and await cell(three, "7", "print(open('/data/a').read())") == "3\n"
        assert [t for t in told(three) if "was deleted" in t]


async def test_a_session_whose_tree_is_gone_goes_on_by_its_names(short_path: Path, server: VolumeServer) -> None:
    server.write("v", {"a": b"1"})
    async with house(short_path, warm=False, volumes_url=server.url) as h:
        one, _ = await h.ready("c1", session="s-one", volumes=[DATA])
        server.refusals = 10**6
        await cell(one, "1", "x = 5; open('/data/mine', 'w').write('kept')")
        await h.park(one, "p1")
        server.refusals = 0
    shutil.rmtree(short_path / "data" / "volumes")
    server.write("v", {"a": b"2"})
    async with house(short_path, warm=False, volumes_url=server.url) as h:
        two, ready = await h.ready("c2", session="s-one", parked="p1", volumes=[DATA])
        assert ready.start == "names"
        (said,) = [p.detail for p in ready.phases if p.name == "restore"]
        assert "version 1 of volume data" in said
        assert server.read("v") == {"a": b"2", "mine": b"kept"}
        assert await cell(two, "2", "import os; print(x, open('/data/a').read(), sorted(os.listdir('/data')))") == (
            "5 2 ['a', 'mine']\n"
        )


async def test_what_cannot_be_published_at_the_end_is_published_later(short_path: Path, server: VolumeServer) -> None:
    async with house(short_path, volumes_url=server.url) as h:
        one, _ = await h.ready("c1", session="s-one", volumes=[DATA])
        server.refusals = 10**6
        await cell(one, "1", "open('/data/result', 'w').write('hours of work')")
        await stop(h, one)
        assert server.read("v") == {} and [t for t in told(one) if "could not be committed" in t]
        server.refusals = 0
        await until(lambda: server.read("v").get("result") == b"hours of work")


async def test_a_volume_that_is_too_large_is_refused_before_it_is_fetched(
    short_path: Path, server: VolumeServer
) -> None:
    server.write("v", {"big": os.urandom(3_000_000)})
    async with house(short_path, volumes_url=server.url) as h:
        store = h.worker._site.volumes.store  # type: ignore[union-attr]
        store._limit_bytes = 1_000_000
        await h.gateway.joined()
        container = await h.gateway.start("c1", h.mirror(), engine="gvisor", volumes=[DATA])
        _, ended = await container.until(m.ContainerEnded, seconds=60)
        assert ended.error is not None and ended.error.code is ErrorCode.DISK_FULL and "data" in ended.error.message
        assert "POST /chunks" not in server.asked
        bad = VolumeMount(volume="v", name="data", path=str(h.notebook))
        container = await h.gateway.start("c2", h.mirror(), engine="gvisor", volumes=[bad])
        _, ended = await container.until(m.ContainerEnded, seconds=60)
        assert (
            ended.error is not None
            and ended.error.code is ErrorCode.BAD_ARGUMENT
            and str(h.notebook) in ended.error.message
        )


async def test_without_a_sandbox_a_volume_is_a_folder_of_copies(short_path: Path, server: VolumeServer) -> None:
    server.write("v", {"a": b"1", "d/b": b"2"})
    async with house(short_path, volumes_url=server.url, engine="process") as h:
        one, _ = await h.ready("c1", session="s-one", engine="process", volumes=[DATA])
        await cell(one, "0", "pass")
        (where,) = [t for t in told(one) if "/data" in t]
        place = where.split(" is at ")[1].split(":")[0]
        code = (
            DOOR
            + f"p = {place!r}\nprint(sorted(os.listdir(p)))\nopen(p + '/a', 'a').write('+'); os.remove(p + '/d/b'); print(commit('data'))"
        )
        assert await cell(one, "1", code) == "['a', 'd']\n2\n"
        assert server.read("v") == {"a": b"1+", "d": b""} and (short_path / "data/volumes").exists()
        server.write("v", {"c": b"3"}, deleted=("a",))
        assert (
            await cell(one, "2", "print(reload('data'), sorted(os.listdir(p)), open(p + '/c').read())")
            == "3 ['c', 'd'] 3\n"
        )
        await cell(one, "3", "open(p + '/last', 'w').write('x')")
        await stop(h, one)
        assert server.read("v")["last"] == b"x"
