"""`cellburst volume`: folders that outlive containers; the subcommands are Modal's."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import click
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from cellburst_protocol.errors import ErrorCode, error

from .cli_common import err, out, shows_errors
from .parked import age_text
from .sizes import size_text

if TYPE_CHECKING:
    from .volume import FileEntry, Volume

KINDS = {1: "file", 2: "dir", 3: "link"}
# What a terminal would obey, and what turns the direction of a text.
_CONTROLS = dict.fromkeys(
    [*range(32), *range(127, 160), 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)],
    "\N{REPLACEMENT CHARACTER}",
)


@click.group()
def volume() -> None:
    """Volumes: create, list, ls, put, get, cp, rm, rename, delete."""


def _volume(name: str) -> Volume:
    from .volume import Volume  # the other commands need none

    return Volume.from_name(name)


@volume.command()
@click.argument("name")
@shows_errors
def create(name: str) -> None:
    """Make an empty volume."""
    from cellburst_protocol.volumes import CreateVolume, check_name

    from .volume import _api

    row = _api().create(CreateVolume(name=check_name(name)))
    out.print(f"volume {row.name}; in a cell: %%modal volumes=/data:{row.name}", markup=False)


@volume.command("list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def list_volumes(as_json: bool) -> None:
    """List volumes."""
    from .volume import Volume

    rows = Volume.list_all()
    if as_json:
        click.echo(json.dumps([
            {
                "name": row.name, "id": row.id, "version": row.version, "files": row.files, "size_bytes": row.size_bytes,
                "created_at": row.created_at.isoformat(), "changed_at": row.changed_at.isoformat(), "used_by": list(row.used_by),
            } for row in rows
        ], indent=2))  # fmt: skip
        return
    if not rows:
        out.print("no volumes; `cellburst volume create NAME` makes one")
        return
    table = Table("volume", "files", "size", "changed", "used by", box=None)
    for row in rows:
        changed = f"{age_text(time.time() - row.changed_at.timestamp())} ago"
        table.add_row(
            row.name or f"{row.id} (ephemeral)", f"{row.files:,}", size_text(row.size_bytes), changed,
            escape(", ".join(row.used_by)) or "-",
        )  # fmt: skip
    out.print(table)


@volume.command()
@click.argument("name")
@click.argument("path", default="/")
@click.option("--recursive", "-r", is_flag=True, help="All that lies below.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@shows_errors
def ls(name: str, path: str, recursive: bool, as_json: bool) -> None:
    """List what lies in a folder of a volume."""
    entries = _volume(name).listdir(path, recursive=recursive)
    show_entries(entries, as_json, "nothing; `cellburst volume put` puts files there")


def show_entries(entries: Sequence[FileEntry], as_json: bool, nothing: str) -> None:
    """What `ls` prints of a folder of a volume or network file system; `nothing` where it is empty."""
    if as_json:
        click.echo(json.dumps([_entry_json(entry) for entry in entries], indent=2))
        return
    if not entries:
        out.print(nothing)
        return
    table = Table("path", "type", "size", "changed", box=None)
    for entry in entries:
        changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime)) if entry.mtime else "-"
        size = size_text(entry.size) if entry.type.value != 2 else "-"
        table.add_row(escape(plain(entry.path)), KINDS[entry.type.value], size, changed)
    out.print(table)


def _entry_json(entry: FileEntry) -> dict[str, Any]:
    return {"path": entry.path, "type": KINDS[entry.type.value], "size_bytes": entry.size, "mtime": entry.mtime}


@volume.command()
@click.argument("name")
@click.argument("local_path", metavar="LOCAL")
@click.argument("remote_path", metavar="[REMOTE]", default="/")
@click.option("--force", "-f", is_flag=True, help="Replace files that are there with other content.")
@shows_errors
def put(name: str, local_path: str, remote_path: str, force: bool) -> None:
    """Put a file or folder into a volume.

    Where REMOTE ends with "/" (default: the volume's root) it goes there under its own name, else it is REMOTE: `put data images
    /` makes /images/a.jpg, `put data images /pics` makes /pics/a.jpg. `images/` and `.` have no name: their content goes there.

    Repeated after an interruption, it sends only what the gateway does not have yet.
    """
    remote_path = named_below(remote_path, local_path)
    with Shown("put") as progress, _volume(name).batch_upload(force, progress=progress) as batch:
        if Path(local_path).is_dir():
            batch.put_directory(local_path, remote_path)
        else:
            batch.put_file(local_path, remote_path)
        report = batch.report
    for path in report.skipped:
        err.print(f"left out, no file: {plain(path)}", style="yellow", markup=False)
    same = f", {report.unchanged:,} of them were there" if report.unchanged else ""
    out.print(
        f"{files_text(report.files)}, {size_text(report.size_bytes)}{same}; {name} has version {report.version}",
        markup=False,
    )


@volume.command()
@click.argument("name")
@click.argument("remote_path", metavar="REMOTE")
@click.argument("local_path", metavar="[LOCAL]", default=".")
@click.option("--force", "-f", is_flag=True, help="Replace files that are there with other content.")
@shows_errors
def get(name: str, remote_path: str, local_path: str, force: bool) -> None:
    """Get a file or folder of a volume. LOCAL is the folder for it, or a file's new name; "-" prints a file.

    Repeated after an interruption, it fetches only what is not there yet.
    """
    found = _volume(name)
    if local_path == "-":
        for piece in found.read_file(remote_path):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    with Shown("get") as progress:
        report = found.download(remote_path, local_path, force=force, progress=progress)
    for path in report.skipped:
        err.print(f"left out, a link that leads out of the folder: {plain(path)}", style="yellow", markup=False)
    same = f", {report.unchanged:,} of them were there" if report.unchanged else ""
    out.print(f"{files_text(report.files)}, {size_text(report.size_bytes)}{same}", markup=False)


@volume.command()
@click.argument("name")
@click.argument("paths", metavar="SOURCE… TARGET", nargs=-1, required=True)
@click.option("--recursive", "-r", is_flag=True, help="Copy folders too.")
@shows_errors
def cp(name: str, paths: tuple[str, ...], recursive: bool) -> None:
    """Copy inside a volume. Several sources go into the folder TARGET."""
    if len(paths) < 2:
        raise error(
            ErrorCode.BAD_ARGUMENT, "cp needs a source and a target", next="cellburst volume cp NAME a.csv b.csv"
        )
    _volume(name).copy_files(list(paths[:-1]), paths[-1], recursive=recursive)


@volume.command()
@click.argument("name")
@click.argument("path")
@click.option("--recursive", "-r", is_flag=True, help="A folder with all it holds.")
@shows_errors
def rm(name: str, path: str, recursive: bool) -> None:
    """Remove a file of a volume, or with -r a folder."""
    _volume(name).remove_file(path, recursive=recursive)


@volume.command()
@click.argument("old_name", metavar="OLD")
@click.argument("new_name", metavar="NEW")
@click.option("--yes", "-y", is_flag=True, help="Do not ask, also where schedules use it.")
@shows_errors
def rename(old_name: str, new_name: str, yes: bool) -> None:
    """Give a volume another name. Schedules and lines of notebooks that name the old one do not follow."""
    from .volume import Volume

    users = [user for user in _volume(old_name).info().used_by if user.startswith("schedule ")]
    if users and not yes:
        what = f"{', '.join(users)} would not find volume {old_name} any more"
        click.confirm(f"{plain(what)}. Rename it to {plain(new_name)}?", abort=True, err=True)
    Volume.rename(old_name, new_name)
    out.print(f"{old_name} is {new_name} now", markup=False)
    if users:
        out.print(
            f"still with the old name: {plain(', '.join(users))}; `cellburst schedule create --update` changes it",
            markup=False,
        )


@volume.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--used", is_flag=True, help="Also when sessions use it.")
@shows_errors
def delete(name: str, yes: bool, used: bool) -> None:
    """Delete a volume and all it holds."""
    from .volume import Volume

    if not yes:
        info = _volume(name).info()
        users = f", used by {', '.join(info.used_by)}" if info.used_by else ""
        what = f"volume {name} with {files_text(info.files)}, {size_text(info.size_bytes)}{users}"
        click.confirm(f"delete {plain(what)}? It cannot be brought back.", abort=True, err=True)
    Volume.delete(name, used=used)
    out.print(f"deleted volume {name}", markup=False)


def named_below(remote_path: str, local_path: str) -> str:
    """Where a file or folder goes: as Modal's commands have it."""
    name = os.path.basename(local_path)  # noqa: PTH119  # of "images/" it is empty, of a Path not
    return remote_path + name if remote_path.endswith("/") and name not in (".", "..") else remote_path


class Shown:
    """Progress on a terminal: bytes, speed, time left."""

    def __init__(self, verb: str) -> None:
        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        )  # fmt: skip
        self._bar = Bar(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._task = self._bar.add_task(verb, total=None)
        self._verb = verb
        self._files = self._of = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Shown:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, files: int, size_bytes: int) -> None:
        """See `volume_put.Progress`."""
        self._of = files
        self._bar.update(self._task, total=size_bytes)

    def moved(self, files: int, size_bytes: int) -> None:
        """See `volume_put.Progress`."""
        with self._lock:
            self._files += files
            self._bar.update(self._task, advance=size_bytes, description=f"{self._verb} {self._files:,}/{self._of:,}")


def files_text(count: int) -> str:
    return f"{count:,} file{'s' * (count != 1)}"


def plain(text: str) -> str:
    """A name without what a terminal would obey, or what would turn its direction."""
    return text.translate(_CONTROLS)
