"""Starts from templates, parking and resuming, and what many restores leave behind."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from .harness import House, Kernel, house, local_boot
from .report import Figure

ROUNDS = 7
RESTORES = 20
TEMPLATE_SECONDS = 120.0  # a template is taken in the background, when the machine is quiet


def first_output(kernel: Kernel, code: str) -> float:
    """Seconds from the request to the first line that arrives."""
    began = time.perf_counter()
    arrived: list[float] = []

    def look(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and not arrived:
            arrived.append(time.perf_counter() - began)

    kernel.check(code, look)
    return arrived[0]


def workers(place: House) -> list[dict[str, Any]]:
    """What `cellburst status` says of the workers."""
    answer = subprocess.run(
        [sys.executable, "-m", "cellburst", "status", "--json"],
        env={**os.environ, **place.environment},
        capture_output=True,
        check=True,
    )
    found: list[dict[str, Any]] = json.loads(answer.stdout)["workers"]
    return found


def wait_for_templates(place: House, count: int) -> None:
    """Until the worker has so many templates. Raises RuntimeError when it takes none."""
    deadline = time.monotonic() + TEMPLATE_SECONDS
    while time.monotonic() < deadline:
        if sum((worker.get("snapshots") or {}).get("template_count", 0) for worker in workers(place)) >= count:
            return
        time.sleep(0.25)
    raise RuntimeError(f"no {count} templates within {TEMPLATE_SECONDS:g} s")


def start_kind(place: House, name: str) -> str:
    """By which rung the session of this name came up: "template", "warm pool", "boot"."""
    answer = subprocess.run(
        [sys.executable, "-m", "cellburst", "status", "--json"],
        env={**os.environ, **place.environment},
        capture_output=True,
        check=True,
    )
    row = next(row for row in json.loads(answer.stdout)["sessions"] if row["name"] == name)
    return next((phase.get("detail", "") for phase in row["container"]["phases"] if phase["name"] == "restore"), "boot")


def wait_for_warm(place: House) -> None:
    """Until a restored container waits."""
    deadline = time.monotonic() + TEMPLATE_SECONDS
    while time.monotonic() < deadline:
        if any((worker.get("snapshots") or {}).get("warm") for worker in workers(place)):
            return
        time.sleep(0.1)
    raise RuntimeError(f"no warm container within {TEMPLATE_SECONDS:g} s")


def template_start(_: House) -> Iterator[Figure]:
    """A fresh session of an image that has a template, against booting a local ipykernel: in a house without a warm pool, which
    would be filling itself up with restores of its own meanwhile."""
    with house(warm_pool=False) as place, contextlib.closing(place.kernel()) as kernel:
        _make_template(place, kernel)
        ours, theirs = [], []
        for number in range(ROUNDS):
            seconds, kind = _fresh(place, kernel, number)
            if kind != "template":
                raise RuntimeError(f"a session came up as {kind}, not from its template")
            ours.append(seconds)
            theirs.append(local_boot(place))
        mine, peer = statistics.median(ours), statistics.median(theirs)
        how = f"of {len(ours)}: {', '.join(f'{s:.2f}' for s in ours)} s; booting a local ipykernel {peer:.2f} s"
        yield Figure("start to first output, template restored", mine, "s", 0.30, "max", how)
        yield Figure("the same against booting a local ipykernel", mine / peer, "times", 0.35, "max", how)


def warm_start(place: House) -> Iterator[Figure]:
    """A fresh session when a restored container waits for one."""
    with contextlib.closing(place.kernel()) as kernel:
        _make_template(place, kernel)
        ours: list[float] = []
        for number in range(4 * ROUNDS):
            wait_for_warm(place)
            seconds, kind = _fresh(place, kernel, number)
            if kind == "warm pool":  # what waits is told once a second: it may be that the last one was just taken
                ours.append(seconds)
            if len(ours) == ROUNDS:
                break
        yield Figure("start to first output from the warm pool", statistics.median(ours) * 1e3, "ms", 100.0, "max",
                     f"of {len(ours)}: {', '.join(f'{s * 1e3:.0f}' for s in ours)} ms")  # fmt: skip


def _make_template(place: House, kernel: Kernel) -> None:
    kernel.check("%load_ext cellburst_jupyter")
    kernel.check("%%modal session=warmup card=off\nx = 1")
    wait_for_templates(place, 1)
    kernel.check("%modal stop session=warmup")


def _fresh(place: House, kernel: Kernel, number: int) -> tuple[float, str]:
    """Seconds to the first output of a new session, and how it came up (`start_kind`)."""
    seconds = first_output(kernel, f"%%modal session=fresh{number} card=off\nprint(1, flush=True)")
    kind = start_kind(place, f"fresh{number}")
    kernel.check(f"%modal stop session=fresh{number}")
    return seconds, kind


def torch_start(_: House) -> Iterator[Figure]:
    """The same with torch imported, against booting it, without a warm pool too. Nothing where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return
    cell = "card=off\nimport torch\nprint(torch.ones(3).sum().item(), flush=True)"
    ours, boots, local = [], [], []
    with house(warm_pool=False) as place:
        for number in range(3):
            with contextlib.closing(place.kernel()) as kernel:  # a notebook of its own, so that it has no template yet
                kernel.check("%load_ext cellburst_jupyter")
                boots.append(first_output(kernel, f"%%modal session=boot {cell}"))
                wait_for_templates(place, number + 1)
                kernel.check("%modal stop session=boot")
                for turn in range(4):
                    seconds = first_output(kernel, f"%%modal session=restored{turn} {cell}")
                    if start_kind(place, f"restored{turn}") == "template":
                        ours.append(seconds)
                    kernel.check(f"%modal stop session=restored{turn}")
            local.append(local_boot(place, "import torch\ntorch.ones(3).sum().item()"))
    mine, peer, beside = (statistics.median(seconds) for seconds in (ours, boots, local))
    how = f"{mine:.2f} s against {peer:.2f} s, medians of {len(ours)} and {len(boots)}; a local ipykernel that imports it takes {beside:.2f} s"
    yield Figure(
        "start with torch imported, template restored", peer / mine, "times faster than booting it", 15.0, "min", how
    )


def many_restores(_: House) -> Iterator[Figure]:
    """What so many restores leave: processes, mounts, namespaces, files of the worker's folders, the worker's memory.

    In a house without a warm pool, whose containers come and go by themselves.
    """
    with house(warm_pool=False) as place:
        kernel = place.kernel()
        try:
            kernel.check("%load_ext cellburst_jupyter")
            kernel.check("%%modal session=warmup card=off\nx = 1")
            wait_for_templates(place, 1)
            kernel.check("%modal stop session=warmup")
            for number in range(3):  # first uses make what is kept
                _once(kernel, number)
            before = _traces(place)
            for number in range(3, 3 + RESTORES):
                _once(kernel, number)
            after = _traces(place)
        finally:
            kernel.close()
    grown = {name: after[name] - before[name] for name in before}
    memory = grown.pop("memory_mib")
    detail = ", ".join(f"{name} {value:+d}" for name, value in grown.items()) + " (the sessions' logs are not counted)"
    yield Figure(f"{RESTORES} restores one after another leave", float(max(grown.values())), "more", 0.0, "max", detail)
    yield Figure(f"the worker's memory after {RESTORES} restores", float(memory), "MiB more", 16.0, "max")


def _once(kernel: Kernel, number: int) -> None:
    kernel.check(f"%%modal session=again{number} card=off\nx = 1")
    kernel.check(f"%modal stop session=again{number}")


def _traces(place: House) -> dict[str, int]:
    """Counts after the last container is gone (its folder is: removal comes last)."""
    containers = place.folder / "run" / "containers"
    deadline = time.monotonic() + 30
    while any(containers.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = place.processes()["cellburst_worker"]
    logs = str(place.folder / "data" / "sessions")  # what each session printed, kept for 30 days on purpose
    files = sum(
        len(names)
        for part in ("run", "data")
        for folder, _, names in os.walk(place.folder / part)
        if not folder.startswith(logs)
    )
    return {
        "processes": len(worker.children(recursive=True)),
        "open files": worker.num_fds(),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "network namespaces": len(os.listdir("/run/netns")) if Path("/run/netns").is_dir() else 0,
        "files": files,
        "memory_mib": psutil.Process(worker.pid).memory_info().rss // 2**20,
    }


def park_and_resume(place: House) -> Iterator[Figure]:
    """A session that holds 1 GB of arrays: parked, and its names used again."""
    kernel = place.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")
        kernel.check(
            "%%modal memory=6GiB card=off\nimport numpy as np\narrays = [np.random.default_rng(i).random(15_600_000) for i in range(8)]"
        )
        parks, resumes = [], []
        for _ in range(3):
            parks.append(kernel.check("%modal park").seconds)
            resumes.append(first_output(kernel, "%%modal card=off\nprint(len(arrays), flush=True)"))
        detail = "8 arrays of 125 MB, within the limit of names by value; rounds: "
        yield Figure("park of a session holding 1 GB of arrays", statistics.median(parks), "s", 3.0, "max",
                     detail + ", ".join(f"{s:.2f}" for s in parks))  # fmt: skip
        yield Figure("its resume, to the first output", statistics.median(resumes), "s", 1.5, "max",
                     detail + ", ".join(f"{s:.2f}" for s in resumes))  # fmt: skip
    finally:
        kernel.close()


def two_templates_at_once(_: House) -> Iterator[Figure]:
    """Two templates restored ten times each at the same time; without a warm pool, so that each start is a restore."""
    with house(warm_pool=False) as place:
        yield _two_at_once(place)


def _two_at_once(place: House) -> Figure:
    kernels = [place.kernel(), place.kernel()]
    try:
        for number, kernel in enumerate(kernels):
            kernel.check("%load_ext cellburst_jupyter")
            kernel.check("%%modal session=warmup card=off cpu=0.5 memory=1GiB\nx = 1")
            wait_for_templates(place, number + 1)
            kernel.check("%modal stop session=warmup")
        seconds: list[float] = []
        errors: list[str] = []

        def restore(kernel: Kernel) -> None:
            try:
                for number in range(10):
                    cell = f"%%modal session=at{number} card=off cpu=0.5 memory=1GiB\nprint(1, flush=True)"
                    seconds.append(first_output(kernel, cell))
                    kernel.check(f"%modal stop session=at{number}")
            except RuntimeError as why:
                errors.append(str(why))

        threads = [threading.Thread(target=restore, args=(kernel,)) for kernel in kernels]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise RuntimeError(errors[0])
        ordered = sorted(seconds)
        return Figure("two templates restored 10 times each at once, 95th percentile", ordered[int(len(ordered) * 0.95)], "s", 2.5, "max",
                     f"{len(ordered)} starts, median {statistics.median(ordered):.2f} s")  # fmt: skip
    finally:
        for kernel in kernels:
            kernel.close()
