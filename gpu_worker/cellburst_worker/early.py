"""Large values while they are being written: shown to their reader before they are whole.

In: the kernel writes a blob, the container reads it meanwhile. Out: the container writes a value, the kernel reads it meanwhile.
All of it only saves time: a reader makes sure that it read the very file which the cell names later, and what was not read
early is read then. A file is shown by a second name, which is taken away before the first is moved. (Hashing it here as it
grows was tried and made it slower: writer and reader already have two cores to themselves.)
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

MAX_SHOWN = 64  # of one container at a time; more are read when they are whole


class Early:
    """The files of one container that are shown before they are whole."""

    def __init__(self) -> None:
        self._shown: list[Path] = []

    def show(self, source: Path, target: Path, *, mode: int = 0) -> None:
        """Show a file under a second name, with these permissions added. Raises PlatformError (INTEGRITY, BUSY), OSError."""
        if len(self._shown) >= MAX_SHOWN:
            raise error(ErrorCode.BUSY, f"{MAX_SHOWN} values of this container are on their way already")
        os.link(source, target, follow_symlinks=False)
        self._shown.append(target)
        status = target.lstat()
        if not stat.S_ISREG(status.st_mode):
            self.hide()
            raise error(ErrorCode.INTEGRITY, f"{source.name} is not a regular file")
        if mode:
            target.chmod(stat.S_IMODE(status.st_mode) | mode)

    def hide(self) -> None:
        """Take the second names away. Who reads one has it open."""
        shown, self._shown = self._shown, []
        for path in shown:
            path.unlink(missing_ok=True)
