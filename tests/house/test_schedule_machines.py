"""A scheduled notebook whose `%%modal` cells have machines of their own, through real parts: GPUs, names, outputs, money, secrets."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from bench.harness import House, house
from cellburst.blobs import BlobClient
from cellburst.endpoint import Endpoint
from cellburst.image_packs import PackedFile, PackWriter
from cellburst.link import Link
from cellburst.schedule_environment import Kept
from cellburst.scheduling import Asked, draft, send
from cellburst_jupyter.environment import collect_environment
from cellburst_protocol.images import Copy, DebianSlim, Env, ImageRecipe
from cellburst_protocol.messages import CostReport, GetCost, GetStatus, PutSecret, RunSchedule, Status
from cellburst_protocol.schedules import FrozenEnvironment, RunReason, RunState
from cellburst_protocol.states import SessionState
from tests.gateway.scheduled import notebook
from tests.house.test_schedules import ask, command, make, over, run, until

pytestmark = [pytest.mark.gvisor, pytest.mark.netns, pytest.mark.timeout(400)]
GPU = "import subprocess\nprint(subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout)"


@pytest.fixture(scope="module")
def place(debian_store: Path) -> Iterator[House]:
    """One A100 and one T4, both simulated; images, and what they are made from, are shared by the tests of this session."""
    with house("A100:1,T4:1", warm_pool=False) as made:
        (made.folder / "data").mkdir(mode=0o700)
        for name in ("images", "uv-cache", "bundles"):
            (debian_store / "data" / name).mkdir(parents=True, exist_ok=True)
            (made.folder / "data" / name).symlink_to(debian_store / "data" / name)
        up = [sys.executable, "-m", "cellburst", "up"]
        subprocess.run(up, env={**os.environ, **made.environment}, timeout=60, check=True, capture_output=True)
        yield made


def opened(place: House, run_id: str, tmp_path: Path) -> list[dict[str, Any]]:
    target = tmp_path / f"{run_id}.ipynb"
    command(place, "open", run_id, "-o", str(target))
    cells: list[dict[str, Any]] = json.loads(target.read_text())["cells"]
    return cells


def text(cell: dict[str, Any]) -> str:
    return "".join(o.get("text", "") + str(o.get("data", {}).get("text/plain", "")) for o in cell["outputs"])


def test_modal_cells_have_machines_of_their_own(place: House, tmp_path: Path) -> None:
    path = make(
        tmp_path,
        f"%load_ext cellburst_jupyter\n{GPU}\nfrom helper import word\nrows = list(range(10))",
        f"%%modal gpu=A100\n{GPU}\ntotal = sum(rows) + len(word)\nwith open('there.txt', 'w') as file:\n    print(total, file=file)",
        "print('home', total)\nrows.append(5)",
        "%%modal gpu=A100\nfrom helper import word\nprint('again', sum(rows), total, open('there.txt').read(), word)",
        "%modal get there.txt\nprint(open('there.txt').read())",
    )
    (path.parent / "helper.py").write_text("word = 'seven77'\n")
    said = command(place, "create", str(path), "--every", "1d", "--gpu", "T4")
    assert "same machine" not in said and "one session" not in said, said
    row = run(place, "made")
    assert row.state is RunState.SUCCEEDED and row.cells_done_count == 5, row
    cells = opened(place, row.id, tmp_path)
    assert "first use" not in text(cells[1]), text(cells[1])
    assert "T4" in text(cells[0]) and "A100" not in text(cells[0]), text(cells[0])
    assert "A100" in text(cells[1]) and "T4" not in text(cells[1]), text(cells[1])
    assert "home 52" in text(cells[2]) and "again 50 52 52" in text(cells[3]) and "52" in text(cells[4])
    assert [cell["execution_count"] for cell in cells] == [1, 2, 3, 4, 5]
    assert [file.path for file in row.files] == ["there.txt"], row
    assert "wrote there.txt" in command(place, "history", row.id)
    status, cost = ask(place, GetStatus()), ask(place, GetCost())
    assert isinstance(status, Status) and status.sessions == [], "both sessions ended with the run"
    assert isinstance(cost, CostReport)
    mine = [
        line
        for line in cost.lines
        if row.session in (line.session, line.notebook.removeprefix("in:").partition(":")[0])
    ]
    assert len(mine) == 2 and all(Decimal(line.usd) > 0 for line in mine), mine
    inner, outer = sorted(mine, key=lambda line: not line.notebook.startswith("in:"))
    assert inner.notebook.endswith(str(path))
    assert Decimal(row.cost_usd) > Decimal(outer.usd), "what the cells' own machines cost is in it"
    command(place, "delete", "made", "--yes")


def test_a_later_state_of_the_notebook_is_taken_over(place: House, tmp_path: Path) -> None:
    path = make(tmp_path, "print('before')")
    command(place, "create", str(path), "--every", "1d", "--retries", "2")
    path.write_bytes(notebook("print('after')", "import helper\nprint(helper.word)"))
    (path.parent / "helper.py").write_text("word = 'new too'\n")
    assert "has changed since" in command(place, "show", "made")
    assert "taken over; revision 2" in command(place, "update", "made")
    said = command(place, "show", "made")
    assert "has changed" not in said and "retries    2" in said and "no run yet" in said, said
    row = run(place, "made")
    assert [text(cell) for cell in opened(place, row.id, tmp_path)] == ["after\n", "new too\n"]
    assert "from one run" in command(place, "show", "made")
    command(place, "delete", "made", "--yes")


@pytest.mark.timeout(700)
def test_an_environment_that_has_changed_is_built_as_it_was(place: House, tmp_path: Path) -> None:
    path = make(tmp_path, "import mine, sys\nprint(mine.word, mine.__file__, sys.version_info[:2])")
    source = tmp_path / "src/mine.py"
    source.parent.mkdir()
    source.write_text("word = 'then'")
    writer = PackWriter(tmp_path / "packs")
    pack = writer.write([PackedFile("0/mine.py", source)])
    steps = [DebianSlim(), Copy(pack=pack, destination="/opt/mirror"), Env(variables={"PYTHONPATH": "/opt/mirror/0"})]
    frozen = FrozenEnvironment(recipe=ImageRecipe(steps=steps), roots=[str(source.parent)], sources=pack.hash)
    spec = collect_environment(notebook_folder=str(path.parent))
    made = draft(path, spec, Asked(every="1d"), beside=Kept(frozen, files=writer.files))
    announced = json.loads((place.folder / "run/gateway.json").read_text())
    there = Endpoint(url=announced["url"], token=(place.folder / "data/token").read_text().strip())

    async def put() -> None:
        link = Link(lambda: there, role="cli")
        try:
            welcome = await link.connect()
            assert link.peer is not None
            await send(link.peer, BlobClient(there, welcome), made, lambda line: None)
        finally:
            await link.close()

    asyncio.run(put())
    source.write_text("word = 'now!'")
    row = run(place, "made", seconds=500)  # where no other test had made the Debian before
    assert (row.state, row.environment) == (RunState.SUCCEEDED, "frozen"), row
    assert text(opened(place, row.id, tmp_path)[0]) == "then /opt/mirror/0/mine.py (3, 11)\n"
    said = command(place, "show", "made")
    assert f"{source} changed" in said and "runs have it as it was" in said, said
    command(place, "delete", "made", "--yes")


def test_an_error_there_is_the_run_s_and_secrets_are_those_of_the_line(place: House, tmp_path: Path) -> None:
    ask(place, PutSecret(name="hf", values={"HF_TOKEN": "hush-hush"}))
    ask(place, PutSecret(name="other", values={"OTHER": "not-yours"}))
    path = make(
        tmp_path,
        "import os\nprint(os.environ.get('HF_TOKEN'))",
        "%%modal secrets=hf\nimport os\nprint(len(os.environ['HF_TOKEN']))",
        ("get_ipython().run_cell_magic('modal', 'secrets=other session=b', 'x = 1')", ["raises-exception"]),
        "%%modal\ndef deep():\n    raise ValueError('from there')\ndeep()",
        "print('never')",
    )
    command(place, "create", str(path), "--every", "1d")
    row = run(place, "made")
    assert (row.state, row.reason, row.cell) == (RunState.FAILED, RunReason.RAISED, 4) and "from there" in str(
        row.error
    ), row
    cells = opened(place, row.id, tmp_path)
    assert text(cells[0]) == "None\n" and "9" in text(cells[1])
    refused = json.dumps(cells[2]["outputs"])
    assert "other" in refused and "is not for this container" in refused, refused
    trace = json.dumps(cells[3]["outputs"])
    assert "ValueError" in trace and "deep()" in trace and cells[4]["outputs"] == []
    assert "secrets    hf" in command(place, "show", "made")
    command(place, "delete", "made", "--yes")


def test_a_gateway_killed_while_such_a_cell_runs_goes_on_with_it(place: House, tmp_path: Path) -> None:
    path = make(
        tmp_path,
        "first = 'here'",
        "%%modal gpu=A100\nimport time\nfor i in range(100):\n    print(i, flush=True)\n    time.sleep(0.1)\nback = first + ' and back'",
        "print(back)",
    )
    command(place, "create", str(path), "--every", "1d", "--no-folder")
    ask(place, RunSchedule(schedule="made"))
    until(place, "made", lambda row: row.cell == 2 and busy_inside(place))
    killed = place.processes()["cellburst_gateway"]
    killed.kill()
    killed.wait(30)
    up = [sys.executable, "-m", "cellburst", "up"]
    subprocess.run(up, env={**os.environ, **place.environment}, timeout=60, check=True, capture_output=True)
    row = until(place, "made", over)
    assert (row.state, row.attempt) == (RunState.SUCCEEDED, 1), row
    cells = opened(place, row.id, tmp_path)
    shown = text(cells[1])
    assert all(f"{n}\n" in shown for n in range(100)), shown
    assert text(cells[2]) == "here and back\n" and [c["execution_count"] for c in cells] == [1, 2, 3]
    command(place, "delete", "made", "--yes")


def busy_inside(place: House) -> bool:
    status = ask(place, GetStatus())
    return any(row.notebook.startswith("in:") and row.state is SessionState.BUSY for row in status.sessions)
