"""What every container of a worker shares: the runtime, the clock, where values and spools lie, the limits.

The runtime is named here by what a worker needs of it; `cellburst_runtime.runtime.Runtime` is the real one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cellburst_protocol.messages import EngineInfo, FileChange, GpuUsage, Inventory, StartContainer
from cellburst_runtime.engine import Container

from .clock import Clock
from .exchange import Exchange


class Layer(Protocol):
    """What a session wrote over the notebook's folder. All calls block and are made in a thread."""

    def file_list(self) -> list[FileChange]:
        """Files written or deleted."""

    def file_get(self, path: str) -> Path:
        """The host path of a file as the session sees it. Raises RequestError (NOT_FOUND, FORBIDDEN)."""

    def file_put(self, path: str, source: Path) -> None:
        """Copy a host file into the layer. Raises RequestError or PlatformError."""


class Running(Protocol):
    """A container that was started, with what its runner is told."""

    @property
    def container(self) -> Container:
        """What the engine started."""

    @property
    def python(self) -> list[str]:
        """The executor's interpreter."""

    @property
    def environment(self) -> dict[str, str]:
        """What the runner sets."""

    @property
    def links(self) -> dict[str, str]:
        """What the runner links."""

    @property
    def working_folder(self) -> str:
        """Where cells run."""

    @property
    def notes(self) -> list[str]:
        """Lesser modes, for the user."""

    @property
    def network(self) -> str:
        """What it really has."""

    @property
    def engine(self) -> EngineInfo:
        """What isolates it."""

    @property
    def layer(self) -> Layer:
        """What the session writes."""


class Prepared(Protocol):
    """A container whose folder is there and whose engine was not started."""

    @property
    def socket_path(self) -> Path:
        """Where the worker listens."""

    @property
    def folder(self) -> Path:
        """The container's folder on the host."""

    def remove(self) -> Awaitable[object]:
        """Remove the folder of a container that was never started. Idempotent."""

    def start(self) -> Awaitable[Running]:
        """Start the engine; the runner then dials `socket_path`."""


class RuntimeLike(Protocol):
    """The machine's containers, GPUs and engines."""

    def inventory(self) -> Inventory:
        """What there is to lease."""

    def gpu_usage(self, uuids: Sequence[str]) -> list[GpuUsage]:
        """Live figures. Blocks."""

    def prepare(self, request: StartContainer) -> Awaitable[Prepared]:
        """Make the folder and plan the mounts."""

    def collect_garbage(self, keep: Sequence[str] = ()) -> Awaitable[object]:
        """End and remove containers of workers that are gone."""


@dataclass(frozen=True)
class Limits:
    """How long things may take, in seconds. Each with the reason in its name's place of use."""

    hello_seconds: float = 60.0  # engine start to the runner's hello: a loaded machine's cold start, ten times over
    ready_seconds: float = 120.0  # the executor's imports from a cold disk
    drain_seconds: float = 5.0  # what an ended container's socket still holds is read within this
    keep_seconds: float = 600.0  # how long an ended container's events wait for a gateway
    ping_seconds: float = 1.0


@dataclass(frozen=True)
class Site:
    """One worker's machine, as its containers see it."""

    runtime: RuntimeLike
    clock: Clock
    exchange: Exchange
    spool_folder: Path
    limits: Limits = Limits()
