"""Network file systems in real sandboxes: what one container writes the other sees at once; read-only, parked, elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.volume_mounts import parse_volumes
from cellburst_runtime.mounts import mounts_below
from cellburst_worker.volume_desk import VolumeDesk
from tests.worker.test_bucket_gvisor import NOBODY, ended
from tests.worker.test_parking_gvisor import House, cell, house

pytestmark = pytest.mark.gvisor


@pytest.fixture
def welcome(monkeypatch: pytest.MonkeyPatch, short_path: Path) -> Path:
    """The worker believes that the gateway is on this machine; where that has network file systems."""
    folder = short_path / "shared"

    def welcomed(desk: VolumeDesk, *_: object) -> None:
        desk.beside_gateway = True

    monkeypatch.setattr(VolumeDesk, "welcomed", welcomed)
    return folder


async def test_two_containers_share_a_folder_live(short_path: Path, welcome: Path) -> None:
    shared = welcome
    (shared / "scratch").mkdir(parents=True)
    shared.chmod(0o700)
    (shared / "scratch").chmod(0o777)
    what = parse_volumes("/s:nfs://scratch")
    async with house(short_path, warm=False, volumes_url=NOBODY) as h:
        one, _ = await h.ready("c1", session="s-one", volumes=what, shared_folder=str(shared))
        two, _ = await h.ready("c2", session="s-two", volumes=what, shared_folder=str(shared))
        three, _ = await h.ready(
            "c3", session="s-three", volumes=parse_volumes("/s:nfs://scratch?ro"), shared_folder=str(shared)
        )
        await cell(one, "1", "import os\nf = open('/s/log', 'w'); f.write('one'); f.flush()")
        assert (
            await cell(two, "1", "import os\ng = open('/s/log'); print(g.read(), os.listdir('/s'))") == "one ['log']\n"
        )
        # Also to files that both have open, and to names that are exchanged under them.
        await cell(
            one,
            "2",
            "f.write(' more'); f.flush(); open('/s/draft', 'w').write('new'); os.rename('/s/draft', '/s/file')",
        )
        assert await cell(two, "2", "print(g.read(), open('/s/file').read(), sorted(os.listdir('/s')))") == (
            " more new ['file', 'log']\n"
        )
        await cell(two, "3", "open('/s/log', 'a').write('!'); os.remove('/s/file')")
        assert await cell(one, "3", "print(open('/s/log').read(), os.path.exists('/s/file'))") == "one more! False\n"
        bad = "import os\nfor f in (lambda: open('/s/log', 'a'), lambda: open('/s/n', 'w'), lambda: os.remove('/s/log')):\n    try: f(); print('done')\n    except OSError as e: print(e.errno)\nprint(open('/s/log').read())"
        assert await cell(three, "1", bad) == "30\n30\n30\none more!\n"
        # A parked session goes on with the folder as it is then.
        await h.park(two, "p2")
        await cell(one, "4", "f.write('?'); f.close(); open('/s/meanwhile', 'w').write('x')")
        two, ready = await h.ready("c4", session="s-two", parked="p2", volumes=what, shared_folder=str(shared))
        assert ready.start == "snapshot", [(p.name, p.detail) for p in ready.phases]
        assert await cell(two, "4", "print(os.listdir('/s') == ['meanwhile', 'log'] or sorted(os.listdir('/s')))") in (
            "True\n", "['log', 'meanwhile']\n",
        )  # fmt: skip
        for container in (one, two, three):
            await ended(h, container)
        assert not mounts_below(short_path)
        # Ends and removals do not reach into it.
        assert sorted(path.name for path in (shared / "scratch").iterdir()) == ["log", "meanwhile"]


async def refused(h: House, shared: Path) -> ErrorInfo:
    await h.gateway.joined()
    container = await h.gateway.start(
        "c1", h.mirror(), engine="gvisor", volumes=parse_volumes("/s:nfs://scratch"), shared_folder=str(shared)
    )
    _, end = await container.until(m.ContainerEnded, seconds=60)
    assert end.error is not None
    return end.error


async def test_a_worker_elsewhere_says_so(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VolumeDesk, "welcomed", lambda desk, *_: None)  # it could not read the gateway's proof
    async with house(short_path, warm=False, volumes_url=NOBODY) as h:
        error = await refused(h, short_path)
        assert error.code is ErrorCode.START_FAILED and "gateway's machine" in error.message


async def test_one_that_was_deleted_meanwhile(short_path: Path, welcome: Path) -> None:
    async with house(short_path, warm=False, volumes_url=NOBODY) as h:
        error = await refused(h, welcome)
        assert error.code is ErrorCode.NOT_FOUND and "nfs://scratch" in error.message


async def test_without_a_sandbox_it_is_the_folder_itself(short_path: Path, welcome: Path) -> None:
    shared = welcome
    (shared / "scratch").mkdir(parents=True)
    async with house(short_path, warm=False, volumes_url=NOBODY, engine="process") as h:
        one, _ = await h.ready(
            "c1",
            session="s-one",
            engine="process",
            volumes=parse_volumes("/s:nfs://scratch"),
            shared_folder=str(shared),
        )
        await cell(one, "0", "pass")
        (where,) = [n.text for _, n in one.of(m.Notice) if "/s" in n.text and "nfs://scratch" in n.text]
        place = where.split(" is at ")[1].split(":")[0]
        await cell(one, "1", f"open({place!r} + '/a', 'w').write('x')")
        assert (shared / "scratch" / "a").read_text() == "x"
        await ended(h, one)
        assert (shared / "scratch" / "a").read_text() == "x"
