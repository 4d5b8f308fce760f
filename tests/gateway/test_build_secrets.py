"""Secrets that an image's steps use: looked at before a cell is accepted, sent to the worker that builds, in no record."""

from __future__ import annotations

from pathlib import Path

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.images import FromRegistry, ImageRecipe, RunCommands, debian_slim
from cellburst_protocol.states import EndReason
from tests.fakes.fake_kernel import FakeKernel
from tests.gateway.house import House
from tests.gateway.test_images import built, starts

SENTINEL = "hf_4ThisValueIsNowhere"
USES = ImageRecipe(steps=[*debian_slim("3.11"), RunCommands(commands=["true"], secrets=["hub:TOKEN"])])
LOGIN = ImageRecipe(steps=[FromRegistry(reference="example.org/a:1", secret="hub")])


async def put(cli: FakeKernel, value: str = SENTINEL, mode: str = "create") -> None:
    assert isinstance(await cli.peer.request(m.PutSecret(name="hub", values={"TOKEN": value}, mode=mode)), m.SecretRow)  # type: ignore[arg-type]


def files_with(folder: Path, text: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


async def test_a_cells_worker_gets_the_secrets_of_its_image(house: House) -> None:
    worker, kernel, cli = await house.worker(), await house.kernel(), await house.cli()
    refused = await kernel.run("print x", call="c0", recipe=USES)
    assert (
        isinstance(refused, m.CellRefused)
        and refused.error.code is ErrorCode.NOT_FOUND
        and "'hub'" in refused.error.message
    )
    await put(cli)
    await kernel.run("print x", call="c1", recipe=USES)
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    (start,) = starts(worker)
    assert start.build_secrets == {"hub": m.BuildSecret(version=1, values={"TOKEN": SENTINEL})}
    assert SENTINEL not in repr(start)
    (container,) = worker.containers.values()
    assert not any(isinstance(message, m.ReleaseSecrets) for message in container.received)  # the cell itself has none
    listed = await cli.peer.request(m.ListReleases(secret="hub"))
    assert isinstance(listed, m.ReleaseList)
    assert [(row.version, row.container, row.keys) for row in listed.rows if not row.refused] == [
        (1, start.container, ["TOKEN"])
    ]
    # A session that is in the image goes on in it, whatever becomes of the secret.
    await cli.peer.request(m.DeleteSecret(name="hub"))
    await kernel.run("print y", call="c2", recipe=USES)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert files_with(house.gateway.hub.config.data_folder, SENTINEL) == []


async def test_a_build_without_a_cell_gets_them_too_and_only_from_the_gateway(house: House) -> None:
    worker, cli = await house.worker(), await house.cli()
    missing = (await built(cli, LOGIN))[-1].error
    assert missing.code is ErrorCode.NOT_FOUND and "'hub'" in missing.message and not worker.images.builds
    await put(cli)
    own = {"hub": m.BuildSecret(version=9, values={"TOKEN": "forged"})}
    stream = cli.peer.open(m.BuildStream(recipe=LOGIN, secrets=own))
    while not isinstance((await stream.recv())[0], m.ImageBuilt):
        pass
    await put(cli, "another-value", "replace")
    assert (await built(cli, LOGIN))[-1].error is None
    versions = [
        m.BuildSecret(version=1, values={"TOKEN": SENTINEL}),
        m.BuildSecret(version=2, values={"TOKEN": "another-value"}),
    ]
    assert [build.secrets for build in worker.images.builds] == [{"hub": one} for one in versions]
    listed = await cli.peer.request(m.ListReleases(secret="hub"))
    assert isinstance(listed, m.ReleaseList)
    assert [(row.worker, row.notebook) for row in listed.rows if not row.refused] == [("fake", "an image's build")] * 2


async def test_an_image_without_secrets_gets_none(house: House) -> None:
    worker, kernel, cli = await house.worker(), await house.kernel(), await house.cli()
    await put(cli)
    await kernel.run("print x", call="c1", recipe=ImageRecipe(steps=debian_slim("3.11")))
    await kernel.ended("c1")
    assert starts(worker)[0].build_secrets == {}
    await built(cli, ImageRecipe(steps=debian_slim("3.11")))
    assert worker.images.builds[0].secrets == {}
