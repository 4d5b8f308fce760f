"""`cellburst service`: gateway and worker that stay up."""

from __future__ import annotations

import click

from . import service as services
from .cli_common import out, shows_errors
from .config import settings


@click.group()
def service() -> None:
    """Keep gateway and worker up over log-outs and reboots: schedules need them."""


@service.command()
@click.option("--print", "only_print", is_flag=True, help="Show the file, and write nothing.")
@shows_errors
def install(only_print: bool) -> None:
    """Write this user's service (systemd or launchd) and start it."""
    configured = settings()
    found = services.service(configured)
    if only_print:
        click.echo(found.text.decode(), nl=False)
        return
    for line in services.install(found, configured.folders.data):
        out.print(line, markup=False, soft_wrap=True)


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
