"""The record's engine: one connection, one transaction at a time, and the lock of the one active gateway.

A transaction is `with self._transaction() as c`. It is serialised by a lock of ours, because one connection is all a
single writer needs and keeps a commit at one fsync. On SQLite it starts with BEGIN IMMEDIATE, so a read inside is of
the state that the write then changes; on PostgreSQL rows that a verb will change are read FOR UPDATE.

Fencing: a gateway that lost its lock commits nothing more, however late it wakes up. On SQLite the lock is the process's own
until it ends. On PostgreSQL it belongs to the very connection that writes; when that is lost, the next one must take the
lock again and find its own epoch still in the gateway row before it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.pool import StaticPool

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from . import store_errors
from .store_migrations import migrate
from .store_schema import gateway

BUSY_TIMEOUT_SECONDS = 5.0  # another process (a CLI, a backup) may hold SQLite's write lock this long
CONNECT_TIMEOUT_SECONDS = 5  # a PostgreSQL that does not answer within the time in which every bad input must
_PG_GATEWAY_LOCK = 0x43B_0002  # any number that no other program would take


class StoreBase:
    """Opening, closing, transactions and the gateway lock; the verbs are in the classes that build on it."""

    def __init__(self, engine: Engine, path: Path | None) -> None:
        self._engine = engine
        self._path = path
        self._mutex = threading.RLock()
        self._connection: Connection | None = None
        self._current: Connection | None = None  # the one of the transaction that is open
        self._lock_file: int | None = None
        self._epoch = 0

    @classmethod
    def open(cls, where: str | Path, *, now: float, synchronous: str = "FULL") -> Self:
        """Open the record at a file's path or an SQLAlchemy URL, and bring its schema up to date.

        `synchronous` is SQLite's: FULL survives a power cut; NORMAL may then lose the last commits, never the rest.
        Raises PlatformError: STORE (newer schema, no database, bad URL), DISK_FULL, UNAVAILABLE (no server).
        """
        if synchronous not in ("FULL", "NORMAL", "OFF"):
            raise error(
                ErrorCode.STORE, f"synchronous={synchronous!r} is not one of SQLite's", allowed="FULL, NORMAL, OFF"
            )
        text = str(where)
        try:
            if text.startswith("postgresql://"):
                text = "postgresql+psycopg://" + text.removeprefix("postgresql://")
            url = make_url(text) if "://" in text else URL.create("sqlite", database=str(Path(text).absolute()))
        except ArgumentError as why:
            raise error(
                ErrorCode.STORE, f"{str(where)!r} is not a record: {why}", allowed="a path or postgresql://…"
            ) from None
        path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
        if path is not None:
            engine = _sqlite_engine(path, synchronous)
        elif url.get_backend_name() == "postgresql":
            engine = create_engine(
                url, pool_size=1, max_overflow=0, connect_args={"connect_timeout": CONNECT_TIMEOUT_SECONDS}
            )
        else:
            raise error(ErrorCode.STORE, f"{url.drivername!r} is not supported", allowed="sqlite, postgresql")
        store = cls(engine, path)
        try:
            with store._transaction() as c:
                migrate(c, now=now)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let go of the connection and the gateway lock. Safe to call twice."""
        with self._mutex:
            if self._connection is not None:
                with contextlib.suppress(*store_errors.FOREIGN):
                    self._connection.close()
                self._connection = None
            self._engine.dispose()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None
            self._epoch = 0

    def acquire_gateway_lock(self, instance: str, *, now: float) -> int:
        """Become the one active gateway of this record and return the new epoch, higher than every one before.

        The lock goes with this process (a file lock, or the database session). Raises RequestError (CONFLICT) naming the
        instance that holds it. Again by the same store: the same epoch.
        """
        with self._mutex:
            if self._epoch:
                return self._epoch
            if self._path is not None:
                self._lock_sqlite()
            try:
                with self._transaction() as c:
                    self._lock_postgres(c)
                    row = c.execute(select(gateway.c.epoch).where(gateway.c.id == 1).with_for_update()).first()
                    epoch = (row.epoch if row else 0) + 1
                    values = {"epoch": epoch, "instance": instance, "acquired": now}
                    c.execute(update(gateway).values(values) if row else insert(gateway).values(id=1, **values))
            except BaseException:
                self._unlock_sqlite()
                raise
            self._epoch = epoch
            return epoch

    @property
    def epoch(self) -> int:
        """The epoch of the lock that this store holds; 0 while it holds none."""
        return self._epoch

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Several verbs in one commit: all of them, or none when one raises. Let that exception out of the block."""
        with self._transaction():
            yield

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """One transaction: committed at the end, rolled back on any exception; foreign errors come out as ours.

        Inside another one (`together`) it is part of that.
        """
        with self._mutex:
            if self._current is not None:
                yield self._current
                return
            try:
                connection = self._connected()
                try:
                    with connection.begin():
                        self._current = connection
                        try:
                            yield connection
                        finally:
                            self._current = None
                except store_errors.FOREIGN:
                    self._drop_if_broken(connection)
                    raise
            except store_errors.FOREIGN as why:
                raise store_errors.translate(why) from why

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._engine.connect()
            if self._epoch:
                try:
                    with connection.begin():
                        self._lock_postgres(connection)
                        self._check_fence(connection)
                except BaseException:
                    connection.invalidate()  # not back to the pool: it may hold the lock
                    connection.close()
                    raise
            self._connection = connection
        return self._connection

    def _drop_if_broken(self, connection: Connection) -> None:
        if connection.invalidated or connection.closed:
            with contextlib.suppress(*store_errors.FOREIGN):
                connection.close()
            self._connection = None

    def _check_fence(self, connection: Connection) -> None:
        row = connection.execute(select(gateway.c.epoch, gateway.c.instance).where(gateway.c.id == 1)).one()
        if row.epoch != self._epoch:
            raise error(
                ErrorCode.STORE,
                f"this gateway (epoch {self._epoch}) is no longer the active one: {row.instance} took over as epoch {row.epoch}",
                next="stop this gateway; the other one has everything that was recorded",
            )

    def _lock_postgres(self, connection: Connection) -> None:
        if self._path is None and not connection.execute(select(func.pg_try_advisory_lock(_PG_GATEWAY_LOCK))).scalar():
            row = connection.execute(select(gateway.c.instance).where(gateway.c.id == 1)).first()
            raise _already_active(row.instance if row else "another process")

    def _lock_sqlite(self) -> None:
        assert self._path is not None
        try:
            descriptor = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as why:
            raise store_errors.translate(why) from why
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            with self._transaction() as c:
                row = c.execute(select(gateway.c.instance).where(gateway.c.id == 1)).first()
            raise _already_active(row.instance if row else "another process") from None
        self._lock_file = descriptor

    def _unlock_sqlite(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def _already_active(instance: str) -> CellburstError:
    return error(
        ErrorCode.CONFLICT,
        f"another gateway ({instance}) is active on this record",
        allowed="one active gateway for each record",
        next="use that one, stop it with `cellburst down`, or give this one another data folder",
    )


def _sqlite_engine(path: Path, synchronous: str) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_SECONDS},
    )

    def on_connect(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: the driver's own rules would commit before DDL
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute(f"PRAGMA synchronous={synchronous}")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        driver: Any = connection.connection.driver_connection  # not through SQLAlchemy: this is on every cell's path
        driver.execute("BEGIN IMMEDIATE")

    event.listen(engine, "connect", on_connect)
    event.listen(engine, "begin", on_begin)
    return engine
