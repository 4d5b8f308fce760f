"""The `cellburst` command."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import sys
import time
from typing import Any

import click
import msgspec
from rich.table import Table

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import (
    GetLogs,
    GetStatus,
    Logs,
    ParkSession,
    SessionParked,
    SessionRow,
    Status,
    StopSession,
    WorkerRow,
)
from cellburst_protocol.peer import Peer
from cellburst_protocol.states import EndReason, SessionState

from . import __version__, embedded
from .cli_common import ask as _ask
from .cli_common import err, out
from .cli_common import shows_errors as _shows_errors
from .cli_image import image
from .cli_machines import connect, disconnect, machines, upgrade
from .cli_nfs import nfs
from .cli_schedule import schedule
from .cli_secret import secret
from .cli_service import service
from .cli_volume import volume
from .config import settings
from .money import usd_text
from .parked import parked_now_text, parked_text, usage_text

SESSION_ID = re.compile(r"s-[0-9a-f]{16}")


async def _status(peer: Peer) -> Status:
    answer = await peer.request(GetStatus())
    assert isinstance(answer, Status)
    return answer


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cellburst")
def main() -> None:
    """Serverless GPUs that you run yourself: `%%modal gpu=A100` in any notebook.

    The first cell starts all that is needed; these commands look at it, and stop it.
    """


@main.command()
@click.option(
    "--simulate-gpus", default="", metavar="A100:2,T4:1", help="Declare simulated GPUs (they compute nothing)."
)
@click.option("--engine", default="", type=click.Choice(["", "gvisor", "process"]), help="How containers are isolated.")
@_shows_errors
def up(simulate_gpus: str, engine: str) -> None:
    """Start the gateway and a worker on this machine, if they do not run yet."""
    if simulate_gpus:
        os.environ["CELLBURST_SIMULATE_GPUS"] = simulate_gpus
    if engine:
        os.environ["CELLBURST_ENGINE"] = engine
    with err.status("starting…"):
        status = _ask(_wait_for_worker, start=True)
    _print_status(status)


async def _wait_for_worker(peer: Peer) -> Status:
    for _ in range(200):
        status = await _status(peer)
        if status.workers:
            return status
        await asyncio.sleep(0.1)
    return status


@main.command()
@_shows_errors
def down() -> None:
    """End all containers, the local worker and the gateway of this user."""
    configured = settings()
    with err.status("ending containers, worker and gateway…"):
        stopped = embedded.stop(configured.folders)
    out.print("stopped" if stopped else "nothing was running")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@_shows_errors
def status(as_json: bool) -> None:
    """What runs: gateway, workers, GPUs, sessions."""
    answer = _ask(_status)
    if as_json:
        click.echo(json.dumps(_status_json(answer), indent=2))
    else:
        _print_status(answer)


def _status_json(answer: Status) -> dict[str, Any]:
    whole: dict[str, Any] = msgspec.to_builtins(answer)
    return {
        "version": answer.version,
        "gateway": {"pid": answer.gateway_pid, "url": answer.gateway_url, "uptime_seconds": answer.uptime_seconds},
        "data_folder": answer.data_folder,
        "workers": whole.get("workers", []),
        "sessions": whole.get("sessions", []),
        "queue": answer.queue,
    }


def _print_status(answer: Status) -> None:
    out.print(f"gateway  {answer.gateway_url}  pid {answer.gateway_pid}  up {_duration(answer.uptime_seconds)}")
    out.print(f"data     {answer.data_folder}")
    if not answer.workers:
        out.print("no worker has joined: see the gateway's log, or `cellburst worker --join URL --token-file FILE`")
    for worker in answer.workers:
        out.print(f"worker   {worker.id}  {worker.state.value}  {_machine(worker)}", markup=False)
        for engine in worker.inventory.engines[:1]:
            out.print(f"engine   {engine.name} {engine.version}  {engine.warning or 'isolates'}", markup=False)
        for note in worker.inventory.notes:
            out.print(f"note     {note}", markup=False)
        if worker.snapshots is not None:
            out.print(f"kept     {usage_text(worker.snapshots)}", markup=False)
    _print_sessions(answer.sessions)
    for line in answer.queue:
        out.print(f"waiting  {line}", markup=False)


def _machine(worker: WorkerRow) -> str:
    inventory = worker.inventory
    gpus = ", ".join(f"{g.type}{' (simulated)' if g.simulated else ''}" for g in inventory.gpus) or "no GPU"
    return f"{inventory.hostname}: {inventory.cpu_cores:g} cores, {inventory.memory_mib / 1024:.1f} GiB, {gpus}"


def _print_sessions(sessions: list[SessionRow]) -> None:
    if not sessions:
        out.print("no sessions")
        return
    table = Table("session", "notebook", "name", "state", "GPU", "engine", "per hour", "cost", box=None)
    for row in sessions:
        container = row.container
        gpus = ", ".join(g.type + (" (simulated)" if g.simulated else "") for g in container.gpus) if container else ""
        hourly = usd_text(container.usd_per_second, per_hour=True) if container else "-"
        engine = container.engine if container else ""
        table.add_row(
            row.id[:12], row.notebook, row.name, row.state.value, gpus or "-", engine, hourly, usd_text(row.cost_usd)
        )
    out.print(table)
    for row in sessions:
        if row.parked is not None:
            out.print(f"parked   {row.id[:12]}: {parked_text(row.parked, time.time())}", markup=False)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


@main.command()
@click.option("--json", "as_json", is_flag=True)
@_shows_errors
def ps(as_json: bool) -> None:
    """List sessions with their containers and cost."""
    answer = _ask(_status)
    if as_json:
        click.echo(json.dumps(_status_json(answer)["sessions"], indent=2))
    else:
        _print_sessions(answer.sessions)


def _find(sessions: list[SessionRow], wanted: str) -> SessionRow:
    matches = [s for s in sessions if s.id.startswith(wanted) or s.name == wanted or s.notebook == wanted]
    holders = [s for s in matches if s.state is not SessionState.SUPERSEDED]
    matches = holders or matches  # a name means who has it now
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(f"{s.id[:12]} ({s.notebook}: {s.name})" for s in sessions) or "there are none"
    problem = "matches several sessions" if matches else "is no session"
    raise error(ErrorCode.NOT_FOUND, f"{wanted!r} {problem}", allowed=known, next="`cellburst ps` lists them")


@main.command()
@click.argument("session")
@click.option("--bytes", "max_bytes", default=262144, show_default=True, help="At most so much of the end.")
@_shows_errors
def logs(session: str, max_bytes: int) -> None:
    """Print what a session printed: its name, or its id, with a whole one also after its end."""

    async def question(peer: Peer) -> Logs:
        # A whole id may be of a session that has ended, of which no list has a row: the gateway knows.
        whole = SESSION_ID.fullmatch(session) is not None
        id = session if whole else _find((await _status(peer)).sessions, session).id
        answer = await peer.request(GetLogs(session=id, max_bytes=max_bytes))
        assert isinstance(answer, Logs)
        return answer

    answer = _ask(question)
    if answer.truncated:
        err.print(f"(the last {max_bytes:,} bytes)", style="dim")
    click.echo(answer.text, nl=False)


@main.command()
@click.argument("session")
@_shows_errors
def stop(session: str) -> None:
    """End a session: its container stops, its names are gone."""

    async def question(peer: Peer) -> SessionRow:
        row = _find((await _status(peer)).sessions, session)
        await peer.request(StopSession(session=row.id, reason=EndReason.STOPPED))
        return row

    row = _ask(question)
    out.print(f"stopped {row.notebook}: {row.name}; cost {usd_text(row.cost_usd)}")


PARK_SECONDS = 600.0  # tens of GB of memory go to a slow disk in that time


@main.command()
@click.argument("session")
@_shows_errors
def park(session: str) -> None:
    """Put an idle session away: it holds and costs nothing, and its next cell brings it back."""

    async def question(peer: Peer) -> SessionParked:
        row = _find((await _status(peer)).sessions, session)
        answer = await peer.request(ParkSession(session=row.id), timeout_seconds=PARK_SECONDS)
        assert isinstance(answer, SessionParked)
        return answer

    with err.status("parking…"):
        answer = _ask(question)
    out.print(f"parked: {parked_now_text(answer.parked)}; nothing runs, nothing costs", markup=False)
    for note in answer.notes:
        out.print(note, markup=False)


def _become(package: str, extra: str, arguments: tuple[str, ...]) -> None:
    """Replace this process by `python -m package`: gateway and worker are programs of their own."""
    if importlib.util.find_spec(package) is None:
        raise error(ErrorCode.NOT_FOUND, f"{package} is not installed", next=f"pip install 'cellburst[{extra}]'")
    os.execv(sys.executable, [sys.executable, "-m", package, *arguments])  # noqa: S606  # our own interpreter, a list


_PASS = {"ignore_unknown_options": True, "help_option_names": []}


@main.command(context_settings=_PASS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_shows_errors
def gateway(arguments: tuple[str, ...]) -> None:
    """Run a gateway in the foreground (see `cellburst gateway --help`)."""
    _become("cellburst_gateway", "gateway", arguments)


@main.command(context_settings=_PASS)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@_shows_errors
def worker(arguments: tuple[str, ...]) -> None:
    """Run a worker in the foreground: --join URL --token-file FILE [--simulate-gpus A100:1]."""
    _become("cellburst_worker", "worker", arguments)


main.add_command(image)
main.add_command(volume)
main.add_command(nfs)
main.add_command(secret)
main.add_command(schedule)
main.add_command(service)
main.add_command(connect)
main.add_command(machines)
main.add_command(disconnect)
main.add_command(upgrade)
