"""A session that moves to hardware of another machine: parked where it is, its names sent, started there."""

from __future__ import annotations

import msgspec

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import ImageRecipe, debian_slim
from cellburst_protocol.states import EndReason, SessionState
from tests.fakes.fake_kernel import IMAGE, FakeKernel
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House
from tests.gateway.parking_house import A100, H100, park, session_of, with_session
from tests.gateway.test_images import starts

SLIM = ImageRecipe(steps=debian_slim("3.11"))


async def two(house: House, **there: str) -> tuple[FakeWorker, FakeWorker, FakeKernel]:
    """A session on one worker, and another worker that has the other GPU."""
    here = await house.worker()
    kernel = await with_session(house, here)
    return here, await house.worker(name="other", gpus=("H100",), **there), kernel


async def test_its_names_go_with_it_and_are_forgotten_where_it_was(house: House) -> None:
    here, other, kernel = await two(house)
    await kernel.run("print y", call="c2", resources=H100)
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.DONE
    (asked,) = here.parks_asked
    (start,) = starts(other)
    assert start.parked == "" and start.names is not None
    assert [group.names for group in start.names.groups] == [["x", "y"]] and [
        lost.name for lost in start.names.lost
    ] == ["gen"]
    started = kernel.of("c2", m.ContainerStarted)[0]
    assert started.start == "names" and not started.names_lost
    await house.until(lambda: here.forgotten == [asked.parked])
    assert session_of(house, kernel).kept is None and session_of(house, kernel).state is SessionState.IDLE
    # It lives there now: what both have it is given there.
    await kernel.run("print z", call="c3", resources=H100)
    assert (await kernel.ended("c3")).container == ended.container


async def test_one_that_is_parked_already_moves_as_well(house: House) -> None:
    here, other, kernel = await two(house)
    answer = await park(house, kernel)
    await kernel.run("print y", call="c2", resources=H100)
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    (start,) = starts(other)
    assert start.names is not None and not start.parked
    await house.until(lambda: here.forgotten == [answer.parked.id])


async def test_names_that_cannot_be_fetched_end_the_cell_and_stay_where_they_are(house: House) -> None:
    here, other, kernel = await two(house)
    here.names_refused = error(ErrorCode.INTEGRITY, "the parked names cannot be used: damaged")
    await kernel.run("print y", call="c2", resources=H100)
    ended = await kernel.ended("c2")
    assert ended.reason is EndReason.START_FAILED and ended.error is not None and "damaged" in ended.error.message
    assert not starts(other) and len(here.parked) == 1 and here.forgotten == []
    await kernel.run("print z", call="c3", resources=A100)
    assert (await kernel.ended("c3")).reason is EndReason.DONE
    (start,) = starts(here)
    assert start.parked == here.parks_asked[0].parked and start.names is None


async def test_one_that_had_secrets_is_refused_and_lives_on(house: House) -> None:
    here, other, cli = await house.worker(), await house.worker(name="other", gpus=("H100",)), await house.cli()
    await cli.peer.request(m.PutSecret(name="hub", values={"TOKEN": "a-long-value"}))
    kernel = await house.kernel()
    await kernel.run("print x", call="c1", resources=A100, secrets=["hub"])
    await kernel.ended("c1")
    refused = await kernel.run("print y", call="c2", resources=H100)
    assert isinstance(refused, m.CellRefused) and refused.error.code is ErrorCode.CONFLICT
    assert "has had secrets" in refused.error.message and not here.parks_asked and not starts(other)


async def test_an_image_moves_to_another_machine_where_an_environment_that_nobody_can_name_cannot(house: House) -> None:
    here = await house.worker(machine_id="m1")
    kernel = await house.kernel()
    await kernel.run("print x", call="c1", resources=A100, recipe=SLIM)
    await kernel.ended("c1")
    other = await house.worker(name="other", gpus=("H100",), hostname="another-machine", machine_id="m2")
    mine = msgspec.structs.replace(IMAGE, machine_id="m1")
    refused = await kernel.run("print y", call="c2", resources=H100, image=mine)
    assert isinstance(refused, m.CellRefused) and "not on another-machine" in refused.error.message
    await kernel.run("print y", call="c3", resources=H100, keep_image=True, image=mine)
    assert (await kernel.ended("c3")).reason is EndReason.DONE
    (start,) = starts(other)
    assert start.recipe == SLIM and start.names is not None and len(here.parks_asked) == 1
