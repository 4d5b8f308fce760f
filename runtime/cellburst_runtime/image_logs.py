"""The logs of images' builds on disk: one file an image, of its last build, there when that has ended, well or not."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

Log = Callable[[str], None]
KEPT = 200  # of builds, newest
_KILLED_SECONDS = 86_400.0  # a draft so old is of a build that was killed


class LogFiles:
    """Those in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def begin(self, image: str, log: Log) -> Iterator[Log]:
        """A log that goes to `log` and to the image's file."""
        part = self._folder / f"{image}.{secrets.token_hex(4)}.part"
        with open(part, "w", encoding="utf-8") as file:

            def both(line: str) -> None:
                file.write(f"{line}\n")
                log(line)

            try:
                yield both
            finally:
                file.flush()
                part.replace(self._folder / f"{image}.log")
                self._drop_oldest()

    def read(self, image: str) -> str:
        """The log of an image, by its id or the beginning of it. Raises RequestError (NOT_FOUND)."""
        matches = sorted(self._folder.glob(f"{image}*.log")) if image.isalnum() else []
        if len(matches) != 1:
            raise error(
                ErrorCode.NOT_FOUND, f"{'several builds' if matches else 'no build'} of an image {image!r}",
                next="`cellburst image ls` lists them",
            )  # fmt: skip
        return matches[0].read_text(errors="replace")

    def _drop_oldest(self) -> None:
        times: dict[Path, float] = {}
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                times[path] = path.stat().st_mtime
        logs = sorted((path for path in times if path.suffix == ".log"), key=times.__getitem__)
        dead = [path for path in times if path.suffix == ".part" and times[path] < time.time() - _KILLED_SECONDS]
        for path in [*logs[:-KEPT], *dead]:
            path.unlink(missing_ok=True)
