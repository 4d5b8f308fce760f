"""What files of this machine consist of, remembered by (path, device, inode, size, times), so that an unchanged gigabyte is not
read again.

A file that was changed within the last two seconds is neither remembered nor believed: file times are coarse, and a later
change could have the same ones. The change time counts too, which no program can set back. The memory is a SQLite file in the
user's cache folder with at most `MAX_ROWS` files of at least `MIN_BYTES`; where it cannot be used, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

MIN_BYTES = 64 * 1024  # smaller ones are read as fast as they are looked up
MAX_ROWS = 100_000
YOUNG_NS = 2_000_000_000
HASH_BYTES = 32


class FileHashes:
    """The memory. Each call opens and closes it: callers are rare and in many processes."""

    def __init__(self, file: Path | None = None, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._file = file or _default_file()
        self._clock_ns = clock_ns

    def known(self, files: Iterable[tuple[str, os.stat_result]]) -> dict[str, list[str]]:
        """The hashes of those files' chunks, by path, of which they are remembered and believed."""
        found: dict[str, list[str]] = {}
        wanted = [(path, status) for path, status in files if status.st_size >= MIN_BYTES and self._settled(status)]
        if not wanted or not self._file.exists():
            return found
        with contextlib.suppress(sqlite3.Error, OSError), contextlib.closing(self._open()) as c:
            for path, status in wanted:
                row = c.execute("SELECT identity, hashes FROM files WHERE path = ?", (path,)).fetchone()
                if row is not None and row[0] == _identity(status):
                    found[path] = [row[1][at : at + HASH_BYTES].hex() for at in range(0, len(row[1]), HASH_BYTES)]
            with c:
                now = self._clock_ns()
                c.executemany("UPDATE files SET used = ? WHERE path = ?", [(now, path) for path in found])
        return found

    def remember(self, files: Sequence[tuple[str, os.stat_result, Sequence[str]]]) -> None:
        """Note what files consist of that had this status before and after they were read."""
        now = self._clock_ns()
        rows = [
            (path, _identity(status), b"".join(bytes.fromhex(hash) for hash in hashes), now)
            for path, status, hashes in files if status.st_size >= MIN_BYTES and self._settled(status)
        ]  # fmt: skip
        if not rows:
            return
        with contextlib.suppress(sqlite3.Error, OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with contextlib.closing(self._open()) as c, c:
                c.execute(
                    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, identity TEXT, hashes BLOB, used INTEGER)"
                )
                c.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", rows)
                count = c.execute("SELECT count(*) FROM files").fetchone()[0]
                if count > MAX_ROWS:
                    c.execute(
                        "DELETE FROM files WHERE path IN (SELECT path FROM files ORDER BY used LIMIT ?)",
                        (count - MAX_ROWS * 9 // 10,),
                    )

    def _settled(self, status: os.stat_result) -> bool:
        return max(status.st_mtime_ns, status.st_ctime_ns) < self._clock_ns() - YOUNG_NS

    def _open(self) -> sqlite3.Connection:
        return sqlite3.connect(self._file, timeout=1.0)


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev}.{status.st_ino}.{status.st_size}.{status.st_mtime_ns}.{status.st_ctime_ns}"


def _default_file() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cellburst" / "file-hashes.sqlite"
