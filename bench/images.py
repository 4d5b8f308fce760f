"""Images: an unchanged recipe again, and a layer of packages against a virtual environment made by pip."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cellburst import Image
from cellburst_runtime.runtime import Runtime

from .harness import House
from .report import Figure

ROUNDS = 3
PACKAGES = ("pandas", "scikit-learn")


async def _build(house: House, image: Image, rounds: int) -> list[float]:
    """Seconds of so many builds, each by a runtime made for it, which knows nothing of the one before; in this process."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="cb-packs-") as packs:
        recipe = image.recipe(packs)
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="cb-run-") as run_folder:
                runtime = await Runtime.create(
                    run_folder=Path(run_folder), data_folder=house.folder / "data", engine="gvisor"
                )
                try:
                    began = time.perf_counter()
                    built = await runtime.images.build(recipe.recipe, lambda key: recipe.files[key], lambda line: None)
                    seconds.append(time.perf_counter() - began)
                    built.release()
                finally:
                    await runtime.close()
    return seconds


def images(house: House) -> Iterator[Figure]:
    """Both figures of images, on one base."""
    base = Image.debian_slim()
    six = (
        base.pip_install("six").run_commands("echo one > /opt/one").env({"A": "1"}).workdir("/opt").run_commands("echo two > /opt/two")
    )  # fmt: skip
    first = asyncio.run(_build(house, six, 1))[0]
    again = asyncio.run(_build(house, six, 5))
    yield Figure("rebuild of an unchanged 6-step image, median", statistics.median(again), "s", 0.1, "max",
                 f"of 5, each by a runtime made for it, all in one process: {', '.join(f'{s:.3f}' for s in again)}; the first build {first:.1f} s")  # fmt: skip

    asyncio.run(_build(house, base.uv_pip_install(*PACKAGES), 1))  # the base, and the download cache
    ours = asyncio.run(_build(house, base.uv_pip_install(*PACKAGES, force_build=True), ROUNDS))
    _venv(house)  # pip's own download cache
    theirs = [_venv(house) for _ in range(ROUNDS)]
    yield Figure("pandas + scikit-learn layer, warm download cache", statistics.median(theirs) / statistics.median(ours),
                 "times faster than venv + pip install", 4.0, "min",
                 f"medians of {ROUNDS}: {statistics.median(ours):.1f} s against {statistics.median(theirs):.1f} s")  # fmt: skip


def _venv(house: House) -> float:
    """Seconds of `python -m venv` and `pip install`, with pip's cache of its own in this house."""
    with tempfile.TemporaryDirectory(prefix="venv-", dir=house.folder) as folder:
        environment = {**os.environ, "PIP_CACHE_DIR": str(house.folder / "pip-cache")}
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, env=environment)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *PACKAGES]
        subprocess.run(pip, check=True, env=environment, capture_output=True)
        return time.perf_counter() - began
