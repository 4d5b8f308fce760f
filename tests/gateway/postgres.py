"""A real, throw-away PostgreSQL cluster on a Unix socket in a temporary folder; nothing of the machine's own is touched.

`initdb` refuses to run as root, so as root the cluster runs as the user `postgres` that the package makes.
"""

from __future__ import annotations

import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

READY_SECONDS = 30.0


def _program(name: str) -> str:
    places = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)
    found = places[0] if places else shutil.which(name)
    if found is None:
        raise RuntimeError(f"{name} is not installed: apt-get install postgresql, or leave out tests marked `postgres`")
    return found


class Cluster:
    """A running cluster: `url(name)` makes a fresh database of that name and gives its SQLAlchemy URL."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], user: str) -> None:
        self.folder, self.process, self.user = folder, process, user

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        """A connection that commits each statement."""
        return psycopg.connect(host=str(self.folder), user=self.user, dbname=database, autocommit=True)

    def url(self, name: str) -> str:
        """Make an empty database; its URL."""
        with self.connect() as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
            connection.execute(f'CREATE DATABASE "{name}"')
        return f"postgresql+psycopg://{self.user}@/{name}?host={self.folder}"

    def end_sessions(self, name: str) -> None:
        """Cut every connection to a database, as a server that is restarted would."""
        with self.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (name,))

    def _wait(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError as why:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"PostgreSQL did not start: {(self.folder / 'log').read_text()}") from why
                # Nothing tells when the socket is there: the next try is the wait, bounded by READY_SECONDS.
                os.sched_yield()


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Start a cluster, and end it with everything it wrote."""
    folder = Path(tempfile.mkdtemp(prefix="cellburst-pg-"))
    as_root = os.geteuid() == 0
    user = "postgres" if as_root else pwd.getpwuid(os.geteuid()).pw_name
    drop = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] if as_root else []
    if as_root:
        shutil.chown(folder, "postgres", "postgres")
    data = folder / "data"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    try:
        subprocess.run(
            [*drop, _program("initdb"), "-D", str(data), "-U", user, "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True, capture_output=True, env=environment, cwd=folder,
        )  # fmt: skip
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*drop, _program("postgres"), "-D", str(data), "-k", str(folder), "-c", "listen_addresses=", "-c", "fsync=off"],
                stdout=log, stderr=log, env=environment, cwd=folder,
            )  # fmt: skip
        try:
            running = Cluster(folder, process, user)
            running._wait()
            yield running
        finally:
            process.send_signal(signal.SIGINT)  # fast shutdown
            process.wait(timeout=READY_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def pg_cluster() -> Iterator[Cluster]:
    """One cluster for a module's tests."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def record_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty record can be opened: what makes a test a contract of both databases."""
    if request.param == "sqlite":
        return str(tmp_path / "record.sqlite")
    running: Cluster = request.getfixturevalue("pg_cluster")
    return running.url("contract")
