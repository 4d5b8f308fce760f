"""`cellburst` commands against a house that runs: its status for programs, a session's output, one more worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.harness import House, Kernel

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(180)]
WAIT_SECONDS = 60.0


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A worker's sockets lie here: their paths must be short."""
    with tempfile.TemporaryDirectory(prefix="cb-") as folder:
        yield Path(folder)


def command(place: House, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cellburst", *arguments], env={**os.environ, **place.environment}, capture_output=True,
        text=True, timeout=WAIT_SECONDS,
    )  # fmt: skip


def status(place: House) -> dict[str, Any]:
    ran = command(place, "status", "--json")
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_the_status_for_programs_names_the_gateway_s_process(place: House, shared: Kernel) -> None:
    said = status(place)
    announced = json.loads((place.folder / "run" / "gateway.json").read_text())
    assert said["gateway"]["pid"] == place.processes()["cellburst_gateway"].pid == announced["pid"]
    assert said["gateway"]["url"] == announced["url"] and said["gateway"]["uptime_seconds"] > 0
    assert said["data_folder"] == str(place.folder / "data")
    assert [gpu["simulated"] for gpu in said["workers"][0]["inventory"]["gpus"]] == [True, True]
    assert "default" in [session["name"] for session in said["sessions"]]


def test_logs_are_what_the_session_printed(place: House, kernel: Kernel) -> None:
    text = "".join(f"line {number} of it\n" for number in range(1000))
    kernel.check("%%modal session=logged card=off\nfor n in range(1000):\n    print(f'line {n} of it')")
    whole = command(place, "logs", "logged")
    assert whole.returncode == 0 and text in whole.stdout, whole.stderr
    end = command(place, "logs", "logged", "--bytes", "400")
    assert end.stdout.endswith("line 999 of it\n") and len(end.stdout) <= 400 and "the last 400 bytes" in end.stderr
    unknown = command(place, "logs", "nothing-of-that-name")
    assert unknown.returncode == 1 and "is no session" in unknown.stderr and "cellburst ps" in unknown.stderr
    (id,) = [session["id"] for session in status(place)["sessions"] if session["name"] == "logged"]
    kernel.run("%modal stop logged")
    ended = command(place, "logs", id)  # as a schedule's history names it
    assert ended.returncode == 0 and text in ended.stdout, ended.stderr
    unknown = command(place, "logs", f"s-{0:016x}")
    assert unknown.returncode == 1 and "there is no session" in unknown.stderr


def test_a_worker_joins_by_the_command_and_leaves(place: House, shared: Kernel, short_path: Path) -> None:
    url = status(place)["gateway"]["url"]
    worker = subprocess.Popen(
        [sys.executable, "-m", "cellburst", "worker", "--join", url, "--token-file", str(place.folder / "data" / "worker-token"),
         "--data-dir", str(short_path / "data"), "--run-dir", str(short_path / "run"), "--engine", "process",
         "--simulate-gpus", "T4:1", "--name", "joined-by-hand", "--no-warm-pool"],
        env={**os.environ, **place.environment}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while not (rows := [row for row in status(place)["workers"] if row["id"] == "joined-by-hand"]):
            assert worker.poll() is None and time.monotonic() < deadline
        assert [gpu["type"] for gpu in rows[0]["inventory"]["gpus"]] == ["T4"]
    finally:
        worker.send_signal(signal.SIGTERM)
        try:
            code = worker.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()
            raise
    assert code == 0


def test_a_worker_says_what_it_needs(place: House) -> None:
    ran = command(place, "worker", "--join", "http://127.0.0.1:9")
    assert ran.returncode == 2 and "--token-file" in ran.stderr and "Traceback" not in ran.stderr
