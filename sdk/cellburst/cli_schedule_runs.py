"""`cellburst schedule run | cancel | history | open`: the runs of schedules."""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import msgspec

from cellburst_protocol.errors import ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.messages import CancelRun, ListRuns, RunInfo, RunSchedule
from cellburst_protocol.schedules import ACTIVE, RunRow

from .cli_common import err, out, shows_errors
from .cli_schedule_ask import ask_one, endpoint, runs_of, time_text
from .http_connection import connection
from .money import usd_text

LOOK_SECONDS = 0.5
RUN_ID = re.compile(r"r-[0-9a-f]{1,16}$")


@click.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until it has ended; exit code 1 unless it succeeded.")
@shows_errors
def run(name: str, wait: bool) -> None:
    """Run it now."""
    answer = ask_one(RunSchedule(schedule=name))
    assert isinstance(answer, RunInfo)
    out.print(f"run {answer.row.id}", markup=False)
    if wait:
        with err.status("running…"):
            row = _until_over(answer.row.id)
        out.print(_run_text(row), markup=False, soft_wrap=True)
        sys.exit(0 if row.state.value == "succeeded" else 1)


def _until_over(run_id: str) -> RunRow:
    while (row := runs_of(ListRuns(run=run_id))[0]).state in ACTIVE:
        time.sleep(LOOK_SECONDS)
    return row


@click.command()
@click.argument("run")
@shows_errors
def cancel(run: str) -> None:
    """End a run."""
    ask_one(CancelRun(run=run))
    out.print(f"cancelled {run}", markup=False)


@click.command()
@click.argument("name", default="")
@click.option("--count", default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@shows_errors
def history(name: str, count: int, as_json: bool) -> None:
    """Runs of schedule NAME or of all, newest first; also instants at which none ran, and why.

    With a run's id: that run, and who was told of its end.
    """
    rows = runs_of(ListRuns(run=name) if RUN_ID.match(name) else ListRuns(schedule=name, count=count))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(rows), indent=2))
        return
    for row in rows:
        out.print(_run_text(row), markup=False, soft_wrap=True)
    if not rows:
        out.print("no runs yet")


_RAN_IN = {"frozen": "environment: built as it was when it was scheduled", "image": "environment: the schedule's image"}


def _run_text(row: RunRow) -> str:
    took = ""
    if row.started_unix_seconds is not None and row.ended_unix_seconds is not None:
        took = f"  {row.ended_unix_seconds - row.started_unix_seconds:.0f} s"
    several = f" and {row.instants_count - 1} more" if row.instants_count > 1 else ""
    parts = [f"{row.id}  {row.name}  {time_text(row.instant_unix_seconds)}{several}  {row.state.value}"]
    if row.reason is not None and row.reason.value not in ("done", row.state.value):
        parts.append(f" ({row.reason.value.replace('_', ' ')})")
    if row.cells_count:
        parts.append(f"  {row.cells_done_count} of {row.cells_count} cells{took}  {usd_text(row.cost_usd)}")
    lines = ["".join(parts)]
    if row.error is not None:
        lines.append(f"    {row.error.message}")
    lines += [f"    next: {row.error.next}"] if row.error is not None and row.error.next else []
    lines += [f"    {note}" for note in row.notes]
    lines += [f"    {_RAN_IN[row.environment]}"] if row.environment in _RAN_IN else []
    lines += [f"    wrote {file.path} ({file.size_bytes:,} bytes)" for file in row.files]
    return "\n".join(lines)


@click.command("open")
@click.argument("run")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), default=None, help="Default: a new file with the run's time."
)
@click.option(
    "--files", type=click.Path(path_type=Path), default=None, help="A folder for the files that the run wrote."
)
@shows_errors
def open_run(run: str, output: Path | None, files: Path | None) -> None:
    """Bring the notebook that a run executed; also of one that runs or failed. No file is ever overwritten."""
    row = runs_of(ListRuns(run=run))[0]
    target = output or Path(_dated(row))
    _download(f"/runs/{row.id}/notebook", target, free=output is None)
    if files is not None:
        for file in row.files:
            _download(f"/runs/{row.id}/files/{quote(file.path, safe='')}", _below(files, file.path), free=False)
    elif row.files:
        out.print(f"it wrote {len(row.files)} files: --files FOLDER brings them", style="dim")


def _dated(row: RunRow) -> str:
    safe = re.sub(r"[^\w.-]+", "-", row.name).strip("-.") or "run"
    return f"{safe}-{datetime.fromtimestamp(row.instant_unix_seconds).astimezone():%Y-%m-%dT%H-%M-%S}.ipynb"


def _below(folder: Path, path: str) -> Path:
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    return folder.joinpath(*parts)


def _download(address: str, target: Path, *, free: bool) -> None:
    there = endpoint()
    link = connection(there)
    try:
        link.request("GET", address, headers={"Authorization": f"Bearer {there.token}"})
        response = link.getresponse()
        if response.status != 200:
            body = response.read()
            try:
                raise from_info(msgspec.json.decode(body, type=ErrorInfo))
            except msgspec.MsgspecError:
                raise error(ErrorCode.UNAVAILABLE, f"the gateway answered with HTTP status {response.status}") from None
        written = _write_new(target, response, free)
        out.print(f"{written}", markup=False, soft_wrap=True)
    finally:
        link.close()


def _write_new(target: Path, source: Any, free: bool) -> Path:
    """Write a file that is not there yet. `free`: the name is ours to choose, so that another one is taken."""
    target.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        path = target if number == 1 else target.with_stem(f"{target.stem}-{number}")
        try:
            with open(path, "xb") as file:
                while chunk := source.read(1024 * 1024):
                    file.write(chunk)
            return path
        except FileExistsError:
            if not free:
                break
        except OSError as why:
            raise error(ErrorCode.STORE, f"{path} cannot be written: {why.strerror}") from None
    raise error(ErrorCode.CONFLICT, f"{target} is there already, and is not overwritten", next="give another name")
