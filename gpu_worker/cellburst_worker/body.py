"""What one container is made of, shared by the files that start it, serve it, put it away and end it."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cellburst_protocol.messages import PhaseTime, RunnerStart, StartContainer
from cellburst_runtime.engine import ContainerExit
from cellburst_runtime.image_build import BuiltImage

from . import endings
from .answers import Talk
from .gateway_door import GatewayDoor
from .outbound import Outbound
from .runner_link import RunnerLink
from .site import Prepared, Running, Site
from .volumes import ContainerVolumes

if TYPE_CHECKING:
    from .warm_pool import WarmPool

OUTPUT_LIMIT_BYTES = 32 * 1024 * 1024  # a cell's output in full; then its tail
MATPLOTLIB_BACKEND = "module://matplotlib_inline.backend_inline"


@dataclass
class Body:
    """Parts of one container. `prepared` and `running` are those of the rung that is tried or came up last."""

    request: StartContainer
    site: Site
    link: RunnerLink
    outbound: Outbound
    prepared: Prepared | None = None
    running: Running | None = None
    phases: list[PhaseTime] = field(default_factory=list)
    image: BuiltImage | None = None  # held while the container is here; None for a mirror
    volumes: ContainerVolumes | None = None  # None: it has none
    door: GatewayDoor | None = None  # for code that may use the gateway
    pool: WarmPool | None = None  # where a container may be taken from that is up already

    @property
    def id(self) -> str:
        """The container's."""
        return self.request.container

    @property
    def snapshot_key(self) -> str:
        """What a snapshot of it must match; "" while it is not prepared, and where its engine takes none."""
        return self.prepared.snapshot_key if self.prepared is not None else ""

    @property
    def template_key(self) -> str:
        """What a template, a fork server or a booted container for the next ones like it must match; "" where there can be
        none."""
        if self.prepared is None:
            return ""
        boot_key = self.prepared.boot_key if self.site.keeps_warm else ""
        return self.snapshot_key or self.prepared.fork_key or boot_key

    async def open_door(self, prepared: Prepared) -> None:
        """Let the container's code reach the gateway, if its request says so."""
        await self.close_door()
        if self.request.link_token and self.site.gateway:
            self.door = GatewayDoor(self.id, self.site.gateway)
            await self.door.open(prepared.socket_path.parent)

    async def close_door(self) -> None:
        """Nobody inside reaches the gateway any more."""
        if self.door is not None:
            await self.door.close()
            self.door = None

    def release_image(self) -> None:
        """The container is removed: its image's layers may be evicted."""
        if self.image is not None:
            self.image.release()

    def talk(self, doing: str) -> Talk:
        """Asks its runner. `doing`: see `Talk`."""
        return Talk(self.link, self.outbound.answers, self._last_words, doing)

    async def drain(self) -> None:
        """Read what the runner had written before it was gone."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.site.limits.drain_seconds):
                await self.link.disconnected.wait()
                await self.outbound.idle.wait()

    async def _last_words(self, exit: ContainerExit) -> str:
        await self.drain()
        return self.outbound.last_executor_text.strip() or endings.exit_text(exit)


def start_message(
    running: Running, *, restored: bool = False, reseed: bool = False, link_token: str = ""
) -> RunnerStart:
    """What the runner is told when it is up: of a fresh boot, of a restore, or of a checkpoint that failed."""
    link = {"CELLBURST_LINK": "1", "CELLBURST_TOKEN": link_token} if link_token else {}
    return RunnerStart(
        environment={**running.environment, **link}, links=dict(running.links), folder=running.working_folder,
        python=list(running.python), output_limit_bytes=OUTPUT_LIMIT_BYTES, matplotlib_backend=MATPLOTLIB_BACKEND,
        restored=restored, reseed=reseed,
    )  # fmt: skip
