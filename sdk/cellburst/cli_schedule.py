"""`cellburst schedule`: notebooks that run by themselves."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.messages import (
    CancelRun,
    DeleteSchedule,
    GetSchedule,
    ListRuns,
    ListSchedules,
    MirrorSpec,
    PauseSchedule,
    PreviewSchedule,
    RunInfo,
    RunList,
    RunSchedule,
    ScheduleInfo,
    ScheduleList,
    SchedulePreview,
)
from cellburst_protocol.peer import Peer
from cellburst_protocol.schedules import ACTIVE, RunRow, ScheduleRow, When

from . import embedded
from .blobs import BlobClient
from .cli_common import ask, err, out, shows_errors
from .endpoint import Endpoint
from .http_connection import connection
from .link import Link
from .money import usd_text
from .scheduling import Asked, Draft, draft, local_timezone, parameter_of, send

T = TypeVar("T")
LOOK_SECONDS = 0.5
DESCRIBE_SECONDS = 60.0


@click.group()
def schedule() -> None:
    """Notebooks on a schedule: the gateway runs them, no Jupyter need be open.

    A schedule keeps the notebook, its folder and its environment as they are now. This machine has to be on, and the gateway up
    (`cellburst service install` keeps it so).
    """


@schedule.command()
@click.argument("notebook", type=click.Path(path_type=Path))
@click.option(
    "--cron", default="", metavar="'0 7 * * 1-5'", help="Five fields: minute, hour, day of month, month, day of week."
)
@click.option("--every", default="", metavar="15m", help="Every so often, from now on.")
@click.option("--at", default="", metavar="2026-12-24T18:00", help="Once.")
@click.option("--timezone", default="", help="Of the cron line and of --at. Default: this machine's.")
@click.option("--name", default="", help="Default: the notebook's.")
@click.option(
    "--gpu", default="", help="As in %%modal: A100, A100:2, H100,A100, any. Default: as the first %%modal line."
)
@click.option("--memory", default="", metavar="16GiB")
@click.option("--cpu", default="", metavar="4")
@click.option("--network", default="", type=click.Choice(["", "outbound", "none"]))
@click.option(
    "-p",
    "--parameter",
    "parameters",
    multiple=True,
    metavar="NAME=VALUE",
    help="Set a parameter (cell tagged `parameters`).",
)
@click.option("--secrets", default="", metavar="A,B")
@click.option("--volumes", default="", metavar="/data:NAME")
@click.option("--timeout", default="", metavar="2h", help="Of a whole run.")
@click.option("--retries", default=0, show_default=True, help="More attempts after one that failed.")
@click.option("--budget", default="", metavar="$3", help="Of each run.")
@click.option("--overlap", default="skip", show_default=True, type=click.Choice(["skip", "queue", "replace"]))
@click.option("--missed", default="latest", show_default=True, type=click.Choice(["skip", "latest", "all"]))
@click.option("--missed-window", default="", metavar="10m", help="How late a missed run may still start.")
@click.option("--keep-runs", default=50, show_default=True)
@click.option("--keep-days", default=30.0, show_default=True)
@click.option(
    "--notify", multiple=True, metavar="URL|ADDRESS|jupyter[:failure]", help="Whom to tell when a run has ended."
)
@click.option("--no-folder", is_flag=True, help="Keep the notebook only, without the files beside it.")
@click.option(
    "--python", default=sys.executable, help="The interpreter whose environment the run has. Default: this one."
)
@click.option("--yes", "-y", is_flag=True, help="Also if the notebook would stumble.")
@click.option("--update", is_flag=True, help="Change the schedule of this name, if there is one.")
@shows_errors
def create(
    notebook: Path, parameters: tuple[str, ...], no_folder: bool, python: str, yes: bool, update: bool, **given: Any
) -> None:
    """Schedule NOTEBOOK as it is now, with its folder and environment."""
    path = notebook.expanduser().absolute()
    asked = Asked(parameters=dict(parameter_of(text) for text in parameters), folder=not no_folder, **given)
    with err.status("reading the notebook, its folder and its environment…"):
        made = draft(path, describe_environment(python, path.parent), asked)
    _show_findings(made, yes)

    async def question(peer: Peer, blobs: BlobClient) -> ScheduleInfo:
        preview = await peer.request(PreviewSchedule(when=made.spec.when))
        if isinstance(preview, SchedulePreview) and preview.problem is not None:
            raise from_info(preview.problem)
        edits = None
        if update:
            try:
                found = await peer.request(GetSchedule(schedule=made.spec.name))
                edits = found if isinstance(found, ScheduleInfo) else None
            except CellburstError as why:
                if why.code is not ErrorCode.NOT_FOUND:
                    raise
        return await send(peer, blobs, made, lambda line: err.print(line, style="dim", markup=False), edits=edits)

    answer = _with_blobs(question)
    out.print(f"{answer.row.name}: {answer.row.words}", markup=False)
    for moment in answer.next_unix_seconds[:3]:
        out.print(f"  {_time(moment)}", markup=False)
    out.print(
        f"{answer.row.machine} must be on then, with its gateway up: `cellburst service install` sees to that",
        markup=False,
    )


def _show_findings(made: Draft, yes: bool) -> None:
    for note in made.notes:
        err.print(note, style="dim", markup=False)
    problems = [finding for finding in made.findings if finding.kind == "problem"]
    for finding in made.findings:
        err.print(finding.line(), style="yellow" if finding.kind == "problem" else "dim", markup=False)
    if problems and not yes:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"a run would stumble over {len(problems)} thing{'s' if len(problems) > 1 else ''} (above)",
            next="mend them, or schedule it all the same with --yes",
        )  # fmt: skip


def describe_environment(python: str, folder: Path) -> MirrorSpec:
    """The environment of an interpreter, described by itself. Raises RequestError (NOT_FOUND)."""
    try:
        told = subprocess.run(
            [python, "-m", "cellburst_jupyter.environment_told", str(folder)],
            capture_output=True, timeout=DESCRIBE_SECONDS, check=True, cwd="/",
        )  # fmt: skip
        return msgspec.json.decode(told.stdout, type=MirrorSpec)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as why:
        raise error(
            ErrorCode.NOT_FOUND, f"the environment of {python} cannot be described: {why}",
            next="install cellburst there (`pip install 'cellburst[jupyter]'`), or give another --python",
        ) from None  # fmt: skip


@schedule.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def list_schedules(as_json: bool) -> None:
    """All schedules: when they run next, how the last run ended, what they cost."""

    async def question(peer: Peer) -> ScheduleList:
        answer = await peer.request(ListSchedules())
        assert isinstance(answer, ScheduleList)
        return answer

    rows = ask(question).rows
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(rows), indent=2))
        return
    if not rows:
        out.print("no schedules: `cellburst schedule create NOTEBOOK --cron '0 7 * * *'` makes one")
        return
    table = Table("name", "when", "state", "next", "last", "cost", box=None)
    for row in rows:
        table.add_row(escape(row.name), escape(row.words), row.state, _next(row), _last(row), usd_text(row.cost_usd))
    out.print(table)


def _next(row: ScheduleRow) -> str:
    if row.running:
        return "runs now"
    return _time(row.next_unix_seconds) if row.next_unix_seconds is not None else "-"


def _last(row: ScheduleRow) -> str:
    return f"{row.last.state.value} {_time(row.last.instant_unix_seconds)}" if row.last is not None else "-"


@schedule.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
@shows_errors
def show(name: str, as_json: bool) -> None:
    """A schedule, its next five times and what it was given."""
    answer = _get(name)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(answer), indent=2))
        return
    row, spec = answer.row, answer.spec
    files = (
        f"{len(spec.files)} files, {sum(file.size_bytes for file in spec.files):,} bytes" if spec.files else "no files"
    )
    lines = [
        ("name", f"{row.name}  ({row.id}, revision {row.revision}, {row.state})"), ("notebook", row.notebook), ("kept", files),
        ("when", row.words), ("runs on", row.machine), ("overlap", f"{spec.overlap}; missed: {spec.missed}"),
        ("keeps", f"{spec.keep_runs} runs, {spec.keep_days:g} days"), ("cost", usd_text(row.cost_usd)),
    ]  # fmt: skip
    lines += [("parameters", json.dumps(spec.parameters))] if spec.parameters else []
    lines += [("secrets", ", ".join(spec.secrets))] if spec.secrets else []
    lines += [("retries", str(spec.retries))] if spec.retries else []
    for title, text in lines:
        out.print(f"{title:<11}{text}", markup=False)
    for moment in answer.next_unix_seconds:
        out.print(f"{'next':<11}{_time(moment)}", markup=False)
    if Path(row.notebook).is_file() and _changed(Path(row.notebook), spec.notebook_hash):
        out.print(
            "the notebook has changed since: `cellburst schedule create … --update` takes the change over",
            style="yellow",
        )


def _changed(path: Path, hash: str) -> bool:
    from blake3 import blake3

    return blake3(path.read_bytes()).hexdigest() != hash


@schedule.command()
@click.argument("name")
@shows_errors
def pause(name: str) -> None:
    """Let it rest: no runs until `resume`."""
    _ask_one(PauseSchedule(schedule=name))
    out.print(f"{name} is paused; what runs goes on", markup=False)


@schedule.command()
@click.argument("name")
@shows_errors
def resume(name: str) -> None:
    """Let it run again, from now on."""
    answer = _ask_one(PauseSchedule(schedule=name, paused=False))
    assert isinstance(answer, ScheduleInfo)
    out.print(f"{name}: {answer.row.words}; next {_next(answer.row)}", markup=False)


@schedule.command()
@click.argument("name")
@click.option("--wait", is_flag=True, help="Until it has ended; exit code 1 unless it succeeded.")
@shows_errors
def run(name: str, wait: bool) -> None:
    """Run it now."""
    answer = _ask_one(RunSchedule(schedule=name))
    assert isinstance(answer, RunInfo)
    out.print(f"run {answer.row.id}", markup=False)
    if wait:
        with err.status("running…"):
            row = _until_over(answer.row.id)
        out.print(_run_text(row), markup=False, soft_wrap=True)
        sys.exit(0 if row.state.value == "succeeded" else 1)


def _until_over(run_id: str) -> RunRow:
    while (row := _runs(ListRuns(run=run_id))[0]).state in ACTIVE:
        time.sleep(LOOK_SECONDS)
    return row


@schedule.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@shows_errors
def delete(name: str, yes: bool) -> None:
    """Delete it with its runs and their notebooks; what runs is cancelled."""
    info = _get(name)
    if not yes:
        click.confirm(f"Delete {info.row.name} and all its runs?", abort=True)
    _ask_one(DeleteSchedule(schedule=info.row.id))
    out.print(f"deleted {info.row.name}; the notebook itself is where it was", markup=False)


@schedule.command()
@click.argument("run")
@shows_errors
def cancel(run: str) -> None:
    """End a run."""
    _ask_one(CancelRun(run=run))
    out.print(f"cancelled {run}", markup=False)


@schedule.command()
@click.argument("name", default="")
@click.option("--count", default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True)
@shows_errors
def history(name: str, count: int, as_json: bool) -> None:
    """Runs, newest first; also instants at which none ran, and why."""
    rows = _runs(ListRuns(schedule=name, count=count))
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(rows), indent=2))
        return
    for row in rows:
        out.print(_run_text(row), markup=False, soft_wrap=True)
    if not rows:
        out.print("no runs yet")


def _run_text(row: RunRow) -> str:
    took = ""
    if row.started_unix_seconds is not None and row.ended_unix_seconds is not None:
        took = f"  {row.ended_unix_seconds - row.started_unix_seconds:.0f} s"
    several = f" and {row.instants_count - 1} more" if row.instants_count > 1 else ""
    parts = [f"{row.id}  {row.name}  {_time(row.instant_unix_seconds)}{several}  {row.state.value}"]
    if row.reason is not None and row.reason.value not in ("done", row.state.value):
        parts.append(f" ({row.reason.value.replace('_', ' ')})")
    if row.cells_count:
        parts.append(f"  {row.cells_done_count} of {row.cells_count} cells{took}  {usd_text(row.cost_usd)}")
    lines = ["".join(parts)]
    if row.error is not None:
        lines.append(f"    {row.error.message}")
    lines += [f"    {note}" for note in row.notes]
    lines += [f"    wrote {file.path} ({file.size_bytes:,} bytes)" for file in row.files]
    return "\n".join(lines)


@schedule.command("open")
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
    row = _runs(ListRuns(run=run))[0]
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
    endpoint = _endpoint()
    link = connection(endpoint)
    try:
        link.request("GET", address, headers={"Authorization": f"Bearer {endpoint.token}"})
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


@schedule.command()
@click.argument("cron")
@click.option("--timezone", default="")
@shows_errors
def preview(cron: str, timezone: str) -> None:
    """What a cron line means, and its next five times."""
    answer = _ask_one(PreviewSchedule(when=When(kind="cron", cron=cron, timezone=timezone or local_timezone())))
    assert isinstance(answer, SchedulePreview)
    if answer.problem is not None:
        raise from_info(answer.problem)
    out.print(answer.words, markup=False)
    for line in answer.next_local:
        out.print(f"  {line}", markup=False)


# -- asking ------------------------------------------------------------------------------------------------------------


def _ask_one(message: Any) -> Any:
    async def question(peer: Peer) -> Any:
        return await peer.request(message)

    return ask(question)


def _get(name: str) -> ScheduleInfo:
    answer = _ask_one(GetSchedule(schedule=name))
    assert isinstance(answer, ScheduleInfo)
    return answer


def _runs(message: ListRuns) -> list[RunRow]:
    answer = _ask_one(message)
    assert isinstance(answer, RunList)
    return answer.rows


def _endpoint() -> Endpoint:
    return embedded.ensure_gateway(lambda line: err.print(line, style="dim", markup=False))


def _with_blobs(question: Callable[[Peer, BlobClient], Awaitable[T]]) -> T:
    async def exchange() -> T:
        link = Link(_endpoint, role="cli")
        try:
            welcome = await link.connect()
            assert link.peer is not None and link.endpoint is not None
            return await question(link.peer, BlobClient(link.endpoint, welcome))
        finally:
            await link.close()

    return asyncio.run(exchange())


def _time(moment: float | None) -> str:
    return f"{datetime.fromtimestamp(moment).astimezone():%a %Y-%m-%d %H:%M:%S}" if moment is not None else "-"
