"""What a database's errors mean to us: one table for SQLite's result codes, one for PostgreSQL's SQLSTATE classes.

Sources: sqlite.org/rescode.html; PostgreSQL 15 manual, appendix A. Everything not listed is STORE.
"""

from __future__ import annotations

import errno
import sqlite3

from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError

from cellburst_protocol.errors import CellburstError, ErrorCode, error

# Primary result codes (the low byte of an extended one).
_SQLITE: dict[int, ErrorCode] = {
    sqlite3.SQLITE_FULL: ErrorCode.DISK_FULL,
    sqlite3.SQLITE_BUSY: ErrorCode.UNAVAILABLE,
    sqlite3.SQLITE_LOCKED: ErrorCode.UNAVAILABLE,
    sqlite3.SQLITE_INTERRUPT: ErrorCode.UNAVAILABLE,
    sqlite3.SQLITE_CONSTRAINT: ErrorCode.CONFLICT,
}
# The shared-memory file of the log cannot grow: on every system we know, because the disk is full.
_SQLITE_EXTENDED: dict[int, ErrorCode] = {sqlite3.SQLITE_IOERR_SHMSIZE: ErrorCode.DISK_FULL}

# By whole SQLSTATE first, then by its class of two characters.
_POSTGRES: dict[str, ErrorCode] = {
    "53100": ErrorCode.DISK_FULL,
    "55P03": ErrorCode.UNAVAILABLE,  # lock not available
    "57014": ErrorCode.UNAVAILABLE,  # statement cancelled
    "08": ErrorCode.UNAVAILABLE,  # connection lost
    "40": ErrorCode.UNAVAILABLE,  # serialization failure, deadlock
    "53": ErrorCode.UNAVAILABLE,  # too many connections, out of memory
    "57": ErrorCode.UNAVAILABLE,  # the server is being stopped or started
    "23": ErrorCode.CONFLICT,
}

_NEXT: dict[ErrorCode, str] = {
    ErrorCode.DISK_FULL: "free space where the record lies; nothing that was recorded is lost",
    ErrorCode.UNAVAILABLE: "the same request may be repeated in a moment",
    ErrorCode.CONFLICT: "list what is there and use another id",
    ErrorCode.STORE: "see the gateway's log; the record itself was not changed",
}


def translate(problem: Exception) -> CellburstError:
    """Our error for one that the database, its driver or the file system raised. Made `from` it by the caller."""
    code = _code_of(problem)
    original: BaseException | None = problem.orig if isinstance(problem, DBAPIError) else problem
    first_line = (str(original).strip().splitlines() or [type(original).__name__])[0]
    return error(code, f"the record could not be read or written: {first_line}", next=_NEXT[code])


def _code_of(problem: Exception) -> ErrorCode:
    if isinstance(problem, OSError):
        return ErrorCode.DISK_FULL if problem.errno in (errno.ENOSPC, errno.EDQUOT) else ErrorCode.STORE
    original = problem.orig if isinstance(problem, DBAPIError) else problem
    if isinstance(original, sqlite3.Error):
        number = getattr(original, "sqlite_errorcode", None) or 0
        return _SQLITE_EXTENDED.get(number) or _SQLITE.get(number & 0xFF, ErrorCode.STORE)
    state = getattr(original, "sqlstate", None)
    if isinstance(state, str):
        return _POSTGRES.get(state) or _POSTGRES.get(state[:2], ErrorCode.STORE)
    if isinstance(problem, IntegrityError):
        return ErrorCode.CONFLICT
    if isinstance(problem, DBAPIError) and (
        problem.connection_invalidated or type(original).__name__ == "OperationalError"
    ):
        return ErrorCode.UNAVAILABLE  # psycopg says so with no SQLSTATE when the server cannot be reached
    return ErrorCode.STORE


FOREIGN = (SQLAlchemyError, sqlite3.Error, OSError)
