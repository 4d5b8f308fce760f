"""`cellburst nfs`: folders of the gateway's machine that containers share live; the subcommands are Modal's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.markup import escape
from rich.table import Table

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.volumes import check_name

from .cli_common import err, out, shows_errors
from .cli_volume import Shown, files_text, named_below, plain, show_entries
from .sizes import size_text

if TYPE_CHECKING:
    from cellburst_protocol.network_file_systems import SharedSize

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

    rows = [(row, size) for row in NetworkFileSystem.list_all() if (size := _size_of(row.name)) is not None]
    if as_json:
        click.echo(json.dumps([
            {
                "name": row.name, "files": size.files, "size_bytes": size.size_bytes, "size_is_whole": size.whole,
                "used_by": row.used_by,
            } for row, size in rows
        ], indent=2))  # fmt: skip
        return
    if not rows:
        out.print("no network file systems; `cellburst nfs create NAME` makes one")
        return
    table = Table("name", "files", "size", "used by", box=None)
    for row, size in rows:
        more = "" if size.whole else "more than "
        table.add_row(
            row.name,
            f"{more}{size.files:,}",
            f"{more}{size_text(size.size_bytes)}",
            escape(", ".join(row.used_by)) or "-",
        )
    out.print(table)


def _size_of(name: str) -> SharedSize | None:
    try:
        return _named(name).size()
    except CellburstError as why:
        if why.info.code is ErrorCode.NOT_FOUND:
            return None  # deleted since it was listed
        raise


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
@click.option("--force", "-f", is_flag=True, help="Replace files that are there with another size or time.")
@shows_errors
def get(name: str, remote_path: str, local_path: str, force: bool) -> None:
    """Get a file or folder. LOCAL is the folder for it, or a file's new name; "-" prints a file.

    Repeated after an interruption, it fetches only what is not there yet: a file of the same size and time is.
    """
    if local_path == "-":
        for piece in _named(name).read_file(remote_path):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    from .nfs_get import get_shared
    from .volume import _api

    with Shown("get") as progress:
        report = get_shared(_api(), check_name(name), remote_path, local_path, force=force, progress=progress)
    for path in report.skipped:
        err.print(f"left out, no file: {plain(path)}", style="yellow", markup=False)
    for path in report.gone:
        err.print(f"removed before it could be read: {plain(path)}", style="yellow", markup=False)
    same = f", {report.unchanged:,} of them were there" if report.unchanged else ""
    out.print(f"{files_text(report.files)}, {size_text(report.size_bytes)}{same}", markup=False)


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
