"""When a worker reads layers by itself, and what it does about those that are damaged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

from cellburst_protocol.errors import ErrorCode, error
from cellburst_runtime.image_verify import Damaged, Verified
from cellburst_runtime.images import Images
from cellburst_worker.image_watch import ImageWatch, machine_is_busy
from cellburst_worker.options import parse

GIVEN = ["--join", "http://127.0.0.1:1", "--token", "t", "--data-dir", "/d", "--run-dir", "/r"]


class DueImages:
    """Layers that are due, one at each call; then none."""

    def __init__(self, due: int = 0) -> None:
        self.due, self.asked, self.damaged = due, 0, list[Damaged]()
        self.refuses: Exception | None = None

    async def verify_next(self, *, every_seconds: float) -> Verified:
        assert every_seconds == 5.0
        self.asked += 1
        if self.refuses:
            why, self.refuses = self.refuses, None
            raise why
        if not self.due:
            return Verified()
        self.due -= 1
        damaged, self.damaged = self.damaged, []
        return Verified(layers=1, damaged=damaged)


async def watched(images: DueImages, until: Callable[[], bool], fails: int = 0, **more: object) -> list[int]:
    """Run a watch until then. How often damage was told."""
    told: list[int] = []

    async def damaged() -> None:
        told.append(images.asked)
        if len(told) <= fails:
            raise KeyError("a test")

    options = {"busy": lambda: False, "machine_busy": lambda: False, **more}
    watch = ImageWatch(
        cast(Images, images), options["busy"], damaged, look_seconds=0.001, every_seconds=5.0,  # type: ignore[arg-type]
        machine_busy=options["machine_busy"],  # type: ignore[arg-type]
    )  # fmt: skip
    running = asyncio.create_task(watch.run())
    try:
        async with asyncio.timeout(30):
            while not until():
                await asyncio.sleep(0.001)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return told


async def test_all_that_is_due_is_read_and_damage_is_told(caplog: pytest.LogCaptureFixture) -> None:
    images = DueImages(3)
    images.damaged = [Damaged(key="ab", step="apt_install git", size_bytes=1, problems=["a: another content"])]
    images.refuses = error(ErrorCode.STORE, "the disk is broken")
    with caplog.at_level(logging.WARNING):
        assert await watched(images, lambda: images.asked > 5) == [2]
    assert images.due == 0 and "damaged on the disk" in caplog.text and "could not be compared" in caplog.text


async def test_nothing_that_goes_wrong_ends_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """The worker ends with it."""
    images = DueImages(3)
    images.damaged = [Damaged(key="ab", step="", size_bytes=1, problems=["a: another content"])]
    images.refuses = ValueError("no such line")
    assert await watched(images, lambda: images.asked > 5, fails=1) == [2]
    assert images.due == 0
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError, KeyError]


@pytest.mark.parametrize("which", ["busy", "machine_busy"])
async def test_nothing_is_read_under_load(which: str) -> None:
    images, looks = DueImages(3), list[int]()

    def busy() -> bool:
        looks.append(images.asked)
        return len(looks) != 5  # free for one moment

    await watched(images, lambda: len(looks) > 9, **{which: busy})
    assert images.asked == 1 and looks[:5] == [0] * 5 and set(looks[5:]) == {1}


def test_a_machine_is_busy_above_half_of_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    for load, busy in ((1.9, False), (2.1, True)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 9.0, 9.0))
        assert machine_is_busy() is busy


def test_what_images_and_snapshots_may_take_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    plain = parse(GIVEN)
    assert (plain.max_images_bytes, plain.max_snapshots_bytes, plain.data_folder) == (None, None, Path("/d"))
    given = parse([*GIVEN, "--max-images-bytes", str(10 << 30), "--max-snapshots-bytes", str(5 << 30)])
    assert (given.max_images_bytes, given.max_snapshots_bytes) == (10 << 30, 5 << 30)
    for wrong in ("20", "20GiB", "-1"):
        with pytest.raises(SystemExit):
            parse([*GIVEN, f"--max-images-bytes={wrong}"])
        assert "number of bytes" in capsys.readouterr().err
