"""What runs need and leave on disk.

    DATA/frozen/<2>/<hash>            notebooks and files as they were when they were scheduled, by content
    DATA/runs/RUN/notebook.ipynb      the executed notebook, replaced whole as the run goes on
    DATA/runs/RUN/files/<n>           files that the run wrote, in the order of its row's `files`
    DATA-runs/RUN.ATTEMPT/            the frozen folder, for as long as the attempt lasts: beside the data folder, because
                                      nothing below that is ever shown to a container

Nothing here is a path that a user chose: a run writes none of its user's own files. All functions block.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import msgspec
from blake3 import blake3

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.schedules import FrozenFile

from .blobs import BlobFolder, translated_disk_errors

COPY_BYTES = 1024 * 1024
YOUNG_SECONDS = 3600.0  # a frozen file may be on its way into a schedule
_ID = re.compile(r"r-[0-9a-f]{16}")


class RunFiles:
    """The folders."""

    def __init__(self, data_folder: Path) -> None:
        self._frozen = data_folder / "frozen"
        self._runs = data_folder / "runs"
        self._work = data_folder.with_name(data_folder.name + "-runs")
        for folder in (self._frozen, self._runs):
            folder.mkdir(mode=0o700, exist_ok=True)

    # -- frozen ----------------------------------------------------------------------------------------------------

    def missing(self, blobs: BlobFolder, workspace: str, hashes: Iterable[str], kept: Set[str]) -> list[str]:
        """Those that are neither blobs of the workspace nor frozen for it. `kept` are the hashes of its own schedules: what
        another workspace has frozen is nobody else's to name."""
        wanted = [hash for hash in dict.fromkeys(hashes) if hash not in kept or not self.frozen_path(hash).is_file()]
        return blobs.missing(workspace, wanted)

    def freeze(self, blobs: BlobFolder, hashes: Iterable[str]) -> None:
        """Keep these blobs: copied, and checked while they are. Raises RequestError (NOT_FOUND), PlatformError."""
        for hash in dict.fromkeys(hashes):
            target = self.frozen_path(hash)
            with translated_disk_errors():
                if target.is_file():
                    os.utime(target)
                    continue
                target.parent.mkdir(mode=0o700, exist_ok=True)
                part = target.with_name(f".{hash}.part")
                try:
                    found = _copy(blobs.path(hash), part)
                except FileNotFoundError:
                    raise error(
                        ErrorCode.NOT_FOUND,
                        "a file of the schedule was not sent",
                        next="schedule it again",
                        missing=hash,
                    ) from None
                if found != hash:
                    part.unlink()
                    raise error(ErrorCode.INTEGRITY, f"the blob {hash} is damaged", next="schedule it again")
                part.replace(target)

    def frozen(self, hash: str) -> bytes:
        """A frozen file's bytes. Raises PlatformError (INTEGRITY) for one that is gone or another."""
        try:
            data = self.frozen_path(hash).read_bytes()
        except OSError:
            data = b""
        if blake3(data).hexdigest() != hash:
            raise error(
                ErrorCode.INTEGRITY,
                f"the frozen file {hash[:16]} is gone or damaged",
                next="schedule the notebook again",
            )
        return data

    def offer(self, blobs: BlobFolder, workspace: str, hashes: Iterable[str]) -> None:
        """Make frozen files blobs of the workspace again, as far as they are not: those of an image that is about to be built,
        which workers fetch there. Raises PlatformError (INTEGRITY, DISK_FULL)."""
        for hash in blobs.missing(workspace, dict.fromkeys(hashes)):
            try:
                size_bytes = self.frozen_path(hash).stat().st_size
                writer = blobs.writer(hash, size_bytes)
                try:
                    with self.frozen_path(hash).open("rb") as file:
                        while chunk := file.read(COPY_BYTES):
                            writer.write(chunk)
                    writer.finish()
                finally:
                    writer.abandon()
            except OSError:
                what = f"a part of what the schedule keeps ({hash[:16]}) is gone"
                raise error(ErrorCode.INTEGRITY, what, next="schedule the notebook again") from None
            blobs.add_owner(workspace, hash)

    def sweep(self, wanted: set[str]) -> int:
        """Remove frozen files that nobody wants and that are not young; how many."""
        removed = 0
        for path in self._frozen.glob("[0-9a-f][0-9a-f]/*"):
            with contextlib.suppress(OSError):
                if path.name not in wanted and time.time() - path.stat().st_mtime > YOUNG_SECONDS:
                    path.unlink()
                    removed += 1
        return removed

    def frozen_path(self, hash: str) -> Path:
        """Where a frozen file is kept, whether or not it is."""
        return self._frozen / hash[:2] / hash

    # -- the folder of an attempt ----------------------------------------------------------------------------------

    def lay_out(self, run: str, attempt: int, files: Iterable[FrozenFile]) -> Path:
        """The frozen folder for an attempt; as it is, where it was laid out before. Raises PlatformError."""
        folder = self._work / f"{_checked(run)}.{attempt}"
        with translated_disk_errors():
            if folder.is_dir():
                return folder
            self._work.mkdir(mode=0o700, exist_ok=True)
            part = folder.with_name(f".{folder.name}.part")
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for file in files:
                target = part / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                # Copied, not linked: an engine without layers lets code write into the folder itself.
                if _copy(self.frozen_path(file.hash), target) != file.hash:
                    raise error(
                        ErrorCode.INTEGRITY, f"the frozen file {file.path!r} is damaged", next="schedule it again"
                    )
                if file.executable:
                    target.chmod(0o755)
            part.rename(folder)
        return folder

    def clear(self, run: str, attempt: int) -> None:
        """The attempt is over."""
        shutil.rmtree(self._work / f"{_checked(run)}.{attempt}", ignore_errors=True)
        with contextlib.suppress(OSError):
            self._work.rmdir()

    def clear_others(self, live: set[str]) -> None:
        """At start: folders of attempts (`RUN.ATTEMPT`) that nobody goes on with."""
        if self._work.is_dir():
            for path in self._work.iterdir():
                if path.name not in live:
                    shutil.rmtree(path, ignore_errors=True)

    # -- what a run leaves -----------------------------------------------------------------------------------------

    def notebook_path(self, run: str) -> Path:
        """Where the executed notebook lies."""
        return self._runs / _checked(run) / "notebook.ipynb"

    def write_notebook(self, run: str, notebook: dict[str, Any]) -> None:
        """Replace the executed notebook: a reader sees the old one or the new one, whole. Raises PlatformError (DISK_FULL)."""
        self.replace_notebook(run, msgspec.json.format(msgspec.json.encode(notebook), indent=1))

    def replace_notebook(self, run: str, data: bytes) -> None:
        """`write_notebook` for one that is encoded already."""
        path = self.notebook_path(run)
        with translated_disk_errors():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            part = path.with_name(".notebook.part")
            part.write_bytes(data)
            part.replace(path)

    def keep_file(self, run: str, number: int, source: Path | bytes) -> None:
        """Keep a file that the run wrote. Raises PlatformError."""
        target = self._runs / _checked(run) / "files" / str(number)
        with translated_disk_errors():
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, Path):
                _copy(source, target)
            else:
                target.write_bytes(source)

    def file_path(self, run: str, number: int) -> Path:
        """Where a kept file lies."""
        return self._runs / _checked(run) / "files" / str(number)

    def forget(self, runs: Iterable[str]) -> None:
        """Delete what runs left."""
        for run in runs:
            shutil.rmtree(self._runs / _checked(run), ignore_errors=True)


def _copy(source: Path, target: Path) -> str:
    """Copy a file; the BLAKE3 of what was copied."""
    hasher = blake3()
    with source.open("rb") as reading, target.open("wb") as writing:
        while chunk := reading.read(COPY_BYTES):
            hasher.update(chunk)
            writing.write(chunk)
    return hasher.hexdigest()


def _checked(run: str) -> str:
    if not _ID.fullmatch(run):
        raise error(ErrorCode.NOT_FOUND, f"{run[:80]!r} is no run", next="`cellburst schedule history` lists them")
    return run
