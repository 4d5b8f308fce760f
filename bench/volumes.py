"""A gigabyte into a volume and out of it, the same file again, and 10,000 small files; beside `cp` on the same disk."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from .harness import House
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
        yield from _figures(house.folder)


def _figures(folder: Path) -> Iterator[Figure]:
    from cellburst import Volume

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
    source.unlink()
    yield from _small(volume, folder)
    Volume.delete("bench")


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
