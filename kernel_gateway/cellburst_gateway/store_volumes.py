"""Volumes, their files and commits. A commit is one transaction: the volume has its old version or the new one, never a mix.

What was deleted is a row until a day later: whoever asks for what changed since before gets all files.

Ten thousand paths cost a handful of statements: what stands at the commit's paths is read by one query that takes the paths
as JSON, and all rows are written by one statement. What a commit may be (limits, hashes, paths) was checked before
(`volume_rules.py`); here is what only the record knows: conflicts, files above and below one another, how many there are.

Over 400 lines: one verb, a commit, with all that must be decided inside its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, Row, delete, func, select, text

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.volumes import (
    MAX_FILES,
    Chunk,
    CommitVolume,
    FileEntry,
    VolumeCommitted,
    conflict_error,
    conflicts,
    shown,
)

from .store_base import StoreBase
from .store_prepared import insert_row, row_of, update_row
from .store_rows import Owner
from .store_schema import volume_commits, volume_files, volumes, workspaces

PAGE_ROWS = 5000  # of a listing that is read in pieces, so that other verbs come in between
_COLUMNS = "kind, size_bytes, mode, modified_ns, chunks, target, deleted, version"
_UPSERT = text(
    f'INSERT INTO volume_files (volume, path, workspace, owner, {_COLUMNS}, "by")'  # noqa: S608  # constants
    " VALUES (:volume, :path, :workspace, :owner, :kind, :size_bytes, :mode, :modified_ns, :chunks, :target, :deleted,"
    " :version, :by) ON CONFLICT (volume, path) DO UPDATE SET"
    " owner = excluded.owner, kind = excluded.kind, size_bytes = excluded.size_bytes, mode = excluded.mode,"
    " modified_ns = excluded.modified_ns, chunks = excluded.chunks, target = excluded.target, deleted = excluded.deleted,"
    ' version = excluded.version, "by" = excluded."by"'
)
_encode = msgspec.json.Encoder().encode
_decode_chunks = msgspec.json.Decoder(list[Chunk]).decode


@dataclass(frozen=True, slots=True)
class VolumeRecord:
    """A volume. `name` is "" of an ephemeral one; `touched` is when somebody last asked for it."""

    id: str
    owner: Owner
    name: str
    version: int
    files: int
    size_bytes: int
    ephemeral: bool
    created: float
    changed: float
    touched: float


class VolumeVerbs(StoreBase):
    """Verbs on volumes."""

    def create_volume(
        self, volume_id: str, owner: Owner, *, name: str, now: float, if_missing: bool = False, ephemeral: bool = False
    ) -> tuple[VolumeRecord, bool]:
        """Make a volume; the same id again gives it and False, and so does `if_missing` for one of that name.
        Raises RequestError (CONFLICT) when the name is taken."""
        with self._transaction() as c:
            row = row_of(c, volumes, volume_id)
            if row is not None and row.workspace == owner.workspace:
                return _volume(row), False
            if name:
                taken = _by_name(c, owner.workspace, name)
                if taken is not None and if_missing:
                    return _volume(taken), False
                if taken is not None:
                    raise _taken(name)
            insert_row(c, volumes, {
                "id": volume_id, "workspace": owner.workspace, "owner": owner.principal, "name": name, "version": 0, "files": 0,
                "size_bytes": 0, "ephemeral": int(ephemeral), "created": now, "changed": now, "touched": now,
            })  # fmt: skip
            return _volume(row_of(c, volumes, volume_id)), True

    def get_volume(self, workspace: str, name_or_id: str, *, now: float | None = None) -> VolumeRecord:
        """A volume by name or id; with `now` it counts as asked for. Raises RequestError (NOT_FOUND), also for another
        workspace's."""
        with self._transaction() as c:
            row = _locked(c, workspace, name_or_id)
            if now is not None and row.ephemeral:
                update_row(c, volumes, row.id, {"touched": now})
            return _volume(row)

    def list_volumes(self, workspace: str) -> list[VolumeRecord]:
        """All of a workspace, by name; ephemeral ones last."""
        with self._transaction() as c:
            rows = c.execute(select(volumes).where(volumes.c.workspace == workspace))
            return sorted((_volume(row) for row in rows), key=lambda v: (v.ephemeral, v.name, v.created))

    def rename_volume(self, workspace: str, name_or_id: str, *, name: str) -> VolumeRecord:
        """Give it another name. Raises RequestError (NOT_FOUND, CONFLICT; BAD_ARGUMENT for an ephemeral one)."""
        with self._transaction() as c:
            row = _locked(c, workspace, name_or_id)
            if row.ephemeral:
                raise error(ErrorCode.BAD_ARGUMENT, "an ephemeral volume has no name")
            taken = _by_name(c, workspace, name)
            if taken is not None and taken.id != row.id:
                raise _taken(name)
            update_row(c, volumes, row.id, {"name": name})
            return _volume(row_of(c, volumes, row.id))

    def delete_volume(self, workspace: str, volume_id: str) -> None:
        """Remove a volume with all its rows. Raises RequestError (NOT_FOUND)."""
        with self._transaction() as c:
            row = _locked(c, workspace, volume_id)
            for table in (volume_files, volume_commits):
                c.execute(delete(table).where(table.c.volume == row.id))
            c.execute(delete(volumes).where(volumes.c.id == row.id))

    def idle_ephemeral_volumes(self, *, before: float) -> list[VolumeRecord]:
        """Ephemeral ones that nobody asked for since `before`, of all workspaces."""
        with self._transaction() as c:
            rows = c.execute(select(volumes).where(volumes.c.ephemeral == 1, volumes.c.touched < before))
            return [_volume(row) for row in rows]

    def volume_files(self, volume_id: str, *, since: int = 0, prefix: str = "") -> tuple[int, list[FileEntry]]:
        """The version, and what changed after version `since` (deletions included if `since` > 0), by path. `prefix` is a
        path: itself and what lies below it. Raises RequestError (NOT_FOUND)."""
        with self._transaction() as c:
            version = c.execute(select(volumes.c.version).where(volumes.c.id == volume_id)).scalar()
            if version is None:
                raise _no_volume(volume_id)
            query = select(volume_files).where(volume_files.c.volume == volume_id)
            query = query.where(volume_files.c.version > since) if since else query.where(volume_files.c.deleted == 0)
            if prefix:
                path = _ordered(c, volume_files.c.path)
                query = query.where((path == prefix) | ((path > f"{prefix}/") & (path < f"{prefix}0")))
            rows = c.execute(query).all()
        return version, sorted((_entry(row) for row in rows), key=lambda entry: entry.path)

    def commit_volume(
        self, workspace: str, volume_id: str, principal: str, commit: CommitVolume, *, now: float
    ) -> tuple[VolumeRecord, VolumeCommitted]:
        """Publish a commit whose entries were checked. The same key again is answered as it was the first time.

        Raises RequestError: NOT_FOUND, VOLUME_CONFLICT (nothing is changed then), BAD_ARGUMENT (a file above another, or a
        base that is to come), TOO_LARGE.
        """
        with self._transaction() as c:
            row = _locked(c, workspace, volume_id)
            same_key = (volume_commits.c.volume == row.id) & (volume_commits.c.key == commit.key)
            done = c.execute(select(volume_commits).where(same_key)).first()
            if done is not None:
                return _volume(row), VolumeCommitted(version=done.version, changed=done.changed)
            if commit.base > row.version:
                raise error(
                    ErrorCode.BAD_ARGUMENT, f"the commit begins from version {commit.base}; the volume has {row.version}",
                    next="read the volume again: it may be another one of the same name",
                )  # fmt: skip
            name = row.name or row.id
            paths = [entry.path for entry in commit.changes] + commit.deleted
            current = _current(c, row.id, paths)
            against = conflicts(commit, current)
            if against:
                raise conflict_error(name, against)
            changes = [entry for entry in commit.changes if not _is_same(entry, current.get(entry.path))]
            gone = {path for path in commit.deleted if path in current and not current[path].deleted}
            gone |= _clashes(c, row.id, name, commit, changes, gone, current)
            version = row.version
            values: dict[str, Any] = {"touched": now}
            if changes or gone:
                version += 1
                files, size = _totals(current, changes, gone)
                if row.files + files > MAX_FILES:
                    raise error(
                        ErrorCode.TOO_LARGE, f"volume {name} would have {row.files + files:,} files",
                        allowed=f"{MAX_FILES:,} in one volume", next="put them into several volumes, or into archives",
                    )  # fmt: skip
                shared = {
                    "volume": row.id, "workspace": workspace, "owner": principal, "version": version, "by": commit.by,
                }  # fmt: skip
                rows = [shared | _columns(entry) for entry in changes]
                rows += [shared | _columns(FileEntry(path=path, deleted=True)) for path in sorted(gone)]
                c.execute(_UPSERT, rows)
                values |= {
                    "version": version, "changed": now, "files": row.files + files, "size_bytes": row.size_bytes + size,
                }  # fmt: skip
            changed = len(changes) + len(gone)
            update_row(c, volumes, row.id, values)
            insert_row(c, volume_commits, {
                "volume": row.id, "key": commit.key, "workspace": workspace, "owner": principal, "by": commit.by,
                "version": version, "changed": changed, "at": now,
            })  # fmt: skip
            return _volume(row_of(c, volumes, row.id)), VolumeCommitted(version=version, changed=changed)

    def drop_old_commits(self, *, before: float) -> int:
        """Forget the keys of commits made before, and which files they deleted; returns how many. Of each volume the newest of
        them stays: `volume_horizon` goes by it."""
        old = select(volume_commits.c.volume, func.max(volume_commits.c.version)).where(volume_commits.c.at < before)
        dropped = 0
        with self._transaction() as c:
            for volume, version in c.execute(old.group_by(volume_commits.c.volume)).all():
                commits = (volume_commits.c.volume == volume) & (volume_commits.c.version < version)
                dropped += c.execute(delete(volume_commits).where(commits)).rowcount
                files = (volume_files.c.volume == volume) & (volume_files.c.version <= version)
                c.execute(delete(volume_files).where(files, volume_files.c.deleted == 1))
        return dropped

    def volume_horizon(self, volume_id: str) -> int:
        """The oldest version since which all deletions are known."""
        with self._transaction() as c:
            query = select(func.min(volume_commits.c.version)).where(volume_commits.c.volume == volume_id)
            if (found := c.execute(query).scalar()) is not None:
                return int(found)
            return int(c.execute(select(volumes.c.version).where(volumes.c.id == volume_id)).scalar() or 0)

    def chunk_workspaces(self) -> list[str]:
        """Workspaces that may have chunks: all of them, because their last volume may be gone."""
        with self._transaction() as c:
            known = c.execute(select(workspaces.c.id)).scalars().all()
            return sorted({*known, *c.execute(select(volumes.c.workspace).distinct()).scalars()})

    def chunks_page(self, workspace: str, after: tuple[str, str]) -> tuple[set[str], tuple[str, str] | None]:
        """Hashes that live files of a workspace refer to: those of a page of rows after (volume, path), and where the next
        page begins; None at the end."""
        with self._transaction() as c:
            f = volume_files.c
            place = (f.volume > after[0]) | ((f.volume == after[0]) & (f.path > after[1]))
            rows = c.execute(
                select(f.volume, f.path, f.chunks, f.deleted).where(f.workspace == workspace, place)
                .order_by(f.volume, f.path).limit(PAGE_ROWS)
            ).all()  # fmt: skip
        found = {chunk.hash for row in rows if not row.deleted for chunk in _decode_chunks(row.chunks)}
        return found, (rows[-1].volume, rows[-1].path) if len(rows) == PAGE_ROWS else None


def _volume(row: Row[Any]) -> VolumeRecord:
    return VolumeRecord(
        id=row.id, owner=Owner(row.workspace, row.owner), name=row.name, version=row.version, files=row.files,
        size_bytes=row.size_bytes, ephemeral=bool(row.ephemeral), created=row.created, changed=row.changed, touched=row.touched,
    )  # fmt: skip


def _entry(row: Row[Any]) -> FileEntry:
    return FileEntry(
        path=row.path, kind=row.kind, size_bytes=row.size_bytes, mode=row.mode, modified_ns=row.modified_ns,
        chunks=_decode_chunks(row.chunks), target=row.target, deleted=bool(row.deleted), version=row.version, by=row.by,
    )  # fmt: skip


def _columns(entry: FileEntry) -> dict[str, Any]:
    return {
        "path": entry.path, "kind": entry.kind, "size_bytes": entry.size_bytes, "mode": entry.mode,
        "modified_ns": entry.modified_ns, "chunks": _encode(entry.chunks).decode(), "target": entry.target,
        "deleted": int(entry.deleted),
    }  # fmt: skip


def _by_name(c: Connection, workspace: str, name: str) -> Row[Any] | None:
    return c.execute(select(volumes).where(volumes.c.workspace == workspace, volumes.c.name == name)).first()


def _locked(c: Connection, workspace: str, name_or_id: str) -> Any:
    """The row, which no other transaction changes meanwhile."""
    row = row_of(c, volumes, name_or_id)
    if row is None or row.workspace != workspace:
        found = _by_name(c, workspace, name_or_id) if name_or_id else None
        row = row_of(c, volumes, found.id) if found is not None else None
    if row is None:
        raise _no_volume(name_or_id)
    return row


def _current(c: Connection, volume_id: str, paths: Sequence[str]) -> dict[str, FileEntry]:
    """What the volume has at these paths, deletions included."""
    if not paths:
        return {}
    query = f'SELECT path, {_COLUMNS}, "by" FROM volume_files WHERE volume = :v AND path IN ({_listed(c, "p")})'  # noqa: S608
    rows = c.execute(text(query), {"v": volume_id, "p": _encode(list(paths)).decode()})
    return {row.path: _entry(row) for row in rows}


def _listed(c: Connection, name: str) -> str:
    """A query of the texts in a parameter that is a JSON array."""
    if c.dialect.name == "postgresql":
        return f"SELECT jsonb_array_elements_text(CAST(:{name} AS jsonb))"
    return f"SELECT value FROM json_each(:{name})"  # noqa: S608  # a name of ours


def _ordered(c: Connection, column: Any) -> Any:
    """A path that compares by its bytes, as SQLite's do."""
    return column.collate("C") if c.dialect.name == "postgresql" else column


def _is_same(entry: FileEntry, there: FileEntry | None) -> bool:
    """Whether nothing at all differs."""
    if there is None or there.deleted:
        return False
    mine = (entry.kind, entry.mode, entry.modified_ns, entry.target, entry.chunks)
    return mine == (there.kind, there.mode, there.modified_ns, there.target, there.chunks)


def _is_leaf(there: FileEntry | None) -> bool:
    """Whether a file or link is there, so that nothing can be below it."""
    return there is not None and not there.deleted and there.kind != "folder"


def _totals(current: dict[str, FileEntry], changes: Iterable[FileEntry], gone: Iterable[str]) -> tuple[int, int]:
    """How many more files and bytes there are; fewer are negative."""
    files = size = 0
    for entry in changes:
        files, size = files + 1, size + entry.size_bytes
        before = current.get(entry.path)
        if before is not None and not before.deleted:
            files, size = files - 1, size - before.size_bytes
    for path in gone:
        files, size = files - 1, size - current[path].size_bytes
    return files, size


def _clashes(
    c: Connection, volume_id: str, name: str, commit: CommitVolume, changes: Sequence[FileEntry], gone: set[str],
    current: dict[str, FileEntry],
) -> set[str]:  # fmt: skip
    """Live paths that cannot stand beside the commit's: a file where it needs a folder, or files below its file. Empty, or
    (`last_write_wins`) those that go; they are put into `current`. Raises VOLUME_CONFLICT or BAD_ARGUMENT."""
    mine = {entry.path: entry for entry in changes}
    above: set[str] = set()
    for path in mine:
        while (path := path.rpartition("/")[0]) and path not in above:
            above.add(path)
    for path in above:
        if path in mine and mine[path].kind != "folder":
            raise _above(path)
    fresh = [entry.path for entry in changes if entry.kind != "folder" and not _is_leaf(current.get(entry.path))]
    standing = {
        path: entry for path, entry in _current(c, volume_id, sorted(above)).items()
        if not entry.deleted and entry.kind != "folder" and path not in gone and path not in mine
    }  # fmt: skip
    standing |= {path: entry for path, entry in _below(c, volume_id, fresh).items() if path not in gone}
    if not standing:
        return set()
    if commit.last_write_wins:
        current.update(standing)
        return set(standing)
    theirs = [entry for entry in standing.values() if entry.version > commit.base]
    if theirs:
        raise conflict_error(name, theirs)
    raise _above(min(standing))


def _below(c: Connection, volume_id: str, paths: Sequence[str]) -> dict[str, FileEntry]:
    """Live entries below any of these paths."""
    if not paths:
        return {}
    given = {"v": volume_id, "p": _encode(list(paths)).decode()}
    if c.dialect.name == "postgresql":
        # Its index has the database's own collation: one look over the volume's folders costs less than a range for each path.
        query = (
            "SELECT DISTINCT left(path, length(path) - strpos(reverse(path), '/')) FROM volume_files"
            " WHERE volume = :v AND deleted = 0 AND strpos(path, '/') > 0"
        )
        folders = c.execute(text(query), given).scalars()
        known: set[str] = set()
        for folder in folders:
            while folder and folder not in known:
                known.add(folder)
                folder = folder.rpartition("/")[0]
        found: dict[str, FileEntry] = {}
        for path in known.intersection(paths):
            live = select(volume_files).where(volume_files.c.volume == volume_id, volume_files.c.deleted == 0)
            rows = c.execute(live.where(volume_files.c.path.startswith(f"{path}/", autoescape=True)))
            found |= {row.path: _entry(row) for row in rows}
        return found
    columns = ", ".join(f"f.{column}" for column in ["path", *_COLUMNS.split(", ")])
    query = (
        f'SELECT {columns}, f."by" FROM json_each(:p) AS n JOIN volume_files AS f ON f.volume = :v'  # noqa: S608
        " AND f.path > n.value || '/' AND f.path < n.value || '0' WHERE f.deleted = 0"
    )
    return {row.path: _entry(row) for row in c.execute(text(query), given)}


def _above(path: str) -> Exception:
    return error(
        ErrorCode.BAD_ARGUMENT,
        f"{shown(path)} would be a file and a folder",
        next="delete one of them in the same commit",
    )


def _taken(name: str) -> Exception:
    return error(
        ErrorCode.CONFLICT, f"there is a volume {name} already",
        next="take another name, or use that one: Volume.from_name(…, create_if_missing=True)",
    )  # fmt: skip


def _no_volume(name: str) -> Exception:
    return error(
        ErrorCode.NOT_FOUND, f"there is no volume {shown(name)}",
        next="`cellburst volume list` lists them, `cellburst volume create NAME` makes one",
    )  # fmt: skip
