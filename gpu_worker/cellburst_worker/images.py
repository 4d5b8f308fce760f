"""Images on this worker: what a build says while it runs, where it gets local files, and the gateway's requests about images."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.images import ImageRecipe, packs
from cellburst_protocol.messages import (
    BuildLog,
    BuildSecret,
    BuildStream,
    DamagedLayer,
    ImageBuilt,
    ImageList,
    ImageLogs,
    ImageRow,
    ImagesPruned,
    ImagesVerified,
    ListImages,
    Logs,
    Message,
    PruneImages,
    ValuePart,
    VerifyImages,
)
from cellburst_protocol.peer import LinkClosed, Stream, StreamEnded
from cellburst_runtime.image_secrets import BuildSecrets

from .build_aids import WorkerAids
from .exchange import Exchange
from .redact import Redactor, TextStream
from .site import Site

SEND_SECONDS = 0.1  # between two messages of one build
MOST_LINES = 100  # of one message: what prints faster is read in the image's log
MOST_CHARACTERS = 1000  # of one line
_STEP = re.compile(r"Step (\d+) of (\d+): (.*)", re.DOTALL)
_STATES = re.compile(r"(: there already|: done in [\d.]+ s|: waiting for another build .*| failed: .*)$")

log = logging.getLogger(__name__)


class BuildLogs:
    """Gathers a build's lines into messages, at most one in 0.1 s. Made and used on the event loop; `close` at the end.

    `made` counts the layers that the build made. `send` must not block and must not raise.
    """

    def __init__(self, recipe: ImageRecipe, send: Callable[[BuildLog], None]) -> None:
        self._send, self._steps = send, len(recipe.steps) + len(recipe.adds)
        self._lines: list[str] = []
        self._step, self._title = 0, ""
        self._timer: asyncio.TimerHandle | None = None
        self.made = 0

    def line(self, text: str) -> None:
        """One line of the build."""
        # Steps of a stage have numbers of their own; a recipe in a recipe of as many steps is shown as if it were this one.
        if (found := _STEP.match(text)) is not None:
            self.made += ": done in " in text
            if int(found[2]) == self._steps:
                self._step, self._title = int(found[1]), _STATES.sub("", found[3].partition("\n")[0])
        self._lines += [part[:MOST_CHARACTERS] for part in text.split("\n")]
        if self._timer is None:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(SEND_SECONDS, self._due)

    def close(self) -> None:
        """Send what waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()

    def summary(self) -> str:
        """What a phase says of it."""
        return f"{self.made} of {self._steps} steps made" if self.made else "built before"

    def _due(self) -> None:
        self._timer = None
        if self._lines:
            self._flush()
            self._timer = asyncio.get_running_loop().call_later(SEND_SECONDS, self._due)

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if not lines:
            return
        if len(lines) > MOST_LINES:
            half = MOST_LINES // 2
            left_out = f"({len(lines) - MOST_LINES} lines left out: the image's log has them)"
            lines = [*lines[:half], left_out, *lines[-half:]]
        self._send(BuildLog(lines=lines, step=self._step, steps=self._steps, title=self._title))


def pack_files(recipe: ImageRecipe, exchange: Exchange) -> Callable[[str], Awaitable[Path]]:
    """What a build asks for its local files: each is brought here when a step needs it, so never for one that is built."""
    sizes = {pack.hash: pack.size_bytes for pack in packs(recipe)}

    async def file(hash: str) -> Path:
        path = exchange.folder.path(hash)
        await exchange.bring([ValuePart(hash=hash, size_bytes=sizes.get(hash, 0), at="blob")])
        if not path.is_file():
            raise error(
                ErrorCode.INTEGRITY,
                f"the local files of an image step ({hash[:12]}…) are not there",
                next="run it again",
            )
        return path

    return file


def build_secrets(secrets: Mapping[str, BuildSecret]) -> BuildSecrets:
    """What a build's steps get, and how its output hides it."""
    redactor = Redactor()
    for name, secret in secrets.items():
        redactor.add({f"{name}.{key}": value for key, value in secret.values.items()})
    values = {name: secret.values for name, secret in secrets.items()}
    versions = {name: secret.version for name, secret in secrets.items()}
    return BuildSecrets(values, versions, redactor.text, (lambda: TextStream(redactor)) if redactor else None)


class ImageDesk:
    """Answers what the gateway asks about this machine's images. `users`: what holds images now, name -> keys of its layers."""

    def __init__(self, site: Site, worker: str, users: Callable[[], Mapping[str, Sequence[str]]]) -> None:
        self._site, self._worker, self._users = site, worker, users
        self._builds: set[asyncio.Task[None]] = set()

    @property
    def builds(self) -> bool:
        """Whether an image is being built that no container waits for."""
        return bool(self._builds)

    async def answer(self, message: ListImages | PruneImages | VerifyImages | ImageLogs) -> Message:
        """The answer to a control request. Raises the error tree."""
        images = self._site.runtime.images
        match message:
            case ListImages():
                return await asyncio.to_thread(self._list, self._users())
            case PruneImages():
                freed = await images.prune(message.max_bytes)
                return ImagesPruned(freed_bytes=freed, left_bytes=await asyncio.to_thread(images.size_bytes))
            case VerifyImages():
                return await self._verify(self._users())
            case ImageLogs():
                return Logs(text=await asyncio.to_thread(images.logs, message.id))

    def serve(self, request: BuildStream, stream: Stream) -> None:
        """Build what a stream asks for; it is told on the stream."""
        task = asyncio.create_task(self._serve(request, stream))
        self._builds.add(task)
        task.add_done_callback(self._builds.discard)

    async def close(self) -> None:
        """End what is being built."""
        for task in self._builds:
            task.cancel()
        await asyncio.gather(*self._builds, return_exceptions=True)

    async def _verify(self, users: Mapping[str, Sequence[str]]) -> ImagesVerified:
        try:
            found = await self._site.runtime.images.verify()
        except OSError as why:
            raise error(
                ErrorCode.STORE, f"the layers on {self._worker} could not be read to the end: {why}", next="try again"
            ) from None
        held = await asyncio.to_thread(self._held, users) if found.damaged else {}
        return ImagesVerified(
            layer_count=found.layers, size_bytes=found.size_bytes,
            damaged=[
                DamagedLayer(
                    id=layer.key, step=layer.step, problems=layer.problems, size_bytes=layer.size_bytes, worker=self._worker,
                    used_by=[name for name, keys in held.items() if layer.key in keys],
                )
                for layer in found.damaged
            ],
        )  # fmt: skip

    def _held(self, users: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        parked = self._site.runtime.snapshots.parked_all()
        held = {f"parked {found.id}": list(found.layers) for found in parked if found.layers}
        return held | {name: list(keys) for name, keys in users.items()}

    def _list(self, users: Mapping[str, Sequence[str]]) -> ImageList:
        runtime, held = self._site.runtime, self._held(users)
        rows = [
            ImageRow(
                id=record.id, steps=record.steps, size_bytes=record.size_bytes,
                built_unix_seconds=record.built_unix_seconds, last_used_unix_seconds=record.used_unix_seconds,
                worker=self._worker, used_by=[name for name, keys in held.items() if keys == record.layers],
            )
            for record in runtime.images.list()
        ]  # fmt: skip
        return ImageList(rows=rows, size_bytes=runtime.images.size_bytes())

    async def _serve(self, request: BuildStream, stream: Stream) -> None:
        building = asyncio.create_task(self._build(request, stream))
        given_up = asyncio.create_task(_given_up(stream))
        try:
            await asyncio.wait({building, given_up}, return_when=asyncio.FIRST_COMPLETED)
            if building.done():
                stream.post(building.result())
                stream.end()
        except LinkClosed:
            pass  # nobody waits for the answer
        finally:
            for task in (building, given_up):
                task.cancel()
            await asyncio.gather(building, given_up, return_exceptions=True)

    async def _build(self, request: BuildStream, stream: Stream) -> ImageBuilt:
        clock = self._site.clock
        began = clock.monotonic()
        logs = BuildLogs(request.recipe, lambda message: _post(stream, message))
        try:
            files = pack_files(request.recipe, self._site.exchange)
            secrets = build_secrets(request.secrets)
            aids = WorkerAids(
                self._site.gpu_desk, clock, self._site.volumes, build=request.build, ids=request.volumes,
                shared_folder=request.shared_folder,
            )  # fmt: skip
            image = await self._site.runtime.images.build(request.recipe, files, logs.line, secrets, aids)
        except CellburstError as why:
            return ImageBuilt(worker=self._worker, seconds=clock.monotonic() - began, error=why.info)
        except OSError as why:
            log.exception("an image could not be built")
            info = ErrorInfo(code=ErrorCode.STORE, message=f"the image could not be built: {why}")
            return ImageBuilt(worker=self._worker, seconds=clock.monotonic() - began, error=info)
        finally:
            logs.close()
        with image:
            sizes = {layer.meta.key: layer.meta.size_bytes for layer in image.held}
            return ImageBuilt(
                id=image.id, seconds=clock.monotonic() - began, size_bytes=sum(sizes.values()), cached=not logs.made,
                worker=self._worker, python_version=image.python_version,
            )  # fmt: skip


async def _given_up(stream: Stream) -> None:
    """Return when the other side gave the stream up. That it sends no more is no sign of that."""
    try:
        while True:
            await stream.recv()
    except StreamEnded:
        await asyncio.Event().wait()
    except CellburstError:
        return


def _post(stream: Stream, message: BuildLog) -> None:
    try:
        stream.post(message)
    except CellburstError:
        pass  # given up: the build ends
