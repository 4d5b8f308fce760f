"""One contract for all chunk stores: a folder, what fsspec has here, and a bucket of a real S3-speaking server on loopback."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_gateway.chunks import ChunkStore, make_chunk_store, workspace_part
from cellburst_gateway.chunks_fsspec import FsspecChunks
from cellburst_gateway.chunks_local import STALE_SECONDS, LocalChunks
from cellburst_gateway.config import GatewayConfig
from cellburst_protocol.errors import CellburstError, ErrorCode
from tests.gateway.test_store import refused

DATA = [b"one", b"two" * 1000, os.urandom(100_000)]
HASHES = [blake3(data).hexdigest() for data in DATA]
READY_SECONDS = 60.0


@pytest.fixture(scope="module")
def s3() -> Iterator[int]:
    """The port of an S3 server with a bucket `cellburst`."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', '0'])"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        port, rest = 0, None
        for line in process.stderr:  # it says which port it got
            if "Running on http://127.0.0.1:" in line:
                port = int(line.rpartition(":")[2].split()[0])
                break
        rest = threading.Thread(target=process.stderr.read)  # a full pipe would stop it
        rest.start()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=READY_SECONDS)
        connection.request("PUT", "/cellburst", headers={"Host": "127.0.0.1"})
        assert connection.getresponse().read() is not None
        connection.close()
        yield port
    finally:
        process.kill()
        process.wait()
        if rest is not None:
            rest.join()
        process.stderr.close()


def s3_options(port: int) -> dict[str, object]:
    return {
        "key": "k",
        "secret": "s",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}", "region_name": "us-east-1"},
    }


@pytest.fixture(params=["local", "local sync", "file", "memory", "s3"])
def chunks(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChunkStore]:
    store: ChunkStore
    match request.param:
        case "local" | "local sync":
            store = LocalChunks(tmp_path / "chunks", sync=request.param == "local sync")
        case "file":
            store = FsspecChunks(f"file://{tmp_path}/chunks", {})
        case "memory":
            store = FsspecChunks(f"memory://{uuid.uuid4().hex}", {})
        case _:
            port = request.getfixturevalue("s3")
            store = FsspecChunks(f"s3://cellburst/{uuid.uuid4().hex}", s3_options(port))
    yield store
    store.close()


def test_what_is_put_is_there_for_its_workspace_only(chunks: ChunkStore) -> None:
    assert chunks.sizes("lab", HASHES) == {}
    for hash, data in zip(HASHES, DATA, strict=True):
        chunks.put("lab", hash, memoryview(data))
        chunks.put("lab", hash, data)
    assert chunks.sizes("lab", [*HASHES, "0" * 64]) == {h: len(d) for h, d in zip(HASHES, DATA, strict=True)}
    assert [chunks.get("lab", hash) for hash in HASHES] == DATA
    assert chunks.sizes("other", HASHES) == {}
    refused(ErrorCode.NOT_FOUND, chunks.get, "other", HASHES[0])


def test_other_bytes_than_the_hash_says_are_refused(chunks: ChunkStore) -> None:
    refused(ErrorCode.BAD_ARGUMENT, chunks.put, "lab", HASHES[0], b"other")
    assert chunks.sizes("lab", HASHES) == {} and list(chunks.stored("lab")) == []


def test_all_are_listed_with_their_age_and_can_be_removed(chunks: ChunkStore) -> None:
    assert list(chunks.stored("lab")) == []
    before = time.time()
    for hash, data in zip(HASHES, DATA, strict=True):
        chunks.put("lab", hash, data)
    found = {chunk.hash: chunk for chunk in chunks.stored("lab")}
    assert {hash: chunk.size_bytes for hash, chunk in found.items()} == {
        h: len(d) for h, d in zip(HASHES, DATA, strict=True)
    }
    # S3 says whole seconds; file systems stamp with a clock that may lag a little.
    assert all(before - 2 <= chunk.changed_unix_seconds <= time.time() + 2 for chunk in found.values())
    chunks.remove("lab", HASHES[0])
    chunks.remove("lab", HASHES[0])
    assert set(chunks.sizes("lab", HASHES)) == set(HASHES[1:])
    refused(ErrorCode.NOT_FOUND, chunks.get, "lab", HASHES[0])


def test_another_process_sees_them(tmp_path: Path, s3: int) -> None:
    url = f"s3://cellburst/{uuid.uuid4().hex}"
    first, second = FsspecChunks(url, s3_options(s3)), FsspecChunks(url, s3_options(s3))
    first.put("lab", HASHES[0], DATA[0])
    assert second.sizes("lab", HASHES) == {HASHES[0]: len(DATA[0])} and second.get("lab", HASHES[0]) == DATA[0]
    first.close(), second.close()


def test_a_folder_says_where_it_is_unless_each_chunk_is_to_be_on_the_disk(tmp_path: Path) -> None:
    local = LocalChunks(tmp_path / "chunks")
    folder = Path(local.folder("lab"))
    local.put("lab", HASHES[0], DATA[0])
    path = folder / HASHES[0][:2] / HASHES[0]
    assert (
        path.read_bytes() == DATA[0] and path.stat().st_mode & 0o777 == 0o600 and folder.name == workspace_part("lab")
    )
    assert not list((folder / "tmp").iterdir())
    assert LocalChunks(tmp_path / "chunks", sync=True).folder("lab") == ""
    path.write_bytes(b"")  # what a power cut leaves
    assert local.sizes("lab", HASHES) == {}


def test_drafts_of_killed_writers_go(tmp_path: Path) -> None:
    local = LocalChunks(tmp_path / "chunks")
    draft = Path(local.folder("lab")) / "tmp" / "left"
    draft.write_bytes(b"x")
    written = draft.stat().st_mtime
    assert local.remove_stale(written + STALE_SECONDS - 1) == 0
    assert local.remove_stale(written + STALE_SECONDS + 1) == 1


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    def made(**changes: object) -> ChunkStore:
        return make_chunk_store(GatewayConfig(data_folder=tmp_path, run_folder=tmp_path, **changes))  # type: ignore[arg-type]

    with pytest.raises(CellburstError, match=r"volumes_url = 'nothing://x'"):
        made(volumes_url="nothing://x")
    assert isinstance(made(), LocalChunks)
    # Nobody listens on that port: found when it is used, as an error that may be tried again.
    store = made(
        volumes_url="s3://b/x",
        volumes_options=s3_options(1) | {"config_kwargs": {"retries": {"max_attempts": 1}, "connect_timeout": 1}},
    )
    refused(ErrorCode.UNAVAILABLE, store.put, "lab", HASHES[0], DATA[0])
    store.close()
