"""The notebook's own environment on another machine: who is asked for its recipe and when, and where it goes without one."""

from __future__ import annotations

import msgspec

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.images import Copy, ImageRecipe, PipInstall, RunCommands, debian_slim
from cellburst_protocol.resources import GpuChoice, Resources
from cellburst_protocol.states import EndReason
from tests.fakes.fake_kernel import IMAGE, FakeKernel
from tests.gateway.house import House
from tests.gateway.parking_house import A100, H100, park, session_of
from tests.gateway.test_images import PACK, TAR, have, starts

MINE = msgspec.structs.replace(IMAGE, machine_id="m1")
RECIPE = ImageRecipe(steps=[*debian_slim("3.11"), PipInstall(packages=["six==1.17.0"], no_deps=True)])
BUILT = msgspec.structs.replace(RECIPE, mirror=True)

T4 = Resources(gpus=(GpuChoice("T4"),))


async def asked(kernel: FakeKernel, call: str) -> m.MirrorNeeded:
    """The gateway's question for this cell."""

    def questions() -> list[m.MirrorNeeded]:
        return [one for one in kernel.texts(m.MirrorNeeded) if one.call == call]

    await kernel.until(lambda: bool(questions()))
    return questions()[-1]


async def answer(kernel: FakeKernel, call: str, **fields: object) -> None:
    assert kernel.stream is not None
    await kernel.stream.send(m.MirrorRecipe(call=call, **{"recipe": RECIPE, **fields}))  # type: ignore[arg-type]


async def run(kernel: FakeKernel, call: str, resources: Resources = A100, **fields: object) -> None:
    told = await kernel.run("print x", call=call, resources=resources, image=MINE, has_mirror=True, **fields)
    assert isinstance(told, m.CellAccepted), told


async def test_the_kernel_is_asked_when_its_cell_is_placed_on_another_machine(house: House) -> None:
    box, kernel = await house.worker(hostname="box", machine_id="m2"), await house.kernel()
    await run(kernel, "c1")
    assert (await asked(kernel, "c1")).machine == "box" and not starts(box)
    await answer(kernel, "c1")
    first = await kernel.ended("c1")
    assert first.reason is EndReason.DONE
    assert starts(box)[0].recipe == BUILT and kernel.of("c1", m.ContainerStarted)[0].mirror_identity == "i1"
    # It goes on there, said or not, and is asked nothing.
    for call, fields in (("c2", {}), ("c3", {"keep_image": True})):
        await run(kernel, call, **fields)
        assert (await kernel.ended(call)).container == first.container
    # And comes back as it was built.
    await park(house, kernel)
    assert session_of(house, kernel).kept_recipe == BUILT
    await run(kernel, "c4", keep_image=True)
    assert (await kernel.ended("c4")).reason is EndReason.DONE
    (start,) = starts(box)
    assert start.parked and start.recipe == BUILT and len(kernel.texts(m.MirrorNeeded)) == 1


async def test_the_kernel_s_own_machine_shows_it_live_and_is_preferred(house: House) -> None:
    box = await house.worker(name="a-box", machine_id="m2", gpus=("A100-80GB", "H100"))
    mine = await house.worker(name="z-mine", machine_id="m1", gpus=("A100-80GB", "T4"))
    kernel = await house.kernel()
    await run(kernel, "c1")
    await kernel.ended("c1")
    assert starts(mine)[0].recipe is None and not starts(box) and not kernel.texts(m.MirrorNeeded)
    # Only the other one has this: its names go there, and what they are in is asked for.
    await run(kernel, "c2", H100)
    await asked(kernel, "c2")
    await answer(kernel, "c2")
    assert (await kernel.ended("c2")).reason is EndReason.DONE
    (there,) = starts(box)
    assert there.recipe == BUILT and there.names is not None
    # Back home it is the environment itself again.
    await run(kernel, "c3", T4, keep_image=True)
    assert (await kernel.ended("c3")).reason is EndReason.DONE
    (back,) = starts(mine)
    assert back.recipe is None and back.names is not None and len(kernel.texts(m.MirrorNeeded)) == 1


async def test_a_kernel_that_was_away_is_asked_again(house: House) -> None:
    box, kernel = await house.worker(machine_id="m2"), await house.kernel()
    await run(kernel, "c1")
    await asked(kernel, "c1")
    await kernel.close()
    again = await house.kernel()
    await asked(again, "c1")
    await answer(again, "c1")
    assert (await again.ended("c1")).reason is EndReason.DONE and starts(box)[0].recipe == BUILT


async def test_a_worker_that_came_back_without_the_container_is_placed_on_and_asked_for_again(house: House) -> None:
    box, kernel = await house.worker(machine_id="m2"), await house.kernel()
    await run(kernel, "c1")
    await asked(kernel, "c1")
    await box.drop_link()
    await kernel.until(lambda: len(kernel.texts(m.MirrorNeeded)) == 2)
    await answer(kernel, "c1")  # a kernel that is still at it answers both questions at once
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    assert [start.recipe for start in starts(box)] == [BUILT] and not house.gateway.hub.mirrors._asked


async def test_what_the_kernel_cannot_say_ends_the_cell(house: House) -> None:
    box, kernel = await house.worker(machine_id="m2"), await house.kernel()
    why = ErrorInfo(code=ErrorCode.NOT_FOUND, message="the source of the editable package 'mine' is not there")
    with_files = msgspec.structs.replace(RECIPE, adds=[Copy(pack=PACK, destination="/data")])
    with_secret = ImageRecipe(steps=[*RECIPE.steps, RunCommands(commands=["true"], secrets=["hub"])])
    for number, (fields, words) in enumerate(
        (
            ({"recipe": None, "error": why}, "'mine' is not there"),
            ({"recipe": with_files}, "not at the gateway"),
            ({"recipe": with_secret}, "built with secrets"),
            ({"recipe": None}, "without steps"),
        )
    ):
        call = f"c{number}"
        await run(kernel, call)
        await asked(kernel, call)
        await answer(kernel, call, **fields)
        ended = await kernel.ended(call)
        assert ended.reason is EndReason.START_FAILED and ended.error is not None and words in ended.error.message
    assert not starts(box)


async def test_a_cell_that_is_cancelled_meanwhile_gives_its_lease_back(house: House) -> None:
    box, kernel = await house.worker(machine_id="m2"), await house.kernel()
    info = kernel.info
    await run(kernel, "c1")
    await asked(kernel, "c1")
    assert info is not None
    kernel.peer.notify(m.Interrupt(session=info.session, call="c1"))
    assert (await kernel.ended("c1")).reason is EndReason.CANCELLED
    await house.until(lambda: not house.gateway.hub.fleet.containers)
    await answer(kernel, "c1")  # too late, and nobody's
    await run(kernel, "c2")
    await asked(kernel, "c2")
    await answer(kernel, "c2")
    assert (await kernel.ended("c2")).reason is EndReason.DONE and len(starts(box)) == 1


async def test_an_image_of_its_own_is_asked_for_the_folder_only(house: House) -> None:
    box, kernel = await house.worker(machine_id="m2"), await house.kernel()
    have(house, TAR)
    await run(kernel, "c1", recipe=RECIPE)
    assert (await asked(kernel, "c1")).folder_only
    await answer(kernel, "c1", recipe=None, folder=PACK)
    assert (await kernel.ended("c1")).reason is EndReason.DONE
    assert starts(box)[0].recipe == msgspec.structs.replace(RECIPE, folder=PACK)
    await run(kernel, "c2", recipe=RECIPE)  # the same image: it goes on
    await kernel.ended("c2")
    await run(kernel, "c3")  # its own environment: that is another one
    assert not (await asked(kernel, "c3")).folder_only
    await answer(kernel, "c3", folder=PACK)
    await kernel.ended("c3")
    assert starts(box)[-1].recipe == msgspec.structs.replace(BUILT, folder=PACK)


async def test_without_anybody_to_ask_only_its_own_machine_will_do(house: House) -> None:
    box, kernel = await house.worker(name="a-box", machine_id="m2", hostname="box"), await house.kernel()
    await kernel.run("print x", call="c1", resources=A100, image=MINE)
    ended = await kernel.ended("c1")
    assert ended.reason is EndReason.START_FAILED and ended.error is not None
    assert ended.error.code is ErrorCode.NOT_YET and "not on box" in ended.error.message and not starts(box)
    mine = await house.worker(name="z-mine", machine_id="m1")
    await run(kernel, "c2")  # it holds what there is at home
    await kernel.ended("c2")
    other = await house.kernel(notebook="/other.ipynb")
    await other.run("print x", call="c3", resources=A100, image=MINE)
    await other.until(lambda: bool(other.of("c3", m.Queued)))
    assert len(starts(mine)) == 1 and not starts(box)
