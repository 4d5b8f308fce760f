"""Migrations: they end in the declared schema, a newer record is refused, a killed one leaves old or new."""

from __future__ import annotations

import subprocess
import sys

import pytest
from sqlalchemy import inspect, text

from cellburst_gateway.store import Store
from cellburst_gateway.store_migrations import FIRST, MIGRATIONS, Migration, migrate, version_of
from cellburst_gateway.store_schema import metadata
from cellburst_protocol.errors import ErrorCode, PlatformError
from tests.gateway.postgres import pg_cluster, record_url  # noqa: F401  fixtures

NOW = len(MIGRATIONS)
NEXT = Migration(
    NOW + 1, "a colour for each session", ("ALTER TABLE sessions ADD COLUMN colour TEXT", "CREATE TABLE dyes (id TEXT)")
)


def test_the_migrations_end_in_the_declared_tables(record_url: str) -> None:  # noqa: F811
    store = Store.open(record_url, now=1.0)
    with store._transaction() as c:
        found = {
            name: {col["name"]: col for col in inspect(c).get_columns(name)} for name in inspect(c).get_table_names()
        }
    store.close()
    assert set(found) == set(metadata.tables)
    for name, table in metadata.tables.items():
        assert set(found[name]) == set(table.columns.keys()), name
        for column in table.columns:
            if not column.primary_key:
                assert found[name][column.name]["nullable"] == bool(column.nullable), (name, column.name)


def test_every_row_has_a_workspace_and_an_owner() -> None:
    own = {"schema_version", "gateway"}
    for name, table in metadata.tables.items():
        if name not in own:
            assert "owner" in table.columns, name
            assert "workspace" in table.columns or name == "workspaces", name


def test_versions_count_from_one_without_gaps() -> None:
    assert [step.version for step in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_opening_again_changes_nothing(record_url: str) -> None:  # noqa: F811
    Store.open(record_url, now=1.0).close()
    store = Store.open(record_url, now=2.0)
    with store._transaction() as c:
        assert c.execute(text("SELECT version, applied FROM schema_version")).all() == [
            (step.version, 1.0) for step in MIGRATIONS
        ]
    store.close()


def test_a_record_of_a_newer_version_is_refused_and_not_touched(record_url: str) -> None:  # noqa: F811
    store = Store.open(record_url, now=1.0)
    with store._transaction() as c:
        c.execute(text("INSERT INTO schema_version VALUES (99, 1.0)"))
    store.close()
    with pytest.raises(PlatformError, match=rf"version 99; this Cellburst knows up to {NOW}\b") as caught:
        Store.open(record_url, now=2.0)
    assert caught.value.code is ErrorCode.STORE


def test_an_old_record_gets_only_the_missing_steps(record_url: str) -> None:  # noqa: F811
    store = Store.open(record_url, now=1.0)
    with store._transaction() as c:
        assert migrate(c, now=2.0, migrations=(*MIGRATIONS, NEXT)) == NOW + 1
    with store._transaction() as c:
        assert version_of(c) == NOW + 1
        assert "colour" in {col["name"] for col in inspect(c).get_columns("sessions")}
    store.close()


def test_sessions_of_the_first_version_are_not_parked(record_url: str) -> None:  # noqa: F811
    store = Store.open(record_url, now=1.0)
    with store._transaction() as c:
        for table in metadata.sorted_tables:
            c.execute(text(f"DROP TABLE {table.name}"))
        migrate(c, now=1.0, migrations=(FIRST,))
        c.execute(
            text(
                "INSERT INTO sessions VALUES ('s1', 'lab', 'ann', 'n.ipynb', 'default', 1, 'k1', 'idle', 1, '', '', 1.0, 1.0,"
                " NULL, '')"
            )
        )
    store.close()
    store = Store.open(record_url, now=2.0)
    found = store.get_session("s1")
    assert (found.state.value, found.parking, found.parked) == ("idle", "", "")
    store.close()


KILLED = """
import os, signal, sys
from cellburst_gateway import store_migrations as m
from cellburst_gateway.store import Store

class UntilKilled(tuple):
    def __iter__(self):
        yield self[0]
        os.kill(os.getpid(), signal.SIGKILL)

step = m.Migration(len(m.MIGRATIONS) + 1, "half", UntilKilled(("ALTER TABLE sessions ADD COLUMN colour TEXT", "CREATE TABLE dyes (id TEXT)")))
store = Store.open(sys.argv[1], now=1.0)
with store._transaction() as c:
    m.migrate(c, now=2.0, migrations=(*m.MIGRATIONS, step))
"""


def test_a_migration_that_is_killed_half_way_leaves_the_old_schema(record_url: str) -> None:  # noqa: F811
    done = subprocess.run([sys.executable, "-c", KILLED, record_url], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    store = Store.open(record_url, now=3.0)
    with store._transaction() as c:
        assert version_of(c) == NOW
        assert "colour" not in {col["name"] for col in inspect(c).get_columns("sessions")}
        migrate(c, now=4.0, migrations=(*MIGRATIONS, NEXT))
    store.close()
