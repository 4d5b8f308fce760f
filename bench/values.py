"""A gigabyte in, out and unchanged, with the peak memory of every process; an interrupt during a transfer."""

from __future__ import annotations

import contextlib
import mmap
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from .harness import House, Kernel, peak_rss_bytes, reset_peak
from .report import Figure

ARRAY_BYTES = 1_000_000_000
ROUNDS = 4
STEP_BYTES = 8 * 1024 * 1024
GIVEN_BACK_SECONDS = 5.0  # Linux reports free memory to a hypervisor about two seconds after it became free


class Watch:
    """Peak memory of kernel, gateway, worker and sandbox during a block, above what they held before."""

    def __init__(self, house: House, kernel: Kernel) -> None:
        self.processes = {"kernel": psutil.Process(kernel.pid), **house.processes()}
        # gVisor's sandbox and the processes that stand for those inside; only this house's: others may run beside it.
        sandboxes = [p for p in psutil.process_iter(["cmdline"]) if _is_sandbox(p, str(house.folder))]
        inside = [child for sandbox in sandboxes for child in (sandbox, *sandbox.children(recursive=True))]
        if not inside:
            inside = house.processes()["cellburst_worker"].children(recursive=True)
        if not inside:
            raise RuntimeError("no process of the container was found: its memory cannot be measured")
        self.processes |= {f"container {process.pid}": process for process in inside}

    def __enter__(self) -> Watch:
        self.before = {}
        for name, process in self.processes.items():
            with contextlib.suppress(OSError, psutil.Error):  # gone since it was listed
                reset_peak(process.pid)
                self.before[name] = process.memory_info().rss
        return self

    def __exit__(self, *exc: object) -> None:
        self.grown = {}
        for name, before in self.before.items():
            with contextlib.suppress(OSError):  # gone meanwhile
                if self.processes[name].is_running():
                    self.grown[name] = (peak_rss_bytes(self.processes[name].pid) - before) / ARRAY_BYTES

    def copies(self, kernel: float = 0.0, container: float = 0.0) -> dict[str, float]:
        """Peak of each process in copies of the array; the arguments are what kernel and container held of it before."""
        inside = max(grown for name, grown in self.grown.items() if name.startswith("container"))
        found = {name: grown for name, grown in self.grown.items() if not name.startswith("container")}
        return {**found, "kernel": found["kernel"] + kernel, "container": inside + container}


def _is_sandbox(process: psutil.Process, folder: str) -> bool:
    line = process.info["cmdline"] or [""]
    return "runsc-sandbox" in line[0] and any(folder in argument for argument in line)


def _by_file(house: House, seconds: list[float]) -> None:
    """The peer: the same array through a plain file, as numpy writes and reads it."""
    array = np.random.default_rng(1).random(ARRAY_BYTES // 8)
    path = house.folder / "peer.npy"
    start = time.perf_counter()
    np.save(path, array)
    np.load(path)
    seconds.append(time.perf_counter() - start)
    path.unlink()


def _touching() -> str:
    """What this machine takes for a gigabyte of memory that nobody used for a while, and for the same memory again."""
    time.sleep(GIVEN_BACK_SECONDS)
    step = bytes(range(256)) * (STEP_BYTES // 256)
    seconds = []
    with mmap.mmap(-1, ARRAY_BYTES // STEP_BYTES * STEP_BYTES) as memory:
        for _ in range(2):
            start = time.perf_counter()
            for offset in range(0, len(memory), STEP_BYTES):
                memory[offset : offset + STEP_BYTES] = step
            seconds.append((time.perf_counter() - start) * 1e9 / len(memory))
    return f"new memory here {seconds[0]:.2f} s/GB, used memory {seconds[1]:.2f} s/GB"


def _given_out_bytes() -> int:
    """Memory that Linux has handed out since it started, file cache included; of the whole machine."""
    lines = (line.split() for line in Path("/proc/vmstat").read_text().splitlines())
    return sum(int(count) for name, count in lines if name.startswith("pgalloc_")) * mmap.PAGESIZE


def gigabyte(house: House) -> Iterator[Figure]:
    """1 GB numpy array in, unchanged, and out: medians of rounds, and the same array through a plain file for comparison.

    What bounds it on a virtual machine is memory that its host has to find first: seconds for each gigabyte, against a fifth
    of a second for memory in use. Both are measured behind the rounds and shown, and so is the memory that each round took.
    In takes two gigabytes: the blob's file, written by the kernel, and the container's copy of it. Out takes two as well:
    the container's file, and the sealed copy, which mostly gets what the file gives back as it is read. So first rounds say
    more of the machine than of us, and all are shown.
    """
    kernel = house.kernel()
    ins: list[float] = []
    outs: list[float] = []
    agains: list[float] = []
    files: list[float] = []
    taken: dict[str, list[float]] = {"in": [], "out": []}
    most_in: dict[str, float] = {}
    most_out: dict[str, float] = {}
    try:
        kernel.check("%load_ext cellburst_jupyter\nimport numpy as np")
        kernel.check("%%modal memory=8GiB\nimport numpy as np")
        warm = statistics.median(kernel.check("%%modal\nx = 1").seconds for _ in range(10))
        for number in range(ROUNDS):
            _by_file(house, files)
            kernel.check(f"big = np.random.default_rng({number}).random({ARRAY_BYTES // 8})")
            before = _given_out_bytes()
            with Watch(house, kernel) as watch:
                ins.append(kernel.check("%%modal\nn = big.size").seconds - warm)
            taken["in"].append((_given_out_bytes() - before) / 1e9)
            _keep_most(most_in, watch.copies(kernel=1.0))
            agains += [kernel.check("%%modal\nn = big.size").seconds for _ in range(2)]
            kernel.check("del big")
            before = _given_out_bytes()
            with Watch(house, kernel) as watch:
                outs.append(kernel.check("%%modal out=result\nresult = big").seconds - warm)
            taken["out"].append((_given_out_bytes() - before) / 1e9)
            _keep_most(most_out, watch.copies(container=1.0))
            kernel.check(
                f"assert float(result.sum()) == float(np.random.default_rng({number}).random({ARRAY_BYTES // 8}).sum())"
            )
            kernel.check("del result")
            kernel.check("%%modal\ndel big, result")
        peer = f"np.save and np.load of it: {', '.join(f'{s:.2f}' for s in files)} s; {_touching()}"
        for way, seconds, most in (("in", ins, most_in), ("out", outs, most_out)):
            rate = ARRAY_BYTES / 1e9 / statistics.median(seconds)
            each = ", ".join(f"{s:.2f}" for s in seconds)
            gave = ", ".join(f"{size:.1f}" for size in taken[way])
            detail = f"rounds: {each} s; the machine gave out {gave} GB of memory meanwhile; {peer}"
            yield Figure(f"1 GB array {way}, median", rate, "GB/s", 0.5, "min", detail)
            yield Figure(
                f"memory while it goes {way}, worst process", max(most.values()), "copies", 1.3, "max", _each(most)
            )
        yield Figure("a cell that reads it again, unchanged", statistics.median(agains) - warm, "s more than a warm cell", 0.7, "max",
                     ", ".join(f"{s:.2f} s" for s in agains))  # fmt: skip
    finally:
        kernel.close()


def _keep_most(most: dict[str, float], copies: dict[str, float]) -> None:
    for name, value in copies.items():
        most[name] = max(value, most.get(name, 0.0))


def _each(copies: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in copies.items())


def interrupt_during_transfer(house: House) -> Iterator[Figure]:
    """An interrupt sent while another session moves a gigabyte; when the code noticed it, by its own clock."""
    worker, mover = house.kernel(), house.kernel()
    try:
        for kernel in (worker, mover):
            kernel.check("%load_ext cellburst_jupyter\nimport numpy as np")
            kernel.check("%%modal memory=6GiB\nimport time, numpy as np")
        mover.check(f"big = np.zeros({ARRAY_BYTES // 8}); big[:] = np.random.default_rng(1).random(big.size)")
        delays = []
        for _ in range(5):
            mover.check("big += 1")
            started = threading.Event()
            sent: list[float] = []
            transfer = threading.Thread(target=mover.check, args=("%%modal\nn = big.size",))

            def go(message: dict[str, Any], started: threading.Event = started) -> None:
                if message["msg_type"] == "stream" and "ready" in message["content"]["text"]:
                    started.set()

            def interrupt(started: threading.Event = started, sent: list[float] = sent) -> None:
                started.wait(60)
                time.sleep(0.3)  # inside the transfer
                sent.append(time.time())
                worker.interrupt()

            pressing = threading.Thread(target=interrupt)
            transfer.start(), pressing.start()
            code = (
                "print('ready', flush=True)\n"
                "try:\n    while True: time.sleep(0.001)\n"
                "except KeyboardInterrupt:\n    noticed = time.time()\nprint(noticed)"
            )
            ran = worker.check("%%modal\n" + code, go)
            transfer.join(), pressing.join()
            delays.append(float(ran.text.split()[-1]) - sent[0])
        yield Figure("interrupt during such a transfer reaches the code, median", statistics.median(delays) * 1e3, "ms", 100.0, "max",
                     ", ".join(f"{d * 1e3:.0f}" for d in delays) + " ms")  # fmt: skip
    finally:
        worker.close(), mover.close()
