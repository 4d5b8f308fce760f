"""How a database comes to the schema of this version: numbered steps of plain SQL that SQLite and PostgreSQL both take.

A step is never edited after a release; a change is a new step. All missing steps run in one transaction together with
their rows in `schema_version`, so a process killed half-way leaves the old schema or the new one. A database that a
newer Cellburst wrote is refused and not touched.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, inspect, select, text

from cellburst_protocol.errors import ErrorCode, error

from .store_schema import schema_version


@dataclass(frozen=True)
class Migration:
    """One step: its number, what it is for, and its statements."""

    version: int
    what: str
    statements: tuple[str, ...]


_OWNED = "id TEXT NOT NULL PRIMARY KEY, workspace TEXT NOT NULL, owner TEXT NOT NULL"

FIRST = Migration(
    1,
    "workspaces, tokens, sessions, calls, containers, leases, workers",
    (
        "CREATE TABLE gateway (id INTEGER NOT NULL PRIMARY KEY, epoch BIGINT NOT NULL, instance TEXT NOT NULL,"
        " acquired DOUBLE PRECISION NOT NULL)",
        "CREATE TABLE workspaces (id TEXT NOT NULL PRIMARY KEY, owner TEXT NOT NULL, created DOUBLE PRECISION NOT NULL)",
        "CREATE TABLE principals (workspace TEXT NOT NULL, id TEXT NOT NULL, owner TEXT NOT NULL,"
        " created DOUBLE PRECISION NOT NULL, PRIMARY KEY (workspace, id))",
        f"CREATE TABLE tokens ({_OWNED}, hash TEXT NOT NULL, name TEXT NOT NULL, role TEXT NOT NULL,"
        " created DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION, revoked DOUBLE PRECISION)",
        "CREATE UNIQUE INDEX tokens_hash ON tokens (hash)",
        f"CREATE TABLE sessions ({_OWNED}, notebook TEXT NOT NULL, name TEXT NOT NULL, generation BIGINT NOT NULL,"
        " kernel_id TEXT NOT NULL, state TEXT NOT NULL, live BIGINT NOT NULL, container TEXT NOT NULL, reason TEXT NOT NULL,"
        " created DOUBLE PRECISION NOT NULL, last_used DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION, detail TEXT NOT NULL)",
        "CREATE UNIQUE INDEX sessions_live ON sessions (workspace, notebook, name) WHERE live = 1",
        "CREATE UNIQUE INDEX sessions_generation ON sessions (workspace, notebook, name, generation)",
        f"CREATE TABLE calls ({_OWNED}, session TEXT NOT NULL, container TEXT NOT NULL, kind TEXT NOT NULL,"
        " state TEXT NOT NULL, attempt BIGINT NOT NULL, reason TEXT NOT NULL, error TEXT NOT NULL,"
        " created DOUBLE PRECISION NOT NULL, started DOUBLE PRECISION, ended DOUBLE PRECISION,"
        " run_seconds DOUBLE PRECISION NOT NULL, cost_usd TEXT NOT NULL, detail TEXT NOT NULL)",
        "CREATE INDEX calls_session ON calls (session, created)",
        "CREATE INDEX calls_running ON calls (session) WHERE ended IS NULL",
        f"CREATE TABLE containers ({_OWNED}, session TEXT NOT NULL, worker TEXT NOT NULL, lease TEXT NOT NULL,"
        " epoch BIGINT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL, created DOUBLE PRECISION NOT NULL,"
        " ready DOUBLE PRECISION, ended DOUBLE PRECISION, detail TEXT NOT NULL)",
        "CREATE INDEX containers_running ON containers (worker) WHERE ended IS NULL",
        f"CREATE TABLE leases ({_OWNED}, session TEXT NOT NULL, container TEXT NOT NULL, worker TEXT NOT NULL,"
        " epoch BIGINT NOT NULL, gpus TEXT NOT NULL, cpu DOUBLE PRECISION NOT NULL, memory_mib BIGINT NOT NULL,"
        " usd_per_second TEXT NOT NULL, price_note TEXT NOT NULL, opened DOUBLE PRECISION NOT NULL,"
        " closed DOUBLE PRECISION, billed_seconds DOUBLE PRECISION NOT NULL, reason TEXT NOT NULL)",
        "CREATE INDEX leases_session ON leases (session)",
        "CREATE INDEX leases_open ON leases (worker) WHERE closed IS NULL",
        f"CREATE TABLE workers ({_OWNED}, state TEXT NOT NULL, instance TEXT NOT NULL, hostname TEXT NOT NULL,"
        " pid BIGINT NOT NULL, inventory TEXT NOT NULL, joined DOUBLE PRECISION NOT NULL, last_seen DOUBLE PRECISION NOT NULL)",
    ),
)

PARKING = Migration(
    2,
    "sessions that are being parked, and parked ones",
    (
        "ALTER TABLE sessions ADD COLUMN parking TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE sessions ADD COLUMN parked TEXT NOT NULL DEFAULT ''",
    ),
)

SECRETS = Migration(
    4,
    "secrets, who was given them, and which sessions have some",
    (
        f"CREATE TABLE secrets ({_OWNED}, name TEXT NOT NULL, version BIGINT NOT NULL, key_id TEXT NOT NULL,"
        " nonce TEXT NOT NULL, ciphertext TEXT NOT NULL, keys TEXT NOT NULL, created DOUBLE PRECISION NOT NULL,"
        " updated DOUBLE PRECISION NOT NULL, last_used DOUBLE PRECISION, expires DOUBLE PRECISION)",
        "CREATE UNIQUE INDEX secrets_name ON secrets (workspace, name)",
        f"CREATE TABLE secret_lists ({_OWNED}, version BIGINT NOT NULL, key_id TEXT NOT NULL, nonce TEXT NOT NULL,"
        " ciphertext TEXT NOT NULL)",
        f"CREATE TABLE secret_releases ({_OWNED}, at DOUBLE PRECISION NOT NULL, secret TEXT NOT NULL, version BIGINT NOT NULL,"
        " keys TEXT NOT NULL, store TEXT NOT NULL, session TEXT NOT NULL, container TEXT NOT NULL, worker TEXT NOT NULL,"
        " call TEXT NOT NULL, notebook TEXT NOT NULL, refused TEXT NOT NULL)",
        "CREATE INDEX secret_releases_at ON secret_releases (workspace, at)",
        f"CREATE TABLE session_secrets ({_OWNED}, uses TEXT NOT NULL, ever TEXT NOT NULL)",
    ),
)

VOLUMES = Migration(
    3,
    "volumes, their files and commits",
    (
        f"CREATE TABLE volumes ({_OWNED}, name TEXT NOT NULL, version BIGINT NOT NULL, files BIGINT NOT NULL,"
        " size_bytes BIGINT NOT NULL, ephemeral BIGINT NOT NULL, created DOUBLE PRECISION NOT NULL,"
        " changed DOUBLE PRECISION NOT NULL, touched DOUBLE PRECISION NOT NULL)",
        "CREATE UNIQUE INDEX volumes_name ON volumes (workspace, name) WHERE name <> ''",
        "CREATE TABLE volume_files (volume TEXT NOT NULL, path TEXT NOT NULL, workspace TEXT NOT NULL, owner TEXT NOT NULL,"
        " kind TEXT NOT NULL, size_bytes BIGINT NOT NULL, mode BIGINT NOT NULL, modified_ns BIGINT NOT NULL,"
        ' chunks TEXT NOT NULL, target TEXT NOT NULL, deleted BIGINT NOT NULL, version BIGINT NOT NULL, "by" TEXT NOT NULL,'
        " PRIMARY KEY (volume, path))",
        "CREATE INDEX volume_files_version ON volume_files (volume, version)",
        "CREATE TABLE volume_commits (volume TEXT NOT NULL, key TEXT NOT NULL, workspace TEXT NOT NULL, owner TEXT NOT NULL,"
        ' "by" TEXT NOT NULL, version BIGINT NOT NULL, changed BIGINT NOT NULL, at DOUBLE PRECISION NOT NULL,'
        " PRIMARY KEY (volume, key))",
    ),
)

SCHEDULES = Migration(
    5,
    "schedules, their runs, and who is to be told of them",
    (
        f"CREATE TABLE schedules ({_OWNED}, name TEXT NOT NULL, notebook TEXT NOT NULL, state TEXT NOT NULL,"
        " revision BIGINT NOT NULL, seen BIGINT NOT NULL, spec TEXT NOT NULL, created DOUBLE PRECISION NOT NULL,"
        " changed DOUBLE PRECISION NOT NULL)",
        "CREATE UNIQUE INDEX schedules_name ON schedules (workspace, name)",
        f"CREATE TABLE runs ({_OWNED}, schedule TEXT NOT NULL, occasion TEXT NOT NULL, instant BIGINT NOT NULL,"
        " until BIGINT NOT NULL, instants BIGINT NOT NULL, by_hand BIGINT NOT NULL, state TEXT NOT NULL, reason TEXT NOT NULL,"
        " error TEXT NOT NULL, attempt BIGINT NOT NULL, session TEXT NOT NULL, created DOUBLE PRECISION NOT NULL,"
        " started DOUBLE PRECISION, ended DOUBLE PRECISION, cost_usd TEXT NOT NULL, spec TEXT NOT NULL, detail TEXT NOT NULL)",
        "CREATE UNIQUE INDEX runs_occasion ON runs (schedule, occasion)",
        "CREATE INDEX runs_of_schedule ON runs (schedule, created)",
        "CREATE INDEX runs_ended ON runs (workspace, ended)",
        "CREATE INDEX runs_active ON runs (schedule) WHERE ended IS NULL",
        f"CREATE TABLE deliveries ({_OWNED}, run TEXT NOT NULL, channel TEXT NOT NULL, target TEXT NOT NULL,"
        " state TEXT NOT NULL, attempts BIGINT NOT NULL, due DOUBLE PRECISION NOT NULL, error TEXT NOT NULL,"
        " created DOUBLE PRECISION NOT NULL, ended DOUBLE PRECISION, body TEXT NOT NULL)",
        "CREATE INDEX deliveries_due ON deliveries (due) WHERE ended IS NULL",
    ),
)

SETTINGS = Migration(
    6,
    "what a workspace has decided for itself",
    (
        f"CREATE TABLE settings ({_OWNED}, name TEXT NOT NULL, value TEXT NOT NULL, changed DOUBLE PRECISION NOT NULL)",
        "CREATE UNIQUE INDEX settings_name ON settings (workspace, name)",
        "CREATE INDEX calls_ended ON calls (workspace, ended)",
    ),
)

ENDS = Migration(
    7,
    "what ended that nobody may have watched, and who was told of which end",
    (
        f"CREATE TABLE ends ({_OWNED}, thing TEXT NOT NULL, ended DOUBLE PRECISION NOT NULL)",
        "CREATE INDEX ends_ended ON ends (workspace, ended)",
        f"CREATE TABLE told ({_OWNED}, what TEXT NOT NULL, at DOUBLE PRECISION NOT NULL)",
        "CREATE INDEX told_what ON told (workspace, owner, what)",
        "CREATE INDEX told_at ON told (at)",
    ),
)

MIGRATIONS: tuple[Migration, ...] = (FIRST, PARKING, VOLUMES, SECRETS, SCHEDULES, SETTINGS, ENDS)

# Any number that no other program would take: it keeps two processes from migrating one PostgreSQL database at once.
_PG_MIGRATION_LOCK = 0x43B_0001


def migrate(connection: Connection, *, now: float, migrations: tuple[Migration, ...] = MIGRATIONS) -> int:
    """Run the missing steps inside the caller's transaction and return the version. Raises PlatformError (STORE)."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_PG_MIGRATION_LOCK)))
    current = version_of(connection)
    newest = migrations[-1].version
    if current > newest:
        raise error(
            ErrorCode.STORE,
            f"the record has schema version {current}; this Cellburst knows up to {newest}",
            allowed="a record written by this version or an older one",
            next="install the newer Cellburst again, or start with another data folder",
        )
    if current == 0:
        connection.execute(
            text(
                "CREATE TABLE IF NOT EXISTS schema_version (version INTEGER NOT NULL PRIMARY KEY, applied DOUBLE PRECISION)"
            )
        )
    for step in migrations:
        if step.version > current:
            for statement in step.statements:
                connection.execute(text(statement))
            connection.execute(insert(schema_version).values(version=step.version, applied=now))
    return max(current, newest)


def version_of(connection: Connection) -> int:
    """The schema version of a database; 0 for an empty one."""
    if not inspect(connection).has_table("schema_version"):
        return 0
    return connection.execute(select(func.max(schema_version.c.version))).scalar() or 0
