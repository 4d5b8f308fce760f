"""A fresh container is brought to where a session can go on: booted, its imports made, standing still. Nobody used it.

A template is then taken of it; or, where the engine has no snapshots, it waits in the warm pool itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cellburst_protocol.errors import CellburstError, ErrorCode, error, from_info
from cellburst_protocol.messages import RunnerFreeze, RunnerFrozen, RunnerReady, StartContainer
from cellburst_runtime.live_files import Sights
from cellburst_runtime.snapshot_manifest import LiveFile

from .answers import Talk
from .body import start_message
from .site import Limits, Running, Site

PRELOAD_SECONDS = 300.0  # hundreds of modules from a cold disk, at low priority
_sights = Sights()  # of all that this worker boots beforehand: they import the same libraries


def preload_of(site: Site, request: StartContainer) -> list[str]:
    """What containers like it should have imported beforehand: what the image says, and what the notebook did."""
    named = request.recipe.preload if request.recipe is not None else []
    return list(dict.fromkeys([*named, *site.imports.of(request.notebook)]))


class JustWritten(CellburstError):
    """A file was written while the container read it."""


def unfit_module(why: Exception) -> str:
    """The module that must not be imported beforehand, if that is why it failed (`cellburst_runner.generators`)."""
    return why.info.detail.get("module", "") if isinstance(why, CellburstError) else ""


async def freeze_fresh(
    talk: Talk, running: Running, preload: Sequence[str], limits: Limits, booted_ns: int
) -> tuple[list[str], list[LiveFile]]:
    """Bring a container that was booted at `booted_ns` (wall clock) there, once its runner has said hello. Returns the modules
    that it has imported, and the live files that it has open or mapped or read its modules from; one without an inode is not
    there any more. Raises JustWritten, the error tree."""
    container = running.container
    await talk.ask(container, start_message(running), RunnerReady, limits.ready_seconds, "its executor did not start")
    question = RunnerFreeze(preload=list(preload))
    frozen, _ = await talk.ask(container, question, RunnerFrozen, PRELOAD_SECONDS, "did not freeze")
    if frozen.error is not None:
        raise from_info(frozen.error)
    files = await asyncio.to_thread(running.live_files, frozen.files)
    if written := await asyncio.to_thread(_sights.written_since, files, booted_ns):
        raise JustWritten(error(ErrorCode.CONFLICT, f"{written} was written while it was imported").info)
    return frozen.preloaded, files
