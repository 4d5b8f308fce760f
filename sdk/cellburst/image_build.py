"""Sending an image's local files to the gateway, and building images without a cell.

with packed(image) as recipe:                      # its files in a folder that is gone afterwards
    send_files(recipe, blobs, print)               # what the gateway lacks
built = build(image)                               # both, and the build, with progress for a person
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from cellburst_protocol.errors import ErrorCode, error, from_info
from cellburst_protocol.images import MAX_RECIPE_BYTES, ImageRecipe, packs
from cellburst_protocol.messages import BuildLog, BuildStream, ImageBuilt
from cellburst_protocol.peer import LinkClosed, StreamEnded

from . import embedded
from .blobs import BlobClient
from .endpoint import Endpoint
from .link import Link
from .loop import LoopThread
from .sizes import size_text

if TYPE_CHECKING:
    from .image import Image, Recipe
    from .image_progress import Progress

POLL_SECONDS = 0.1  # a main thread that waits looks for SIGINT at least this often
SAID_EVERY_SECONDS = 0.5
T = TypeVar("T")


@contextlib.contextmanager
def packed(image: Image) -> Iterator[Recipe]:
    """The image's recipe with its local files packed; they are gone when the block ends. Raises RequestError for files that
    are not there and for too many steps."""
    with tempfile.TemporaryDirectory(prefix="cellburst-image-") as folder:
        recipe = image.recipe(folder)
        size_bytes = len(msgspec.json.encode(recipe.recipe))
        if size_bytes > MAX_RECIPE_BYTES:
            raise error(
                ErrorCode.TOO_LARGE, f"the image's steps have {size_bytes / 1024:.0f} KiB of text",
                allowed=f"{MAX_RECIPE_BYTES >> 10} KiB", next="put long commands into a script and add it with add_local_file",
            )  # fmt: skip
        yield recipe


def send_files(recipe: Recipe, blobs: BlobClient, say: Callable[[str], None]) -> int:
    """Send the local files that the gateway lacks; returns their bytes. `say` is told how far it is. Raises as `BlobClient`."""
    missing = [pack for pack in packs(recipe.recipe) if not blobs.has(pack.hash)]
    total, sent, said = sum(pack.size_bytes for pack in missing), 0, time.monotonic()
    for pack in missing:

        def progress(count: int) -> None:
            nonlocal sent, said
            sent += count
            if time.monotonic() - said >= SAID_EVERY_SECONDS:
                said = time.monotonic()
                say(f"sending files: {size_text(sent)} of {size_text(total)}")

        blobs.put_file(pack.hash, recipe.files[pack.hash], progress)
    return total


def build(image: Image, *, progress: Progress | None = None, worker: str = "") -> ImageBuilt:
    """Build an image now, and wait for it; starts this user's own gateway if none runs. Blocks, and can be interrupted.

    Raises UserCodeError (IMAGE_BUILD) with the command, its exit code and the end of its output when a step fails;
    RequestError, CapacityError (NO_WORKER) or PlatformError otherwise.
    """
    from .image_progress import default_progress  # a cell sends files without it

    shown = progress or default_progress()
    try:
        with packed(image) as recipe:
            built = _built(recipe, worker, shown)
    finally:
        shown.close()
    if built.error is not None:
        raise from_info(built.error)
    return built


def _built(recipe: Recipe, worker: str, shown: Progress) -> ImageBuilt:
    loop = LoopThread.shared()
    link = Link(lambda: embedded.ensure_gateway(shown.say), role="cli")
    try:
        welcome = _wait(loop.submit(link.connect()))
        endpoint: Endpoint | None = link.endpoint
        assert endpoint is not None
        send_files(recipe, BlobClient(endpoint, welcome), shown.say)
        return _wait(loop.submit(_stream(link, recipe.recipe, worker, shown)))
    finally:
        loop.submit(link.close()).result()


async def _stream(link: Link, recipe: ImageRecipe, worker: str, shown: Progress) -> ImageBuilt:
    assert link.peer is not None
    stream = link.peer.open(BuildStream(recipe=recipe, worker=worker))
    try:
        while True:
            message, _ = await stream.recv()
            if isinstance(message, ImageBuilt):
                return message
            if isinstance(message, BuildLog):
                shown.log(message)
    except LinkClosed:
        raise error(
            ErrorCode.LINK_CLOSED, "the link to the gateway was lost, and the build with it",
            next="build it again: the steps that were finished are kept",
        ) from None  # fmt: skip
    except StreamEnded:
        raise error(ErrorCode.UNAVAILABLE, "the gateway ended the build without a word", next="see its log") from None
    finally:
        stream.reset()


def _wait(future: Future[T]) -> T:
    """A future's result, waited for so that SIGINT is seen; then it is cancelled."""
    try:
        while True:
            try:
                return future.result(POLL_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
    except BaseException:
        future.cancel()
        raise


def find_images(space: Mapping[str, object]) -> dict[str, Image]:
    """The variables of a module or notebook that hold an image, by name."""
    from .image import Image

    return {name: value for name, value in space.items() if isinstance(value, Image) and not name.startswith("_")}


def load_images(file: Path) -> dict[str, Image]:
    """Run a Python file, as an import does, and return its images. Raises what the file raises, and RequestError (NOT_FOUND)
    without the file."""
    spec = importlib.util.spec_from_file_location(f"cellburst_image_file_{file.stem}", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise error(ErrorCode.NOT_FOUND, f"there is no Python file {str(file)!r}", next="check the path's spelling")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # classes look their module up there
    sys.path.insert(0, str(file.absolute().parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return find_images(vars(module))
