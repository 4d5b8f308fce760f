"""Images at the gateway: the recipe of a cell and of its session, and builds, lists and logs of the workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
from blake3 import blake3

from cellburst_gateway.store_rows import Owner, Role
from cellburst_gateway.store_tokens import hash_token
from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.images import MAX_RECIPE_BYTES, Copy, FilePack, ImageRecipe, RunCommands, debian_slim, image_key
from cellburst_protocol.peer import Stream, StreamEnded
from cellburst_protocol.states import EndReason, SessionState
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House
from tests.gateway.parking_house import A100, NO_ROOM, begin_to_park, park, session_of, with_session

SLIM = ImageRecipe(steps=debian_slim("3.11"))
OTHER = ImageRecipe(steps=[*debian_slim("3.11"), RunCommands(commands=["true"])])
TAR = b"the bytes of a tar"
PACK = FilePack(hash=blake3(TAR).hexdigest(), size_bytes=len(TAR), files=1)
WITH_FILES = ImageRecipe(steps=debian_slim("3.11"), adds=[Copy(pack=PACK, destination="/data")])
MakeHouse = Callable[..., Awaitable[House]]


def starts(worker: FakeWorker) -> list[m.StartContainer]:
    return [container.start for container in worker.containers.values()]


def have(house: House, data: bytes) -> None:
    path = house.gateway.hub.blobs.path(blake3(data).hexdigest())
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


async def refused(kernel: FakeKernel, call: str, recipe: ImageRecipe) -> ErrorInfo:
    answer = await kernel.run("print x", call=call, recipe=recipe)
    assert isinstance(answer, m.CellRefused)
    return answer.error


# -- cells --------------------------------------------------------------------------------------------------------------


async def test_a_cells_image_starts_its_container_and_is_not_sent_further(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    await kernel.run("print x", call="c1", recipe=SLIM)
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    (container,) = worker.containers.values()
    assert container.start.recipe == SLIM
    (cell,) = [message for message in container.received if isinstance(message, m.RunCell)]
    assert cell.recipe is None
    started = kernel.of("c1", m.ContainerStarted)[0]
    assert started.container.image == image_key(SLIM) and started.mirror_identity == ""


async def test_a_session_goes_on_in_its_image(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    await kernel.run("print x", call="c1", recipe=SLIM)
    first = (await kernel.ended("c1")).container
    for call, given in (("c2", {"recipe": SLIM}), ("c3", {"keep_image": True})):
        await kernel.run("print y", call=call, **given)
        assert (await kernel.ended(call)).container == first
    assert not worker.parks_asked and not worker.parked


async def test_keep_image_without_a_session_to_go_on_with_is_what_the_cell_says(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    await kernel.run("print x", call="c1", keep_image=True)
    await kernel.ended("c1")
    assert starts(worker)[0].recipe is None


@pytest.mark.parametrize(("first", "then"), [(None, SLIM), (SLIM, OTHER), (SLIM, None)])
async def test_another_image_moves_the_session(
    house: House, first: ImageRecipe | None, then: ImageRecipe | None
) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    await kernel.run("print x", call="c1", recipe=first)
    await kernel.ended("c1")
    worker.resumes_by = "names"
    await kernel.run("print y", call="c2", recipe=then)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert "another image" in kernel.of("c2", m.Queued)[0].waiting_for
    (start,) = starts(worker)
    assert start.recipe == then and start.parked == worker.parks_asked[0].parked
    assert kernel.of("c2", m.ContainerStarted)[0].start == "names"


async def test_a_parked_session_comes_back_in_its_image(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    await kernel.run("print x", call="c1", recipe=SLIM)
    await kernel.ended("c1")
    answer = await park(house, kernel)
    assert "recipe" not in msgspec.json.encode(answer).decode()
    await kernel.run("print y", call="c2", keep_image=True)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    assert starts(worker)[0].recipe == SLIM
    assert session_of(house, kernel).kept_recipe is None


async def test_an_image_that_cannot_be_built_leaves_the_session_in_the_one_it_had(house: House) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    await kernel.run("print x", call="c1", recipe=SLIM)
    await kernel.ended("c1")
    worker.hold_ready = True
    await kernel.run("print y", call="c2", recipe=OTHER)
    await house.until(lambda: any(start.recipe == OTHER for start in starts(worker)))
    (name,) = [start.container for start in starts(worker) if start.recipe == OTHER]
    why = ErrorInfo(code=ErrorCode.IMAGE_BUILD, message="step 2 of 2 failed: true: exit code 1")
    container = worker.containers[name]
    container.emit(m.BuildLog(lines=["no such thing"], step=2, steps=2, title="run_commands true"), "c2")
    container.emit(m.ContainerEnded(container=name, reason=EndReason.START_FAILED, error=why))
    ended = await kernel.ended("c2")
    assert ended.error == why and ended.reason is EndReason.START_FAILED
    session = session_of(house, kernel)
    await house.until(lambda: session.state is SessionState.PARKED)
    assert session.recipe == SLIM
    worker.hold_ready = False
    await kernel.run("print z", call="c3", keep_image=True)
    assert (await kernel.ended("c3")).reason is EndReason.DONE
    assert [start.recipe for start in starts(worker) if start.prepare_call == "c3"] == [SLIM]
    logs = await (await house.cli()).peer.request(m.GetLogs(session=session.id))
    assert isinstance(logs, m.Logs) and "no such thing\n" in logs.text


@pytest.mark.parametrize("building", [True, False])
async def test_a_cell_that_is_stopped_while_its_image_is_built_stops_the_build(house: House, building: bool) -> None:
    worker, kernel = await house.worker(), await house.kernel()
    worker.hold_ready = True
    await kernel.run("print x", call="c1", recipe=SLIM)
    await house.until(lambda: bool(worker.containers))
    (container,) = worker.containers.values()
    container.emit(m.Phase(name="image"), "c1")
    container.emit(m.BuildLog(lines=["a line"], step=1, steps=2), "c1")
    if not building:
        container.emit(m.Phase(name="image", seconds=1.0), "c1")
    await kernel.until(lambda: len(kernel.of("c1", m.Phase)) == (2 if building else 3))  # "queue" is one
    await kernel.until(lambda: bool(kernel.of("c1", m.BuildLog)))
    assert kernel.info is not None
    kernel.peer.notify(m.Interrupt(session=kernel.info.session, level=1))
    assert (await kernel.ended("c1")).reason is EndReason.CANCELLED
    if building:
        await house.until(lambda: not worker.containers and not house.gateway.hub.fleet.containers)
    else:
        worker.ready(container)  # it is as good as there: it waits for the next cell
        await house.until(lambda: session_of(house, kernel).state is SessionState.IDLE)
        assert session_of(house, kernel).container is not None
    worker.hold_ready = False
    await kernel.run("print y", call="c2", recipe=SLIM)
    assert (await kernel.ended("c2")).reason is EndReason.DONE


async def test_a_move_that_fails_says_so_and_the_session_goes_on(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    worker.park_fails = NO_ROOM
    await kernel.run("print y", call="c2", recipe=SLIM)
    ended = await kernel.ended("c2")
    assert ended.error is not None and "could not be moved" in ended.error.message
    await kernel.run("print z", call="c3", keep_image=True)
    assert (await kernel.ended("c3")).reason is EndReason.DONE


async def test_a_cell_that_waits_in_another_image_is_not_given_to_the_container_that_lives_on(house: House) -> None:
    worker = await house.worker()
    kernel = await with_session(house, worker)
    asked, container = await begin_to_park(house, kernel, worker)
    await kernel.run("print y", call="c2", resources=A100, recipe=SLIM)
    worker.park_fails = NO_ROOM
    worker.finish_park(container)
    with pytest.raises(CellburstError):
        await asked
    assert (await kernel.ended("c2")).reason is EndReason.START_FAILED


@pytest.mark.parametrize("parked", [False, True])
async def test_the_image_outlives_the_gateway(make_house: MakeHouse, parked: bool) -> None:
    house = await make_house()
    await house.worker()
    kernel = await house.kernel()
    await kernel.run("print x", call="c1", recipe=SLIM)
    await kernel.ended("c1")
    if parked:
        await park(house, kernel)
    id = session_of(house, kernel).id
    await house.close()
    again = await make_house()
    session = again.gateway.hub.sessions.get(id)
    assert session is not None and session.recipe == SLIM
    assert (session.container is None) is parked


async def test_a_cell_that_waits_keeps_its_image_over_a_restart(make_house: MakeHouse) -> None:
    house = await make_house()
    await house.worker()
    first = await house.kernel(notebook="/busy.ipynb")
    await first.run("wait", call="c1", resources=A100)
    kernel = await house.kernel()
    await kernel.run("print x", call="c2", resources=A100, recipe=SLIM)
    await kernel.until(lambda: bool(kernel.of("c2", m.Queued)))
    id = session_of(house, kernel).id
    await house.close()
    session = (await make_house()).gateway.hub.sessions.get(id)
    assert session is not None and session.call is not None and session.call.recipe == SLIM


# -- local files --------------------------------------------------------------------------------------------------------


async def test_local_files_that_are_not_here_are_named(house: House) -> None:
    await house.worker()
    kernel = await house.kernel()
    info = await refused(kernel, "c1", WITH_FILES)
    assert info.code is ErrorCode.NOT_FOUND and info.detail["missing"] == PACK.hash and PACK.hash[:12] in info.message
    have(house, TAR)
    await kernel.run("print x", call="c2", recipe=WITH_FILES)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    house.gateway.hub.blobs.path(PACK.hash).unlink()  # the image is there: its files are asked for no more
    await kernel.run("print y", call="c3", recipe=WITH_FILES)
    assert (await kernel.ended("c3")).reason is EndReason.DONE


@pytest.mark.parametrize(
    ("recipe", "code"),
    [
        (ImageRecipe(steps=[]), ErrorCode.BAD_ARGUMENT),
        (ImageRecipe(steps=[RunCommands(commands=["x" * MAX_RECIPE_BYTES])]), ErrorCode.TOO_LARGE),
        (
            ImageRecipe(steps=[Copy(pack=FilePack(hash="../x", size_bytes=1), destination="/")]),
            ErrorCode.BAD_ARGUMENT,
        ),
    ],
)
async def test_a_recipe_that_is_none_is_refused(house: House, recipe: ImageRecipe, code: ErrorCode) -> None:
    kernel = await house.kernel()
    await house.worker()
    assert (await refused(kernel, "c1", recipe)).code is code
    if code is not ErrorCode.TOO_LARGE:  # the link itself takes no larger one
        assert (await built(await house.cli(), recipe))[-1].error.code is code


# -- builds without a cell ----------------------------------------------------------------------------------------------


async def built(cli: FakeKernel, recipe: ImageRecipe, worker: str = "") -> list[Any]:
    return await rest(cli.peer.open(m.BuildStream(recipe=recipe, worker=worker)))


async def rest(stream: Stream) -> list[Any]:
    found: list[Any] = []
    async with asyncio.timeout(10):
        try:
            while True:
                found.append((await stream.recv())[0])
        except StreamEnded:
            stream.end()
            return found


async def test_a_build_is_passed_on_with_its_log(house: House) -> None:
    worker, cli = await house.worker(), await house.cli()
    first, last = await built(cli, SLIM)
    assert (first.step, first.steps, first.title, first.lines) == (1, 2, "apt_install git", ["a line"])
    assert (last.id, last.cached, last.worker) == (image_key(SLIM), True, "fake") and last.error is None
    [build] = worker.images.builds
    assert build.build and msgspec.structs.replace(build, build="") == m.BuildStream(recipe=SLIM, worker="fake")


async def test_a_build_goes_where_it_is_asked_for_or_where_least_is_done(house: House) -> None:
    one, two, cli = await house.worker(name="one"), await house.worker(name="two"), await house.cli()
    assert (await built(cli, SLIM, "two"))[-1].worker == "two"
    two.images.hold = one.images.hold = True
    for count in (1, 2):
        cli.peer.open(m.BuildStream(recipe=SLIM))
        await house.until(lambda count=count: len(one.images.builds) + len(two.images.builds) == count + 1)
    assert (len(one.images.builds), len(two.images.builds)) == (1, 2)
    unknown = (await built(cli, SLIM, "three"))[-1].error
    assert unknown.code is ErrorCode.NOT_FOUND and unknown.allowed == "one, two"


async def test_a_build_that_fails_says_why(house: House) -> None:
    worker, cli = await house.worker(), await house.cli()
    worker.images.result = m.ImageBuilt(error=NO_ROOM)
    assert (await built(cli, SLIM))[-1].error == NO_ROOM
    assert (await built(cli, WITH_FILES))[-1].error.detail["missing"] == PACK.hash
    assert len(worker.images.builds) == 1


async def test_without_a_worker_there_is_no_build(house: House) -> None:
    (last,) = await built(await house.cli(), SLIM)
    assert last.error.code is ErrorCode.NO_WORKER


@pytest.mark.parametrize("how", ["reset", "link"])
async def test_a_build_nobody_waits_for_ends(house: House, how: str) -> None:
    worker, cli = await house.worker(), await house.cli()
    worker.images.hold = True
    stream = cli.peer.open(m.BuildStream(recipe=SLIM))
    await stream.recv()
    if how == "reset":
        stream.reset()
    else:
        await cli.close()
    await house.until(lambda: worker.images.given_up == 1)


async def test_a_build_on_a_worker_that_is_lost_says_so(house: House) -> None:
    worker, cli = await house.worker(), await house.cli()
    worker.images.hold = True
    stream = cli.peer.open(m.BuildStream(recipe=SLIM))
    await stream.recv()
    await worker.kill()
    assert (await rest(stream))[-1].error.code is ErrorCode.WORKER_LOST


# -- lists, logs, pruning -----------------------------------------------------------------------------------------------


async def test_lists_logs_and_pruning_ask_all_workers(house: House) -> None:
    one, two, cli = await house.worker(name="one"), await house.worker(name="two"), await house.cli()
    one.images.rows = [m.ImageRow(id="aa", steps=["debian_slim"], size_bytes=100, last_used_unix_seconds=1.0)]
    two.images.rows = [m.ImageRow(id="bb", steps=["debian_slim"], size_bytes=30, last_used_unix_seconds=2.0)]
    listed = await cli.peer.request(m.ListImages())
    assert isinstance(listed, m.ImageList)
    assert [(row.id, row.worker) for row in listed.rows] == [("bb", "two"), ("aa", "one")] and listed.size_bytes == 130
    only = await cli.peer.request(m.ListImages(worker="one"))
    assert isinstance(only, m.ImageList) and [row.id for row in only.rows] == ["aa"]
    assert await cli.peer.request(m.ImageLogs(id="b")) == m.Logs(text="the log of b\n")
    assert await cli.peer.request(m.PruneImages(max_bytes=20)) == m.ImagesPruned(freed_bytes=90, left_bytes=40)
    with pytest.raises(CellburstError) as caught:
        await cli.peer.request(m.ImageLogs(id="zz"))
    assert caught.value.code is ErrorCode.NOT_FOUND and "cellburst image ls" in caught.value.info.next
    two.images.damaged = [m.DamagedLayer(id="cd", step="apt_install git", problems=["usr/bin/git: another content"])]
    verified = await cli.peer.request(m.VerifyImages())
    assert isinstance(verified, m.ImagesVerified) and (verified.layer_count, verified.size_bytes) == (2, 130)
    assert [(layer.id, layer.worker) for layer in verified.damaged] == [("cd", "two")]
    assert await cli.peer.request(m.VerifyImages(worker="one")) == m.ImagesVerified(layer_count=1, size_bytes=100)
    two.images.refuses = error(ErrorCode.STORE, "the disk is broken")
    listed = await cli.peer.request(m.ListImages())
    assert isinstance(listed, m.ImageList) and [row.id for row in listed.rows] == ["aa"]
    with pytest.raises(CellburstError, match="disk is broken"):
        await cli.peer.request(m.ListImages(worker="two"))


async def test_another_workspace_sees_none_of_it_and_a_viewer_changes_nothing(house: House) -> None:
    worker = await house.worker()
    worker.images.rows = [m.ImageRow(id="aa", steps=[])]
    store = house.gateway.hub.store
    now = house.gateway.clock.wall()
    store.add_token(hash_token("t-other"), Owner("bobs", "bob"), name="b", role=Role.USER, now=now)
    store.add_token(hash_token("t-viewer"), Owner("home", "user"), name="v", role=Role.VIEWER, now=now)
    other = await FakeKernel(house.url, "t-other", role="cli").dial()
    viewer = await FakeKernel(house.url, "t-viewer", role="cli").dial()
    try:
        assert await other.peer.request(m.ListImages()) == m.ImageList()
        assert (await built(other, SLIM))[-1].error.code is ErrorCode.NO_WORKER
        assert isinstance(await viewer.peer.request(m.ListImages()), m.ImageList)
        with pytest.raises(CellburstError) as caught:
            await viewer.peer.request(m.PruneImages())
        assert caught.value.code is ErrorCode.FORBIDDEN
        with pytest.raises(CellburstError) as caught:
            await viewer.peer.request(m.VerifyImages())
        assert caught.value.code is ErrorCode.FORBIDDEN
        with pytest.raises(CellburstError) as caught:
            await viewer.peer.open(m.BuildStream(recipe=SLIM)).recv()
        assert caught.value.code is ErrorCode.FORBIDDEN
    finally:
        await other.close()
        await viewer.close()
    assert not worker.images.builds
