"""`cellburst schedule`: notebooks that run by themselves."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.markup import escape
from rich.table import Table

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.messages import (
    DeleteSchedule,
    GetSchedule,
    ListSchedules,
    PauseSchedule,
    PreviewSchedule,
    ScheduleInfo,
    ScheduleList,
    SchedulePreview,
)
from cellburst_protocol.peer import Peer
from cellburst_protocol.schedules import Forecast, ScheduleRow, ScheduleSpec, When

from .blobs import BlobClient
from .cli_common import ask, err, out, shows_errors
from .cli_schedule_ask import ask_one, get_schedule, time_text, with_blobs
from .cli_schedule_runs import cancel, history, open_run, run
from .money import usd_text
from .schedule_edit import asked_of, image_to_read, notebook_state, taken_over
from .schedule_environment import describe_environment, file_and_name
from .scheduling import Asked, Draft, draft, local_timezone, parameter_of, send


@click.group()
def schedule() -> None:
    """Notebooks on a schedule: the gateway runs them, no Jupyter need be open.

    A schedule keeps the notebook, its folder and its environment as they are now. This machine has to be on, and the gateway up
    (`cellburst service install` keeps it so).
    """


for command in (run, cancel, history, open_run):
    schedule.add_command(command)


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
@click.option(
    "--modal-cells", default="own", show_default=True, type=click.Choice(["own", "same"]),
    help="%%modal cells: on machines of their own, or all cells in one session.",
)  # fmt: skip
@click.option(
    "--image",
    default="",
    metavar="FILE.py:NAME",
    help="Run in this cellburst.Image. Default: the notebook's environment.",
)
@click.option(
    "--environment", default="frozen", show_default=True, type=click.Choice(["frozen", "live"]),
    help="The notebook's environment as it is now, also when it has changed; or as it is when it runs.",
)  # fmt: skip
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
    given["image"] = _absolute_image(given["image"])
    asked = Asked(parameters=dict(parameter_of(text) for text in parameters), folder=not no_folder, **given)
    with tempfile.TemporaryDirectory(prefix="cellburst-schedule-") as packs:
        with err.status("reading the notebook, its folder and its environment…"):
            image, beside = describe_environment(python, path.parent, Path(packs), asked.image)
            made = draft(path, image, asked, beside=beside)
        _show_findings(made, yes)
        answer = with_blobs(_creation(made, update))
    out.print(f"{answer.row.name}: {answer.row.words}", markup=False)
    for moment in answer.next_unix_seconds[:3]:
        out.print(f"  {time_text(moment)}", markup=False)
    _show_missing(answer)
    out.print(
        f"{answer.row.machine} must be on then, with its gateway up: `cellburst service install` sees to that",
        markup=False,
    )


def _absolute_image(text: str) -> str:
    """As it was typed in this folder; a schedule looks from its notebook's."""
    file, name = file_and_name(text)
    return f"{Path(file).absolute()}{':' if name else ''}{name}" if file else text


def _creation(made: Draft, update: bool) -> Callable[[Peer, BlobClient], Awaitable[ScheduleInfo]]:
    """The question that makes it, or changes the one of its name."""

    async def question(peer: Peer, blobs: BlobClient) -> ScheduleInfo:
        preview = await peer.request(PreviewSchedule(when=made.spec.when))
        if isinstance(preview, SchedulePreview) and preview.problem is not None:
            raise from_info(preview.problem)
        edits = None
        if update:
            try:
                found = await peer.request(GetSchedule(schedule=made.spec.name))
                # a name also finds a schedule whose id begins with it: that one is not meant
                edits = found if isinstance(found, ScheduleInfo) and found.row.name == made.spec.name else None
            except CellburstError as why:
                if why.code is not ErrorCode.NOT_FOUND:
                    raise
        return await send(peer, blobs, made, lambda line: err.print(line, style="dim", markup=False), edits=edits)

    return question


@schedule.command()
@click.argument("name")
@click.option("--python", default="", help="The interpreter whose environment the runs have. Default: as before.")
@click.option("--yes", "-y", is_flag=True, help="Also if the notebook would stumble.")
@shows_errors
def update(name: str, python: str, yes: bool) -> None:
    """Take the notebook over as it is now, with its folder and environment; times, limits and history stay."""
    info = get_schedule(name)
    assert info.spec.image is not None
    folder = Path(info.spec.notebook).parent

    async def question(peer: Peer, blobs: BlobClient) -> ScheduleInfo:
        return await send(peer, blobs, made, lambda line: err.print(line, style="dim", markup=False), edits=info)

    with tempfile.TemporaryDirectory(prefix="cellburst-schedule-") as packs:
        with err.status("reading the notebook, its folder and its environment…"):
            named = image_to_read(info.spec, asked_of(info.spec), take=True)
            image, beside = describe_environment(python or info.spec.image.executable, folder, Path(packs), named)
            made = taken_over(info, image, beside=beside)
        _show_findings(made, yes)
        answer = with_blobs(question)
    same = answer.spec.notebook_hash == info.spec.notebook_hash
    done = "the notebook is as it was" if same else "the notebook is taken over"
    out.print(f"{answer.row.name}: {done}; revision {answer.row.revision}", markup=False)
    for line in info.environment_changes:
        out.print(f"  {line}", markup=False)
    _show_missing(answer)


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
    return time_text(row.next_unix_seconds) if row.next_unix_seconds is not None else "-"


def _last(row: ScheduleRow) -> str:
    return f"{row.last.state.value} {time_text(row.last.instant_unix_seconds)}" if row.last is not None else "-"


@schedule.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True)
@shows_errors
def show(name: str, as_json: bool) -> None:
    """A schedule, its next five times and what it was given."""
    answer = get_schedule(name)
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(answer), indent=2))
        return
    row, spec = answer.row, answer.spec
    count = f"{len(spec.files)} file{'s' if len(spec.files) > 1 else ''}"
    files = f"{count}, {sum(file.size_bytes for file in spec.files):,} bytes" if spec.files else "no files"
    lines = [
        ("name", f"{row.name}  ({row.id}, revision {row.revision}, {row.state})"), ("notebook", row.notebook), ("kept", files),
        ("when", row.words), ("runs on", row.machine), ("overlap", f"{spec.overlap}; missed: {spec.missed}"),
        ("keeps", f"{spec.keep_runs} runs, {spec.keep_days:g} days"), ("cost", usd_text(row.cost_usd)),
        ("forecast", _forecast(row.forecast)),
    ]  # fmt: skip
    lines += [("parameters", json.dumps(spec.parameters))] if spec.parameters else []
    lines += [("secrets", ", ".join(row.secrets))] if row.secrets else []
    lines += [("volumes", ", ".join(row.volumes))] if row.volumes else []
    lines += [("runs in", runs_in(spec))]
    lines += [("%%modal", "in the run's own session")] if spec.modal_cells == "same" else []
    lines += [("retries", str(spec.retries))] if spec.retries else []
    for title, text in lines:
        out.print(f"{title:<11}{text}", markup=False)
    for moment in answer.next_unix_seconds:
        out.print(f"{'next':<11}{time_text(moment)}", markup=False)
    state = notebook_state(row.notebook, spec.notebook_hash)
    if state != "same":
        now = "has changed since" if state == "changed" else "is not there any more: its runs use what was kept"
        then = (
            f": `cellburst schedule update {shlex.quote(row.name)}` takes the change over" if state == "changed" else ""
        )
        out.print(f"the notebook {now}{then}", style="yellow", markup=False)
    _show_missing(answer)
    if answer.environment_changes:
        out.print("the environment has changed since:", style="yellow")
        for line in answer.environment_changes:
            out.print(f"  {line}", markup=False)
        if spec.environment == "frozen" and spec.frozen is not None:
            name = shlex.quote(row.name)
            out.print(
                f"runs have it as it was; `cellburst schedule update {name}` takes it over", style="dim", markup=False
            )


def runs_in(spec: ScheduleSpec) -> str:
    """What the run's own session has, in words."""
    if spec.recipe is not None:
        return f"image {spec.image_name} ({len(spec.recipe.steps)} steps), as it was when it was scheduled"
    assert spec.image is not None
    python = f"Python {spec.image.python_version}, {spec.image.executable}"
    if spec.environment == "live":
        return f"{python}, as it is then"
    return f"{python}, " + (
        "as it was when it was scheduled" if spec.frozen is not None else "as it is then: it could not be kept"
    )


def _show_missing(answer: ScheduleInfo) -> None:
    for line in answer.missing:
        out.print(line, style="yellow", markup=False)


def _forecast(told: Forecast) -> str:
    if not told.runs_count:
        return "no run yet"
    runs = f"the last {told.runs_count} runs" if told.runs_count > 1 else "one run"
    return f"about {usd_text(told.run_usd)} a run, {usd_text(told.month_usd)} a month, from {runs}"


@schedule.command()
@click.argument("name")
@shows_errors
def pause(name: str) -> None:
    """Let it rest: no runs until `resume`."""
    ask_one(PauseSchedule(schedule=name))
    out.print(f"{name} is paused; what runs goes on", markup=False)


@schedule.command()
@click.argument("name")
@shows_errors
def resume(name: str) -> None:
    """Let it run again, from now on."""
    answer = ask_one(PauseSchedule(schedule=name, paused=False))
    assert isinstance(answer, ScheduleInfo)
    out.print(f"{name}: {answer.row.words}; next {_next(answer.row)}", markup=False)


@schedule.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@shows_errors
def delete(name: str, yes: bool) -> None:
    """Delete it with its runs and their notebooks; what runs is cancelled."""
    info = get_schedule(name)
    if not yes:
        click.confirm(f"Delete {info.row.name} and all its runs?", abort=True)
    ask_one(DeleteSchedule(schedule=info.row.id))
    out.print(f"deleted {info.row.name}; the notebook itself is where it was", markup=False)


@schedule.command()
@click.argument("cron")
@click.option("--timezone", default="")
@shows_errors
def preview(cron: str, timezone: str) -> None:
    """What a cron line means, and its next five times."""
    answer = ask_one(PreviewSchedule(when=When(kind="cron", cron=cron, timezone=timezone or local_timezone())))
    assert isinstance(answer, SchedulePreview)
    if answer.problem is not None:
        raise from_info(answer.problem)
    out.print(answer.words, markup=False)
    for line in answer.next_local:
        out.print(f"  {line}", markup=False)
