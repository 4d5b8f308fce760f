"""`cellburst connect`, `machines`, `upgrade`, `disconnect`: GPU machines that this user reaches by ssh."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import msgspec
from rich.table import Table

from cellburst_protocol.messages import Status, WorkerRow

from . import embedded
from . import machine_connect as connecting
from . import machine_disconnect as leaving
from .cli_common import err, out, shows_errors
from .config import Settings, settings
from .machine_record import Machine, default_name, tunnel_now
from .machine_record import machine as one_machine
from .machine_record import machines as all_machines
from .machine_ssh import Target, absolute

_SSH_OPTIONS = (
    click.option("-p", "--port", type=click.IntRange(1, 65535), help="Of its ssh server."),
    click.option("-i", "identity", metavar="FILE", help="The private key to use."),
    click.option("-J", "jump", metavar="HOST", help="Go through this host."),
    click.option("-F", "ssh_config", metavar="FILE", help="An ssh configuration other than ~/.ssh/config."),
    click.option("-o", "options", multiple=True, metavar="KEY=VALUE", help="Any option of ssh_config(5)."),
)


def _say(step: str, words: str) -> None:
    out.print(f"{step:<8} {words}", markup=False, soft_wrap=True)


@click.command()
@click.argument("target", metavar="USER@HOST")
@click.option("--name", default="", help="What it is called here (default: the host).")
@click.option("--sudo", is_flag=True, help="Start its worker by sudo, for sandboxes with snapshots.")
@click.option(
    "--simulate-gpus", default="", metavar="A100:2,T4:1", help="Declare simulated GPUs there (they compute nothing)."
)
@click.option(
    "--engine", default="", type=click.Choice(["", "gvisor", "process"]), help="How containers are isolated there."
)
@shows_errors
def connect(target: str, name: str, sudo: bool, simulate_gpus: str, engine: str, **ssh: Any) -> None:
    """Make a machine that you reach by ssh this gateway's: look at it, install this version there, and keep a tunnel.

    Your ssh configuration, agent, jump hosts and known hosts decide. Everything there goes into ~/.local/share/cellburst/machine.
    """
    words: list[str] = []
    for option, value in (("-p", ssh["port"]), ("-i", ssh["identity"]), ("-J", ssh["jump"]), ("-F", ssh["ssh_config"])):
        words += [option, absolute(option, str(value))] if value else []
    words += [word for value in ssh["options"] for word in ("-o", absolute("-o", value))]
    asked = connecting.Ask(
        Target(target, tuple(words)),
        name or default_name(target),
        sudo=sudo,
        simulate_gpus=simulate_gpus,
        engine=engine,
    )
    began = time.monotonic()
    row = connecting.connect(asked, settings(), _say)
    _say("done", f"{_gpus(row)} of {asked.name} can be used from every notebook ({time.monotonic() - began:.1f} s)")


for _option in reversed(_SSH_OPTIONS):
    connect = _option(connect)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def machines(as_json: bool) -> None:
    """The machines that were connected: their tunnels, workers and GPUs."""
    configured = settings()
    known = all_machines(configured.folders)
    status = connecting.status() if embedded.find(configured.folders) is not None else None
    rows = [_row(one, configured, status) for one in known]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    if not rows:
        out.print("no machine is connected: `cellburst connect user@host` makes one this gateway's")
        return
    table = Table("machine", "ssh", "tunnel", "worker", "GPUs", "engine", "sessions", box=None)
    for row in rows:
        worker = row["worker"]
        table.add_row(
            row["name"], row["target"], row["tunnel"]["state"], worker.get("state", "-"), row["gpus"] or "-",
            (worker.get("inventory", {}).get("engines") or [{"name": "-"}])[0]["name"], str(row["session_count"]),
        )  # fmt: skip
    out.print(table)
    for row in rows:
        if row["tunnel"].get("why"):
            out.print(f"{row['name']}: {row['tunnel']['why']}", markup=False, soft_wrap=True)


def _row(one: Machine, configured: Settings, status: Status | None) -> dict[str, Any]:
    worker = next((w for w in status.workers if w.id == one.name), None) if status is not None else None
    count = (
        sum(s.container is not None and s.container.worker == one.name for s in status.sessions)
        if status is not None
        else 0
    )
    return {
        **msgspec.to_builtins(one), "tunnel": msgspec.to_builtins(tunnel_now(configured.folders, one.name)),
        "worker": msgspec.to_builtins(worker) if worker is not None else {}, "gpus": _gpus(worker) if worker is not None else "",
        "session_count": count,
    }  # fmt: skip


def _gpus(row: WorkerRow) -> str:
    return (
        ", ".join(f"{g.type}{' (simulated)' if g.simulated else ''}" for g in row.inventory.gpus) or "no GPU, its cores"
    )


def _sure(one: Machine, configured: Settings, yes: bool, verb: str) -> None:
    """Say what would end, and ask."""
    ending = leaving.ends(one.name, configured)
    if yes:
        return
    what = f"these sessions end and lose their names: {', '.join(ending)}" if ending else "no session is there"
    click.confirm(f"{verb} {one.name} ({one.target}): {what}. Go on?", abort=True, err=True)


@click.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--only-here", is_flag=True, help="Forget a machine that cannot be reached; its worker stays there.")
@shows_errors
def disconnect(name: str, yes: bool, only_here: bool) -> None:
    """End the worker of a machine, remove its data there, and forget it."""
    configured = settings()
    _sure(one_machine(configured.folders, name), configured, yes, "disconnect")
    leaving.disconnect(name, configured, _say, only_here=only_here)
    _say("done", f"{name} is no longer connected")


@click.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@shows_errors
def upgrade(name: str, yes: bool) -> None:
    """Bring a machine to this version: its worker ends, and starts again."""
    configured = settings()
    one = one_machine(configured.folders, name)
    _sure(one, configured, yes, "upgrade")
    if yes and (ending := leaving.ends(name, configured)):
        err.print(f"these sessions end: {', '.join(ending)}", markup=False)
    asked = connecting.Ask(
        one.dial, one.name, sudo=one.sudo, simulate_gpus=one.simulate_gpus, engine=one.engine, upgrade=True
    )
    connecting.connect(asked, configured, _say)
    _say("done", f"{name} runs this version")
