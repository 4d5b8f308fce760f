"""Buckets in real sandboxes: read, written back, bounded to their prefix, read-only, parked, refused, and a server that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.buckets import bucket_options
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.states import EndReason
from cellburst_protocol.volume_mounts import parse_volumes
from cellburst_runtime import bucket_mount
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.proc import HELPER_MARK, marked
from tests.fakes.fake_gateway import FakeContainer
from tests.fakes.s3 import BUCKET, S3
from tests.worker.test_parking_gvisor import House, cell, house, until

pytestmark = pytest.mark.gvisor

NOBODY = "http://127.0.0.1:9"  # volumes are asked for nowhere in these tests


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    made = S3()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = ("--contimeout=1500ms", "--timeout=1500ms", "--low-level-retries=1", "--retries=1")
    monkeypatch.setattr(bucket_mount, "_HARDLY_TRIED", quick)


def shown(s3: S3, what: str, keys: dict[str, str] | None = None) -> dict[str, object]:
    """The fields of StartContainer for a line's `volumes=`, where URL is the server's."""
    mounts = parse_volumes(what.replace("URL", s3.url))
    given = s3.keys if keys is None else keys
    return {
        "volumes": mounts,
        "bucket_keys": {mount.volume: bucket_options(mount.bucket, given) for mount in mounts if mount.bucket},
    }


async def ended(h: House, container: FakeContainer) -> None:
    h.gateway.notify(m.StopContainer(container=container.id, reason=EndReason.STOPPED))
    await container.until(m.ContainerEnded, seconds=60)
    await until(lambda: container.id not in h.worker.containers)


async def test_a_bucket_is_a_folder(short_path: Path, s3: S3) -> None:
    s3.put("in/a.txt", b"one")
    s3.put("in/deep/b.txt", b"two")
    s3.put("private/c.txt", b"not yours")
    what = f"/data:s3://{BUCKET}/in?secret=aws&endpoint=URL,/all:s3://{BUCKET}?secret=aws&endpoint=URL&ro"
    async with house(short_path, warm=False, volumes_url=NOBODY) as h:
        one, _ = await h.ready("c1", session="s-one", **shown(s3, what))
        code = "import os\nprint(sorted(os.listdir('/data')), open('/data/a.txt').read(), open('/data/deep/b.txt').read(), os.path.exists('/data/private'))"
        assert await cell(one, "1", code) == "['a.txt', 'deep'] one two False\n"
        # What a program closed is in the bucket while it goes on; also what it appended, renamed, made in a new folder.
        code = "open('/data/new.txt', 'w').write('mine')\nopen('/data/a.txt', 'a').write(' more')\nos.makedirs('/data/x/y'); open('/data/x/y/z', 'wb').write(b'z' * 3_000_000)\nos.rename('/data/deep/b.txt', '/data/deep/c.txt')"
        await cell(one, "2", code)
        wanted = {
            "in/new.txt": b"mine",
            "in/a.txt": b"one more",
            "in/x/y/z": b"z" * 3_000_000,
            "in/deep/c.txt": b"two",
            "private/c.txt": b"not yours",
        }
        await until(lambda: s3.all() == wanted)
        bad = "for f in (lambda: open('/all/in/new.txt', 'a'), lambda: open('/all/n', 'w'), lambda: os.remove('/all/in/a.txt')):\n    try: f(); print('done')\n    except OSError as e: print(e.errno)\nprint(open('/all/private/c.txt').read())"
        assert await cell(one, "3", bad) == "30\n30\n30\nnot yours\n"
        # A mapped file, as numpy and torch read them.
        code = "import mmap\nf = open('/data/x/y/z', 'rb'); m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); print(m[2_999_999:]); m.close(); f.close()"
        assert await cell(one, "4", code) == "b'z'\n"
        # The keys are in the environment of what shows the bucket, and nowhere else.
        folder = short_path / "run" / "containers" / "c1"
        helpers = marked("c1", HELPER_MARK)
        assert len(helpers) == 2
        for key in s3.keys.values():
            assert all(key.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in helpers)
            inside = f"import glob\nprint(any({key!r} in open(f, errors='replace').read() for f in glob.glob('/proc/*/environ')))"
            assert await cell(one, f"5{key[:4]}", inside) == "False\n"
            for path in folder.glob("*.json"):
                assert key not in path.read_text()
        # What was closed last is uploaded at the end.
        await cell(one, "6", "open('/data/last', 'wb').write(b'l' * 10_000_000)")
        await ended(h, one)
        assert s3.all()["in/last"] == b"l" * 10_000_000
        assert not marked("c1", HELPER_MARK) and not mounts_below(short_path) and not folder.exists()


async def test_a_parked_session_gets_its_bucket_again(short_path: Path, s3: S3) -> None:
    s3.put("park/a", b"before")
    what = shown(s3, f"/data:s3://{BUCKET}/park?secret=aws&endpoint=URL")
    async with house(short_path, warm=False, volumes_url=NOBODY) as h:
        one, _ = await h.ready("c1", session="s-one", **what)
        await cell(one, "1", "x = 5; f = open('/data/log', 'w'); f.write('one '); f.flush(); g = open('/data/a')")
        await h.park(one, "p1")
        assert not marked("c1", HELPER_MARK) and not mounts_below(short_path / "run" / "containers")
        assert s3.all()["park/log"] == b"one "  # what it had written until then is not lost with the worker
        s3.put("park/new", b"meanwhile")
        two, ready = await h.ready("c2", session="s-one", parked="p1", **what)
        assert ready.start == "snapshot", [(p.name, p.detail) for p in ready.phases]
        code = "import os\nprint(x, g.read(), sorted(os.listdir('/data')), open('/data/new').read())\nf.write('two'); f.close()"
        assert await cell(two, "2", code) == "5 before ['a', 'log', 'new'] meanwhile\n"
        await until(lambda: s3.all()["park/log"] == b"one two")
        await ended(h, two)


@pytest.mark.parametrize(
    ("keys", "bucket", "code", "says"),
    [
        ({"AWS_ACCESS_KEY_ID": "AKIANOBODYNOBODY", "AWS_SECRET_ACCESS_KEY": "n" * 30}, BUCKET, ErrorCode.FORBIDDEN, "secret aws"),
        (None, "no-such-bucket", ErrorCode.NOT_FOUND, "no-such-bucket"),
    ],
)  # fmt: skip
async def test_what_cannot_be_opened_is_said_at_the_start(
    short_path: Path, s3: S3, keys: dict[str, str] | None, bucket: str, code: ErrorCode, says: str
) -> None:
    async with house(short_path, warm=False, volumes_url=NOBODY) as h:
        await h.gateway.joined()
        what = shown(s3, f"/data:s3://{bucket}?secret=aws&endpoint=URL", keys)
        container = await h.gateway.start("c1", h.mirror(), engine="gvisor", **what)
        _, end = await container.until(m.ContainerEnded, seconds=60)
        assert end.error is not None and end.error.code is code, end.error
        assert says in end.error.message and "AKIANOBODYNOBODY" not in end.error.message
        await until(lambda: "c1" not in h.worker.containers)
        assert not marked("c1", HELPER_MARK) and not mounts_below(short_path)


async def test_a_server_that_hangs_or_is_gone_is_an_error_and_no_hang(short_path: Path) -> None:
    own = S3()
    try:
        own.put("a", b"a" * 1000)
        own.put("b", b"b" * 2000)
        what = shown(own, f"/data:s3://{BUCKET}?secret=aws&endpoint=URL")
        read = "try: print(len(open('/data/a').read()))\nexcept OSError as e: print(e.errno)"
        async with house(short_path, warm=False, volumes_url=NOBODY) as h:
            one, _ = await h.ready("c1", session="s-one", **what)
            two, _ = await h.ready("c2", session="s-two", **what)
            assert await cell(one, "1", "import os; print(os.listdir('/data'))") == "['a', 'b']\n"
            assert await cell(two, "1", "import os; print(os.listdir('/data'))") == "['a', 'b']\n"
            own.stop()
            assert await cell(one, "2", read) == "5\n"
            # A container whose code waits for it can be ended all the same.
            await two.run("2", "print('waits', flush=True); open('/data/b').read()")
            await until(lambda: "waits" in two.text("2"))
            await ended(h, two)
            own.go_on()
            assert await cell(one, "3", f"{read}\nlost = open('/data/lost', 'w')") == "1000\n"
            own.close()
            assert await cell(one, "4", read.replace("/a'", "/b'")) == "5\n"
            # What cannot be uploaded is told by its name.
            await cell(one, "5", "n = lost.write('x'); lost.close()")
            await ended(h, one)
            assert [n.text for _, n in one.of(m.Notice) if f"s3://{BUCKET}: lost:" in n.text]
            assert not marked("c1", HELPER_MARK) and not marked("c2", HELPER_MARK) and not mounts_below(short_path)
    finally:
        own.close()


async def test_without_a_sandbox_it_is_a_folder_that_the_first_output_names(short_path: Path, s3: S3) -> None:
    s3.put("plain/a", b"one")
    what = shown(s3, f"/data:s3://{BUCKET}/plain?secret=aws&endpoint=URL")
    async with house(short_path, warm=False, volumes_url=NOBODY, engine="process") as h:
        one, _ = await h.ready("c1", session="s-one", engine="process", **what)
        await cell(one, "0", "pass")
        (where,) = [n.text for _, n in one.of(m.Notice) if f"s3://{BUCKET}/plain is at" in n.text]
        place = where.split(" is at ")[1].split(":")[0]
        code = f"p = {place!r}\nprint(open(p + '/a').read()); n = open(p + '/b', 'w').write('two')"
        assert await cell(one, "1", code) == "one\n"
        await ended(h, one)
        assert s3.all()["plain/b"] == b"two"
        assert not marked("c1", HELPER_MARK) and not mounts_below(short_path)
