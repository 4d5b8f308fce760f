"""One active gateway, fencing, and what a full disk, a held lock and a lost server become."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cellburst_gateway.store import Owner, Role, Store, hash_token
from cellburst_protocol.errors import CellburstError, ErrorCode, PlatformError, RequestError
from tests.gateway.postgres import Cluster, pg_cluster, record_url  # noqa: F401  fixtures

ANN = Owner("lab", "ann")
LOCK_AND_SAY = """
import sys
from cellburst_gateway.store import Store
store = Store.open(sys.argv[1], now=1.0)
print(store.acquire_gateway_lock("first", now=1.0), flush=True)
sys.stdin.read()
"""


def add(store: Store, text: str) -> None:
    store.add_token(hash_token(text), ANN, name=text, role=Role.USER, now=1.0)


def test_one_gateway_is_active_and_the_lock_goes_with_its_process(record_url: str) -> None:  # noqa: F811
    with subprocess.Popen(
        [sys.executable, "-c", LOCK_AND_SAY, record_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline().strip() == "1"
        store = Store.open(record_url, now=2.0)
        try:
            with pytest.raises(RequestError, match="first") as caught:
                store.acquire_gateway_lock("second", now=2.0)
            assert caught.value.code is ErrorCode.CONFLICT
            add(store, "still usable beside it")
            first.kill()
            first.wait()
            if "postgres" in record_url:  # the server sees the closed socket a moment after the process is gone
                with store._transaction() as c:
                    c.exec_driver_sql("SELECT pg_advisory_lock(%s)", (0x43B_0002,))
            assert store.acquire_gateway_lock("second", now=3.0) == 2
            assert store.acquire_gateway_lock("second", now=3.0) == 2 == store.epoch
        finally:
            store.close()
            store.close()


@pytest.mark.postgres
def test_a_gateway_whose_place_was_taken_commits_nothing_more(pg_cluster: Cluster) -> None:  # noqa: F811
    url = pg_cluster.url("taken")
    store, other = Store.open(url, now=1.0), Store.open(url, now=1.0)
    store.acquire_gateway_lock("first", now=1.0)
    pg_cluster.end_sessions("taken")
    for cut in (store, other):
        with pytest.raises(PlatformError, match="may be repeated"):
            cut.list_sessions()
    assert other.acquire_gateway_lock("second", now=2.0) == 2
    with pytest.raises(RequestError, match="second"):  # the lock is the other's
        add(store, "late")
    other.close()
    for _ in range(2):
        with pytest.raises(
            PlatformError, match="second took over as epoch 2"
        ) as caught:  # free, but the epoch is not ours
            add(store, "late")
        assert caught.value.code is ErrorCode.STORE
    store.close()
    after = Store.open(url, now=3.0)
    assert after.list_tokens("lab") == []
    after.close()


@pytest.mark.postgres
def test_a_cut_connection_is_unavailable_once_and_the_lock_is_taken_again(pg_cluster: Cluster) -> None:  # noqa: F811
    store = Store.open(pg_cluster.url("cut"), now=1.0)
    epoch = store.acquire_gateway_lock("first", now=1.0)
    pg_cluster.end_sessions("cut")
    with pytest.raises(PlatformError, match="may be repeated") as caught:
        add(store, "a")
    assert caught.value.code is ErrorCode.UNAVAILABLE
    add(store, "a")
    assert (len(store.list_tokens("lab")), store.epoch) == (1, epoch)
    other = Store.open(f"postgresql+psycopg://{pg_cluster.user}@/cut?host={pg_cluster.folder}", now=1.0)
    with pytest.raises(RequestError, match="first"):
        other.acquire_gateway_lock("second", now=2.0)
    other.close()
    store.close()


def test_no_server_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(PlatformError) as caught:
        Store.open(f"postgresql://nobody@/none?host={tmp_path}", now=1.0)
    assert caught.value.code is ErrorCode.UNAVAILABLE


@pytest.mark.parametrize("where", ["mysql://a/b", "::://", "sqlserver://x"])
def test_what_is_no_record_is_refused(where: str) -> None:
    with pytest.raises(PlatformError) as caught:
        Store.open(where, now=1.0)
    assert caught.value.code is ErrorCode.STORE


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "record.sqlite"
    path.write_bytes(b"a letter to my aunt\n" * 100)
    with pytest.raises(PlatformError, match="not a database") as caught:
        Store.open(path, now=1.0)
    assert caught.value.code is ErrorCode.STORE
    assert path.read_bytes().startswith(b"a letter")


def test_a_full_database_is_disk_full_and_keeps_what_it_has(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "record.sqlite", now=1.0)
    add(store, "before")
    with store._transaction() as c:
        pages = c.exec_driver_sql("PRAGMA page_count").scalar()
    assert store._connection is not None
    store._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    store._connection.rollback()
    with pytest.raises(CellburstError) as caught:
        store.create_session("s", ANN, notebook="n" * 100_000, name="d", kernel_id="k", now=1.0)
    assert caught.value.code is ErrorCode.DISK_FULL
    assert "free space" in caught.value.info.next
    assert [t.name for t in store.list_tokens("lab")] == ["before"]
    store.close()


FILL = """
import pathlib, sys
from cellburst_gateway.logstore import LogStore
from cellburst_gateway.store import Owner, Role, Store, hash_token
from cellburst_protocol.errors import CellburstError
folder = pathlib.Path(sys.argv[1])
store = Store.open(folder / "record.sqlite", now=1.0)
store.ensure_workspace(Owner("lab", "ann"), now=1.0)
logs = LogStore(folder / "logs")
n = 0
try:
    while True:
        logs.append("s", n + 1, "call", b"{}", [b"x" * 9000])
        n += 1
except CellburstError as why:
    print(why.code)
try:
    store.create_session("s", Owner("lab", "ann"), notebook="n" * 200_000, name="d", kernel_id="k", now=1.0)
except CellburstError as why:
    print(why.code)
(folder / "logs" / "ballast").unlink(missing_ok=True)
print(n == logs.last_sequence("s") == len(list(logs.read("s"))), store.list_sessions() == [])
(folder / "ballast").unlink()
print(logs.append("s", n + 1, "call", b"{}", [b"x" * 9000]), [e.sequence for e in logs.read("s", n)] == [n + 1])
logs.close()
print(LogStore(folder / "logs").last_sequence("s") == n + 1)
"""


@pytest.mark.netns
def test_a_full_disk_is_told_and_nothing_recorded_is_lost(tmp_path: Path) -> None:
    mounted = (
        f'mount -t tmpfs -o size=1m none "{tmp_path}" && head -c 100000 /dev/zero > "{tmp_path}/ballast" && exec "$@"'
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", FILL, str(tmp_path)],
        capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert done.stdout.split() == ["platform.disk_full"] * 2 + ["True"] * 5, done.stderr


def test_another_process_that_writes_too_long_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cellburst_gateway.store_base.BUSY_TIMEOUT_SECONDS", 0.01)
    path = tmp_path / "record.sqlite"
    store = Store.open(path, now=1.0)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(PlatformError) as caught:
        add(store, "a")
    assert caught.value.code is ErrorCode.UNAVAILABLE
    other.execute("ROLLBACK")
    other.close()
    add(store, "a")
    store.close()


def test_sqlite_writes_ahead_and_syncs_each_commit(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "it?s a record.sqlite", now=1.0)
    with store._transaction() as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA synchronous").scalar() == 2
    store.close()
    assert (tmp_path / "it?s a record.sqlite").exists()


def test_threads_take_turns(record_url: str) -> None:  # noqa: F811
    store = Store.open(record_url, now=1.0)
    store.create_session("s", ANN, notebook="n", name="d", kernel_id="k", now=1.0)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: store.record_call(f"c{n % 20}", ANN, session="s", now=float(n))[1], range(60)))
    assert sum(made) == 20 == len(store.running_calls())
    store.close()


RECORD = """
import sys
from cellburst_gateway.store import Owner, Store
store = Store.open(sys.argv[1], now=1.0)
ann = Owner("lab", "ann")
store.create_session("s", ann, notebook="n", name="d", kernel_id="k", now=1.0)
n = 0
while True:
    store.record_call(f"c{n}", ann, session="s", now=float(n))
    print(n, flush=True)
    n += 1
"""


def test_what_was_recorded_is_there_after_sigkill(record_url: str) -> None:  # noqa: F811
    with subprocess.Popen([sys.executable, "-c", RECORD, record_url], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = -1
        for line in writer.stdout:
            said = int(line)
            if said == 50:
                writer.kill()
                break
        said = max([said, *(int(line) for line in writer.stdout if line.endswith("\n"))])
    store = Store.open(record_url, now=2.0)
    assert [call.id for call in store.running_calls()][: said + 1] == [f"c{n}" for n in range(said + 1)]
    store.close()
