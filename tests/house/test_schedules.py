"""A real notebook on a schedule, run in gVisor by the command line's hand: opened, run again, and through a gateway's death."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.harness import House
from cellburst.endpoint import Endpoint
from cellburst.link import Link
from cellburst_protocol.messages import ListRuns, RunList, RunSchedule
from cellburst_protocol.schedules import ACTIVE, RunReason, RunRow, RunState
from tests.gateway.scheduled import notebook

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(400)]
EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
WAIT_SECONDS = 150.0


def command(place: House, *arguments: str, folder: Path | None = None, ok: bool = True) -> str:
    """What `cellburst schedule` says."""
    done = subprocess.run(
        [sys.executable, "-m", "cellburst", "schedule", *arguments], env={**os.environ, **place.environment, "COLUMNS": "200"},
        cwd=folder, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
    )  # fmt: skip
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout + done.stderr


def ask(place: House, message: Any) -> Any:
    """One request, without a program of its own for it."""
    announced = json.loads((place.folder / "run/gateway.json").read_text())
    token = (place.folder / "data/token").read_text().strip()

    async def exchange() -> Any:
        link = Link(lambda: Endpoint(url=announced["url"], token=token), role="cli")
        try:
            await link.connect()
            assert link.peer is not None
            return await link.peer.request(message, timeout_seconds=WAIT_SECONDS)
        finally:
            await link.close()

    return asyncio.run(exchange())


def history(place: House, name: str) -> list[RunRow]:
    found = ask(place, ListRuns(schedule=name))
    assert isinstance(found, RunList)
    return found.rows


def run(place: House, name: str, seconds: float = WAIT_SECONDS) -> RunRow:
    """Run it, and wait for its end."""
    ask(place, RunSchedule(schedule=name))
    return until(place, name, over, seconds)


def until(
    place: House, name: str, condition: Callable[[RunRow], bool], seconds: float = WAIT_SECONDS
) -> RunRow:  # fmt: skip
    """The newest run, when it is so."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        row = history(place, name)[0]
        if condition(row):
            return row
    raise AssertionError(row)


def over(row: RunRow) -> bool:
    return row.state not in ACTIVE


def make(tmp_path: Path, *cells: str | tuple[str, list[str]]) -> Path:
    path = tmp_path / "made" / "made.ipynb"
    path.parent.mkdir()
    path.write_bytes(notebook(*cells))
    return path


def test_the_example_is_scheduled_run_opened_and_run_again(place: House, tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    for name in ("nightly_report.ipynb", "predictions.csv"):
        shutil.copy(EXAMPLES / name, folder / name)
    source = folder / "nightly_report.ipynb"
    before = hashlib.sha256(source.read_bytes()).hexdigest()
    said = command(
        place,
        "create",
        str(source),
        "--cron",
        "0 7 * * 1-5",
        "--timezone",
        "Europe/Berlin",
        "-p",
        "least=0.9",
        "--gpu",
        "A100",
    )
    assert "at 07:00 on Monday to Friday, Europe/Berlin time" in said
    (folder / "predictions.csv").write_text("gone")  # what a run needs was kept when it was scheduled
    row = run(place, "nightly_report")
    assert row.state is RunState.SUCCEEDED and row.cells_done_count == 4, row
    assert [file.path for file in row.files] == ["out/report.txt"] and float(row.cost_usd) > 0
    command(place, "open", row.id, "--files", str(tmp_path / "got"), folder=tmp_path)
    opened = json.loads(next(tmp_path.glob("nightly_report-20*.ipynb")).read_text())
    texts = [o.get("text", "") for cell in opened["cells"] for o in cell.get("outputs", [])]
    assert any("rows are at least 0.9" in text for text in texts)
    assert (tmp_path / "got/out/report.txt").read_text().startswith("Predictions: ")
    command(place, "open", row.id, folder=tmp_path)
    assert len(list(tmp_path.glob("nightly_report-20*.ipynb"))) == 2, "no file is overwritten"
    command(place, "open", row.id, "-o", str(source), ok=False)
    assert "succeeded" in command(place, "run", "nightly_report", "--wait")
    assert "out/report.txt" in command(place, "history", "nightly_report")
    assert len(history(place, "nightly_report")) == 2
    assert hashlib.sha256(source.read_bytes()).hexdigest() == before and not (folder / "out").exists()
    command(place, "delete", "nightly_report", "--yes")


def test_a_volume_that_a_schedule_uses_is_renamed_only_when_it_may_be(place: House, tmp_path: Path) -> None:
    def volume(*words: str, answer: str = "") -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "cellburst", "volume", *words], env={**os.environ, **place.environment, "COLUMNS": "200"},
            input=answer, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr

    for name in ("shelf", "free"):
        assert volume("create", name)[0] == 0
    path = make(tmp_path, "1")
    command(place, "create", str(path), "--every", "1d", "--volumes", "/data:shelf")
    assert volume("rename", "free", "other") == (0, "free is other now\n")
    code, said = volume("rename", "shelf", "board", answer="n\n")
    assert code == 1 and "schedule made would not find volume shelf any more" in said, said
    assert "is not there" not in command(place, "show", "made")
    code, said = volume("rename", "shelf", "board", "--yes")
    assert code == 0 and "shelf is board now" in said and "still with the old name: schedule made" in said, said
    assert "volume 'shelf' is not there" in command(place, "show", "made")
    command(place, "delete", "made", "--yes")


def test_outputs_magics_and_errors_are_as_by_hand(place: House, tmp_path: Path) -> None:
    path = make(
        tmp_path,
        "%load_ext cellburst_jupyter\n%modal status\nprint('first')",
        "%%modal gpu=A100\nimport os\nprint('second'); print(os.path.basename(os.getcwd()))",
        "from IPython.display import display, clear_output\nh = display('a', display_id=True); h.update('b')\nprint('x'); clear_output(); print('y')",
        "!echo shell",
        ("1/0", ["raises-exception"]),
        "x = 41\nx + 1",
        "import helper\nraise RuntimeError(helper.word)",
        "print('never')",
    )
    (path.parent / "helper.py").write_text("word = 'from the folder'\n")
    said = command(place, "create", str(path), "--every", "1d", "--gpu", "A100", "--modal-cells", "same")
    assert "cells 2 are %%modal cells" in said
    row = run(place, "made")
    assert row.reason is RunReason.RAISED and row.cell == 7 and "from the folder" in str(row.error), row
    command(place, "open", row.id, "-o", str(tmp_path / "opened.ipynb"))
    cells = json.loads((tmp_path / "opened.ipynb").read_text())["cells"]

    def text(number: int) -> str:
        return "".join(
            o.get("text", "") + str(o.get("data", {}).get("text/plain", "")) for o in cells[number]["outputs"]
        )

    assert text(0) == "first\n" and text(1).startswith("second\n") and text(2) == "y\n" and text(3) == "shell\n"
    assert (
        cells[4]["outputs"][0]["ename"] == "ZeroDivisionError" and text(5) == "42" and cells[5]["execution_count"] == 6
    )
    assert cells[6]["outputs"][-1]["ename"] == "RuntimeError" and cells[7]["outputs"] == []
    assert any("%modal status" in note for note in row.notes)
    command(place, "delete", "made", "--yes")


def test_a_gateway_killed_during_a_run_loses_nothing_of_it(place: House, tmp_path: Path) -> None:
    marks = "open('count.txt', 'a').write('x')"
    path = make(
        tmp_path,
        f"import time\n{marks}\nfor i in range(50):\n    print(i)\n    time.sleep(0.1)",
        f"{marks}\nprint(open('count.txt').read())",
    )
    command(place, "create", str(path), "--every", "1d", "--no-folder")
    ask(place, RunSchedule(schedule="made"))
    until(place, "made", lambda row: row.state is RunState.RUNNING)
    killed = place.processes()["cellburst_gateway"]
    killed.kill()
    killed.wait(30)
    assert "no gateway" in command(place, "history", ok=False), "looking starts none"
    up = [sys.executable, "-m", "cellburst", "up"]
    subprocess.run(up, env={**os.environ, **place.environment}, timeout=WAIT_SECONDS, check=True, capture_output=True)
    row = until(place, "made", over)
    assert (row.state, row.attempt) == (RunState.SUCCEEDED, 1), row
    command(place, "open", row.id, "-o", str(tmp_path / "opened.ipynb"))
    cells = json.loads((tmp_path / "opened.ipynb").read_text())["cells"]
    assert "".join(o["text"] for o in cells[0]["outputs"]).split() == [str(n) for n in range(50)]
    assert cells[1]["outputs"][0]["text"] == "xx\n", "each cell ran once"
    command(place, "delete", "made", "--yes")
