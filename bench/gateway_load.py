"""The gateway with 200 sessions of simulated workers, 10 of them streaming 100 lines a second.

The gateway is the real program in a process of its own, and what is measured. Its workers and its notebooks are
simulated, in two further processes (`load_driver.py`): true protocol, one link for each worker and each notebook, no code.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil

from .harness import House, peak_rss_bytes
from .load_driver import LINES_A_SECOND, Report
from .report import Figure

ROOT = Path(__file__).resolve().parent.parent
SESSIONS, STREAMING = 200, 10
WORKERS, GPUS_EACH = 10, 20
MIB = 2**20
START_SECONDS, RUN_SECONDS = 30.0, 300.0


def two_hundred_sessions(house: House) -> Iterator[Figure]:
    """Resident memory of the gateway, and how late the latest line was."""
    data, run = Path(house.environment["CELLBURST_DATA"]), Path(house.environment["CELLBURST_RUN"])
    environment = {**os.environ, **house.environment}
    gateway = subprocess.Popen(
        [sys.executable, "-m", "cellburst_gateway", "--data-dir", str(data), "--run-dir", str(run), "--no-local-worker"],
        env=environment, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with contextlib.ExitStack() as closing:
        closing.callback(_end, gateway)
        announced = _wait_for(run / "gateway.json", gateway)
        process = psutil.Process(int(announced["pid"]))
        url = str(announced["url"])
        workers = subprocess.Popen(
            _driver("workers", url, data / "worker-token", WORKERS, GPUS_EACH), cwd=ROOT, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        closing.callback(_end, workers)
        assert workers.stdout is not None
        if workers.stdout.readline().strip() != "joined":
            raise RuntimeError("the simulated workers could not join")
        empty = process.memory_info().rss
        before = process.cpu_times()
        answer = subprocess.run(
            _driver("kernels", url, data / "token", SESSIONS, STREAMING), cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, timeout=RUN_SECONDS, check=True,
        )  # fmt: skip
        report = msgspec.json.decode(answer.stdout, type=Report)
        after, peak = process.cpu_times(), peak_rss_bytes(process.pid)
    cpu = after.user + after.system - before.user - before.system
    yield Figure(
        f"gateway with {SESSIONS} sessions, resident memory at its highest", peak / MIB, "MB", 150.0, "max",
        f"the gateway's process alone; {empty / MIB:.0f} MB before the first session; {SESSIONS} simulated notebooks and {WORKERS} "
        f"simulated workers, each with a link of its own, in two other processes; {SESSIONS} first cells in "
        f"{report.start_seconds:.1f} s; {cpu:.1f} s of processor time in all",
    )  # fmt: skip
    complete = report.lines == report.expected and report.in_order
    late, sent = report.late_after_due, report.late_after_sent
    yield Figure(
        f"the latest of {report.expected:,} lines, {STREAMING} sessions at {LINES_A_SECOND} lines/s",
        late[-1] if complete else float("inf"), "s after it was due", 1.0, "max",
        f"{report.lines:,} arrived, in order: {report.in_order}; median {_at(late, 0.5):.1f} ms, 99th percentile "
        f"{_at(late, 0.99):.1f} ms after due; from the simulated worker's hand to the simulated notebook {_at(sent, 0.5):.1f} ms, "
        f"{_at(sent, 0.99):.1f} ms and at most {sent[-1] * 1e3:.0f} ms; load of the whole machine {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores",
    )  # fmt: skip


def _at(values: list[float], share: float) -> float:
    """A percentile of sorted seconds, in milliseconds."""
    return values[int((len(values) - 1) * share)] * 1e3


def _driver(what: str, url: str, token: Path, *numbers: int) -> list[str]:
    return [sys.executable, "-m", "bench.load_driver", what, url, str(token), *map(str, numbers)]


def _wait_for(path: Path, gateway: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The gateway's announcement."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and gateway.poll() is None:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(path.read_text())
            return found
        time.sleep(0.05)
    raise RuntimeError("the gateway did not start")


def _end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """End a process of ours, by its pid."""
    if process.stdin is not None:
        process.stdin.close()
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
