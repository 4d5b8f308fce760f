"""A container of the gvisor engine: how it is written to a folder of the host, from which another one goes on.

runsc ends a sandbox whose checkpoint it cannot write (its disk is full, a socket to the host is open), unless it was asked to
leave it running. So a container is paused, written with `--leave-running`, and then ended by us, or resumed if that failed:
a session never dies of a checkpoint, and nothing runs in it between the checkpoint and its end.
"""

from __future__ import annotations

import logging
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, ErrorInfo

from .engine import CheckpointFailed
from .engine_base import ContainerBase, finish
from .tools import CommandResult, run_command

CHECKPOINT_SECONDS = 60.0  # at least; 1 GB takes 1 s on a quick disk
CHECKPOINT_BYTES_PER_SECOND = 50_000_000  # of the slowest disk that is waited for

log = logging.getLogger(__name__)


class GvisorContainer(ContainerBase):
    """See `engine.Container`."""

    async def checkpoint(self, folder: Path) -> None:
        """See `engine.Container.checkpoint`. A cancellation is raised when it is done, either way."""
        await finish(self._checkpoint(folder))

    async def _checkpoint(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        usage = await self.usage()
        seconds = CHECKPOINT_SECONDS + (usage.memory_bytes or 0) / CHECKPOINT_BYTES_PER_SECOND
        paused = await self._runsc("pause", seconds=CHECKPOINT_SECONDS)
        written = paused
        if paused.ok:
            written = await self._runsc(
                "checkpoint", "--compression=none", "--leave-running", f"--image-path={folder}", seconds=seconds
            )
        if written.ok and not self._child.ended:
            self._checkpointed = True
            await self._kill()
            return
        resumed = await self._runsc("resume", seconds=CHECKPOINT_SECONDS)
        # A sandbox that neither was written nor goes on is of no use to anyone.
        if not resumed.ok and not self._child.ended and paused.ok:
            await self._kill()
        raise CheckpointFailed(_why(self.id, written), still_running=not self._child.ended)

    async def _runsc(self, verb: str, *arguments: str, seconds: float) -> CommandResult:
        record = self._record
        command = [record.runsc, f"--root={record.runsc_root}", verb, *arguments, self.id]
        return await run_command(command, seconds=seconds)


def _why(container_id: str, result: CommandResult) -> ErrorInfo:
    """For a person: what runsc says is of its own insides, and goes to the log."""
    what = {"container": container_id, "exit_code": result.exit_code, "said": result.errors}
    log.warning("gVisor did not write a checkpoint", extra=what)
    if "no space left" in result.errors.lower():
        return ErrorInfo(
            code=ErrorCode.DISK_FULL, message=f"no space is left for a checkpoint of container {container_id}",
            next="free disk space on the worker's machine",
        )  # fmt: skip
    return ErrorInfo(
        code=ErrorCode.UNAVAILABLE,
        message=f"gVisor could not checkpoint container {container_id}: what it said is in the worker's log",
        next="close sockets to other machines in the session",
    )
