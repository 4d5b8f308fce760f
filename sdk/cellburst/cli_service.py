"""`cellburst service`: gateway and worker that stay up."""

from __future__ import annotations

import click

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import GetStatus, Status
from cellburst_protocol.peer import Peer

from . import service as services
from .cli_common import ask, out, shows_errors
from .config import settings
from .embedded import Running

MOST_NAMED = 5  # sessions, before they are counted


@click.group()
def service() -> None:
    """Keep gateway and worker up over log-outs and reboots: schedules need them."""


@service.command()
@click.option("--print", "only_print", is_flag=True, help="Show the file, and write nothing.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask before a gateway that runs is stopped.")
@shows_errors
def install(only_print: bool, yes: bool) -> None:
    """Write this user's service (systemd or launchd) and start it.

    A gateway that a notebook or `cellburst up` started is stopped first: there is one for each user.
    """
    configured = settings()
    found = services.service(configured)
    if only_print:
        click.echo(found.text.decode(), nl=False)
        return

    def stop_first(running: Running) -> None:
        if not yes:
            click.confirm(
                f"a gateway runs already (pid {running.pid}), and the service cannot start beside it.{_what_ends()}\n"
                "stop it and start the service?", abort=True, err=True,
            )  # fmt: skip

    for line in services.install(found, configured, stop_first):
        out.print(line, markup=False, soft_wrap=True)


def _what_ends() -> str:
    """The sessions that would end with the gateway, in words."""
    try:
        status = ask(_status)
    except CellburstError:
        return ""
    live = [row for row in status.sessions if row.container is not None]
    if not live:
        return " No session has a container now."
    names = ", ".join(f"{row.name} of {row.notebook.rpartition('/')[2]}" for row in live[:MOST_NAMED])
    more = f" and {len(live) - MOST_NAMED} more" if len(live) > MOST_NAMED else ""
    return f" These sessions would end, and lose their names: {names}{more} (`cellburst park` keeps one)."


async def _status(peer: Peer) -> Status:
    answer = await peer.request(GetStatus())
    assert isinstance(answer, Status)
    return answer


@service.command()
@shows_errors
def uninstall() -> None:
    """Stop it and remove its file."""
    for line in services.uninstall(services.service(settings())):
        out.print(line, markup=False, soft_wrap=True)


@service.command()
@shows_errors
def status() -> None:
    """Whether it is installed and runs."""
    for line in services.status(services.service(settings())):
        out.print(line, markup=False, soft_wrap=True)
