"""A session that moves to another worker's GPU: a whole house, and a second worker of its own on the same machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.harness import House, Kernel, house
from tests.house.test_parking import cellburst

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]


@contextmanager
def second_worker(place: House) -> Iterator[None]:
    """A worker with a simulated H100, ended and its folders removed afterwards."""
    environment = place.environment
    data, run = Path(environment["CELLBURST_DATA"]), Path(environment["CELLBURST_RUN"])
    url = json.loads((run / "gateway.json").read_text())["url"]
    with tempfile.TemporaryDirectory(prefix="cbw") as folder:
        command = [
            sys.executable, "-m", "cellburst_worker", "--join", url, "--token-file", str(data / "worker-token"), "--data-dir",
            f"{folder}/data", "--run-dir", f"{folder}/run", "--simulate-gpus", "H100:1", "--name", "second", "--no-warm-pool",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            for _ in range(100):  # each question is a process, so this does not spin
                if any(row["id"] == "second" for row in json.loads(cellburst(place, "status", "--json"))["workers"]):
                    break
            else:
                raise AssertionError("the second worker never joined")
            yield
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def place() -> Iterator[House]:
    with house("A100:1", warm_pool=False) as made:
        yield made


def test_a_cell_that_asks_for_another_machine_s_gpu_takes_its_names_there(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal gpu=A100\nx = {'a': [1, 2]}; same = x['a']; import threading; lock = threading.Lock()")
    with second_worker(place):
        there = kernel.check(
            "%%modal gpu=H100\nimport os; print(os.environ['CELLBURST_SIMULATED_GPUS'], x, same is x['a'])"
        )
        assert "H100:1 {'a': [1, 2]} True" in there.text, there.text
        assert "names only" in there.text and "another machine" in there.text
        assert "did not come back: lock" in there.text
        rows = json.loads(cellburst(place, "status", "--json"))
        (session,) = [row for row in rows["sessions"] if row["state"] != "ended"]
        assert session["container"]["worker"] == "second"
        back = kernel.check("%%modal gpu=A100\nsame.append(3); print(os.environ['CELLBURST_SIMULATED_GPUS'], x)")
        assert "A100-40GB:1 {'a': [1, 2, 3]}" in back.text
