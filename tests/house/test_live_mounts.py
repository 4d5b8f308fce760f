"""A bucket and a network file system in a notebook's cells, through a real gateway, worker and sandbox."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import House, Kernel, house
from tests.fakes.s3 import BUCKET, S3

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    made = S3()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def place(s3: S3) -> Iterator[House]:
    """A house whose operator trusts that server."""
    with house("A100:2", warm_pool=False) as made:
        Path(made.environment["CELLBURST_CONFIG"]).write_text(f'[gateway]\nbucket_endpoints = ["public", "{s3.url}"]\n')
        yield made


def cellburst(place: House, *arguments: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cellburst", *arguments], env={**os.environ, **place.environment}, input=given, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_cell_with_a_bucket_and_a_shared_folder(place: House, kernel: Kernel, s3: S3, tmp_path: Path) -> None:
    s3.put("in/a.csv", b"x,y")
    (tmp_path / "aws.env").write_text("".join(f"{key}={value}\n" for key, value in s3.keys.items()))
    cellburst(place, "secret", "create", "aws", "--from-dotenv", str(tmp_path / "aws.env"))
    cellburst(place, "nfs", "create", "scratch")
    line = f"%%modal volumes=/data:s3://{BUCKET}/in?secret=aws&endpoint={s3.url},/s:nfs://scratch"
    code = "print(open('/data/a.csv').read()); open('/s/note', 'w').write('seen'); open('/data/out', 'w').write('made')"
    assert kernel.check(f"{line}\n{code}").text.endswith("x,y\n")  # the first cell of a house says more
    assert cellburst(place, "nfs", "get", "scratch", "note", "-") == "seen"
    assert "c-" in cellburst(place, "secret", "releases", "aws")
    assert "is used by session" in refusal_of(place, "nfs", "delete", "scratch", "-y")
    # It goes on with both after it was parked.
    kernel.check("%modal park")
    assert kernel.check("%%modal\nprint(open('/s/note').read(), sorted(__import__('os').listdir('/data')))").text == (
        "seen ['a.csv', 'out']\n"
    )
    kernel.check("%modal stop")
    assert s3.all() == {"in/a.csv": b"x,y", "in/out": b"made"}
    # So is an endpoint that the operator did not name, with what he would have to write.
    ran = kernel.run(f"%%modal volumes=/data:s3://{BUCKET}?endpoint=http://127.0.0.1:1\n1")
    assert "bucket_endpoints = " in ran.error and '"http://127.0.0.1:1"' in ran.error
    # A secret that is not there is said before anything starts.
    ran = kernel.run(f"%%modal volumes=/data:s3://{BUCKET}?secret=gone\n1")
    assert "gone" in ran.error
    for key in s3.keys.values():
        for name in ("gateway.log", "worker.log"):
            for log in Path(place.environment["CELLBURST_DATA"]).rglob(name):
                assert key not in log.read_text(errors="replace")


def refusal_of(place: House, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cellburst", *arguments], env={**os.environ, **place.environment}, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    return done.stderr + done.stdout
