"""Buckets and network file systems of a cell: what is checked, who gets a bucket's keys, what the gateway keeps of them."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cellburst_gateway.config import GatewayConfig, from_arguments
from cellburst_protocol.buckets import BucketSource, bucket_id
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import (
    CellAccepted,
    CellRefused,
    DeleteSecret,
    GetStatus,
    ListReleases,
    PutSecret,
    StartContainer,
)
from cellburst_protocol.states import EndReason
from cellburst_protocol.volume_mounts import parse_volumes
from cellburst_protocol.volumes import VolumeMount
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House
from tests.gateway.parking_house import is_free, park
from tests.gateway.scheduled import Scheduling, notebook
from tests.gateway.test_container_link import inside
from tests.gateway.test_secrets import ask

ID, KEY = "AKIASENTINEL0001", "sentinel-9d1f-secret-key"
LINE = "/data:s3://training-data/2026?secret=aws&endpoint=https://minio.example.org&ro"


MINE = "/data:s3://training-data?endpoint=http://127.0.0.1:9000"


@pytest.fixture
def config(config: GatewayConfig) -> GatewayConfig:
    return replace(config, bucket_endpoints=("public", "minio.example.org"))


async def secret(house: House, **values: str) -> None:
    await ask(house, PutSecret(name="aws", values=values, mode="create"))


async def refused(kernel: FakeKernel, call: str, **more: Any) -> CellRefused:
    answer = await kernel.run("x", call=call, **more)
    assert isinstance(answer, CellRefused), answer
    return answer


def newest(worker: FakeWorker) -> StartContainer:
    return list(worker.containers.values())[-1].start


async def test_the_keys_of_a_bucket_go_to_its_worker_alone(house: House) -> None:
    await secret(house, AWS_ACCESS_KEY_ID=ID, AWS_SECRET_ACCESS_KEY=KEY, AWS_REGION="eu-central-1", OTHER="not for it")
    worker, kernel = await house.worker(), await house.kernel()
    assert isinstance(await kernel.run("x", call="1", volumes=parse_volumes(LINE)), CellAccepted)
    assert (await kernel.ended("1")).reason is EndReason.DONE
    start = newest(worker)
    (mount,) = start.volumes
    assert (mount.path, mount.name, mount.read_only, mount.kind) == ("/data", "s3://training-data/2026", True, "bucket")
    options = {"access_key_id": ID, "secret_access_key": KEY, "region": "eu-central-1"}
    assert start.bucket_keys == {mount.volume: options}
    # Lists say what is where, and nothing of a value.
    status = await ask(house, GetStatus())
    assert [row.volumes for row in status.sessions] == [[mount]]
    assert not any(word in msgspec.json.encode(status) for word in (ID.encode(), KEY.encode()))
    # It was recorded, and nothing of a value was.
    (row,) = (await ask(house, ListReleases(secret="aws"))).rows
    assert row.container == start.container and row.call == "1" and not row.refused
    for path in sorted(house.gateway.config.data_folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # what comes and goes
            assert KEY.encode() not in path.read_bytes(), path
    # The session goes on with it, and gets the secret anew when it is resumed.
    await kernel.run("x", call="2")
    assert (await kernel.ended("2")).reason is EndReason.DONE
    answer = await refused(kernel, "3", volumes=parse_volumes(LINE.replace("2026", "2025")))
    assert answer.error.code is ErrorCode.CONFLICT and LINE.replace("2026", "2025") in answer.error.detail["volumes"]
    await park(house, kernel)
    await house.until(lambda: is_free(house))
    await kernel.run("x", call="4")
    assert (await kernel.ended("4")).reason is EndReason.DONE
    assert newest(worker).bucket_keys == start.bucket_keys and newest(worker).container != start.container


async def test_a_secret_that_is_not_there_or_opens_no_bucket(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    answer = await refused(kernel, "1", volumes=parse_volumes(LINE))
    assert answer.error.code is ErrorCode.NOT_FOUND and "'aws'" in answer.error.message
    await secret(house, AWS_ACCESS_KEY_ID=ID)
    answer = await refused(kernel, "2", volumes=parse_volumes(LINE))
    assert answer.error.code is ErrorCode.NOT_FOUND and "AWS_SECRET_ACCESS_KEY" in answer.error.message
    await ask(house, PutSecret(name="aws", values={"AWS_SECRET_ACCESS_KEY": KEY}, mode="update"))
    # Deleted between the cell's acceptance and the start: the call ends with the secret's name.
    worker_gone = house.gateway.hub.secret_desk
    found = worker_gone.keys_for_mount

    async def and_then_gone(*arguments: Any) -> list[str]:
        keys = await found(*arguments)
        await ask(house, DeleteSecret(name="aws"))
        return keys

    worker_gone.keys_for_mount = and_then_gone  # type: ignore[method-assign]
    assert isinstance(await kernel.run("x", call="3", volumes=parse_volumes(LINE)), CellAccepted)
    ended = await kernel.ended("3")
    assert ended.reason is EndReason.START_FAILED and ended.error is not None and "'aws'" in ended.error.message
    assert not worker.containers


async def test_what_a_client_says_of_a_bucket_is_not_taken_on_trust(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    source = BucketSource(name="open-data")
    odd = VolumeMount(volume="../../etc", name="<b>", path="/data", kind="bucket", bucket=source)
    await kernel.run("x", call="1", volumes=[odd])
    assert (await kernel.ended("1")).reason is EndReason.DONE
    (mount,) = newest(worker).volumes
    assert (mount.volume, mount.name) == (bucket_id(source, "/data"), "s3://open-data")
    other = await house.kernel(notebook="n2.ipynb")
    for number, bad in enumerate([
        VolumeMount(volume="x", name="x", path="/data", kind="bucket"),
        VolumeMount(volume="x", name="x", path="/data", kind="bucket", bucket=BucketSource(name="a/../b")),
        VolumeMount(volume="x", name="x", path="/data", kind="bucket", bucket=BucketSource(name="abc", key_prefix="../x")),
        VolumeMount(volume="x", name="x", path="/d", kind="bucket", bucket=BucketSource(name="abc", endpoint_url="file:///etc")),
        VolumeMount(volume="x", name="nfs://../x", path="/data", kind="shared"),
    ]):  # fmt: skip
        answer = await refused(other, f"b{number}", volumes=[bad])
        assert answer.error.code in (ErrorCode.BAD_ARGUMENT, ErrorCode.BAD_MESSAGE), answer


async def test_a_network_file_system_must_be_there_and_names_its_users(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    answer = await refused(kernel, "1", volumes=parse_volumes("/shared:nfs://scratch"))
    assert answer.error.code is ErrorCode.NOT_FOUND and "cellburst nfs create scratch" in answer.error.next
    there = house.gateway.hub.network_file_systems
    there.create("home", "scratch", if_missing=False)
    await kernel.run("x", call="2", volumes=parse_volumes("/shared:nfs://scratch?ro"))
    assert (await kernel.ended("2")).reason is EndReason.DONE
    (mount,) = newest(worker).volumes
    assert (mount.kind, mount.name, mount.read_only) == ("shared", "nfs://scratch", True)
    assert "session default" in there.row("home", "scratch").used_by[0]
    folder = Path(there.folder_text("home"))
    assert folder.stat().st_mode & 0o777 == 0o700 and (folder / "scratch").stat().st_mode & 0o777 == 0o777


async def test_a_bucket_is_only_where_the_operator_says(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    for number, endpoint in enumerate((
        "http://127.0.0.1:9000", "https://evilamazonaws.com", "http://minio.example.org", "https://10.0.0.1", "https://xminio.example.org",
    )):  # fmt: skip
        answer = await refused(kernel, f"{number}", volumes=parse_volumes(f"/data:s3://abc?endpoint={endpoint}"))
        assert answer.error.code is ErrorCode.FORBIDDEN, answer
        line = f'bucket_endpoints = ["public", "minio.example.org", "{endpoint}"]'
        assert line in answer.error.next
    scheduling = await Scheduling.of(house)
    with pytest.raises(CellburstError, match=r"127\.0\.0\.1:9000") as caught:
        await scheduling.put(notebook("1"), volumes=parse_volumes(MINE))
    assert caught.value.code is ErrorCode.FORBIDDEN
    assert (await scheduling.put(notebook("1"), volumes=parse_volumes("/data:s3://abc"))).row.volumes == ["s3://abc"]
    assert not worker.containers


async def test_an_endpoint_is_looked_at_again_when_a_worker_gets_it(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    hub = house.gateway.hub
    hub.config = replace(hub.config, bucket_endpoints=("http://127.0.0.1:9000",))
    await kernel.run("x", call="1", volumes=parse_volumes(MINE))
    assert (await kernel.ended("1")).reason is EndReason.DONE and newest(worker).volumes
    await park(house, kernel)
    await house.until(lambda: is_free(house))
    # The operator trusts it no more. The session's cells name no volumes: what it has is not taken from a line.
    hub.config = replace(hub.config, bucket_endpoints=())
    await kernel.run("x", call="2")
    ended = await kernel.ended("2")
    assert (
        ended.error is not None and ended.error.code is ErrorCode.FORBIDDEN and "127.0.0.1:9000" in ended.error.message
    )
    assert not worker.containers


async def test_code_in_a_container_shows_no_bucket_that_its_own_session_has_not(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel(notebook="/report.ipynb")
    asked = "/data:s3://open-data?ro,/other:s3://mine"
    await kernel.run("wait", call="outer", with_link=True, volumes=parse_volumes(asked))
    await kernel.until(lambda: "CellStarted" in kernel.kinds("outer"))
    link = await inside(house, newest(worker))
    await link.session(notebook="whatever", kernel_id="k2")
    for number, line in enumerate(
        ("/d:s3://elsewhere", "/d:s3://open-data", "/d:s3://mine/below", "/d:s3://mine?requester_pays")
    ):
        answer = await refused(link, f"{number}", volumes=parse_volumes(line))
        assert (
            answer.error.code is ErrorCode.FORBIDDEN
            and line in answer.error.next
            and "s3://mine" in answer.error.allowed
        )
    await link.run("x", call="fine", volumes=parse_volumes("/d:s3://open-data?ro,/m:s3://mine"))
    assert (await link.ended("fine")).reason is EndReason.DONE
    assert [mount.path for mount in newest(worker).volumes] == ["/d", "/m"]


def test_the_operator_says_it_in_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    folders = ["--data-dir", str(tmp_path), "--run-dir", str(tmp_path), "--config", str(file)]
    for text, expected in (
        ("", ("public",)),
        ("bucket_endpoints = []", ()),
        ('bucket_endpoints = ["public", "http://127.0.0.1:9000/"]', ("public", "http://127.0.0.1:9000")),
    ):
        file.write_text(f"[gateway]\n{text}\n")
        assert from_arguments(folders).bucket_endpoints == expected
    for text in ('"public"', "[1]", '["127.0.0.1:9000"]', '["*.example.org"]'):
        file.write_text(f"[gateway]\nbucket_endpoints = {text}\n")
        with pytest.raises(CellburstError, match="bucket_endpoints"):
            from_arguments(folders)
