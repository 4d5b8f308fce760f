"""Images on the workers' disks: recipes checked, builds without a cell passed on, lists, logs and pruning.

A recipe's local files are blobs. Whoever sends a recipe has put them here before; the worker fetches those it lacks.
"""

from __future__ import annotations

import asyncio
import logging
from secrets import token_hex
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error, from_info
from cellburst_protocol.images import MAX_RECIPE_BYTES, ImageRecipe, packs
from cellburst_protocol.messages import (
    BuildLog,
    BuildStream,
    ImageBuilt,
    ImageList,
    ImageLogs,
    ImagesPruned,
    ImagesVerified,
    ListImages,
    Logs,
    Message,
    PruneImages,
    VerifyImages,
)
from cellburst_protocol.peer import LinkClosed, Stream, StreamEnded

from .build_needs import build_gpus, build_shared_folder, build_volumes, check_build_needs
from .build_secrets import for_build
from .fleet import WorkerHandle
from .placement import Machine, can_build
from .placement_words import cannot_build
from .store_rows import Owner

if TYPE_CHECKING:
    from .hub import Hub

ASK_SECONDS = 30.0
PRUNE_SECONDS = 600.0  # hundreds of GB of small files on a slow disk
VERIFY_SECONDS = 7200.0  # all of them read, at 10 MB/s
FIRST_WORKER_SECONDS = 60.0  # how long a build waits for this machine's own worker to come up
POLL_SECONDS = 0.1
SHOWN_HASHES = 5

log = logging.getLogger(__name__)
Answer = TypeVar("Answer", bound=Message)


def checked(recipe: ImageRecipe | None) -> ImageRecipe | None:
    """The recipe, if it can be one at all. Raises RequestError (BAD_ARGUMENT, TOO_LARGE)."""
    if recipe is None:
        return None
    if not recipe.steps:
        raise error(ErrorCode.BAD_ARGUMENT, "an image without steps", next="begin with a base, such as debian_slim()")
    size_bytes = len(msgspec.json.encode(recipe))
    if size_bytes > MAX_RECIPE_BYTES:
        raise error(
            ErrorCode.TOO_LARGE, f"an image whose steps have {size_bytes / 1024:.0f} KiB of text",
            allowed=f"{MAX_RECIPE_BYTES >> 10} KiB", next="put long commands into a script and add it with add_local_file",
        )  # fmt: skip
    return recipe


class Images:
    """What is asked about images. A person sees and uses the workers of their own workspace."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._builds: dict[str, int] = {}  # under way, by worker
        hub.metrics.counter("cellburst_builds_total", "Images built without a cell, by outcome.")

    def check(self, workspace: str, recipe: ImageRecipe) -> None:
        """Refuse a recipe whose local files are not here, before anything is recorded. Raises RequestError (NOT_FOUND, with the
        hashes in `detail["missing"]`)."""
        sizes = {pack.hash: pack.size_bytes for pack in packs(recipe)}
        missing = self._hub.blobs.missing(workspace, sizes)
        if missing:
            shown = ", ".join(hash[:12] for hash in missing[:SHOWN_HASHES])
            raise error(
                ErrorCode.NOT_FOUND, f"local files of the image are not at the gateway: {shown}"
                + (f" and {len(missing) - SHOWN_HASHES} more" if len(missing) > SHOWN_HASHES else ""),
                next="run it again: what is missing is sent again", missing=",".join(missing),
            )  # fmt: skip

    # -- building --------------------------------------------------------------------------------------------------

    async def build(self, owner: Owner, asked: BuildStream, stream: Stream) -> None:
        """Serve a stream that builds an image: BuildLog, BuildLog ..., ImageBuilt."""
        given_up = asyncio.create_task(_given_up(stream))
        build = asyncio.create_task(self._build(owner, asked, stream))
        try:
            await asyncio.wait({given_up, build}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (given_up, build):
                task.cancel()
            await asyncio.gather(given_up, build, return_exceptions=True)
        if not build.cancelled() and (defect := build.exception()) is not None:
            raise defect

    async def _build(self, owner: Owner, asked: BuildStream, stream: Stream) -> None:
        began = self._hub.clock.monotonic()
        try:
            built = await self._built(owner, asked, stream)
        except CellburstError as why:
            built = ImageBuilt(error=why.info)
        took = self._hub.clock.monotonic() - began
        self._hub.endings.build(owner, asked.recipe, built, took, self._hub.clock.wall())
        self._hub.metrics.add("cellburst_builds_total", outcome="failed" if built.error is not None else "built")
        try:
            await stream.send(built)
            stream.end()
        except CellburstError:
            pass  # who asked is gone

    async def _built(self, owner: Owner, asked: BuildStream, stream: Stream) -> ImageBuilt:
        checked(asked.recipe)
        self.check(owner.workspace, asked.recipe)
        await check_build_needs(self._hub, owner, asked.recipe)
        worker = await self._choose(owner.workspace, asked.worker, asked.recipe)
        secrets = await for_build(self._hub, owner, asked.recipe, worker.id)
        volumes = build_volumes(self._hub, owner, asked.recipe)
        if worker.peer is None:
            raise _lost(worker)
        build = f"ib-{token_hex(8)}"
        told = msgspec.structs.replace(
            asked, worker=worker.id, secrets=secrets, build=build, volumes=volumes,
            shared_folder=build_shared_folder(self._hub, owner, asked.recipe),
        )  # fmt: skip
        self._hub.build_leases.builds[build] = worker.id, owner
        try:
            return await self._build_on(worker, told, stream)
        finally:
            del self._hub.build_leases.builds[build]

    async def _build_on(self, worker: WorkerHandle, asked: BuildStream, stream: Stream) -> ImageBuilt:
        assert worker.peer is not None
        inner = worker.peer.open(asked)
        self._builds[worker.id] = self._builds.get(worker.id, 0) + 1
        log.info("building an image", extra={"worker": worker.id, "steps": len(asked.recipe.steps)})
        try:
            while True:
                message, _ = await inner.recv()
                if isinstance(message, ImageBuilt):
                    return msgspec.structs.replace(message, worker=worker.id)
                if isinstance(message, BuildLog):
                    await stream.send(message)
        except StreamEnded:
            raise error(
                ErrorCode.UNAVAILABLE, f"the worker {worker.id} ended the build without a word", next="build it again"
            ) from None
        except LinkClosed:
            raise _lost(worker) from None
        finally:
            inner.reset()  # nothing, when it has ended; else the build ends with it
            self._builds[worker.id] -= 1

    async def _choose(self, workspace: str, name: str, recipe: ImageRecipe) -> WorkerHandle:
        """The worker to build on: the one named, else of those that have what its steps ask for (not simulated, where that is
        so) the one with least to do, this machine's own first. Raises CapacityError (NO_WORKER, NO_SUCH_HARDWARE)."""
        deadline = self._hub.clock.monotonic() + FIRST_WORKER_SECONDS
        while not (found := [w for w in self._of(workspace, name) if w.reachable]):
            due = not name and self._hub.local_worker_wanted_at is not None
            if not due or self._hub.clock.monotonic() > deadline:
                raise error(
                    ErrorCode.NO_WORKER, "no worker is there to build the image on", next="`cellburst status` shows the workers"
                )  # fmt: skip
            await asyncio.sleep(POLL_SECONDS)

        gpus = build_gpus(recipe)
        able = {worker.id: can_build(Machine(worker.id, worker.inventory), gpus) for worker in found}
        found = [worker for worker in found if able[worker.id] != "no"]
        if not found:
            raise from_info(cannot_build(gpus, [w.inventory for w in self._of(workspace, name) if w.reachable]))

        def load(worker: WorkerHandle) -> tuple[bool, int, bool, int, str]:
            containers, simulated = len(self._hub.fleet.of_worker(worker.id)), able[worker.id] == "simulated"
            return simulated, self._builds.get(worker.id, 0), not worker.on_this_machine, containers, worker.id

        return min(found, key=load)

    # -- asking ----------------------------------------------------------------------------------------------------

    async def listed(self, workspace: str, asked: ListImages) -> ImageList:
        """What the workers have built, last used first. Workers that cannot be reached are left out."""
        whole = ImageList()
        for worker, answer in await self._ask(workspace, asked.worker, ListImages(), ImageList, ASK_SECONDS):
            whole.rows += [msgspec.structs.replace(row, worker=worker) for row in answer.rows]
            whole.size_bytes += answer.size_bytes
        whole.rows.sort(key=lambda row: (-row.last_used_unix_seconds, row.id, row.worker))
        return whole

    async def prune(self, workspace: str, asked: PruneImages) -> ImagesPruned:
        """Delete layers that nothing uses; `max_bytes` is what each worker may keep. Raises RequestError (BAD_ARGUMENT)."""
        if asked.max_bytes < 0:
            raise error(ErrorCode.BAD_ARGUMENT, f"{asked.max_bytes} bytes to keep", allowed="0 or more")
        question = PruneImages(max_bytes=asked.max_bytes)
        answers = await self._ask(workspace, asked.worker, question, ImagesPruned, PRUNE_SECONDS)
        return ImagesPruned(
            freed_bytes=sum(answer.freed_bytes for _, answer in answers),
            left_bytes=sum(a.left_bytes for _, a in answers),
        )

    async def verify(self, workspace: str, asked: VerifyImages) -> ImagesVerified:
        """Have every layer read; what is damaged is put aside there."""
        whole = ImagesVerified()
        for worker, answer in await self._ask(workspace, asked.worker, VerifyImages(), ImagesVerified, VERIFY_SECONDS):
            whole.layer_count += answer.layer_count
            whole.size_bytes += answer.size_bytes
            whole.damaged += [msgspec.structs.replace(layer, worker=worker) for layer in answer.damaged]
        return whole

    async def logs(self, workspace: str, asked: ImageLogs) -> Logs:
        """The log of an image's last build, from the first worker that has one. Raises RequestError (NOT_FOUND)."""
        answers = await self._ask(workspace, asked.worker, ImageLogs(id=asked.id), Logs, ASK_SECONDS)
        if not answers:
            raise error(
                ErrorCode.NOT_FOUND,
                f"there is no image {asked.id[:80]!r}",
                next="`cellburst image ls` lists the images",
            )
        return answers[0][1]

    async def _ask(
        self, workspace: str, name: str, question: Message, kind: type[Answer], seconds: float
    ) -> list[tuple[str, Answer]]:
        """Ask every worker of the workspace that can be reached, at once. One that says NOT_FOUND has no answer; any other
        error is raised when no worker answered, and logged else."""
        workers = [w for w in self._of(workspace, name) if w.reachable]
        asked = [_one(worker, question, seconds) for worker in workers]
        answers: list[tuple[str, Answer]] = []
        problems: list[CellburstError] = []
        for worker, answer in zip(workers, await asyncio.gather(*asked), strict=True):
            if isinstance(answer, kind):
                answers.append((worker.id, answer))
            elif isinstance(answer, CellburstError) and answer.code is not ErrorCode.NOT_FOUND:
                problems.append(answer)
                log.warning(
                    "a worker did not answer about images: %s", answer.info.message, extra={"worker": worker.id}
                )
        if problems and not answers:
            raise from_info(problems[0].info)
        return answers

    def _of(self, workspace: str, name: str) -> list[WorkerHandle]:
        """Workers of the workspace, or the one named. Raises RequestError (NOT_FOUND)."""
        workers = [w for w in self._hub.fleet.workers.values() if w.owner.workspace == workspace]
        if not name:
            return workers
        found = [worker for worker in workers if worker.id == name]
        if not found:
            raise error(
                ErrorCode.NOT_FOUND, f"there is no worker {name[:80]!r}", next="`cellburst status` lists them",
                allowed=", ".join(sorted(worker.id for worker in workers)) or "no worker has joined",
            )  # fmt: skip
        return found


async def _one(worker: WorkerHandle, question: Message, seconds: float) -> Message | CellburstError:
    if worker.peer is None:
        return _lost(worker)
    try:
        return await worker.peer.request(question, timeout_seconds=seconds)
    except TimeoutError:
        return error(
            ErrorCode.UNAVAILABLE, f"the worker {worker.id} did not answer in {seconds:.0f} s", next="try again"
        )
    except CellburstError as why:
        return why


async def _given_up(stream: Stream) -> None:
    """Return when the other side gave the stream up or is gone. That it says no more is no giving up."""
    try:
        while True:
            await stream.recv()
    except StreamEnded:
        await asyncio.Event().wait()
    except CellburstError:
        return


def _lost(worker: WorkerHandle) -> CellburstError:
    info = ErrorInfo(
        code=ErrorCode.WORKER_LOST, message=f"the link to the worker {worker.id} was lost",
        next="build it again: the steps that were finished are kept there",
    )  # fmt: skip
    return from_info(info)
