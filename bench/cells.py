"""Cells: warm, printing, many lines, first in a fresh container, interrupts."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from .harness import House, local_boot
from .report import Figure

ROUNDS = 120
NAMED_ROUNDS = 240  # half a millisecond of sixteen is looked for: medians of 60 differed by three times as much
LINES = 200_000


def warm_cell(house: House) -> Iterator[Figure]:
    """`x = 1` under %%modal and in a plain local kernel, in turn."""
    local, remote = house.kernel(), house.kernel()
    try:
        remote.check("%load_ext cellburst_jupyter")
        remote.check("%%modal\nx = 1")
        for _ in range(5):
            local.check("x = 1"), remote.check("%%modal\nx = 1")
        ours, theirs = [], []
        for _ in range(ROUNDS):
            theirs.append(local.check("x = 1").seconds)
            ours.append(remote.check("%%modal\nx = 1").seconds)
        ratio = statistics.median(ours) / statistics.median(theirs)
        yield Figure(
            "warm cell `x = 1`", ratio, "times a local ipykernel", 3.0, "max",
            f"{statistics.median(ours) * 1e3:.1f} ms against {statistics.median(theirs) * 1e3:.1f} ms, medians of {ROUNDS}",
        )  # fmt: skip
        remote.check(
            "import numpy as np\nsmall = {i: str(i) for i in range(5000)}\narr = np.arange(60_000)\ntext = 'x' * 100_000"
        )
        remote.check("%%modal\ny = len(small) + arr.size + len(text)")
        plain, named = [], []
        for _ in range(NAMED_ROUNDS):
            plain.append(remote.check("%%modal\ny = 1").seconds)
            named.append(remote.check("%%modal\ny = arr.size + len(text)").seconds)
        extra = statistics.median(named) / statistics.median(plain) - 1
        yield Figure(
            "names under 1 MB, sent before", extra * 100, "% more than a warm cell", 5.0, "max",
            f"{statistics.median(named) * 1e3:.2f} ms against {statistics.median(plain) * 1e3:.2f} ms, medians of {NAMED_ROUNDS} in turn: an array of 480 KB and a text of 100 KB",
        )  # fmt: skip
    finally:
        local.close(), remote.close()


def print_latency(house: House) -> Iterator[Figure]:
    """From print() in the container to the message at the notebook's front end."""
    kernel = house.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")
        kernel.check("%%modal\nimport time")
        delays: list[float] = []
        lines = "for _ in range(60):\n    print(time.time())\n    time.sleep(0.05)"

        def arrived(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                now = time.time()
                delays.extend(now - float(line) for line in message["content"]["text"].split())

        kernel.check(f"import time\n{lines}", arrived)
        local, delays = statistics.median(delays), []
        kernel.check(f"%%modal\n{lines}", arrived)
        yield Figure("print to notebook, median", statistics.median(delays) * 1e3, "ms", 30.0, "max",
                     f"{len(delays)} lines, 95th percentile {sorted(delays)[int(len(delays) * 0.95)] * 1e3:.1f} ms; "
                     f"in the local kernel {local * 1e3:.1f} ms")  # fmt: skip
    finally:
        kernel.close()


def many_lines(house: House) -> Iterator[Figure]:
    """200,000 short lines: complete, in order, and how long."""
    local, remote = house.kernel(), house.kernel()
    try:
        remote.check("%load_ext cellburst_jupyter")
        remote.check("%%modal\nx = 1")
        code = f"for i in range({LINES}):\n    print(i)"
        theirs = local.check(code)
        ours = remote.check("%%modal\n" + code)
        expected = "".join(f"{i}\n" for i in range(LINES))
        complete = ours.text == expected
        yield Figure(
            f"{LINES:,} short lines", ours.seconds / theirs.seconds if complete else float("inf"), "times a local ipykernel", 3.0, "max",
            f"{ours.seconds:.2f} s against {theirs.seconds:.2f} s; complete and in order: {complete}",
        )  # fmt: skip
    finally:
        local.close(), remote.close()


def first_cell(house: House) -> Iterator[Figure]:
    """A notebook's first cell in a fresh mirror container, gateway and worker being up: booted, there is no snapshot of it yet."""
    kernel = house.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")
        kernel.check("%%modal\nx = 1")
        kernel.check("%modal stop")
    finally:
        kernel.close()
    seconds, boots = [], []
    phases = ""
    for _ in range(5):
        kernel = house.kernel()  # a notebook of its own: what others left on disk does not fit it
        try:
            kernel.check("%load_ext cellburst_jupyter")
            seconds.append(kernel.check("%%modal\nx = 1").seconds)
            phases = ", ".join(f"{name} {took:.2f}" for name, took in start_phases(house))
            kernel.check("%modal stop")
        finally:
            kernel.close()
        boots.append(local_boot(house))
    yield Figure("first cell in a fresh mirror container, median", statistics.median(seconds), "s", 3.5, "max",
                 f"of {len(seconds)}: {', '.join(f'{s:.2f}' for s in seconds)}; the last one's start: "
                 f"{phases}; booting a local ipykernel {statistics.median(boots):.2f} s")  # fmt: skip


def start_phases(house: House) -> list[tuple[str, float]]:
    """Name and seconds of each phase by which the one live session's container came up."""
    command = [sys.executable, "-m", "cellburst", "status", "--json"]
    answer = subprocess.run(command, env={**os.environ, **house.environment}, capture_output=True, check=True)
    (row,) = (row for row in json.loads(answer.stdout)["sessions"] if row.get("container"))
    return [(phase["name"], phase.get("seconds", 0.0)) for phase in row["container"]["phases"]]
