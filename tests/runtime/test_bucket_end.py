"""The end of a bucket: uploads have their time however slow the rest is, and what may be lost is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cellburst_protocol.buckets import BucketSource, bucket_options
from cellburst_runtime import bucket_mount, removal
from cellburst_runtime.bucket_mount import Bucket, BucketMount
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine_child import Child
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.proc import HELPER_MARK, kill_all, marked, process_stat, waiting_for_fuse
from cellburst_runtime.record import ContainerRecord
from cellburst_runtime.removal import Remover
from tests.fakes.s3 import BUCKET, S3

pytestmark = pytest.mark.gvisor  # root, and FUSE
WAIT_SECONDS = 60.0


@pytest.fixture
def s3() -> Iterator[S3]:
    made = S3()
    try:
        yield made
    finally:
        made.close()


@dataclass
class Shown:
    """A bucket that is shown, and what was told of it."""

    id: str
    mount: BucketMount
    told: list[str]

    @property
    def place(self) -> Path:
        return self.mount.place

    @property
    def helpers(self) -> list[int]:
        return marked(self.id, HELPER_MARK)


@pytest.fixture
async def shown(s3: S3) -> AsyncIterator[Shown]:
    with tempfile.TemporaryDirectory(prefix="cbe") as base:
        source = BucketSource(name=BUCKET, endpoint_url=s3.url)
        bucket = Bucket(source, False, bucket_options(source, s3.keys))
        told: list[str] = []
        made = Shown(Path(base).name, BucketMount(bucket, Path(base) / "m", Path(base) / "cache", told.append), told)
        await made.mount.start(made.id, (os.getuid(), os.getgid()))
        try:
            yield made
        finally:
            await made.mount.close(flush=False)
            assert not made.helpers and not mounts_below(Path(base))


@dataclass(frozen=True)
class Slow(Remover):
    """Ending the rest takes until `go_on`."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    async def _end(self, record: ContainerRecord) -> None:
        await self.go_on.wait()


async def test_a_slow_end_costs_no_upload(s3: S3, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    remover, looks = Slow(Cgroups()), 0
    loop = asyncio.get_running_loop()

    def look(pids: Iterable[int]) -> set[int]:
        nonlocal looks
        looks += 1
        if looks == 4:
            loop.call_soon_threadsafe(remover.go_on.set)
        return waiting_for_fuse(pids)

    monkeypatch.setattr(removal, "HANGS_SECONDS", 0)
    monkeypatch.setattr(removal, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(removal, "waiting_for_fuse", look)
    with (shown.place / "late").open("wb") as file:
        s3.stop()
        file.write(b"l" * 100_000)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            await remover.end(ContainerRecord(id=shown.id, engine="gvisor", helpers=True))
        assert looks >= 4 and len(shown.helpers) == 1
    finally:
        s3.go_on()
    await shown.mount.close(flush=True)
    assert s3.all() == {"late": b"l" * 100_000} and not shown.told


def waits_for_it(pid: int, file: Path) -> bool:
    """Whether a reader has opened a file and waits for what is in it."""
    stat = process_stat(pid)
    if stat is None or stat.state not in "SD":
        return False
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(one) == str(file):
                return True
    return False


async def test_a_process_that_waits_for_a_bucket_is_ended_all_the_same(s3: S3, shown: Shown) -> None:
    s3.put("a", b"a" * 1000)
    assert (shown.place / "a").stat().st_size == 1000
    s3.stop()
    reader = await Child.start(["cat", str(shown.place / "a")])
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while not waits_for_it(reader.pid, shown.place / "a"):
                await asyncio.sleep(0.01)
        stat = process_stat(reader.pid)
        assert stat is not None
        record = ContainerRecord(
            id=shown.id, engine="gvisor", helpers=True, pid=reader.pid, start_ticks=stat.start_ticks
        )
        async with asyncio.timeout(WAIT_SECONDS):
            await Remover(Cgroups()).end(record)
            assert await reader.wait() == -9
        assert not shown.helpers
    finally:
        kill_all(shown.helpers)
        await reader.wait()
        await reader.close()
    await shown.mount.close(flush=True)
    (told,) = shown.told
    assert told.startswith(f"s3://{BUCKET}: uploads may be lost: ") and "signal 9" in told


async def test_what_shows_a_bucket_and_dies_is_told_at_once_and_once(shown: Shown) -> None:
    kill_all(shown.helpers)
    async with asyncio.timeout(WAIT_SECONDS):
        while not shown.told:
            await asyncio.sleep(0.01)
    assert "uploads may be lost" in shown.told[0] and "signal 9" in shown.told[0] and "restart" in shown.told[0]
    await shown.mount.close(flush=True)
    assert len(shown.told) == 1


async def test_what_took_too_long_at_the_end_is_told(s3: S3, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_mount, "FLUSH_SECONDS", 0.2)
    with (shown.place / "lost").open("wb") as file:
        s3.stop()
        file.write(b"l")
    await shown.mount.close(flush=True)
    s3.go_on()
    assert [text for text in shown.told if "uploads may be lost: those that took over" in text]


async def test_what_cannot_be_uploaded_at_the_end_is_told(s3: S3, shown: Shown) -> None:
    with (shown.place / "lost").open("wb") as file:
        s3.close()
        file.write(b"l")
    await shown.mount.close(flush=True)
    assert [text for text in shown.told if "lost" in text]
