"""A container on an image's layers, by the engine alone: whose files it may change, what a killed worker leaves, held layers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError, RequestError
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.engine_gvisor import GvisorEngine
from cellburst_runtime.images import Images
from cellburst_runtime.runtime import Runtime
from cellburst_runtime.snapshot_manifest import Manifest
from cellburst_runtime.snapshots import SnapshotStore
from tests.fakes.containers import make_spec, traces
from tests.fakes.images import ImageHouse
from tests.runtime.test_runtime import request_for

pytestmark = pytest.mark.gvisor

SCRIPT = """
id -u > $OUT/said
for place in /app /own /etc /tmp /home/user; do echo x > $place/written && echo $place >> $OUT/said; done 2> /dev/null
cat /app/of-image >> $OUT/said
rm /app/of-image && echo removed >> $OUT/said
"""


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    made = ImageHouse(tmp_path)
    yield made
    await made.end()


@pytest.fixture
def engine(house: ImageHouse) -> GvisorEngine:
    return GvisorEngine(house.machine.gvisor, Cgroups(), None, no_network="a test without one")


async def test_a_container_writes_in_its_own_folders_and_never_in_a_layer(
    house: ImageHouse, engine: GvisorEngine, tmp_path: Path
) -> None:
    recipe = house.recipe("mkdir -p /app /own; echo of-image > /app/of-image; chown 1000 /own")
    with await house.build(recipe) as image:
        spec = make_spec(tmp_path / "c", "", layers=tuple(image.layers), own_folders=("/app",), mounts=())
        spec = replace(spec, arguments=("/bin/sh", "-c", SCRIPT), environment={**spec.environment, "PATH": "/bin"})
        container = await engine.start(spec)
        end = await asyncio.wait_for(container.wait(), 60)
        assert end.exit_code == 0, end
        said = (spec.folder / "var/out/said").read_text().split()
        assert said == ["1000", "/app", "/own", "/tmp", "/home/user", "of-image", "removed"]
        assert (spec.folder / "layer/root/app/written").read_text() == "x\n"
        assert (image.layers[0] / "app/of-image").is_file() and not (image.layers[0] / "app/written").exists()
        await container.remove()
        assert traces(spec.id, spec.folder) == []
        assert not house.builder().store.damage(image.held[-1].meta, deep=True)


async def test_a_container_whose_worker_is_gone_is_removed(
    house: ImageHouse, engine: GvisorEngine, tmp_path: Path
) -> None:
    with await house.build(house.recipe("true")) as image:
        spec = make_spec(tmp_path / "c", "", layers=tuple(image.layers), mounts=())
        spec = replace(spec, arguments=("/bin/sleep", "1000"))
        container = await engine.start(spec)
        assert any(trace.startswith("mount") for trace in traces(spec.id, spec.folder))
        await engine.collect_garbage(spec.folder)  # as by the next worker, which knows only the folder
        assert traces(spec.id, spec.folder) == []
        await container.remove()


async def test_a_held_image_is_shared_and_snapshots_keep_layers(
    house: ImageHouse, engine: GvisorEngine, tmp_path: Path
) -> None:
    snapshots = SnapshotStore(tmp_path / "snapshots")
    images = Images(tmp_path / "data", [engine], Cgroups(), snapshots)
    assert images.list() == [] and images.size_bytes() == 0 and await images.prune() == 0  # nothing is made by looking
    assert not (tmp_path / "data/images").exists()
    first = await images.build(house.recipe("echo 1 > /n"), house.file, house.log.append)
    shared = await images.share(first)
    first.release()
    assert await images.prune() == 0 and [record.id for record in images.list()] == [first.id]
    for kind, id in (("session", "p"), ("template", "t")):
        draft = snapshots.draft(kind, id, 1)  # type: ignore[arg-type]
        draft.commit(Manifest(kind=kind, id=id, layers=list(shared.keys)))  # type: ignore[arg-type]
    shared.release()
    assert await images.prune() == 0  # a parked session stands on it
    snapshots.remove("session", "p")
    builder = images._made()
    builder.room.max_bytes = 1
    (await images.build(house.recipe("echo 2 > /n"), house.file, house.log.append)).release()
    assert first.id in {record.id for record in images.list()}  # a template does too, as far as a build goes
    assert await images.prune() > 0 and images.list() == [] and snapshots.templates() == []
    with pytest.raises(PlatformError, match="was deleted"):
        await images.share(first)


async def test_an_engine_without_images_refuses_before_any_work(house: ImageHouse, tmp_path: Path) -> None:
    runtime = await Runtime.create(run_folder=tmp_path / "r", data_folder=tmp_path / "d", engine="process")
    try:
        request = request_for(tmp_path, "c1", recipe=house.recipe("true"))
        with pytest.raises(RequestError, match="the engine process cannot run") as caught:
            await runtime.build_image(request, house.file, house.log.append)
        assert caught.value.code is ErrorCode.NOT_YET and "root" in caught.value.info.allowed
        with pytest.raises(RequestError, match="this worker's machine cannot run"):
            await runtime.images.build(house.recipe("true"), house.file, house.log.append)
        assert runtime.images.list() == [] and house.log == [] and not (tmp_path / "d/images").exists()
    finally:
        await runtime.close()
