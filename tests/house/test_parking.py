"""Sessions put away and brought back by a whole house: real kernels, a real gateway and worker, real sandboxes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

from bench.harness import House, Kernel, house

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
EXAMPLE = Path(__file__).parents[2] / "examples" / "park_and_resume.ipynb"


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    with house("A100:1,T4:1") as made:
        yield made


def cellburst(place: House, *words: str) -> str:
    answer = subprocess.run(
        [sys.executable, "-m", "cellburst", *words], env={**os.environ, **place.environment}, check=True, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    return answer.stdout


def sessions(place: House, kernel: Kernel) -> list[dict[str, Any]]:
    """The sessions of this kernel's notebook."""
    notebook = kernel.check("import os; print(os.environ['JPY_SESSION_NAME'])").text.strip()
    rows: list[dict[str, Any]] = json.loads(cellburst(place, "status", "--json"))["sessions"]
    return [row for row in rows if row["notebook"] == notebook]


def wait_for(place: House, kernel: Kernel, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Ask until a session is so; each question is a process, so this does not spin."""
    for _ in range(100):
        for row in sessions(place, kernel):
            if condition(row):
                return row
    raise AssertionError(f"no session became so: {sessions(place, kernel)}")


def test_the_example_also_when_worker_and_gateway_are_killed_meanwhile(place: House, tmp_path: Path) -> None:
    target = tmp_path / "park_and_resume.ipynb"
    shutil.copy(EXAMPLE, target)
    notebook = nbformat.read(target, as_version=4)
    killed: list[str] = []

    def executed(cell: nbformat.NotebookNode, cell_index: int, execute_reply: object) -> None:
        if cell.source == "%modal status":
            for name, process in place.processes().items():
                process.kill()
                psutil.wait_procs([process], timeout=0.1)  # a zombie until the kernel, its parent, looks
                killed.append(name)

    before = {**os.environ}
    os.environ.update({**place.environment, "JPY_SESSION_NAME": str(target)})
    try:
        client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}},
                                on_cell_executed=executed)  # fmt: skip
        client.execute()
    finally:
        os.environ.clear()
        os.environ.update(before)
        rows = json.loads(cellburst(place, "status", "--json"))["sessions"]
        for row in rows:
            if row["notebook"] == str(target):
                cellburst(place, "stop", row["id"])
    assert sorted(killed) == ["cellburst_gateway", "cellburst_worker"]
    text = {
        cell.source.split("\n")[0]: "".join(o.get("text", "") for o in cell.outputs)
        for cell in notebook.cells
        if "outputs" in cell
    }
    assert "Parked" in text["%modal park"] and "kept until" in text["%modal park"]
    assert "parked" in text["%modal status"] and "weights" in text["%modal status"]
    resumed = notebook.cells[7].outputs
    assert any("['epoch 1', 'epoch 2'] {'run': 1, 'best': " in o.get("text", "") for o in resumed), resumed
    assert "'best'" in notebook.cells[8].outputs[0]["data"]["text/plain"]


def test_an_idle_session_parks_by_itself_and_holds_nothing(place: House, kernel: Kernel) -> None:
    kernel.check(
        "%%modal gpu=A100 scaledown_window=1s card=off\nheld = [1, 2, 3]\nopen('made.txt', 'w').write('there')"
    )
    row = wait_for(place, kernel, lambda row: row["state"] == "parked")
    assert row["parked"]["size_bytes"] > 1_000_000 and "held" in row["parked"]["names"] and not row.get("container")
    worker = json.loads(cellburst(place, "status", "--json"))["workers"][0]
    assert len(worker["free_gpus"]) == 2, "its GPU is free again"
    assert "parked" in cellburst(place, "ps")
    ran = kernel.check("%%modal card=off\nprint(held, open('made.txt').read())")
    assert ran.text.endswith("[1, 2, 3] there\n"), ran.text


def test_down_and_up_again_brings_it_back(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal card=off\nkept = {'a': 1}")
    kernel.check("%modal park")
    cellburst(place, "down")
    assert not place.processes()
    assert kernel.check("%%modal card=off\nkept['b'] = 2\nprint(kept)").text.endswith("{'a': 1, 'b': 2}\n")


def test_the_machine_was_restarted_and_a_thread_prints_on(place: House, kernel: Kernel) -> None:
    said = """
import threading, time
told = []
go = threading.Event()
def tell():
    for number in range(2):
        print('thread', number, flush=True)
        told.append(number)
        go.wait()
        go.clear()
    told.append('end')
thread = threading.Thread(target=tell); thread.start()
while not told: time.sleep(0.01)
"""
    assert "thread 0\n" in kernel.check("%%modal card=off\n" + said).text
    kernel.check("%modal park")
    for process in place.processes().values():
        process.kill()
        psutil.wait_procs([process], timeout=0.1)  # a zombie until the kernel, its parent, looks
    shutil.rmtree(place.folder / "run")  # a folder in memory on most machines: gone with the power
    ran = kernel.check("%%modal card=off\ngo.set()\nwhile told != [0, 1]: time.sleep(0.01)\nprint(thread.is_alive())")
    assert "thread 1\n" in ran.text and ran.text.endswith("True\n"), ran.text
    assert kernel.check("%%modal\ngo.set(); thread.join(); print(told)").text.endswith("[0, 1, 'end']\n")


def test_a_cell_that_asks_for_other_hardware_moves_its_session(place: House, kernel: Kernel) -> None:
    """The lock comes with the process only: by value it would be refused."""
    kernel.check("%%modal gpu=T4 card=off\nimport threading\nkept = 41\nlock = threading.Lock(); lock.acquire()")
    ran = kernel.check("%%modal gpu=A100 card=off\nimport os\nprint(kept + 1, lock.locked(), os.getpid())")
    assert "42 True" in ran.text and "did not come back" not in ran.text, ran.text
    less = kernel.check("%%modal gpu=A100 memory=2GiB card=off\nprint(kept + 1, lock.locked(), os.getpid())")
    assert less.text.splitlines()[-1] == ran.text.splitlines()[-1] and "did not come back" not in less.text, less.text
    row = next(row for row in sessions(place, kernel) if row["state"] == "idle" and row["container"])
    assert [gpu["type"][:4] for gpu in row["container"]["gpus"]] == ["A100"]


def test_a_snapshot_that_was_changed_costs_the_process_and_not_the_names(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal card=off\nimport threading\nkept = 'by value'\nlock = threading.Lock()")
    kernel.check("%modal park")
    images = list((place.folder / "data" / "snapshots" / "sessions").glob("*/checkpoint/*"))
    for image in images:
        with open(image, "r+b") as file:
            file.seek(max(0, image.stat().st_size // 2))
            file.write(b"\xff" * 16)
    assert images
    ran = kernel.check("%%modal card=off\nprint(kept)")
    assert ran.text.endswith("by value\n") and "lock" in ran.text, "what could not come is told"


def test_nothing_of_a_stopped_parked_session_stays(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal card=off\nx = 1")
    kernel.check("%modal park")
    folder = place.folder / "data" / "snapshots" / "sessions" / sessions(place, kernel)[0]["parked"]["id"]
    assert folder.is_dir()
    kernel.check("%modal stop")
    for _ in range(100):  # each round is a question to the gateway: the worker is told beside it
        if not folder.exists():
            break
        sessions(place, kernel)
    assert not folder.exists()
