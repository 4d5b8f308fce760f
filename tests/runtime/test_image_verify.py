"""Layers compared with their checksums, by a process that gives way; what is kept of downloads, and how much."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest

from cellburst_protocol.images import RunCommands
from cellburst_runtime.image_downloads import Downloads
from cellburst_runtime.image_room import MAX_CACHE_BYTES
from cellburst_runtime.image_store import ImageStore, LayerMeta
from cellburst_runtime.image_verify import SLOW_BYTES_PER_SECOND, most_overdue, verify
from cellburst_runtime.mounts import mount, unmount_below
from cellburst_runtime.removal import Remover
from cellburst_runtime.tools import find_uv, run_command
from tests.fakes.images import ImageHouse, content

DAY = 86_400.0


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    made = ImageHouse(tmp_path)
    yield made
    await made.end()


def decay(path: Path) -> None:
    """Change one byte and nothing that a look without reading sees."""
    status, text = path.stat(), path.read_bytes()
    path.write_bytes(bytes([text[0] ^ 1]) + text[1:])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_layer_is_not_due_again_at_once_where_the_disk_takes_no_note_of_it(tmp_path: Path) -> None:
    store = ImageStore(tmp_path, cast(Remover, None))

    def made(instance: str) -> LayerMeta:
        meta = LayerMeta(key="ab", instance=instance, made_unix_seconds=1000.0)
        (store.layers / "ab").mkdir(exist_ok=True)
        (store.layers / "ab" / "meta.json").write_bytes(msgspec.json.encode(meta))
        return meta

    meta = made("first")
    note = store.layers / "ab" / "verified"
    note.symlink_to(tmp_path / "no" / "such" / "folder")  # cannot be written, as on a full disk
    assert most_overdue(store, time.time(), DAY) == meta
    store.verified(meta)
    assert not note.exists() and most_overdue(store, time.time(), DAY) is None
    assert most_overdue(store, time.time() + DAY + 1, DAY) == meta
    anew = made("second")
    assert most_overdue(store, time.time(), DAY) == anew
    note.unlink()
    store.verified(anew)
    assert note.exists() and most_overdue(store, time.time(), DAY) is None


@pytest.mark.gvisor
async def test_one_layer_at_a_time_the_longest_ago_first(house: ImageHouse) -> None:
    builder = house.builder()
    with await house.build(house.recipe("echo one > /a", "echo two > /b"), builder) as image:
        assert (await builder.verify_next(every_seconds=DAY)).layers == 0  # all were made just now
        metas = {meta.key: meta for meta, _ in builder.store.list_layers()}
        for number, key in enumerate(image.keys):
            (house.images / "layers" / key / "verified").touch()
            os.utime(house.images / "layers" / key / "verified", (1000 + number, 1000 + number))
        decay(image.layers[1] / "a")  # of the third
        seen = []
        while (found := await builder.verify_next(every_seconds=DAY)).layers:
            assert found.layers == 1
            seen.append([layer.key for layer in found.damaged])
        assert seen == [[], [], [image.keys[2]], []]
        assert min(builder.store.verified_at(meta) for key, meta in metas.items() if key != image.keys[2]) > 2000
        assert content(image, "/b") == b"two\n"  # who holds it keeps it
    with await house.build(house.recipe("echo one > /a", "echo two > /b"), builder) as again:
        assert content(again, "/a") == b"one\n" and again.keys == image.keys and again.instance != image.instance
        assert (await builder.verify()).damaged == []


@pytest.mark.gvisor
async def test_a_layer_that_was_made_anew_or_deleted_meanwhile_is_left_alone(house: ImageHouse) -> None:
    builder = house.builder()
    recipe = house.recipe(RunCommands(commands=["echo x > /x"], force=True))
    (await house.build(recipe, builder)).release()
    before = [meta for meta, _ in builder.store.list_layers()]
    forced = max(before, key=lambda meta: meta.made_unix_seconds)
    other = type(forced)(
        **{name: getattr(forced, name) for name in forced.__struct_fields__} | {"instance": "of before"}
    )
    decay(house.images / "layers" / forced.key / "fs" / "x")
    assert (await verify(builder.store, [other])).layers == 0 and not await builder.store.drop(other)
    assert (house.images / "layers" / forced.key).exists()
    await builder.prune(max_bytes=0)
    assert (await verify(builder.store, before)).layers == 0 and most_overdue(builder.store, 1e12, DAY) is None


async def test_reading_slowly_gives_way_and_ends_with_its_asker(tmp_path: Path) -> None:
    """In a process of its own, since it cannot get its priority back."""
    code = (
        "import os, sys, time; from cellburst_runtime import image_verify as v; v._give_way();"
        "assert os.sched_getscheduler(0) == os.SCHED_IDLE; pace = v._Pace(1 << 20); began = time.monotonic();"
        "pace.rest(200 << 10); assert time.monotonic() - began >= 0.19; pace._parent = -1; pace.rest(1); os._exit(7)"
    )
    ended = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], check=False, timeout=60)
    assert ended.returncode == 1 and SLOW_BYTES_PER_SECOND > 1 << 20


@pytest.mark.gvisor
async def test_a_reading_that_is_given_up_ends(house: ImageHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = house.builder()
    (await house.build(house.recipe("echo one > /a"), builder)).release()
    monkeypatch.setattr("cellburst_runtime.image_verify.sys.executable", "/bin/busybox-that-reads-for-ever")
    with pytest.raises(OSError):
        await builder.verify()
    reader = house.folder / "reader"
    reader.write_text('#!/bin/sh\necho $$ > "$0.pid"\nexec sleep 1000\n')
    reader.chmod(0o755)
    monkeypatch.setattr("cellburst_runtime.image_verify.sys.executable", str(reader))
    reading = asyncio.create_task(builder.verify())
    pid_file = house.folder / "reader.pid"
    async with asyncio.timeout(60):
        while not (pid_file.exists() and pid_file.read_text().strip()):
            await asyncio.sleep(0.01)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not Path(f"/proc/{pid_file.read_text().strip()}").exists()


# -- room and downloads ---------------------------------------------------------------------------------------------------


@pytest.mark.gvisor
async def test_the_bound_follows_the_disk_where_none_is_given(house: ImageHouse) -> None:
    house.images.mkdir(parents=True)
    await mount("none", house.images, kind="tmpfs", options="size=24m")
    try:
        builder = house.builder()
        assert 11 << 20 <= builder.room.bound_bytes() <= 12 << 20
        for number in range(4):  # 4 MiB each, and the base: more than half of the disk after two
            (await house.build(house.recipe(f"echo {number}; dd if=/dev/zero of=/z bs=1M count=4"), builder)).release()
            assert sum(meta.size_bytes for meta, _ in builder.store.list_layers()) <= 12 << 20
        builder.room.max_bytes = 1 << 30
        assert builder.room.bound_bytes() == 1 << 30 and MAX_CACHE_BYTES == 50 << 30
    finally:
        await unmount_below(house.images)


@pytest.mark.gvisor
async def test_room_is_made_before_a_layer_and_not_only_after_a_build(house: ImageHouse) -> None:
    builder = house.builder()
    (await house.build(house.recipe("dd if=/dev/zero of=/z bs=1M count=8"), builder)).release()
    before = {meta.key for meta, _ in builder.store.list_layers()}
    builder.room.max_bytes = 6 << 20
    with pytest.raises(Exception, match="exit code 3"):  # a build that fails deletes too
        await house.build(house.recipe("exit 3"), builder)
    left = {meta.key for meta, _ in builder.store.list_layers()}
    assert len(before - left) == 1 and left < before  # and its own base is not what goes


@pytest.fixture
async def downloads(tmp_path: Path) -> Downloads:
    """A cache with two packages, the first from long ago, and a Python from before that."""
    found = Downloads(tmp_path / "uv-cache", tmp_path / "pythons", find_uv())
    assert found.size_bytes() == 0 and await found.bound(0) == 0 and await found.forget({(1, 1)}) == []
    for name in ("six", "tomli-w"):
        await install(found, tmp_path / name, name)
    archive = next(path.parent for path in found.cache.glob("archive-v*/*/six.py"))
    os.utime(archive, (2000, 2000))
    (tmp_path / "pythons/cpython-3.x").mkdir(parents=True)
    (tmp_path / "pythons/cpython-3.x/python").write_bytes(bytes(100_000))
    os.utime(tmp_path / "pythons/cpython-3.x", (1000, 1000))
    return found


async def install(downloads: Downloads, target: Path, package: str) -> None:
    words = ["pip", "install", "--python", sys.executable, "--target", str(target), "--link-mode", "hardlink", package]
    done = await run_command([find_uv(), *words, "--cache-dir", str(downloads.cache)], seconds=120.0)
    assert done.ok, done.reason()


async def test_the_oldest_downloads_go_first(downloads: Downloads, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "six")  # its files are the cache's own again; those of tomli-w are elsewhere too
    whole = downloads.size_bytes()
    async with downloads.used():
        assert await downloads.bound(1) == whole  # not while a build uses them
    assert await downloads.bound(whole) == whole
    assert await downloads.bound(whole - 1) < whole and not any(downloads.pythons.iterdir())
    assert list(downloads.cache.glob("archive-v*/*/six.py"))
    before = downloads.size_bytes()
    assert await downloads.bound(before - 1) < before and not list(downloads.cache.glob("archive-v*/*/six.py"))
    assert list(downloads.cache.glob("archive-v*/*/tomli_w"))
    await install(downloads, tmp_path / "six", "six")  # uv knows that it is gone
    assert (tmp_path / "six/six.py").is_file()
    assert await downloads.bound(0) < 100_000 and not list(downloads.cache.glob("archive-v*/*"))


async def test_a_damaged_file_goes_out_of_the_cache_too(downloads: Downloads, tmp_path: Path) -> None:
    whole = (tmp_path / "six/six.py").read_bytes()
    decay(tmp_path / "six/six.py")
    status = (tmp_path / "six/six.py").stat()
    assert await downloads.forget({(status.st_dev, status.st_ino)}) == ["six"]
    assert list(downloads.cache.glob("archive-v*/*/tomli_w"))
    await install(downloads, tmp_path / "again", "six")
    assert (tmp_path / "again/six.py").read_bytes() == whole
