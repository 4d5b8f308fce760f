"""The notebook's own environment on another machine than its kernel's: who may go there, and the recipe that it is built from.
A session in an image of its own is only asked for the files of its folder there.

A worker of the kernel's machine shows the environment live; any other one builds it as an image. The gateway knows which by
the machine ids of both, so it decides when it has placed the cell: only then is the kernel asked for the recipe (MirrorNeeded),
which reads its packages and sends its local sources first. Nobody else waits: the lease is the cell's, and it can be cancelled.

cell placed ─▶ same machine, or an image ──────────────────────────▶ StartContainer
           └─▶ another one ─▶ a session kept there has its recipe ──▶ StartContainer {recipe}
                          └─▶ MirrorNeeded … MirrorRecipe {recipe} ─▶ StartContainer {recipe}

A link that is lost meanwhile is no end: the kernel is asked again on its next one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from cellburst_protocol.errors import ErrorCode, error, from_info
from cellburst_protocol.images import ImageRecipe, secrets_of
from cellburst_protocol.messages import MirrorNeeded, MirrorRecipe, MirrorSpec
from cellburst_protocol.states import ContainerState

from .calls import Call
from .containers import ContainerHandle, is_mirror
from .images import checked
from .session import Session, Subscriber

if TYPE_CHECKING:
    from .hub import Hub

ASK_SECONDS = 900.0  # the sources of local packages over a slow line
POLL_SECONDS = 0.2  # how soon a cell that was cancelled, or a link that is there again, is noticed


class Mirrors:
    """Which workers show a kernel's environment live, and what the others build it from."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # By container: the same call may be placed again, and asked for again, before the first one has noticed.
        self._asked: dict[str, tuple[str, asyncio.Future[MirrorRecipe]]] = {}  # its call, and the answer

    def shares(self, worker: str, image: MirrorSpec | None) -> bool:
        """Whether a worker sees the same files as the kernel; also where nobody said on which machine one of them is."""
        handle = self._hub.fleet.workers.get(worker)
        there, here = handle.machine_id if handle is not None else "", image.machine_id if image is not None else ""
        return not there or not here or there == here

    def at_home(self, image: MirrorSpec | None, recipe: ImageRecipe | None) -> tuple[str, ...]:
        """The workers that show a cell's environment live: nothing is built there. None for a cell in an image of its own."""
        if not is_mirror(recipe) or image is None or not image.machine_id:
            return ()
        return tuple(id for id in self._hub.fleet.workers if self.shares(id, image))

    async def fill(self, session: Session, handle: ContainerHandle, call: Call | None, image: MirrorSpec) -> None:
        """Give a placed container the recipe of its mirror, where its worker has to build it, and the notebook's files.

        Returns early where the container is stopped meanwhile. Raises the error tree: NOT_YET where nobody can be asked,
        UNAVAILABLE where no answer came, or what the kernel says."""
        recipe = handle.detail.recipe
        if self.shares(handle.worker, image):
            if recipe is not None:
                handle.detail.recipe = None if recipe.mirror else msgspec.structs.replace(recipe, folder=None)
            return
        asks = call is not None and call.cell is not None and call.cell.has_mirror
        if recipe is not None and (handle.detail.parked or not asks):
            return  # it goes on with what it was begun with; changes are for a restart
        machine = self._hub.fleet.machine(handle.worker)
        if call is None or not asks:
            raise error(
                ErrorCode.NOT_YET, f"the notebook's own environment is not on {machine}, and nobody is here to say what it is",
                allowed="a notebook that is open, or image=...", next="give the cell an image= (it is built there)",
            )  # fmt: skip
        handle.building = True  # a cancelled cell takes the container with it
        own = None if is_mirror(recipe) else recipe
        found = await self._ask(
            session, handle, call, MirrorNeeded(call=call.id, machine=machine, folder_only=own is not None)
        )
        handle.building = False
        if found is not None:
            handle.detail.recipe = self._taken(session, found, own)

    async def _ask(
        self, session: Session, handle: ContainerHandle, call: Call, question: MirrorNeeded
    ) -> MirrorRecipe | None:
        answer: asyncio.Future[MirrorRecipe] = asyncio.get_running_loop().create_future()
        self._asked[handle.id] = call.id, answer
        told: Subscriber | None = None
        deadline = self._hub.clock.monotonic() + ASK_SECONDS
        try:
            while handle.state is ContainerState.STARTING:
                if session.subscriber is not None and session.subscriber is not told:
                    told = session.subscriber
                    told.post(question)
                if answer.done() or (await asyncio.wait({answer}, timeout=POLL_SECONDS))[0]:
                    return answer.result()
                if self._hub.clock.monotonic() > deadline:
                    raise error(
                        ErrorCode.UNAVAILABLE, f"the notebook's kernel did not say in {ASK_SECONDS / 60:.0f} min what its "
                        f"environment is made of, which is to be built on {question.machine}", next="run the cell again",
                    )  # fmt: skip
            return None
        finally:
            del self._asked[handle.id]

    def answered(self, session: Session, message: MirrorRecipe) -> None:
        """What a kernel says of its environment; dropped where nobody waits for it any more."""
        if session.call is None or session.call.id != message.call:
            return
        for call, answer in self._asked.values():
            if call == message.call and not answer.done():
                answer.set_result(message)

    def _taken(self, session: Session, message: MirrorRecipe, own: ImageRecipe | None) -> ImageRecipe:
        """The recipe to start with. `own` is the cell's image, where it is in one."""
        if message.error is not None:
            raise from_info(message.error)
        recipe = own or checked(message.recipe)
        if recipe is None or (own is None and secrets_of([*recipe.steps])):
            raise error(ErrorCode.BAD_ARGUMENT, "an environment without steps, or one that is built with secrets")
        recipe = msgspec.structs.replace(recipe, mirror=own is None, folder=message.folder)
        self._hub.images.check(session.record.owner.workspace, recipe)
        return recipe
