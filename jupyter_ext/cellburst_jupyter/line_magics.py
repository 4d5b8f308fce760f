"""`%modal status|stop|restart|park|resume|attach|names|logs|cost|get [FILE]|put FILE|schedule … [session=NAME]`."""

from __future__ import annotations

import contextlib
import difflib
import secrets
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import msgspec
from blake3 import blake3

from cellburst.money import usd_text
from cellburst.parked import parked_now_text, parked_text
from cellburst.sizes import size_text
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import (
    CostReport,
    FileChange,
    FindSession,
    GetCost,
    GetLogs,
    GetStatus,
    Logs,
    ParkSession,
    RemoteName,
    SessionFound,
    SessionParked,
    SessionRow,
    Status,
    StopSession,
)
from cellburst_protocol.states import SessionState

from .cell_names import quoted
from .completion import SUBCOMMANDS
from .hub import KERNEL_ID
from .notebook import Notebook
from .publish import tell
from .session import RemoteSession

FILE_SECONDS = 600.0
PARK_SECONDS = 600.0  # tens of GB of memory go to a slow disk in that time
SHOWN_NAMES = 10


@dataclass(frozen=True)
class LineOptions:
    """A parsed `%modal` line."""

    command: str
    words: tuple[str, ...]
    session: str


def parse_line(line: str) -> LineOptions:
    """Parse what stands after `%modal`. Raises RequestError with what there is."""
    try:
        words = shlex.split(line)
    except ValueError as why:
        raise error(ErrorCode.BAD_ARGUMENT, f"%modal {line}: {why}", next="close the quote") from None
    session, rest = "default", []
    for word in words:
        if word.startswith(("session=", "--session=")):
            session = word.partition("=")[2]
        else:
            rest.append(word)
    command = rest[0] if rest else "status"
    if command not in SUBCOMMANDS:
        near = difflib.get_close_matches(command, SUBCOMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean `%modal {near[0]}`?" if near else "`%modal status` shows what runs"
        what = f"%modal {command} is not known"
        raise error(ErrorCode.BAD_ARGUMENT, what, allowed=", ".join(SUBCOMMANDS), next=hint)
    if command == "put" and len(rest) == 1:
        raise error(ErrorCode.BAD_ARGUMENT, "%modal put needs a file", next="for example `%modal put results.csv`")
    if command not in ("get", "put", "schedule") and len(rest) > 1:
        what = f"%modal {command} takes no {' '.join(rest[1:])!r}"
        raise error(ErrorCode.BAD_ARGUMENT, what, next=f"for example `%modal {command}`")
    return LineOptions(command, tuple(rest[1:]), session)


def run_line(notebook: Notebook, line: str) -> None:
    """Run one `%modal` line. Raises CellburstError."""
    options = parse_line(line)
    commands: dict[str, Callable[[Notebook, LineOptions], None]] = {
        "status": _status, "stop": _stop, "restart": _restart, "park": _park, "resume": _resume, "attach": _attach,
        "names": _names, "logs": _logs, "cost": _cost, "get": _get, "put": _put, "schedule": _schedule,
    }  # fmt: skip
    commands[options.command](notebook, options)


def _schedule(notebook: Notebook, options: LineOptions) -> None:
    from .schedule_magic import run_schedule

    run_schedule(notebook, options.words)


def _status(notebook: Notebook, options: LineOptions) -> None:
    status = notebook.hub.request(GetStatus())
    assert isinstance(status, Status)
    rows = [
        row for row in status.sessions if row.notebook == notebook.hub.notebook and row.state is not SessionState.ENDED
    ]
    for row in rows:
        _print(_row_text(row))
    if not rows:
        _print("no session of this notebook runs; a %%modal cell starts one")
    others = len(
        [r for r in status.sessions if r.notebook != notebook.hub.notebook and r.state is not SessionState.ENDED]
    )
    gpus = [gpu for worker in status.workers for gpu in worker.inventory.gpus]
    simulated = " (some SIMULATED)" if any(gpu.simulated for gpu in gpus) else ""
    shown = ", ".join(sorted({gpu.type for gpu in gpus})) or "no GPU"
    _print(
        f"gateway {status.gateway_url}, {len(status.workers)} worker(s), {shown}{simulated}, {others} session(s) elsewhere"
    )


def _row_text(row: SessionRow) -> str:
    parts = [f"session {row.name}: {row.state.value}"]
    if row.container is not None:
        box = row.container
        gpus = ", ".join(f"{g.type}{' SIMULATED' if g.simulated else ''}" for g in box.gpus) or "no GPU"
        parts += [
            gpus,
            f"{box.cpu:g} cores, {box.memory_mib / 1024:g} GiB",
            f"{box.engine} on {box.machine or box.worker}",
        ]
        parts += [f"image {box.image[:12]}"] if box.image else []
        parts.append(f"{usd_text(row.cost_usd)} so far, {usd_text(box.usd_per_second, per_hour=True)}/h")
    elif row.parked is not None:
        parts += [parked_text(row.parked, time.time()), "costs nothing"]
    elif row.state is SessionState.PARKED:
        parts.append("what was kept is gone from its worker: the next cell starts without its names")
    if row.names:
        parts.append(f"names: {', '.join(row.names[:10])}{', …' if len(row.names) > 10 else ''}")
    return " · ".join(parts)


def _stop(notebook: Notebook, options: LineOptions) -> None:
    row = _find(notebook, options.session)
    notebook.hub.request(StopSession(session=row.id))
    session = notebook.hub.sessions.get(options.session)
    if session is not None:
        session.close()
        if session.names is not None:
            session.names.container_lost()
        notebook.forget(session)
    notebook.detached.pop(options.session, None)
    tell(f"session {options.session!r} is stopped and costs nothing any more; its names there are gone")


def _restart(notebook: Notebook, options: LineOptions) -> None:
    _stop(notebook, options)
    tell("the next %%modal cell gets a fresh container")


def _park(notebook: Notebook, options: LineOptions) -> None:
    row = _find(notebook, options.session)
    answer = notebook.hub.request(ParkSession(session=row.id), timeout_seconds=PARK_SECONDS)
    assert isinstance(answer, SessionParked)
    for line in park_lines(answer):
        tell(line)


def _resume(notebook: Notebook, options: LineOptions) -> None:
    """Bring a parked session back without a cell of one's own: one that does nothing is run in it."""
    from .attach import attach
    from .cell import run_cell
    from .magic_line import parse_cell_line

    row = _find(notebook, options.session)
    if row.parked is None or row.container is not None:
        tell(f"session {options.session!r} is not parked: it is {row.state.value}")
        return
    if row.kernel_id != KERNEL_ID:
        attach(notebook, options.session)
    run_cell(notebook, parse_cell_line(f"card=off session={quoted(options.session)}"), "pass")
    tell(f"session {options.session!r} is back; it costs again until it is parked or stopped")


def park_lines(answer: SessionParked) -> list[str]:
    """What is said of a session that was parked."""
    parked = answer.parked
    lines = [f"Parked: {parked_now_text(parked)}; nothing runs, nothing costs. The next cell brings it back."]
    if parked.kind == "names":
        lines.append("only its names are kept: threads, open files and widgets do not come back")
        lines += [f"cannot come back: {lost.name} ({lost.type})" for lost in parked.lost[:SHOWN_NAMES]]
        if len(parked.lost) > SHOWN_NAMES:
            lines.append(f"cannot come back: {len(parked.lost) - SHOWN_NAMES} more names")
    return [*lines, *answer.notes]


def _find(notebook: Notebook, name: str) -> SessionRow:
    """This kernel's session of the name, else the newest of it. Raises NOT_FOUND."""
    found = notebook.hub.request(FindSession(notebook=notebook.hub.notebook, name=name))
    assert isinstance(found, SessionFound)
    rows = [row for row in found.sessions if row.state is not SessionState.ENDED]
    if not rows:
        raise error(
            ErrorCode.NOT_FOUND, f"this notebook has no session {name!r}",
            next="`%modal status` lists them; a %%modal cell starts one",
        )  # fmt: skip
    return next((row for row in rows if row.kernel_id == KERNEL_ID), rows[0])


def _attach(notebook: Notebook, options: LineOptions) -> None:
    from .attach import attach

    attach(notebook, options.session)


def _open(notebook: Notebook, name: str) -> RemoteSession:
    """The session with a container to ask. Raises NOT_FOUND."""
    _find(notebook, name)
    session = notebook.hub.session(name)
    if not session.container_id:
        what = f"session {name!r} {'is parked' if session.goes_on else 'has no container now'}"
        then = "brings it back" if session.goes_on else "starts one"
        raise error(ErrorCode.NOT_FOUND, what, next=f"the next %%modal cell {then}")
    return session


def _names(notebook: Notebook, options: LineOptions) -> None:
    session = _open(notebook, options.session)
    reply, _ = session.side("names")
    found = msgspec.convert(reply.content.get("names") or [], list[RemoteName])
    if not found:
        _print(f"no names live in session {options.session!r}")
    width = max((len(name.name) for name in found), default=0)
    for name in sorted(found, key=lambda n: n.name):
        shape = f" {name.shape}" if name.shape else f" len {name.length}" if name.length is not None else ""
        size = f" {size_text(name.size_bytes)}" if name.size_bytes else ""
        _print(f"{name.name:<{width}}  {name.type}{shape}{size}")


def _logs(notebook: Notebook, options: LineOptions) -> None:
    row = _find(notebook, options.session)
    logs = notebook.hub.request(GetLogs(session=row.id))
    assert isinstance(logs, Logs)
    if logs.truncated:
        tell("only the end is shown; `cellburst logs` has more")
    _print(logs.text.rstrip("\n") or f"session {options.session!r} has printed nothing")


def _cost(notebook: Notebook, options: LineOptions) -> None:
    report = notebook.hub.request(GetCost(notebook=notebook.hub.notebook))
    assert isinstance(report, CostReport)
    for line in report.lines:
        state = "parked" if line.parked else "ended"
        if line.running:
            state = f"running at {usd_text(line.usd_per_second, per_hour=True)}/h"
        _print(f"{line.name:<12} {usd_text(line.usd):>10}  {line.seconds:8.0f} s  {line.what}  {state}")
    _print(f"{'in all':<12} {usd_text(report.total_usd):>10}  {report.price_note or 'reference prices'}")


def _get(notebook: Notebook, options: LineOptions) -> None:
    session = _open(notebook, options.session)
    if not options.words:
        _list_files(session)
    for path in options.words:
        reply, buffers = session.side("file_get", {"path": path}, timeout_seconds=FILE_SECONDS)
        blob = reply.blob
        if blob is None:
            raise error(
                ErrorCode.NOT_FOUND, f"there is no file {path!r} in the session", next="`%modal get` lists the files"
            )
        data = buffers[0] if blob.at == "inline" else notebook.hub.blobs.get(blob.hash, blob.size_bytes)
        target = local_path(notebook.hub.folder, path)
        write_file(target, data)
        tell(f"{path} is here now: {target} ({size_text(blob.size_bytes)})")


def _list_files(session: RemoteSession) -> None:
    reply, _ = session.side("file_list", timeout_seconds=FILE_SECONDS)
    found = msgspec.convert(reply.content.get("files") or [], list[FileChange])
    written = [file for file in found if not file.deleted]
    if not found:
        _print(f"session {session.name!r} has written no files")
    width = max((len(file.path) for file in found), default=0)
    for file in found:
        _print(f"{file.path:<{width}}  {'deleted there only' if file.deleted else size_text(file.size_bytes)}")
    if written:
        _print(f"`%modal get {quoted(written[0].path)}` brings that one here")


def _put(notebook: Notebook, options: LineOptions) -> None:
    session = _open(notebook, options.session)
    for word in options.words:
        source = notebook.hub.folder / Path(word).expanduser()
        try:
            data = source.read_bytes()
        except OSError as why:
            what = f"{source} cannot be read: {why.strerror}"
            raise error(ErrorCode.NOT_FOUND, what, next="give a file beside the notebook, or a whole path") from None
        hash = blake3(data, max_threads=blake3.AUTO).hexdigest()
        notebook.hub.blobs.put(hash, data)
        path = str(PurePosixPath(word)) if not Path(word).expanduser().is_absolute() else source.name
        session.side("file_put", {"path": path, "hash": hash, "size_bytes": len(data)}, timeout_seconds=FILE_SECONDS)
        session.files_told.pop(path, None)  # it is told again once it was changed there
        tell(f"{word} is in the session as {path} ({size_text(len(data))})")


def local_path(folder: Path, path: str) -> Path:
    """Where a remote file goes: the same place below the notebook's folder; anything else by its name only."""
    relative = PurePosixPath(path)
    if relative.is_absolute() or ".." in relative.parts:
        return folder / relative.name
    return folder / relative


def write_file(target: Path, data: bytes | bytearray | memoryview) -> None:
    """Write a file whole or not at all. Raises DISK_FULL or STORE."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(target)
    except OSError as why:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        code = ErrorCode.DISK_FULL if why.errno in (28, 122) else ErrorCode.STORE
        raise error(
            code, f"{target} could not be written: {why.strerror}", next="the file is still in the session"
        ) from None


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
