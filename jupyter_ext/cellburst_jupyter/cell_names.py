"""One cell's names on their way there and home: joins `names_*` with a session, the blob store and the notebook."""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cellburst.sizes import size_text
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.mac import verify
from cellburst_protocol.messages import (
    CellDone,
    ContainerStarted,
    FileChange,
    MirrorSpec,
    NameGroup,
    ValueComing,
    ValuePart,
)

from .cell_image import CellImage
from .environment import describe_drift
from .magic_line import CellOptions
from .names_read import read_cell
from .notebook import Notebook
from .publish import tell
from .session import RemoteSession

if TYPE_CHECKING:
    from .names_values import NameSync, Prepared

SHOWN_FILES = 6
EARLY_BYTES = 16 * 1024 * 1024  # reading less takes about as long as saying so
DISCARD_BYTES = 64 * 1024 * 1024  # smaller results are kept for a kernel that attaches later


class Names:
    """The names of one call of a session. All on the main thread, but `payload` of a detached call."""

    def __init__(self, notebook: Notebook, session: RemoteSession, image: CellImage | None = None) -> None:
        from .names_values import NameSync

        self._notebook = notebook
        self._session = session
        if session.names is None:
            session.names_process = session.process
            session.names = NameSync(lambda name: fetch(notebook, session, name), notebook.hub.folder)
        self._sync: NameSync = session.names
        self._mirror: MirrorSpec | None = None
        self.image = image or CellImage(keep=True)

    def tell_drift(self, mirror: MirrorSpec) -> None:
        """Say once what changed in this environment since the session's container was made from it."""
        self._mirror = mirror
        held: MirrorSpec | None = self._session.mirror
        if held is not None and held.identity != mirror.identity and mirror.identity not in self._session.drift_told:
            self._session.drift_told.add(mirror.identity)
            changes = describe_drift(held, mirror).splitlines()
            if changes:
                more = f" and {len(changes) - 3} more" if len(changes) > 3 else ""
                what = "; ".join(changes[:3])
                tell(f"changed here since this session started: {what}{more}. `%modal restart` takes it in")

    def prepare(self, tree: ast.Module, options: CellOptions) -> Prepared:
        """Groups, modules and inline buffers of the RunCell; larger parts are stored as blobs before this returns.

        Raises RequestError (UNKNOWN_NAME, UNPICKLABLE, TOO_LARGE, PYTHON_DIFFERS) or what storing raises.
        """
        self._follow_the_process()
        shell = self._notebook.shell
        cell = read_cell(tree, shell.user_ns, shell)
        ready = self._sync.prepare(
            cell, shell.user_ns, only=options.only, container=self._session.container_id, python=self._python_there()
        )
        self._store(ready.blobs)
        return ready

    def _python_there(self) -> str:
        """The version that will read what is sent: the container's, or that of what a new one is made from."""
        mirror = self._mirror.python_version if self._mirror is not None else ""
        return self.image.python(mirror, self._session.python_version if self._session.goes_on else "")

    def payload(self, hashes: Sequence[str]) -> Prepared:
        """The groups that a container asks for, and their inline buffers."""
        ready = self._sync.payload(hashes)
        self._store(ready.blobs)
        return ready

    def container_started(self, started: ContainerStarted) -> None:
        """The session has another container: with the same process in it, with its names, or a new one."""
        session = self._session
        session.names_process = session.process
        if started.start == "snapshot":
            self._sync.container = started.container.id
            return
        self._sync.container_lost(None if started.start != "names" else {remote.name for remote in started.lost})
        mirrors = bool(started.mirror_identity) or not started.container.image
        session.mirror = self._mirror if mirrors else None  # an image has packages of its own
        session.drift_told.clear()
        session.files_told.clear()

    def _follow_the_process(self) -> None:
        """A parked session was resumed while no cell was looking: what it had, it has. Another process has nothing."""
        session = self._session
        if session.names_process != session.process:
            session.names_process = session.process
            self._sync.container_lost()
        elif session.container_id:
            self._sync.container = session.container_id

    def cell_started(self) -> None:
        """The container has what was sent."""
        self._sync.sent(self._session.container_id)

    def write_back(self, done: CellDone, inline: list[Any]) -> list[str]:
        """Write the cell's results into the notebook's names, all or none; returns the lines to tell."""
        from .names_home import write_back

        there = self._session.there
        lines = write_back(done, inline, blob_reader(self._notebook), self._notebook.shell.user_ns, self._sync)
        for part in (part for group in done.home for part in group.parts if part.at == "blob"):
            if part.size_bytes >= DISCARD_BYTES:
                self._notebook.hub.blobs.discard(part.hash)
        for name in [*done.gone, *(n for group in done.home for n in group.names)]:
            there.pop(name, None)
        there.update({remote.name: remote.type for remote in [*done.stayed, *done.changed_there]})
        return [*lines, *files_lines(self._new_files(done.files))]

    def _new_files(self, files: Sequence[FileChange]) -> list[FileChange]:
        """Those that were not told before; the container lists all of its layer each time."""
        told = self._session.files_told
        new = [f for f in files if told.get(f.path) != (f.size_bytes, f.deleted)]
        told.update({f.path: (f.size_bytes, f.deleted) for f in files})
        return new

    def finished(self) -> None:
        """The cell is over, however: views of the notebook's values are given up."""
        self._sync.finished()
        self._notebook.hub.blobs.end_get()

    def _store(self, blobs: dict[str, memoryview]) -> None:
        for hash, view in blobs.items():
            self._notebook.hub.blobs.put(hash, view, functools.partial(self._tell_coming, view.nbytes))

    def _tell_coming(self, size_bytes: int, file: str) -> None:
        """Let the container read a large value while it is written."""
        if size_bytes >= EARLY_BYTES and self._session.container_id:
            self._session.send(ValueComing(file=file, size_bytes=size_bytes))


def blob_reader(notebook: Notebook) -> Callable[[ValuePart], Buffer]:
    """Fetches the bytes of a part that is a blob."""
    return lambda part: notebook.hub.blobs.get(part.hash, part.size_bytes)


def fetch(notebook: Notebook, session: RemoteSession, name: str) -> Any:
    """One name's value by SideRequest: checked by its seal, then unpickled into this kernel."""
    from .names_home import read_value

    reply, buffers = session.side("fetch", {"name": name}, timeout_seconds=600.0)
    verify_side(reply.value_key, reply.id, reply.groups, reply.mac)
    if not reply.groups:
        raise error(
            ErrorCode.NOT_FOUND, f"{name!r} is not in session {session.name!r}", next="`%modal names` lists them"
        )
    return read_value(reply.groups[0], buffers, blob_reader(notebook), notebook.shell.user_ns, session.names)


def verify_side(value_key: str, id: str, groups: Sequence[NameGroup], mac: str) -> None:
    """Raises INTEGRITY unless the worker sealed this answer for this question."""
    if not value_key:
        raise error(ErrorCode.INTEGRITY, "the answer came without a key to check it with, and was not opened")
    verify(value_key, f"side:{id}", groups, mac)


def files_lines(files: Sequence[FileChange]) -> list[str]:
    """What the cell wrote over the notebook's folder, and the command that brings it here."""
    written = [f for f in files if not f.deleted]
    deleted = [f.path for f in files if f.deleted]
    lines = []
    if written:
        shown = ", ".join(f"{f.path} ({size_text(f.size_bytes)})" for f in itertools.islice(written, SHOWN_FILES))
        more = f" and {len(written) - SHOWN_FILES} more (`%modal get` lists them)" if len(written) > SHOWN_FILES else ""
        lines.append(f"written there: {shown}{more}; `%modal get {quoted(written[0].path)}` brings it here")
    if deleted:
        lines.append(f"deleted there only: {', '.join(deleted[:SHOWN_FILES])}")
    return lines


def quoted(path: str) -> str:
    """A path as one word of a `%modal` line."""
    return f'"{path}"' if " " in path else path
