"""Volumes over HTTP: who may, what is refused, what expires, what is collected, and a gateway killed during a commit.

Over 400 lines: all routes, and what happens behind them, of one client.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest
from blake3 import blake3

from cellburst_gateway import volume_routes
from cellburst_gateway.store_rows import Owner, Role
from cellburst_gateway.store_tokens import hash_token
from cellburst_gateway.volumes import EPHEMERAL_SECONDS, KEEP_SECONDS, Volumes
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.volumes import (
    CHUNK_BYTES,
    MAX_FILE_BYTES,
    Chunk,
    ChunkHashes,
    CommitVolume,
    CreateVolume,
    FileEntry,
    RenameVolume,
    VolumeCommitted,
    VolumeFiles,
    VolumeList,
    VolumeRow,
    pack_chunks,
    unpack_chunks,
)
from tests.gateway.house import House
from tests.gateway.test_auth import ask

DATA = b"some bytes"
HASH = blake3(DATA).hexdigest()
encode = msgspec.json.encode


class Client:
    """Requests with one token."""

    def __init__(self, house: House, token: str = "") -> None:
        self.house, self.token = house, token or house.token

    async def __call__(self, verb: str, path: str, body: Any = None) -> tuple[int, bytes]:
        raw = body if isinstance(body, bytes) else encode(body) if body is not None else None
        answer = await ask(self.house.url + path, verb, {"Authorization": f"Bearer {self.token}"}, raw)
        return answer.code, answer.body

    async def good(self, verb: str, path: str, body: Any = None, kind: Any = dict) -> Any:
        code, answer = await self(verb, path, body)
        assert code in (200, 201), answer
        return msgspec.json.decode(answer, type=kind)

    async def refused(self, verb: str, path: str, body: Any = None) -> ErrorInfo:
        code, answer = await self(verb, path, body)
        assert 400 <= code < 500, (code, answer)
        return msgspec.json.decode(answer, type=ErrorInfo)

    async def create(self, name: str = "data", **how: Any) -> VolumeRow:
        return await self.good("POST", "/volumes", CreateVolume(name=name, **how), VolumeRow)

    async def send(self, *data: bytes) -> None:
        await self.good("PUT", "/chunks", b"".join(pack_chunks((blake3(d).hexdigest(), d) for d in data)))

    async def commit(self, name: str, base: int, *changes: FileEntry, deleted: tuple[str, ...] = ()) -> VolumeCommitted:
        return await self.good(
            "POST", f"/volumes/{name}/commit", commit(base, *changes, deleted=deleted), VolumeCommitted
        )

    async def files(self, name: str, query: str = "") -> VolumeFiles:
        return await self.good("GET", f"/volumes/{name}/files{query}", kind=VolumeFiles)


def commit(base: int, *changes: FileEntry, deleted: tuple[str, ...] = ()) -> CommitVolume:
    return CommitVolume(base=base, key=os.urandom(8).hex(), by="ann", changes=list(changes), deleted=list(deleted))


def file(path: str, data: bytes = DATA) -> FileEntry:
    return FileEntry(
        path=path, size_bytes=len(data), chunks=[Chunk(blake3(data).hexdigest(), len(data))] if data else []
    )


@pytest.fixture
def client(house: House) -> Client:
    return Client(house)


async def test_a_volume_from_its_making_to_its_end(client: Client) -> None:
    row = await client.create()
    assert (row.name, row.version) == ("data", 0)
    assert (await client.refused("POST", "/volumes", CreateVolume(name="data"))).code is ErrorCode.CONFLICT
    assert (await client.create(if_missing=True)).id == row.id
    assert await client.good("POST", "/chunks/missing", ChunkHashes(hashes=[HASH]), ChunkHashes) == ChunkHashes(
        hashes=[HASH]
    )
    lacking = await client.refused("POST", "/volumes/data/commit", commit(0, file("a/b")))
    assert lacking.code is ErrorCode.NOT_FOUND and lacking.detail["missing"] == HASH
    await client.send(DATA, b"second")
    assert await client.good("POST", "/chunks/missing", ChunkHashes(hashes=[HASH]), ChunkHashes) == ChunkHashes(
        hashes=[]
    )
    assert await client.commit("data", 0, file("a/b"), file("empty", b"")) == VolumeCommitted(version=1, changed=2)
    assert [e.path for e in (await client.files(row.id)).entries] == ["a/b", "empty"]
    assert await client.commit("data", 1, file("a/b", b"second"), deleted=("empty",)) == VolumeCommitted(
        version=2, changed=2
    )
    changed = await client.files("data", "?since=1&prefix=empty")
    assert changed.version == 2 and [(e.path, e.deleted) for e in changed.entries] == [("empty", True)]
    code, body = await client("POST", "/chunks", ChunkHashes(hashes=[HASH, HASH]))
    assert code == 200 and [(h, bytes(d)) for h, d in unpack_chunks(body)] == [(HASH, DATA)] * 2
    assert (await client.good("PATCH", "/volumes/data", RenameVolume(name="new"), VolumeRow)).id == row.id
    listed = (await client.good("GET", "/volumes", kind=VolumeList)).rows
    assert [(r.name, r.version, r.files, r.size_bytes) for r in listed] == [("new", 2, 1, 6)]
    assert await client.good("DELETE", "/volumes/new") == {}
    for verb, path in (("GET", "/volumes/new"), ("GET", f"/volumes/{row.id}/files"), ("DELETE", "/volumes/new")):
        assert (await client.refused(verb, path)).code is ErrorCode.NOT_FOUND


async def test_a_foreign_volume_or_chunk_is_not_found_and_viewers_only_look(house: House, client: Client) -> None:
    store, now = house.gateway.hub.store, house.gateway.clock.wall()
    store.add_token(hash_token("bob"), Owner("bobs", "bob"), name="b", role=Role.USER, now=now)
    store.add_token(hash_token("eye"), Owner("home", "eve"), name="e", role=Role.VIEWER, now=now)
    bob, viewer, worker = (
        Client(house, "bob"),
        Client(house, "eye"),
        Client(house, house.gateway.hub.secrets.worker_token),
    )
    row = await client.create()
    await client.send(DATA)
    await client.commit("data", 0, file("a"))
    for name in ("data", row.id):
        for verb, path, body in (
            ("GET", f"/volumes/{name}", None), ("GET", f"/volumes/{name}/files", None), ("DELETE", f"/volumes/{name}", None),
            ("PATCH", f"/volumes/{name}", RenameVolume(name="x")), ("POST", f"/volumes/{name}/commit", commit(0)),
            ("POST", "/chunks", ChunkHashes(hashes=[HASH])),
        ):  # fmt: skip
            assert (await bob.refused(verb, path, body)).code is ErrorCode.NOT_FOUND
    assert (await bob.good("GET", "/volumes", kind=VolumeList)).rows == []
    await bob.create()  # the same name is free there
    assert (await bob.refused("POST", "/volumes/data/commit", commit(0, file("a")))).detail["missing"] == HASH
    assert [e.path for e in (await viewer.files("data")).entries] == ["a"]
    for verb, path, body in (
        ("POST", "/volumes", CreateVolume(name="x")), ("DELETE", "/volumes/data", None), ("PUT", "/chunks", b""),
        ("POST", "/chunks", ChunkHashes(hashes=[HASH])), ("POST", "/volumes/data/commit", commit(1)),
    ):  # fmt: skip
        assert (await viewer.refused(verb, path, body)).code is ErrorCode.FORBIDDEN
    assert [e.path for e in (await worker.files(row.id)).entries] == ["a"]
    assert (await worker.commit(row.id, 1, file("w"))).version == 2


BAD_NAMES = [
    "", "../x", "/abs", "a/b", "<script>alert(1)</script>", 'a"b', "a'b", "😀", "\u202eevil", "a" * 65, ".hidden", "a b", "a\0b",
    "v-" + "0" * 24, "%2e%2e", "-rf",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
async def test_names_that_are_none_are_refused_and_shown_as_text(client: Client, name: str) -> None:
    info = await client.refused("POST", "/volumes", CreateVolume(name=name))
    assert info.code is ErrorCode.BAD_ARGUMENT and info.allowed
    await client.create()
    assert (await client.refused("PATCH", "/volumes/data", RenameVolume(name=name))).code is ErrorCode.BAD_ARGUMENT
    if name:
        code, _ = await client("GET", f"/volumes/{quote(name, safe='')}")
        assert code in (400, 404)


BAD_PATHS = [
    "", "/", "..", "../../etc/passwd", "a/../b", "a//b", "./a", "a/.", "a\0b", "a/" + "b" * 256, "ü" * 128, "x/" * 2100 + "y",
    "d/" * 300 + "f",
]  # fmt: skip
GOOD_PATHS = [
    "<script>alert(1)</script>", "\"quotes' and $(rm -rf)", "😀/\u202edrow", "a" * 255, "ü" * 127, "..a/...", "a\nb", "x\\y",
    "CON", "%2e%2e", "~",
]  # fmt: skip


async def test_paths_are_kept_as_they_are_or_refused(client: Client) -> None:
    await client.create()
    await client.send(DATA)
    for path in BAD_PATHS:
        assert (
            await client.refused("POST", "/volumes/data/commit", commit(0, file(path)))
        ).code is ErrorCode.BAD_ARGUMENT, path
        assert (
            await client.refused("POST", "/volumes/data/commit", commit(0, deleted=(path,)))
        ).code is ErrorCode.BAD_ARGUMENT
    await client.commit("data", 0, *(file(path) for path in GOOD_PATHS), file("e\u0301"))
    found = [e.path for e in (await client.files("data")).entries]
    assert sorted(found) == sorted([*GOOD_PATHS, "é"]), "composed, and otherwise as given"
    for path in GOOD_PATHS:
        assert path in [e.path for e in (await client.files("data", f"?prefix={quote(path)}")).entries]


async def test_a_commit_of_nonsense_is_refused_whole(client: Client) -> None:
    made = await client.create()
    await client.send(DATA)
    good = file("good")
    half = Chunk(HASH, len(DATA))
    bad = [
        FileEntry(path="a", kind="pipe"), FileEntry(path="a", size_bytes=9, chunks=[half]), FileEntry(path="a", size_bytes=3),
        FileEntry(path="a", size_bytes=20, chunks=[half, half]), FileEntry(path="a", size_bytes=4, chunks=[Chunk("0" * 63, 4)]),
        FileEntry(path="a", size_bytes=4, chunks=[Chunk("../" + "0" * 61, 4)]), FileEntry(path="a", size_bytes=-1),
        FileEntry(path="a", size_bytes=MAX_FILE_BYTES + 1), FileEntry(path="a", kind="link"), FileEntry(path="a", target="b"),
        FileEntry(path="a", kind="link", target="x" * 5000), FileEntry(path="a", kind="folder", size_bytes=4),
        FileEntry(path="a", modified_ns=-1), file("good"), file("good/below"),
    ]  # fmt: skip
    for entry in bad:
        info = await client.refused("POST", "/volumes/data/commit", commit(0, good, entry))
        assert info.code in (ErrorCode.BAD_ARGUMENT, ErrorCode.TOO_LARGE), entry
    wrong_size = FileEntry(path="a", size_bytes=4, chunks=[Chunk(HASH, 4)])
    assert (await client.refused("POST", "/volumes/data/commit", commit(0, wrong_size))).code is ErrorCode.NOT_FOUND
    for body in (b"", b"[]", b"{", b'{"base": 0}', b"\xff", encode(commit(-1, good)), encode(commit(1, good))):
        assert (await client.refused("POST", "/volumes/data/commit", body)).code in (
            ErrorCode.BAD_MESSAGE,
            ErrorCode.BAD_ARGUMENT,
        )
    assert (await client.refused("GET", "/volumes/data/files?since=-1")).code is ErrorCode.BAD_ARGUMENT
    assert (await client.refused("GET", "/volumes/data/files?since=1e9")).code is ErrorCode.BAD_ARGUMENT
    assert await client.files("data") == VolumeFiles(id=made.id, version=0)
    setuid = FileEntry(path="s", mode=0o104755, size_bytes=len(DATA), chunks=[half])
    await client.commit("data", 0, setuid)
    assert (await client.files("data")).entries[0].mode == 0o755


async def test_chunks_that_are_damaged_or_too_much_are_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = b"".join(pack_chunks([(HASH, DATA)]))
    for body in (pack[:-1], pack[:10], pack[:32] + (CHUNK_BYTES + 1).to_bytes(4, "big"), pack[:-1] + b"x"):
        assert (await client.refused("PUT", "/chunks", body)).code in (ErrorCode.BAD_MESSAGE, ErrorCode.BAD_ARGUMENT)
    assert (await client.refused("POST", "/chunks", ChunkHashes(hashes=[HASH]))).code is ErrorCode.NOT_FOUND
    assert (await client.refused("POST", "/chunks", ChunkHashes(hashes=["../token"]))).code is ErrorCode.BAD_ARGUMENT
    monkeypatch.setitem(volume_routes.ChunksRoute.limits, "PUT", 70_000)
    code, _ = await client("PUT", "/chunks", bytes(70_001))
    assert code in (413, 599)
    big = [os.urandom(CHUNK_BYTES) for _ in range(5)]
    monkeypatch.undo()
    for data in big:
        await client.send(data)
    asked = ChunkHashes(hashes=[blake3(data).hexdigest() for data in big])
    assert (await client.refused("POST", "/chunks", asked)).code is ErrorCode.TOO_LARGE
    volumes = client.house.gateway.hub.volumes
    await client.house.until(lambda: volumes.room._value == 16)  # every body's room was given back


async def test_a_volume_in_use_says_by_whom(house: House, client: Client) -> None:
    await house.worker()
    kernel = await house.kernel(notebook="train.ipynb")
    row = await client.create()
    session = next(iter(house.gateway.hub.sessions))
    house.gateway.hub.volumes.uses(session.id, [row.id])
    house.gateway.hub.volumes.users.append(lambda volume: ["schedule nightly"] if volume == row.id else [])
    users = (await client.good("GET", "/volumes/data", kind=VolumeRow)).used_by
    assert len(users) == 2 and "train.ipynb" in users[0] and users[1] == "schedule nightly"
    info = await client.refused("DELETE", "/volumes/data")
    assert info.code is ErrorCode.CONFLICT and "train.ipynb" in info.message and "nightly" in info.message
    house.gateway.hub.volumes.uses("a session that has ended", [row.id])
    assert (await client.good("GET", "/volumes/data", kind=VolumeRow)).used_by == users
    assert await client.good("DELETE", "/volumes/data?used=1") == {}
    assert kernel is not None


class SetClock:
    """A clock that is set. The gateway's own regular look is left out: the test does what is due."""

    def __init__(self, volumes: Volumes) -> None:
        self.now = time.time()
        volumes._looked_at = volumes._collected_at = math.inf

    def wall(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


async def test_ephemeral_volumes_go_when_nobody_asks_for_ten_minutes(house: House) -> None:
    hub = house.gateway.hub
    hub.clock = clock = SetClock(hub.volumes)  # type: ignore[assignment]
    hub.volumes._started = clock.now
    client = Client(house)
    kept, idle, named = (
        await client.create("", ephemeral=True),
        await client.create("", ephemeral=True),
        await client.create(),
    )
    assert kept.id != idle.id and kept.ephemeral
    assert (
        await client.refused("POST", "/volumes", CreateVolume(name="x", ephemeral=True))
    ).code is ErrorCode.BAD_ARGUMENT
    clock.now += EPHEMERAL_SECONDS - 1
    await client.good("GET", f"/volumes/{kept.id}")
    assert hub.volumes.expire() == 0, "nobody could ask before this gateway began"
    clock.now += 2
    assert hub.volumes.expire() == 1
    assert (await client.refused("GET", f"/volumes/{idle.id}")).code is ErrorCode.NOT_FOUND
    clock.now += EPHEMERAL_SECONDS + 1
    hub.volumes._started = clock.now  # as after a restart
    assert hub.volumes.expire() == 0
    clock.now += EPHEMERAL_SECONDS
    assert hub.volumes.expire() == 1
    clock.now += 10 * EPHEMERAL_SECONDS
    assert hub.volumes.expire() == 0 and (await client.good("GET", "/volumes/data", kind=VolumeRow)).id == named.id


async def test_chunks_nobody_refers_to_go_and_no_others(house: House) -> None:
    hub, client = house.gateway.hub, Client(house)
    hub.clock = clock = SetClock(hub.volumes)  # type: ignore[assignment]
    volumes, chunks = hub.volumes, hub.volumes.chunks
    await client.create()
    await client.send(b"live", b"old", b"never", b"pinned", b"asked")
    hashes = {data: blake3(data).hexdigest() for data in (b"live", b"old", b"never", b"pinned", b"asked")}

    def there() -> set[bytes]:
        folder = Path(chunks.folder("home"))
        return {data for data, hash in hashes.items() if (folder / hash[:2] / hash).exists()}

    def age() -> None:
        clock.now += KEEP_SECONDS + 10

    await client.commit("data", 0, file("a", b"live"), file("b", b"old"))
    assert volumes.collect() == 0
    clock.now += KEEP_SECONDS - 10
    assert volumes.collect() == 0
    await client.commit("data", 1, file("b", b"live"))  # "old" is old, and was in use until now
    volumes.pin([("home", hashes[b"pinned"])])
    await client.good("POST", "/chunks/missing", ChunkHashes(hashes=[hashes[b"asked"]]))
    clock.now += 20
    assert volumes.collect() == 1 and there() == set(hashes) - {b"never"}
    volumes.unpin([("home", hashes[b"pinned"])])
    age()
    assert volumes.collect() == 3 and there() == {b"live"}
    assert (await client.refused("POST", "/volumes/data/commit", commit(2, file("c", b"old")))).detail["missing"]
    await client.good("DELETE", "/volumes/data")
    assert volumes.collect() == 0
    age()
    assert volumes.collect() == 1 and there() == set(), "also those of the last volume"


async def test_a_commit_that_comes_while_chunks_are_collected_keeps_its_own(house: House) -> None:
    hub, client = house.gateway.hub, Client(house)
    hub.clock = clock = SetClock(hub.volumes)  # type: ignore[assignment]
    volumes = hub.volumes
    await client.create()
    await client.send(DATA)
    clock.now += 2 * KEEP_SECONDS
    volumes.collect()
    clock.now += 2 * KEEP_SECONDS
    listed, went_on = threading.Event(), threading.Event()
    stored = volumes.chunks.stored

    def slow(workspace: str) -> Any:
        found = list(stored(workspace))  # the round has decided what is referred to
        listed.set()
        assert went_on.wait(30)
        return iter(found)

    volumes.chunks.stored = slow  # type: ignore[method-assign]
    round = threading.Thread(target=volumes.collect)
    round.start()
    await house.until(listed.is_set)
    assert (await client.commit("data", 0, file("a"))).version == 1
    went_on.set()
    await house.until(lambda: not round.is_alive())
    assert volumes.chunks.get("home", HASH) == DATA
    volumes.chunks.stored = stored  # type: ignore[method-assign]
    clock.now += 2 * KEEP_SECONDS
    assert volumes.collect() == 0


KILLED = """
import os, signal, sys, threading
from cellburst_gateway.store import Store
from cellburst_protocol.volumes import CommitVolume, FileEntry
from sqlalchemy import event

store = Store.open(sys.argv[1], now=1.0)
after = int(sys.argv[2])
seen = 0

def before(connection, cursor, statement, parameters, context, executemany):
    global seen
    seen += 1
    if seen == after:
        os.kill(os.getpid(), signal.SIGKILL)

def before_commit(connection):
    if after == 0:
        os.kill(os.getpid(), signal.SIGKILL)

event.listen(store._engine, "after_cursor_execute", before)
event.listen(store._engine, "commit", before_commit)
changes = [FileEntry(path=f"d{n // 100}/f{n}", mode=0o755) for n in range(3000)]
print("go", flush=True)
store.commit_volume("lab", "v-1", "ann", CommitVolume(base=1, key="two", by="ann", changes=changes, deleted=["only-in-one"]), now=3.0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("after", [0, 1, 2, 3, 4, 99])
def test_a_gateway_killed_during_a_commit_leaves_the_old_version_or_the_new(tmp_path: Path, after: int) -> None:
    """Killed after each statement of it (0: when it would commit; 99: when it was done)."""
    from cellburst_gateway.store import Store

    url = str(tmp_path / "record.sqlite")
    store = Store.open(url, now=1.0)
    store.create_volume("v-1", Owner("lab", "ann"), name="data", now=1.0)
    old = [FileEntry(path=f"d{n // 100}/f{n}", mode=0o600) for n in range(3000)] + [FileEntry(path="only-in-one")]
    store.commit_volume("lab", "v-1", "ann", CommitVolume(base=0, key="one", by="ann", changes=old), now=2.0)
    store.close()
    killed = subprocess.run([sys.executable, "-c", KILLED, url, str(after)], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL and killed.stdout == "go\n", killed.stderr
    store = Store.open(url, now=4.0)
    version, entries = store.volume_files("v-1")
    modes = {entry.mode for entry in entries if entry.path != "only-in-one"}
    is_new = after == 99
    assert version == (2 if is_new else 1) and modes == ({0o755} if is_new else {0o600})
    assert any(entry.path == "only-in-one" for entry in entries) != is_new and len(entries) == (
        3000 if is_new else 3001
    )
    assert store.get_volume("lab", "v-1").files == len(entries)
    store.close()


def test_ten_thousand_paths_are_a_handful_of_statements(tmp_path: Path) -> None:
    """What makes a commit of 10,000 paths take well below 2 s; time itself is measured by the bench."""
    from sqlalchemy import event

    from cellburst_gateway.store import Store

    store = Store.open(tmp_path / "record.sqlite", now=1.0)
    store.create_volume("v-1", Owner("lab", "ann"), name="data", now=1.0)
    statements: list[str] = []
    event.listen(
        store._engine, "before_cursor_execute", lambda c, cursor, statement, *rest: statements.append(statement)
    )
    changes = [FileEntry(path=f"d{n // 100}/f{n}") for n in range(10_000)]
    store.commit_volume("lab", "v-1", "ann", CommitVolume(base=0, key="k", by="ann", changes=changes), now=2.0)
    assert len(statements) <= 10, statements
    store.close()
