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
# Ciphertext only. The list of a workspace (its id) seals which versions its secrets have, so that an old row is noticed.
secrets = _owned(
    "secrets", _text("name"), _whole("version"), _text("key_id"), _text("nonce"), _text("ciphertext"), _text("keys"),
    _time("created"), _time("updated"), _time("last_used", True), _time("expires", True),
)  # fmt: skip
secret_lists = _owned("secret_lists", _whole("version"), _text("key_id"), _text("nonce"), _text("ciphertext"))
secret_releases = _owned(
    "secret_releases", _time("at"), _text("secret"), _whole("version"), _text("keys"), _text("store"), _text("session"),
    _text("container"), _text("worker"), _text("call"), _text("notebook"), _text("refused"),
)  # fmt: skip
session_secrets = _owned("session_secrets", _text("uses"), _text("ever"))
# `name` is "" of an ephemeral one. `touched`: when somebody last asked for it.
volumes = _owned(
    "volumes", _text("name"), _whole("version"), _whole("files"), _whole("size_bytes"), _whole("ephemeral"), _time("created"),
    _time("changed"), _time("touched"),
)  # fmt: skip
# One row a path, with the version that changed it last; a deletion is a row too. `chunks` is JSON: [[hash, bytes], …].
volume_files = Table(
    "volume_files", metadata, Column("volume", Text, primary_key=True), Column("path", Text, primary_key=True),
    _text("workspace"), _text("owner"), _text("kind"), _whole("size_bytes"), _whole("mode"), _whole("modified_ns"),
    _text("chunks"), _text("target"), _whole("deleted"), _whole("version"), _text("by"),
)  # fmt: skip
# What was answered to a commit's key, so that a repeated one is the same.
volume_commits = Table(
    "volume_commits", metadata, Column("volume", Text, primary_key=True), Column("key", Text, primary_key=True),
    _text("workspace"), _text("owner"), _text("by"), _whole("version"), _whole("changed"), _time("at"),
)  # fmt: skip
# `seen`: every instant up to it has its record in `runs`. `spec` is JSON of `schedules.ScheduleSpec`.
schedules = _owned(
    "schedules", _text("name"), _text("notebook"), _text("state"), _whole("revision"), _whole("seen"), _text("spec"),
    _time("created"), _time("changed"),
)  # fmt: skip
# `occasion` is unique in its schedule: the instant, or the id of a run that somebody asked for. `until` and `instants`: a row of
# missed ones may stand for several. `spec` is what the run was begun with, `detail` JSON of the gateway's own.
runs = _owned(
    "runs", _text("schedule"), _text("occasion"), _whole("instant"), _whole("until"), _whole("instants"), _whole("by_hand"),
    _text("state"), _text("reason"), _text("error"), _whole("attempt"), _text("session"), _time("created"),
    _time("started", True), _time("ended", True), _text("cost_usd"), _text("spec"), _text("detail"),
)  # fmt: skip
# What a workspace has decided for itself, by name: `spending_budget` (decimal text, of a month).
settings = _owned("settings", _text("name"), _text("value"), _time("changed"))
# What ended that nobody may have watched, as JSON of an EndedThing; and who (`owner`) was told of it, or of a run's end.
ends = _owned("ends", _text("thing"), _time("ended"))
told = _owned("told", _text("what"), _time("at"))
deliveries = _owned(
    "deliveries", _text("run"), _text("channel"), _text("target"), _text("state"), _whole("attempts"), _time("due"),
    _text("error"), _time("created"), _time("ended", True), _text("body"),
)  # fmt: skip
