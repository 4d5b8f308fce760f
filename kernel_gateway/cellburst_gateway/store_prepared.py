"""Rows by id, with statements compiled once for each database: what is on the path of every cell.

Building, compiling and wrapping the same statement again costs many times what SQLite needs to run it (measured: 250 us,
64 us with `exec_driver_sql`, 10 us by the driver itself). SQLAlchemy writes the SQL once, so both databases get their own,
and the driver binds the values. PostgreSQL goes through SQLAlchemy all the same: a lost connection is noticed there.
"""

from __future__ import annotations

from collections import namedtuple
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Executable, Table, bindparam, insert, select, update
from sqlalchemy.sql import ClauseElement

_KEY = "row_id"  # a bind's name that no column has


def row_of(c: Connection, table: Table, row_id: str) -> Any:
    """The row, locked until the transaction ends (SQLite's transactions lock everything anyway), or None."""
    text, names = _select(c.dialect, table)
    found = _run(c, text, names, {_KEY: row_id}).fetchone()
    return _row_type(table)(*found) if found is not None else None


def insert_row(c: Connection, table: Table, values: dict[str, Any]) -> None:
    """Add a row."""
    text, names = _insert(c.dialect, table, tuple(values))
    _run(c, text, names, values)


def update_row(c: Connection, table: Table, row_id: str, values: dict[str, Any]) -> None:
    """Change these columns of a row."""
    text, names = _update(c.dialect, table, tuple(values))
    _run(c, text, names, {f"new_{name}": value for name, value in values.items()} | {_KEY: row_id})


def _run(c: Connection, text: str, names: tuple[str, ...] | None, values: dict[str, Any]) -> Any:
    """Run a statement with values as the driver wants them: by position (`names` has the order), or by name."""
    given = values if names is None else tuple(values[name] for name in names)
    if c.dialect.name == "sqlite":
        driver: Any = c.connection.driver_connection
        return driver.execute(text, given)
    return c.exec_driver_sql(text, given)


@lru_cache
def _row_type(table: Table) -> Any:
    """Rows with their columns as attributes, as SQLAlchemy's are."""
    return namedtuple(f"Row_{table.name}", [column.name for column in table.columns])


@lru_cache
def _select(dialect: Dialect, table: Table) -> tuple[str, tuple[str, ...] | None]:
    return _compiled(dialect, select(table).where(table.c.id == bindparam(_KEY)).with_for_update())


@lru_cache
def _insert(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> tuple[str, tuple[str, ...] | None]:
    return _compiled(dialect, insert(table).values({name: bindparam(name) for name in columns}))


@lru_cache
def _update(dialect: Dialect, table: Table, columns: tuple[str, ...]) -> tuple[str, tuple[str, ...] | None]:
    changed = {name: bindparam(f"new_{name}", type_=table.c[name].type) for name in columns}
    return _compiled(dialect, update(table).where(table.c.id == bindparam(_KEY)).values(changed))


def _compiled(dialect: Dialect, statement: Executable) -> tuple[str, tuple[str, ...] | None]:
    assert isinstance(statement, ClauseElement)
    compiled = statement.compile(dialect=dialect)
    names = getattr(compiled, "positiontup", None)
    return str(compiled), tuple(names) if names is not None else None
