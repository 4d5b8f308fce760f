"""Real kernels driven as a front end drives them, with their own throw-away gateway."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from jupyter_client.manager import KernelManager

CELL_TIMEOUT_SECONDS = 180.0


@dataclass
class Ran:
    """What one cell gave: seconds from request to idle-and-reply, its streams, error name and every message."""

    seconds: float
    text: str = ""
    error: str = ""
    messages: list[dict[str, Any]] = field(default_factory=list)


class Kernel:
    """One real ipykernel."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        # Under pytest a kernel would leave file descriptors 1 and 2 alone: it must not know.
        own = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
        self.manager.start_kernel(env={**own, **environment}, cwd=str(folder))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)

    @property
    def pid(self) -> int:
        """The kernel's process id."""
        return int(self.manager.provisioner.pid)

    def run(
        self, code: str, on_message: Callable[[dict[str, Any]], None] | None = None, *, allow_stdin: bool = False
    ) -> Ran:
        """Execute one cell and wait for both its reply and idle. `allow_stdin`: as from a person, whose card is the live one."""
        ran = Ran(0.0)
        chunks: list[str] = []

        def hook(message: dict[str, Any]) -> None:
            kind, content = message["msg_type"], message["content"]
            if kind == "stream":
                chunks.append(content["text"])
            elif kind == "error":
                ran.error = f"{content['ename']}: {content['evalue']}"
            ran.messages.append(message)
            if on_message is not None:
                on_message(message)

        start = time.perf_counter()
        self.client.execute_interactive(code, output_hook=hook, timeout=CELL_TIMEOUT_SECONDS, allow_stdin=allow_stdin)
        ran.seconds = time.perf_counter() - start
        ran.text = "".join(chunks)
        return ran

    def check(self, code: str, on_message: Callable[[dict[str, Any]], None] | None = None) -> Ran:
        """`run`, but an error of the cell is an error here."""
        ran = self.run(code, on_message)
        if ran.error:
            raise RuntimeError(f"{code[:80]!r} failed: {ran.error}")
        return ran

    def interrupt(self) -> None:
        """What the notebook's interrupt button does; from any thread (the manager's own would leave an event loop there)."""
        os.kill(self.pid, signal.SIGINT)

    def close(self) -> None:
        """End the kernel."""
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@dataclass
class House:
    """A gateway and worker of their own, and the environment that leads kernels to them."""

    folder: Path
    environment: dict[str, str]

    def kernel(self) -> Kernel:
        """A fresh kernel whose notebook lies in a folder of its own."""
        number = len(list(self.folder.glob("notebook-*")))
        place = self.folder / f"notebook-{number}"
        place.mkdir()
        notebook = place / "bench.ipynb"
        notebook.write_text("{}")
        return Kernel({**self.environment, "JPY_SESSION_NAME": str(notebook)}, place)

    def processes(self) -> dict[str, psutil.Process]:
        """Gateway and worker by name."""
        found: dict[str, psutil.Process] = {}
        for process in psutil.process_iter(["cmdline"]):
            line = process.info["cmdline"] or []
            if str(self.folder / "data") in line:
                for name in ("cellburst_gateway", "cellburst_worker"):
                    if name in line:
                        found[name] = process
        return found


def local_boot(place: House, imports: str = "") -> float:
    """Seconds from starting a plain local ipykernel to the first line it prints, with these imports."""
    began = time.perf_counter()
    kernel = place.kernel()
    try:
        kernel.check(f"{imports}\nprint(1, flush=True)")
        return time.perf_counter() - began
    finally:
        kernel.close()


@contextlib.contextmanager
def house(simulate_gpus: str = "A100:2", *, warm_pool: bool = True) -> Iterator[House]:
    """A throw-away data and run folder; everything in it is ended and removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="cb-bench-"))
    environment = {
        "CELLBURST_DATA": str(folder / "data"), "CELLBURST_RUN": str(folder / "run"), "CELLBURST_SIMULATE_GPUS": simulate_gpus,
        "CELLBURST_CONFIG": str(folder / "none.toml"), "CELLBURST_WARM_POOL": str(int(warm_pool)),
    }  # fmt: skip
    try:
        yield House(folder, environment)
    finally:
        subprocess.run(
            [sys.executable, "-m", "cellburst", "down"], env={**os.environ, **environment}, timeout=60, check=False
        )
        shutil.rmtree(folder, ignore_errors=True)


def peak_rss_bytes(pid: int) -> int:
    """Highest resident memory of a process so far, by the kernel's own count."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak(pid: int) -> None:
    """Start counting the peak anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
