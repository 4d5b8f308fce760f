"""GPUs and volumes that steps of an image ask for: refused at once, leased while a step runs, metered, and given back."""

from __future__ import annotations

import asyncio
from decimal import Decimal

from cellburst_gateway.store_rows import BUILDS
from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import ImageRecipe, RunCommands, StepVolume, debian_slim
from cellburst_protocol.peer import Stream, StreamEnded
from cellburst_protocol.states import EndReason
from cellburst_protocol.volumes import CreateVolume
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House
from tests.gateway.parking_house import A100
from tests.gateway.test_images import MakeHouse, built, refused, starts

SECONDS = 7200.25  # more than the test takes


def with_step(**fields: object) -> ImageRecipe:
    return ImageRecipe(steps=[*debian_slim("3.11"), RunCommands(commands=["true"], **fields)])  # type: ignore[arg-type]


async def given(stream: Stream) -> tuple[m.BuildLeaseGiven, list[str]]:
    """What a lease's stream says: the lease, and what was waited for before."""
    waited: list[str] = []
    async with asyncio.timeout(30):
        while True:
            message, _ = await stream.recv()
            if isinstance(message, m.BuildLeaseGiven):
                return message, waited
            assert isinstance(message, m.Queued)
            waited.append(message.waiting_for)


async def building(house: House, worker: FakeWorker, recipe: ImageRecipe) -> m.BuildStream:
    """A build without a cell that is under way at the worker."""
    worker.images.hold = True
    cli = await house.cli()
    cli.peer.open(m.BuildStream(recipe=recipe))
    await house.until(lambda: bool(worker.images.builds))
    return worker.images.builds[-1]


async def test_a_step_of_a_build_without_a_cell_gets_gpus_and_pays_for_them(house: House) -> None:
    worker = await house.worker()
    hub = house.gateway.hub
    asked = await building(house, worker, with_step(gpu="A100"))
    assert worker.peer is not None
    stream = worker.peer.open(m.BuildLease(gpu="A100", build=asked.build))
    lease, _ = await given(stream)
    assert lease.gpus == ["SIM-fake-0"] and "simulated" in lease.price_note and Decimal(lease.usd_per_second) > 0
    (row,) = hub.fleet.rows()
    assert row.free_gpus == []
    # A cell that wants the GPU waits for the build, and is told so.
    kernel = await house.kernel()
    await kernel.run("print x", call="c1", resources=A100)
    await kernel.until(lambda: bool(kernel.of("c1", m.Queued)))
    assert "held by an image's build" in kernel.of("c1", m.Queued)[0].waiting_for
    stream.post(m.BuildLeaseOver(seconds=SECONDS))
    stream.end()
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    record = hub.store.get_lease(lease.lease)
    assert record is not None and record.reason is EndReason.DONE and record.billed_seconds == SECONDS
    cli = await house.cli()
    costs = await cli.peer.request(m.GetCost())
    assert isinstance(costs, m.CostReport)
    [line] = [line for line in costs.lines if line.notebook == BUILDS]
    usd = Decimal(lease.usd_per_second) * Decimal(str(SECONDS))
    assert Decimal(line.usd) == usd and not line.running and line.session == ""
    spent = await cli.peer.request(m.GetSpending(since_unix_seconds=0, count=100))
    assert isinstance(spent, m.Spending)
    parts = [part for part in spent.rows if part.notebook == BUILDS]
    assert {(part.gpu, part.simulated) for part in parts} == {("A100-80GB", True)}
    assert sum((Decimal(part.usd) for part in parts), Decimal(0)) == usd


async def test_a_lease_ends_with_its_stream_its_worker_and_the_gateway(house: House) -> None:
    worker = await house.worker()
    hub = house.gateway.hub
    asked = await building(house, worker, with_step(gpu="A100"))
    assert worker.peer is not None
    stream = worker.peer.open(m.BuildLease(gpu="A100", build=asked.build))
    first, _ = await given(stream)
    # The next waits for it, by name, and has it as soon as the first is gone, without a word.
    other = worker.peer.open(m.BuildLease(gpu="A100", build=asked.build))
    waiting, _ = await other.recv()
    assert isinstance(waiting, m.Queued) and waiting.waiting_for.startswith("gpu=A100 on ")
    status = await (await house.cli()).peer.request(m.GetStatus())
    assert isinstance(status, m.Status) and status.queue == [f"an image's build waits for {waiting.waiting_for}"]
    stream.reset()
    second, _ = await given(other)
    ended = hub.store.get_lease(first.lease)
    assert ended is not None and ended.reason is EndReason.STOPPED
    hub.fleet.stop(hub.fleet.containers[second.id], EndReason.SHUTDOWN)
    try:
        await other.recv()
        raise AssertionError("the lease is still there")
    except (CellburstError, StreamEnded):
        pass
    record = hub.store.get_lease(second.lease)
    assert record is not None and record.reason is EndReason.SHUTDOWN and not hub.fleet.containers
    last = worker.peer.open(m.BuildLease(gpu="A100", build=asked.build))
    third, _ = await given(last)
    await worker.stop()
    await house.until(lambda: not hub.fleet.containers)
    left = hub.store.get_lease(third.lease)
    assert left is not None and not left.open


async def test_a_gateway_that_is_started_again_closes_what_it_finds_of_builds(make_house: MakeHouse) -> None:
    house = await make_house()
    worker = await house.worker()
    asked = await building(house, worker, with_step(gpu="A100"))
    assert worker.peer is not None
    lease, _ = await given(worker.peer.open(m.BuildLease(gpu="A100", build=asked.build)))
    # As a gateway that is killed leaves it: nothing of the end is written.
    store = house.gateway.hub.store
    store.end_container = lambda *args, **named: None  # type: ignore[assignment, method-assign]
    await house.close()
    after = await make_house()
    hub = after.gateway.hub
    assert [handle.detail.is_build for handle in hub.fleet.containers.values()] == [True]
    await after.worker()
    await after.until(lambda: not hub.fleet.containers)
    record = hub.store.get_lease(lease.lease)
    assert record is not None and not record.open


async def test_a_lease_is_for_what_the_gateway_has_asked_to_be_built(house: House) -> None:
    worker = await house.worker()
    assert worker.peer is not None
    for asked in (
        m.BuildLease(gpu="A100"),
        m.BuildLease(gpu="A100", build="ib-1"),
        m.BuildLease(gpu="A100", container="c"),
    ):
        stream = worker.peer.open(asked)
        try:
            await stream.recv()
            raise AssertionError("it was given")
        except CellburstError as why:
            assert why.code is ErrorCode.FORBIDDEN
    assert not house.gateway.hub.fleet.containers


async def test_a_cells_build_has_a_lease_of_its_session(house: House) -> None:
    worker, kernel = await house.worker(gpus=("A100-80GB", "T4")), await house.kernel()
    worker.hold_ready = True
    await kernel.run("print x", call="c1", recipe=with_step(gpu="T4"), resources=A100)
    await house.until(lambda: bool(worker.containers))
    (start,) = starts(worker)
    assert worker.peer is not None
    stream = worker.peer.open(m.BuildLease(gpu="T4", container=start.container))
    lease, _ = await given(stream)
    assert lease.gpus == ["SIM-fake-1"]
    stream.post(m.BuildLeaseOver(seconds=SECONDS))
    hub = house.gateway.hub
    await house.until(lambda: lease.id not in hub.fleet.containers)
    record = hub.store.get_lease(lease.lease)
    assert record is not None and record.session == start.session and start.container in hub.fleet.containers
    last = hub.store.last_container(start.session)
    assert last is not None and last.id == start.container  # the session's own, whatever came later


async def test_what_no_machine_has_is_said_at_once(house: House) -> None:
    worker, kernel, cli = await house.worker(), await house.kernel(), await house.cli()
    for recipe, code, words in (
        (with_step(gpu="A1OO"), ErrorCode.UNKNOWN_GPU, "A1OO"),
        (with_step(gpu="H100"), ErrorCode.NO_SUCH_HARDWARE, "a step of the image asks for gpu=H100"),
        (with_step(volumes=[StepVolume(name="no", path="/v")]), ErrorCode.NOT_FOUND, "no"),
        (
            with_step(volumes=[StepVolume(name="a", path="/v"), StepVolume(name="b", path="/v")]),
            ErrorCode.BAD_ARGUMENT,
            "/v",
        ),
        (with_step(volumes=[StepVolume(name="no", path="/v", kind="shared")]), ErrorCode.NOT_FOUND, "no"),
    ):
        info = await refused(kernel, f"c-{code}", recipe)
        assert info.code is code and words in info.message, info
        info = (await built(cli, recipe))[-1].error
        assert info.code is code and words in info.message, info
    assert not worker.containers and not worker.images.builds


async def test_an_image_is_built_and_run_where_its_gpus_are(house: House) -> None:
    await house.worker(name="plain", gpus=())
    other = await house.worker(name="other", gpus=("T4",))
    cli, kernel = await house.cli(), await house.kernel()
    assert (await built(cli, with_step(gpu="T4")))[-1].worker == "other"
    await kernel.run("print x", call="c1", recipe=with_step(gpu="T4"))
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    assert len(other.containers) == 1


async def test_volumes_are_told_by_id_and_made_where_that_is_asked(house: House) -> None:
    worker, kernel, cli = await house.worker(), await house.kernel(), await house.cli()
    hub = house.gateway.hub
    owner = hub.fleet.workers["fake"].owner
    row, _ = await hub.volumes.create(owner, CreateVolume(name="data"))
    volumes = [StepVolume(name="data", path="/d"), StepVolume(name="new", path="/n", create=True)]
    recipe = with_step(volumes=[*volumes, StepVolume(name="nfs", path="/s", kind="shared", create=True)])
    assert (await built(cli, recipe))[-1].error is None
    asked = worker.images.builds[-1]
    assert asked.volumes["data"] == row.id and asked.volumes["new"].startswith("v-") and asked.shared_folder
    await kernel.run("print x", call="c1", recipe=recipe)
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    (start,) = starts(worker)
    assert start.build_volumes == asked.volumes and start.shared_folder == asked.shared_folder and start.volumes == []
