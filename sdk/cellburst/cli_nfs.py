"""`cellburst nfs`: folders of the gateway's machine that containers share live; the subcommands are Modal's."""

from __future__ import annotations

import json
import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from .cli_common import out, shows_errors
from .cli_volume import named_below, show_entries

if TYPE_CHECKING:
    from .network_file_system import NetworkFileSystem


@click.group()
def nfs() -> None:
    """Network file systems, which containers share live: create, list, ls, put, get, rm, delete."""


def _named(name: str) -> NetworkFileSystem:
    from .network_file_system import NetworkFileSystem  # the other commands need none

    return NetworkFileSystem.from_name(name)


@nfs.command()
@click.argument("name")
@shows_errors
def create(name: str) -> None:
    """Make an empty one."""
    type(_named(name)).create(name)
    out.print(f"network file system {name}; in a cell: %%modal volumes=/data:nfs://{name}", markup=False)


@nfs.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def list_all(as_json: bool) -> None:
    """List them."""
    from .network_file_system import NetworkFileSystem

    rows = NetworkFileSystem.list_all()
    if as_json:
        click.echo(json.dumps([{"name": row.name, "used_by": row.used_by} for row in rows], indent=2))
        return
    if not rows:
        out.print("no network file systems; `cellburst nfs create NAME` makes one")
        return
    table = Table("name", "used by", box=None)
    for row in rows:
        table.add_row(row.name, escape(", ".join(row.used_by)) or "-")
    out.print(table)


@nfs.command()
@click.argument("name")
@click.argument("path", default="/")
@click.option("--recursive", "-r", is_flag=True, help="All that lies below.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def ls(name: str, path: str, recursive: bool, as_json: bool) -> None:
    """List what lies in a folder of one."""
    entries = _named(name).listdir(path, recursive=recursive)
    show_entries(entries, as_json, "nothing; `cellburst nfs put` puts files there")


@nfs.command()
@click.argument("name")
@click.argument("local_path", metavar="LOCAL")
@click.argument("remote_path", metavar="[REMOTE]", default="/")
@shows_errors
def put(name: str, local_path: str, remote_path: str) -> None:
    """Put a file or folder, in place of what is there.

    Where REMOTE ends with "/" (default: the root) it goes there under its own name, else it is REMOTE. `images/` and `.` have no
    name: their content goes there.
    """
    target, local, remote_path = _named(name), Path(local_path), named_below(remote_path, local_path)
    if local.is_dir():
        target.add_local_dir(local, remote_path)
    else:
        target.add_local_file(local, remote_path)


@nfs.command()
@click.argument("name")
@click.argument("remote_path", metavar="REMOTE")
@click.argument("local_path", metavar="[LOCAL]", default=".")
@shows_errors
def get(name: str, remote_path: str, local_path: str) -> None:
    """Get a file. LOCAL is a folder for it, or its new name, where nothing may be; "-" prints it."""
    pieces = _named(name).read_file(remote_path)
    if local_path == "-":
        for piece in pieces:
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    local = Path(local_path)
    if local.is_dir():
        local = local / remote_path.rstrip("/").rpartition("/")[2]
    if os.path.lexists(local):
        raise _there_already(local)
    first = next(iter(pieces), b"")  # before anything is made: there may be no such file
    draft = local.with_name(f".{secrets.token_hex(12)}.part")
    try:
        with open(draft, "xb") as file:
            file.write(first)
            for piece in pieces:
                file.write(piece)
        if os.path.lexists(local):  # meanwhile
            raise _there_already(local)
        draft.rename(local)
    finally:
        draft.unlink(missing_ok=True)


def _there_already(local: Path) -> click.ClickException:
    return click.ClickException(f"{str(local)!r} is there already: give another name")


@nfs.command()
@click.argument("name")
@click.argument("path")
@click.option("--recursive", "-r", is_flag=True, help="A folder with all it holds.")
@shows_errors
def rm(name: str, path: str, recursive: bool) -> None:
    """Remove a file, or with -r a folder."""
    _named(name).remove_file(path, recursive=recursive)


@nfs.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--used", is_flag=True, help="Also when sessions use it.")
@shows_errors
def delete(name: str, yes: bool, used: bool) -> None:
    """Delete one and all it holds."""
    if not yes:
        click.confirm(
            f"delete network file system {name} and all it holds? It cannot be brought back.", abort=True, err=True
        )
    type(_named(name)).delete(name, used=used)
    out.print(f"deleted network file system {name}", markup=False)
