"""Building images, with a cell or without one, and what a worker keeps of them.

Import these from `messages`, which names them all; `PROTOCOL.md` tells their order.
"""

from __future__ import annotations

import msgspec

from .errors import ErrorInfo
from .images import ImageRecipe
from .messages_base import Base
from .messages_parts import BuildSecret


class BuildLog(Base, kw_only=True, tag="build_log"):
    """Lines of an image's build, at most one message in 0.1 s. `step` of `steps` (from 1) is the step that runs now, `title`
    what it is ("apt_install git"). In a container's start an event of `prepare_call`; else a message on the BuildStream."""

    lines: list[str]
    step: int = 0
    steps: int = 0
    title: str = ""


class BuildStream(Base, kw_only=True, tag="build_stream"):
    """Opens a stream that builds an image: CLI or SDK -> gateway, and gateway -> worker with the same message. The answers
    are BuildLog messages and, last, one ImageBuilt. The recipe's packs (`images.packs`) are blobs that the gateway has.
    Giving the stream up ends the build, unless another waits for the same image."""

    recipe: ImageRecipe
    worker: str = ""  # of the gateway's; "" leaves the choice to it
    secrets: dict[str, BuildSecret] = {}  # gateway -> worker: those that its steps use, by name
    build: str = ""  # gateway -> worker: what a BuildLease of it names
    volumes: dict[str, str] = {}  # gateway -> worker: ids of the volumes that its steps use, by name
    shared_folder: str = ""  # gateway -> worker: as in StartContainer


class BuildLease(Base, kw_only=True, tag="build_lease"):
    """Opens a stream, worker -> gateway: a step of a build needs GPUs on this worker, `gpu` as a cell's line says them, beside
    what the container holds that it is built for. `container` is that one, else `build` is of the BuildStream. Answers: Queued
    while
    they are not free, then one BuildLeaseGiven; or a reset with the reason. The lease lasts until the worker says BuildLeaseOver
    or the stream is gone."""

    gpu: str
    container: str = ""
    build: str = ""


class BuildLeaseGiven(Base, kw_only=True, tag="build_lease_given"):
    """The GPUs (uuids of the inventory) are the step's from now on, and are paid for. `id` names the lease's holder to the
    worker's own book, as a container's id does."""

    id: str
    lease: str
    epoch: int
    gpus: list[str]
    usd_per_second: str = "0"
    price_note: str = ""


class BuildLeaseOver(Base, kw_only=True, tag="build_lease_over"):
    """The step has ended, and nothing of it uses the GPUs any more. `seconds`: since BuildLeaseGiven, by the worker's clock."""

    seconds: float


class ImageBuilt(Base, kw_only=True, tag="image_built"):
    """The end of a BuildStream: the image is there, or `error` says why not (IMAGE_BUILD when a step failed). `cached`: no
    layer had to be made."""

    id: str = ""
    seconds: float = 0.0
    size_bytes: int = 0
    cached: bool = False
    worker: str = ""
    python_version: str = ""
    error: ErrorInfo | None = None


class ImageRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A built image in a list. `size_bytes` counts layers that it shares with others too. `used_by` are containers and
    parked sessions that hold it now."""

    id: str
    steps: list[str]
    size_bytes: int = 0
    built_unix_seconds: float = 0.0
    last_used_unix_seconds: float = 0.0
    worker: str = ""
    used_by: list[str] = []


class ListImages(Base, kw_only=True, tag="list_images"):
    """Ask for ImageList: CLI -> gateway, which asks its workers the same; of one `worker` or of all."""

    worker: str = ""


class ImageList(Base, kw_only=True, tag="image_list"):
    """The answer to ListImages, last used first; `size_bytes` of all layers, each counted once per worker, and of the
    downloads that are kept for builds."""

    rows: list[ImageRow] = []
    size_bytes: int = 0


class PruneImages(Base, kw_only=True, tag="prune_images"):
    """Delete layers that nothing uses, least recently used first, until at most `max_bytes` are left. Answered with
    ImagesPruned. What a container or a parked session uses stays."""

    max_bytes: int = 0
    worker: str = ""


class ImagesPruned(Base, kw_only=True, tag="images_pruned"):
    """The answer to PruneImages: bytes that are free again, and bytes of layers that are left."""

    freed_bytes: int = 0
    left_bytes: int = 0


class VerifyImages(Base, kw_only=True, tag="verify_images"):
    """Read every layer to its last byte and compare it with its checksums: CLI -> gateway, which asks its workers the same; of
    one `worker` or of all. Answered with ImagesVerified. A damaged layer is put aside: the next build that needs it makes it
    anew."""

    worker: str = ""


class DamagedLayer(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A layer that was found damaged: the step that made it, up to five of its files with what is wrong with each, and the
    containers and parked sessions that stand on it."""

    id: str
    step: str
    problems: list[str]
    size_bytes: int = 0
    worker: str = ""
    used_by: list[str] = []


class ImagesVerified(Base, kw_only=True, tag="images_verified"):
    """The answer to VerifyImages: how many layers were read, their bytes, and those that were damaged."""

    layer_count: int = 0
    size_bytes: int = 0
    damaged: list[DamagedLayer] = []


class ImageLogs(Base, kw_only=True, tag="image_logs"):
    """Ask for the log of the last build of an image, by its id or the beginning of it. Answered with Logs, else an error
    (NOT_FOUND)."""

    id: str
    worker: str = ""
