"""Blobs by HTTP: streamed, checked, owned."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_gateway.blobs import STALE_SECONDS, BlobFolder
from cellburst_gateway.store_rows import Owner, Role
from cellburst_gateway.store_tokens import hash_token
from tests.gateway.house import House
from tests.gateway.test_auth import ask

DATA = bytes(range(256)) * 20_000
HASH = blake3(DATA).hexdigest()


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def test_put_head_and_get(house: House) -> None:
    url, headers = f"{house.url}/blobs/{HASH}", bearer(house.token)
    assert (await ask(url, headers=headers)).code == 404
    assert (await ask(url, "PUT", headers, DATA)).code == 201
    path = house.gateway.hub.blobs.path(HASH)
    assert path.read_bytes() == DATA and path.stat().st_mode & 0o777 == 0o600
    head = await ask(url, "HEAD", headers)
    assert head.code == 200 and head.headers["Content-Length"] == str(len(DATA)) and not head.body
    assert (await ask(url, headers=headers)).body == DATA
    assert (await ask(url, "PUT", headers, DATA)).code == 201  # again is the same
    worker = bearer(house.gateway.hub.secrets.worker_token)
    assert (await ask(url, headers=worker)).body == DATA


async def test_other_bytes_than_the_hash_says_are_refused_and_leave_nothing(house: House) -> None:
    answer = await ask(f"{house.url}/blobs/{HASH}", "PUT", bearer(house.token), DATA[:-1])
    assert answer.code == 400 and b"not " + HASH.encode() in answer.body
    assert not house.gateway.hub.blobs.path(HASH).exists()
    assert not list((house.gateway.hub.blobs.folder / "tmp").iterdir())


@pytest.mark.parametrize("name", ["x", "..%2f..%2ftoken", "A" * 64, "0" * 63, "0" * 65, "%00" * 64])
async def test_names_that_are_no_hash(house: House, name: str) -> None:
    for method in ("GET", "PUT", "HEAD"):
        assert (await ask(f"{house.url}/blobs/{name}", method, bearer(house.token))).code == 400


async def test_too_large_is_said(make_house: Callable[..., Awaitable[House]]) -> None:
    house = await make_house(max_blob_bytes=1024 * 1024)
    answer = await ask(f"{house.url}/blobs/{HASH}", "PUT", bearer(house.token), DATA)
    assert answer.code in (400, 413, 599)
    assert not list((house.gateway.hub.blobs.folder / "tmp").iterdir())


async def test_a_hash_is_no_capability(house: House) -> None:
    now = house.gateway.clock.wall()
    house.gateway.hub.store.add_token(hash_token("bob"), Owner("bobs", "bob"), name="b", role=Role.USER, now=now)
    url = f"{house.url}/blobs/{HASH}"
    assert (await ask(url, "PUT", bearer(house.token), DATA)).code == 201
    assert (await ask(url, headers=bearer("bob"))).code == 404
    assert (await ask(url, "HEAD", bearer("bob"))).code == 404
    assert (await ask(url, "PUT", bearer("bob"), DATA)).code == 201
    assert (await ask(url, headers=bearer("bob"))).body == DATA


async def test_what_a_killed_writer_left_is_removed(house: House) -> None:
    blobs = house.gateway.hub.blobs
    (blobs.folder / "tmp" / "left").write_bytes(b"x")
    written = (blobs.folder / "tmp" / "left").stat().st_mtime
    assert blobs.remove_stale(written + STALE_SECONDS - 1) == 0
    assert blobs.remove_stale(written + STALE_SECONDS + 1) == 1


def test_the_longest_unused_blobs_go_when_there_are_too_many_and_never_a_fresh_one(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path / "blobs", "home")
    now = time.time()
    for number, age_seconds in enumerate([9000, 8000, 7000, 10]):
        path = blobs.path(f"{number:064x}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(1000))
        os.utime(path, (now - age_seconds, now - age_seconds))
    later = now + 7200  # the change time of a file cannot be set back
    assert blobs.evict(2500, later) == 2
    assert [blobs.path(f"{n:064x}").exists() for n in range(4)] == [False, False, True, True]
    assert blobs.evict(0, now) == 0, "each was used within the hour"
