"""The record's tables as they are now, for queries. How a database gets there is in `store_migrations.py`; a test holds
that the migrations end in exactly these columns.

Portable on purpose: ids, enums, JSON and money are text (money as decimal digits, so that no binary fraction creeps
in), times are double unix seconds, flags are 0 or 1. Every row has `workspace` and `owner`, but for `gateway` and
`schema_version`, which are the database's own.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Double, Integer, MetaData, Table, Text

metadata = MetaData()


def _owned(name: str, *columns: Column[object], primary: bool = True) -> Table:
    key = [Column("id", Text, primary_key=True)] if primary else []
    return Table(
        name, metadata, *key, Column("workspace", Text, nullable=False), Column("owner", Text, nullable=False), *columns
    )


def _text(name: str) -> Column[object]:
    return Column(name, Text, nullable=False)


def _time(name: str, nullable: bool = False) -> Column[object]:
    return Column(name, Double, nullable=nullable)


def _whole(name: str) -> Column[object]:
    return Column(name, BigInteger, nullable=False)


schema_version = Table(
    "schema_version", metadata, Column("version", Integer, primary_key=True), Column("applied", Double)
)

# One row, id 1: who is the active gateway. Its epoch goes into every lease and fences a gateway that lost the lock.
gateway = Table(
    "gateway", metadata, Column("id", Integer, primary_key=True), _whole("epoch"), _text("instance"), _time("acquired")
)

workspaces = Table("workspaces", metadata, Column("id", Text, primary_key=True), _text("owner"), _time("created"))
principals = Table(
    "principals", metadata, Column("workspace", Text, primary_key=True), Column("id", Text, primary_key=True),
    _text("owner"), _time("created"),
)  # fmt: skip
tokens = _owned(
    "tokens",
    _text("hash"),
    _text("name"),
    _text("role"),
    _time("created"),
    _time("expires", True),
    _time("revoked", True),
)
sessions = _owned(
    "sessions", _text("notebook"), _text("name"), _whole("generation"), _text("kernel_id"), _text("state"), _whole("live"),
    _text("container"), _text("reason"), _time("created"), _time("last_used"), _time("ended", True), _text("detail"),
    _text("parking"), _text("parked"),
)  # fmt: skip
calls = _owned(
    "calls", _text("session"), _text("container"), _text("kind"), _text("state"), _whole("attempt"), _text("reason"),
    _text("error"), _time("created"), _time("started", True), _time("ended", True), _time("run_seconds"), _text("cost_usd"),
    _text("detail"),
)  # fmt: skip
containers = _owned(
    "containers", _text("session"), _text("worker"), _text("lease"), _whole("epoch"), _text("state"), _text("reason"),
    _time("created"), _time("ready", True), _time("ended", True), _text("detail"),
)  # fmt: skip
leases = _owned(
    "leases", _text("session"), _text("container"), _text("worker"), _whole("epoch"), _text("gpus"), _time("cpu"),
    _whole("memory_mib"), _text("usd_per_second"), _text("price_note"), _time("opened"), _time("closed", True),
    _time("billed_seconds"), _text("reason"),
)  # fmt: skip
workers = _owned(
    "workers", _text("state"), _text("instance"), _text("hostname"), _whole("pid"), _text("inventory"), _time("joined"),
    _time("last_seen"),
)  # fmt: skip
