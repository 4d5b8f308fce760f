"""What is known of notebooks and environments on this machine, for the form of a schedule and for the list."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec

from cellburst import schedule_freeze
from cellburst.schedule_environment import Kept, describe_environment
from cellburst_protocol import notebooks
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import MirrorSpec
from cellburst_protocol.schedules import ScheduleRow

from .gateway import Gateway
from .schedule_form import same_notebook

DESCRIBE_SECONDS = 60.0
KEPT_ENVIRONMENT_SECONDS = 60.0  # how old a description may be while a form is filled in; saving reads it anew
KEPT_ANSWERS = 500


class Notebooks:
    """What is known of notebooks and environments on this machine; one for all windows."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self._environments: dict[tuple[str, str], tuple[float, MirrorSpec]] = {}
        self._changed: dict[tuple[str, str, int, int], bool] = {}

    async def environment(self, python: str, folder: Path, *, fresh: bool) -> MirrorSpec:
        """The environment of an interpreter, described by itself. Raises RequestError (NOT_FOUND)."""
        key, now = (python, str(folder)), time.monotonic()
        kept = self._environments.get(key)
        if kept is not None and not fresh and now - kept[0] < KEPT_ENVIRONMENT_SECONDS:
            return kept[1]
        found = await _described(python, folder)
        self._environments = {k: v for k, v in self._environments.items() if now - v[0] < KEPT_ENVIRONMENT_SECONDS}
        self._environments[key] = (now, found)
        return found

    async def kept(self, python: str, folder: Path, packs: Path, image: str = "") -> tuple[MirrorSpec, Kept]:
        """An interpreter's environment as it is now, and what a schedule keeps of it; `image` is the file's that is kept too.
        Raises as `cellburst.schedule_environment.describe_environment`."""
        return await asyncio.to_thread(describe_environment, python, folder, packs, image)

    async def kept_notebook(self, schedule: str) -> bytes:
        """The notebook that a schedule keeps."""
        return await self.gateway.fetch("GET", f"/schedules/{schedule}/notebook")

    async def changed(self, row: ScheduleRow) -> tuple[bool, bool]:
        """Whether the notebook's cells are others now than those that the schedule keeps, and whether its file is gone."""
        path = Path(row.notebook)
        try:
            status = await asyncio.to_thread(path.stat)
        except OSError:
            return False, True
        key = (row.id, row.notebook_hash, status.st_mtime_ns, status.st_size)
        if key not in self._changed:
            try:
                now = await asyncio.to_thread(schedule_freeze.read_notebook, path)
                kept = await self.kept_notebook(row.id) if _hash(now) != row.notebook_hash else now
                differs = await asyncio.to_thread(_differ, now, kept)
            except CellburstError:
                return False, False  # being written, or no notebook any more: the next look tells
            self._changed = dict([*self._changed.items()][-KEPT_ANSWERS:])
            self._changed[key] = differs
        return self._changed[key], False


async def _described(python: str, folder: Path) -> MirrorSpec:
    try:
        process = await asyncio.create_subprocess_exec(
            python, "-m", "cellburst_jupyter.environment_told", str(folder), cwd="/",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, told = await asyncio.wait_for(process.communicate(), DESCRIBE_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return msgspec.json.decode(out, type=MirrorSpec)
    except (OSError, TimeoutError, msgspec.MsgspecError) as why:
        last = (
            told.decode(errors="replace").strip().rpartition("\n")[2] if isinstance(why, msgspec.MsgspecError) else ""
        )
        raise error(
            ErrorCode.NOT_FOUND, f"the environment of {python} cannot be described: {last or why}",
            next="install cellburst there: pip install 'cellburst[jupyter]'",
        ) from None  # fmt: skip


def _differ(now: bytes, kept: bytes) -> bool:
    return now != kept and not same_notebook(notebooks.read(now), notebooks.read(kept))


def _hash(data: bytes) -> str:
    from blake3 import blake3

    return blake3(data).hexdigest()
