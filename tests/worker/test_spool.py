"""The spool: numbers without gaps, bounds in memory and on disk, disks that refuse."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_worker.spool import Spool


def event(number: int) -> bytes:
    return b'{"t":"notice","text":"%d"}' % number


def fill(spool: Spool, count: int, size_bytes: int = 100) -> None:
    for _ in range(count):
        number = spool.last_sequence + 1
        assert spool.append(event(number), [bytes([number % 256]) * size_bytes], f"call-{number % 3}") == number


def check(spool: Spool, first: int, last: int, size_bytes: int = 100) -> None:
    for number in range(first, last + 1):
        message, buffers = spool.read(number)
        assert (message.sequence, message.call, bytes(message.event)) == (number, f"call-{number % 3}", event(number))
        assert [bytes(b) for b in buffers] == [bytes([number % 256]) * size_bytes]


def test_events_come_back_from_memory_and_from_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", memory_bytes=1000, segment_bytes=2000)
    fill(spool, 200)
    assert spool._memory_held_bytes <= 1000 + 200 and spool.waiting == 200
    check(spool, 1, 200)
    for outside in (0, 201):
        with pytest.raises(KeyError):
            spool.read(outside)
    spool.remove()
    assert not (tmp_path / "s").exists()


def test_acknowledged_events_leave_the_disk(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", memory_bytes=1000, segment_bytes=2000)
    fill(spool, 200)
    files = len(list((tmp_path / "s").iterdir()))
    spool.ack(150)
    assert len(list((tmp_path / "s").iterdir())) < files / 2
    check(spool, 151, 200)
    with pytest.raises(KeyError):
        spool.read(150)
    spool.ack(10)
    spool.ack(9999)
    assert spool.acked_sequence == 150
    spool.ack(200)
    fill(spool, 50)
    check(spool, 201, 250)
    assert sum(p.stat().st_size for p in (tmp_path / "s").iterdir()) < 50 * 400
    spool.remove()


def test_it_says_when_it_is_full_and_when_no_longer(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", limit_bytes=10_000, segment_bytes=2000)
    fill(spool, 20)
    assert not spool.full
    fill(spool, 80)
    assert spool.full
    spool.ack(100)
    assert not spool.full
    spool.remove()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.gvisor
def test_a_full_disk_loses_nothing(small_disk: Path) -> None:
    spool = Spool(small_disk / "s", memory_bytes=1000, segment_bytes=100_000)
    (small_disk / "other").write_bytes(b"x" * 600_000)
    fill(spool, 100, 10_000)
    assert spool.full and "space" in spool.disk_error
    check(spool, 1, 100, 10_000)
    spool.ack(5)
    assert spool.full  # still
    (small_disk / "other").unlink()
    spool.flush()
    assert not spool.disk_error
    fill(spool, 1, 10_000)
    check(spool, 6, 101, 10_000)
    spool.remove()


@pytest.mark.gvisor
def test_events_acknowledged_while_the_disk_was_full_leave_no_wrong_offsets(small_disk: Path) -> None:
    spool = Spool(small_disk / "s", memory_bytes=100, segment_bytes=10_000_000)
    (small_disk / "other").write_bytes(b"x" * 900_000)
    fill(spool, 40, 10_000)
    assert spool.full
    spool.ack(39)
    (small_disk / "other").unlink()
    fill(spool, 30, 10_000)
    check(spool, 40, 70, 10_000)
    spool.remove()
