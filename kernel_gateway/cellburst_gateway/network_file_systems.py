"""Network file systems: folders of this machine that containers of its workers share live.

    FOLDER/WORKSPACE/NAME/     one of them; that the folder is there is all that is recorded
    FOLDER/WORKSPACE/.drafts   files that are being written from outside; folders that were removed, until they are gone

A worker on this machine binds NAME into containers, so what one writes the others see at once, and nothing is versioned: it is a
folder on a disk. Code in containers may have put anything there, also links: paths are walked part by part, and no link is
followed. Everything here blocks, but for `folder_text`, `check_there` and `sweep`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.network_file_systems import MAX_DEPTH, SharedEntries, SharedRow, SharedSize
from cellburst_protocol.volumes import check_name, check_path, shown

from .shared_trees import FOLDER, entry_of, list_tree, remove_trees, size_of_tree

log = logging.getLogger(__name__)


class NetworkFileSystems:
    """All of this gateway, below `folder`. `users` says in words what uses a workspace's one of a name."""

    def __init__(self, folder: Path, users: Callable[[str, str], list[str]]) -> None:
        self._folder, self._users = folder, users
        self._sweeper = ThreadPoolExecutor(1, "shared-sweep")
        self._stopped = threading.Event()

    def folder_text(self, workspace: str) -> str:
        """Where the workspace's lie; they may not be there yet."""
        return str(self._folder / quote(workspace, safe=""))

    def check_there(self, workspace: str, name: str) -> None:
        """Raises RequestError (NOT_FOUND)."""
        self._root(workspace, name)

    def rows(self, workspace: str) -> list[SharedRow]:
        """All, by name."""
        folder = Path(self.folder_text(workspace))
        with contextlib.suppress(FileNotFoundError):
            names = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
            return [self.row(workspace, name) for name in names]
        return []

    def row(self, workspace: str, name: str) -> SharedRow:
        """One. Raises RequestError (NOT_FOUND)."""
        changed = self._root(workspace, name).stat().st_mtime
        return SharedRow(name=name, changed_unix_seconds=changed, used_by=self._users(workspace, name))

    def create(self, workspace: str, name: str, *, if_missing: bool) -> SharedRow:
        """Make one. Raises RequestError (BAD_ARGUMENT; CONFLICT, unless `if_missing`), PlatformError (DISK_FULL, STORE)."""
        target = Path(self.folder_text(workspace)) / check_name(name)
        with disk_told():
            self._folder.mkdir(mode=0o700, exist_ok=True)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            try:
                target.mkdir()
                target.chmod(0o777)  # containers run as users of their own
            except FileExistsError:
                if not if_missing:
                    raise error(
                        ErrorCode.CONFLICT, f"there is a network file system {name!r}", next="take another name"
                    ) from None
        return self.row(workspace, name)

    def delete(self, workspace: str, name: str, *, used: bool) -> None:
        """Delete one with all it holds. Raises RequestError: NOT_FOUND; CONFLICT naming what uses it, unless `used`."""
        root = self._root(workspace, name)
        if (users := self._users(workspace, name)) and not used:
            raise error(
                ErrorCode.CONFLICT, f"network file system {name} is used by {', '.join(users)}",
                next="end them, or delete it all the same: --used",
            )  # fmt: skip
        with disk_told():
            aside = self._draft(workspace)
            root.rename(aside)  # at once, for whoever looks; who has it bound keeps an empty folder
        self.sweep()

    def size(self, workspace: str, name: str) -> SharedSize:
        """What its files hold together. Raises RequestError (NOT_FOUND)."""
        with disk_told():
            top = os.open(self._root(workspace, name), FOLDER)
            try:
                return size_of_tree(top)
            finally:
                os.close(top)

    def entries(self, workspace: str, name: str, path: str, *, recursive: bool) -> SharedEntries:
        """What lies in a folder, by path; a file or link by itself. Raises RequestError (NOT_FOUND, TOO_LARGE)."""
        text = _inner(path)
        with disk_told(path):
            if text:
                with self._parent(workspace, name, text) as (folder, last):
                    status = os.stat(last, dir_fd=folder, follow_symlinks=False)
                    if not stat.S_ISDIR(status.st_mode):
                        return SharedEntries(entries=[entry_of(text, status)])
                    start = os.open(last, FOLDER, dir_fd=folder)
            else:
                start = os.open(self._root(workspace, name), FOLDER)
            try:
                found = list_tree(start, text, recursive=recursive)
            finally:
                os.close(start)
        return SharedEntries(entries=sorted(found, key=lambda entry: entry.path))

    def open_file(self, workspace: str, name: str, path: str) -> int:
        """A file open for reading: its descriptor, to be closed. Raises RequestError (NOT_FOUND, BAD_ARGUMENT: no file)."""
        with disk_told(path), self._parent(workspace, name, check_path(path)) as (folder, last):
            fd = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                os.close(fd)
                raise error(ErrorCode.BAD_ARGUMENT, f"{shown(path)} is no file", next="list it, or name a file in it")
            return fd

    def draft(self, workspace: str, name: str, path: str) -> Path:
        """A new file for bytes that are to be at `path`: `adopt` it or delete it. Raises RequestError, PlatformError."""
        if check_path(path).count("/") > MAX_DEPTH:
            raise error(
                ErrorCode.BAD_ARGUMENT, f"{shown(path)} lies in more than {MAX_DEPTH} folders",
                allowed=f"at most {MAX_DEPTH}", next="take a shorter path",
            )  # fmt: skip
        self._root(workspace, name)
        with disk_told(path):
            return self._draft(workspace)

    def adopt(self, draft: Path, workspace: str, name: str, path: str) -> None:
        """Put a written draft at its path, in place of the file there; folders on the way are made. Raises RequestError
        (BAD_ARGUMENT: a folder or a link is in the way), PlatformError."""
        with disk_told(path), self._parent(workspace, name, check_path(path), make=True) as (folder, last):
            draft.chmod(0o666)
            os.rename(draft, last, dst_dir_fd=folder)  # beside an open folder

    def remove(self, workspace: str, name: str, path: str, *, recursive: bool) -> None:
        """Remove a file or link; a folder with `recursive`. Raises RequestError (NOT_FOUND, BAD_ARGUMENT)."""
        with disk_told(path), self._parent(workspace, name, check_path(path)) as (folder, last):
            status = os.stat(last, dir_fd=folder, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                os.unlink(last, dir_fd=folder)
                return
            if not recursive:
                raise error(
                    ErrorCode.BAD_ARGUMENT, f"{shown(path)} is a folder", next="recursive=True (-r) removes it with all it holds"
                )  # fmt: skip
            aside = self._draft(workspace)
            os.rename(last, aside, src_dir_fd=folder)  # beside an open folder
        self.sweep()

    def drop_drafts(self) -> None:
        """Drop the files that another gateway was writing when it ended. Before this one serves."""
        with contextlib.suppress(OSError):
            for path in self._folder.glob("*/.drafts/*"):
                with contextlib.suppress(OSError):  # a folder: the sweep's
                    path.unlink()

    def sweep(self) -> None:
        """Begin to take removed folders off the disk, beside: one that is large, or that a container still writes to, takes
        its time, or stays until a later sweep. Called regularly."""
        with contextlib.suppress(RuntimeError):  # closed
            self._sweeper.submit(self._sweep)

    def close(self) -> None:
        """End a sweep that is under way; the next gateway goes on with it."""
        self._stopped.set()
        self._sweeper.shutdown(cancel_futures=True)

    def _sweep(self) -> None:
        for path in self._folder.glob("*/.drafts"):
            try:
                drafts = os.open(path, FOLDER)
                try:
                    left = remove_trees(drafts, self._stopped.is_set)
                finally:
                    os.close(drafts)
            except OSError as why:
                log.warning("removed folders of network file systems stay on the disk", extra={"why": str(why)})
                continue
            if left and not self._stopped.is_set():
                log.info("removed folders of network file systems are still written to", extra={"folders": left})

    def _draft(self, workspace: str) -> Path:
        folder = Path(self.folder_text(workspace)) / ".drafts"
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder / secrets.token_hex(12)

    def _root(self, workspace: str, name: str) -> Path:
        root = Path(self.folder_text(workspace)) / check_name(name)
        if not root.is_dir():
            raise error(
                ErrorCode.NOT_FOUND, f"there is no network file system {name!r}", next=f"cellburst nfs create {name}",
                allowed=", ".join(one.name for one in sorted(root.parent.glob("[!.]*"))[:20]) or "none is there",
            )  # fmt: skip
        return root

    @contextlib.contextmanager
    def _parent(self, workspace: str, name: str, path: str, *, make: bool = False) -> Iterator[tuple[int, str]]:
        *folders, last = path.split("/")
        current = os.open(self._root(workspace, name), FOLDER)
        try:
            for part in folders:
                made = False
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=current)
                        made = True
                following = os.open(part, FOLDER, dir_fd=current)
                if made:
                    os.fchmod(following, 0o777)  # what was opened: code in a container may have put a link in its place
                os.close(current)
                current = following
            yield current, last
        finally:
            os.close(current)


def _inner(path: str) -> str:
    return check_path(path) if path.strip("/") else ""


@contextlib.contextmanager
def disk_told(path: str = "") -> Iterator[None]:
    """What the disk says, as the error tree."""
    try:
        yield
    except CellburstError:
        raise
    except OSError as why:
        if why.errno == errno.ENOENT and path:
            raise error(ErrorCode.NOT_FOUND, f"there is no {shown(path)}", next="cellburst nfs ls NAME") from None
        if why.errno in (errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENAMETOOLONG):
            what = f"{shown(path)}: a folder, a file or a link is where it cannot be ({why.strerror})"
            raise error(ErrorCode.BAD_ARGUMENT, what, next="links are not followed; give the path itself") from None
        full = why.errno in (errno.ENOSPC, errno.EDQUOT)
        raise error(
            ErrorCode.DISK_FULL if full else ErrorCode.STORE, f"the gateway's disk: {why.strerror}",
            next="free space on it" if full else "see the gateway's log",
        ) from why  # fmt: skip
