"""Ready for faults (real SIGKILLs, the gvisor engine): what a person loses when something dies, and what they are told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import psutil
import pytest

from bench.harness import House, Kernel, house

from .traces import house_traces, processes

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(180)]
NOTICED_SECONDS = 10.0


def when_printed(word: str, action: Any) -> Any:
    """A message hook that starts `action` in a thread at the first stream text that contains `word`."""
    fired = threading.Event()

    def hook(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream" and word in message["content"]["text"] and not fired.is_set():
            fired.set()
            threading.Thread(target=action).start()

    return hook


def kill(place: House, name: str) -> None:
    place.processes()[name].kill()


def sandbox_of(place: House) -> psutil.Process:
    """The sandbox process of the only container of this house."""
    marker = str(place.folder / "run")
    found = [p for p in psutil.process_iter(["cmdline"]) if any("runsc-sandbox" in a for a in (p.info["cmdline"] or [])[:1])
             and marker in " ".join(p.info["cmdline"])]  # fmt: skip
    assert found, "no sandbox of this house runs"
    return max(found, key=lambda p: p.create_time())


COUNT = "import time\nprint('begun')\nfor i in range(40):\n    print(i)\n    time.sleep(0.05)\nprint('ended')"


def test_gateway_killed_during_a_cell_loses_nothing(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal\nkept = 5")
    ran = kernel.check(
        f"%%modal\n{COUNT}\nafter = kept + 1", when_printed("begun", lambda: kill(place, "cellburst_gateway"))
    )
    lines = [line for line in ran.text.splitlines() if line.isdigit() or line in ("begun", "ended")]
    assert lines == ["begun", *map(str, range(40)), "ended"]
    assert kernel.check("print(after)").text == "6\n"
    assert kernel.check("%%modal\nprint(kept)").text == "5\n", "the session went on in its container"


def test_kernel_killed_and_attach_brings_the_output_back(place: House) -> None:
    first = place.kernel()
    first.check("%load_ext cellburst_jupyter")
    first.check("%%modal\nkept = 7")
    environment = first.check("import os; print(os.environ['JPY_SESSION_NAME'])").text.strip()
    first.client.execute(f"%%modal\n{COUNT}\nmore = kept * 2")
    while "begun" not in first.client.get_iopub_msg(timeout=60)["content"].get("text", ""):
        pass
    os.kill(first.pid, signal.SIGKILL)
    second = Kernel({**place.environment, "JPY_SESSION_NAME": environment}, place.folder)
    try:
        second.check("%load_ext cellburst_jupyter")
        ran = second.check("%modal attach")
        for line in ("begun", "39", "ended"):
            assert line in ran.text.splitlines(), ran.text[-600:]
        assert second.check("%%modal\nprint(more)").text == "14\n"
        second.check("%modal stop")
    finally:
        second.close()
        first.manager.shutdown_kernel(now=True)
        first.client.stop_channels()


@pytest.mark.parametrize("victim", ["worker", "container"])
def test_a_killed_worker_or_container_ends_the_cell_with_a_reason(victim: str, place: House, kernel: Kernel) -> None:
    kernel.check("%%modal\nkept = 5")
    killed: list[float] = []

    def act() -> None:
        killed.append(time.monotonic())
        if victim == "worker":
            kill(place, "cellburst_worker")
        else:
            sandbox_of(place).kill()

    ran = kernel.run(f"%%modal\n{COUNT}\ntime.sleep(60)", when_printed("begun", act))
    noticed = time.monotonic() - killed[0]
    assert noticed < NOTICED_SECONDS
    said = "worker" if victim == "worker" else "the container ended"
    assert said in ran.error and "may have had side effects" in ran.error, ran.error
    ran = kernel.check("%%modal\nprint('kept' in globals())")
    assert "False" in ran.text and "names" in ran.text, "the new container is told, and that the names are gone"


def test_interrupt_during_a_start_cancels_and_the_cell_runs_again(place: House) -> None:
    kernel = place.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")
        pressing = threading.Timer(0.25, kernel.interrupt)
        pressing.start()
        start = time.monotonic()
        ran = kernel.run("%%modal session=cancelled\nprint('ran')")
        pressing.join()
        assert "KeyboardInterrupt" in ran.error and "ran" not in ran.text, (ran.error, ran.text)
        assert time.monotonic() - start < 5
        assert kernel.check("%%modal session=cancelled\nprint('ran')").text.endswith("ran\n")
        kernel.check("%modal stop session=cancelled")
    finally:
        kernel.close()


def test_a_restarted_kernel_is_offered_its_session_and_a_plain_cell_gets_a_fresh_one(place: House) -> None:
    kernel = place.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")
        kernel.check("%%modal cpu=0.5\nkept = 11\nprint('seen already')")
        kernel.check("%modal names")  # its answer comes after the gateway knows that the cell was shown
        kernel.manager.restart_kernel(now=True)
        kernel.client.wait_for_ready(timeout=60)
        kernel.check("%load_ext cellburst_jupyter")
        ran = kernel.check("%%modal\nprint('kept' in globals())")
        assert "False" in ran.text and "%modal attach" in ran.text, ran.text
        assert "seen already" not in kernel.check("%modal attach").text
        assert kernel.check("%%modal timeout=60s\nprint(kept)").text.splitlines()[-1] == "11"
        kernel.check("%modal stop")
    finally:
        kernel.close()


def test_down_leaves_nothing() -> None:
    with house("A100:1") as place:
        kernel = place.kernel()
        try:
            kernel.check("%load_ext cellburst_jupyter")
            kernel.check("%%modal gpu=A100\nopen('written.txt', 'w').write('x')")
            held = {trace.split()[0] for trace in house_traces(place.folder)}
            assert held == {"mount", "loop", "table", "cgroup", "link", "namespace"}, "else this test sees nothing"
            marker = str(place.folder)
            down = subprocess.run(
                [sys.executable, "-m", "cellburst", "down"], env={**os.environ, **place.environment}, timeout=60, check=True,
                capture_output=True, text=True,
            )  # fmt: skip
            assert "stopped" in down.stdout
            kernel.close()
            assert {line for pid, line in processes(marker).items()} == set()
            assert house_traces(place.folder) == set()
            assert not list((place.folder / "run").glob("containers/*"))
        finally:
            kernel.close()
