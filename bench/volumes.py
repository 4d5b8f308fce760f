"""A gigabyte into a volume, read in a container and out of it, the same file again, and 10,000 small files; beside `cp`, and a
plain read, on the same disk."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from .harness import House, Kernel
from .report import Figure

BIG_BYTES = 1_000_000_000
BLOCK_BYTES = 8 * 1024**2
SMALL_FILES = 10_000
SMALL_BYTES = 300
ROUNDS = 3


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - start)


def _write_big(path: Path) -> None:
    """Bytes that are in no chunk yet, and a file that counts as settled when it is put the second time."""
    with open(path, "wb") as file:
        left = BIG_BYTES
        while left:
            left -= file.write(os.urandom(min(BLOCK_BYTES, left)))


def volumes(house: House) -> Iterator[Figure]:
    """Medians of rounds. The peer is `cp` of the same file on the same disk in the same round: on a disk that is slower than the
    target both say so."""
    with mock.patch.dict(os.environ, {**house.environment, "XDG_CACHE_HOME": str(house.folder / "cache")}):
        yield from _figures(house)


def _figures(house: House) -> Iterator[Figure]:
    from cellburst import Volume

    folder = house.folder

    volume = Volume.from_name("bench", create_if_missing=True)
    volume.info()
    source, copy, out = folder / "big", folder / "copy", folder / "out"
    cps: list[float] = []
    puts: list[float] = []
    agains: list[float] = []
    gets: list[float] = []
    for _ in range(ROUNDS):
        _write_big(source)
        with _timed(cps):
            shutil.copyfile(source, copy)
        copy.unlink()
        time.sleep(2.5)  # the second put is of a file that has settled
        for seconds in (puts, agains):
            with _timed(seconds), volume.batch_upload(force=True) as batch:
                batch.put_file(source, "/big")
        with _timed(gets):
            volume.download("/big", out)
        out.unlink()
    peer = f"cp: {', '.join(f'{BIG_BYTES / 1e6 / s:.0f}' for s in cps)} MB/s"
    for name, seconds in (("put", puts), ("get", gets)):
        rates = [BIG_BYTES / 1e6 / s for s in seconds]
        yield Figure(
            f"volume: 1 GB file by {name}, median", statistics.median(rates), "MB/s", 200.0, "min",
            f"rounds: {', '.join(f'{r:.0f}' for r in rates)}; {peer}",
        )  # fmt: skip
    yield Figure(
        "volume: the same file put again",
        statistics.median(agains),
        "s",
        0.5,
        "max",
        ", ".join(f"{s:.2f}" for s in agains),
    )
    kernel = house.kernel()
    try:
        yield from _read_inside(kernel, source)
        source.unlink()
        yield from _small(volume, folder)
        yield from _reload(kernel)
        kernel.check("%modal stop")
    finally:
        kernel.close()
    Volume.delete("bench", used=True)


_READ = f"""
import os, time
def read(path):
    start, size = time.perf_counter(), 0
    with open(path, "rb", buffering=0) as file:
        room = bytearray({BLOCK_BYTES})
        while got := file.readinto(room):
            size += got
    return size / 1e6 / (time.perf_counter() - start)
"""


def _read_inside(kernel: Kernel, source: Path) -> Iterator[Figure]:
    """The volume's file as code in a container reads it, by blocks, each round beside the same program outside."""
    start = time.perf_counter()
    kernel.check(f"%%modal cpu=2 volumes=/bench:bench\n{_READ}")
    to_first_cell = time.perf_counter() - start
    outside: dict[str, Any] = {}
    exec(_READ, outside)  # the same program
    rates, peers = [], []
    for _ in range(ROUNDS):
        rates.append(float(kernel.check("%%modal\nprint(read('/bench/big'))").text.split()[-1]))
        peers.append(outside["read"](source))
    yield Figure(
        "volume: 1 GB file read in a container, median", statistics.median(rates), "MB/s", 200.0, "min",
        f"rounds: {', '.join(f'{r:.0f}' for r in rates)}; outside: {', '.join(f'{r:.0f}' for r in peers)} MB/s; "
        f"start with the volume to fetch: {to_first_cell:.1f} s",
    )  # fmt: skip


def _reload(kernel: Kernel) -> Iterator[Figure]:
    """10,000 files that another program committed, from `reload()` until they are there."""
    code = "import time\nfrom cellburst.volume_door import reload\nstart = time.perf_counter(); reload('bench')\n"
    counted = "print(time.perf_counter() - start, sum(len(files) for _, _, files in os.walk('/bench/small')))"
    seconds, files = kernel.check(f"%%modal\n{code}{counted}").text.split()[-2:]
    if int(files) != SMALL_FILES:
        raise RuntimeError(f"reload() showed {files} of {SMALL_FILES} files")
    yield Figure(
        "volume: 10,000 small files by reload() in a container", SMALL_FILES / float(seconds), "files/s", 1000.0, "min",
        f"{float(seconds):.2f} s",
    )  # fmt: skip


def _small(volume: object, folder: Path) -> Iterator[Figure]:
    from cellburst import Volume

    assert isinstance(volume, Volume)
    tree = folder / "small"
    for number in range(SMALL_FILES):
        path = tree / f"d{number // 100}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(SMALL_BYTES))
    cps: list[float] = []
    puts: list[float] = []
    gets: list[float] = []
    with _timed(cps):
        shutil.copytree(tree, folder / "small-copy")
    with _timed(puts), volume.batch_upload() as batch:
        batch.put_directory(tree, "/small")
    with _timed(gets):
        volume.download("/small", folder / "got")
    peer = f"shutil.copytree: {SMALL_FILES / cps[0]:.0f} files/s"
    for name, seconds in (("put and committed", puts), ("got", gets)):
        yield Figure(f"volume: 10,000 small files {name}", SMALL_FILES / seconds[0], "files/s", 1000.0, "min", peer)
