"""Why a container ended, said once for people and machines: from what the engine saw to a reason and an error. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from cellburst_protocol.errors import ErrorCode, ErrorInfo
from cellburst_protocol.states import EndReason
from cellburst_runtime.engine import ContainerExit

MIB = 1024 * 1024


@dataclass(frozen=True)
class Ending:
    """What a ContainerEnded says."""

    reason: EndReason
    error: ErrorInfo | None = None


def of_exit(exit: ContainerExit, memory_mib: int, peak_bytes: int | None, pids: int) -> Ending:
    """The ending of a container that ended by itself."""
    if exit.cause == "oom":
        peak = f" (last seen at {peak_bytes / MIB:.0f} MiB)" if peak_bytes else ""
        return Ending(
            EndReason.OUT_OF_MEMORY,
            ErrorInfo(
                code=ErrorCode.OUT_OF_MEMORY,
                message=f"the container used up its {memory_mib} MiB of memory{peak} and was ended by the kernel",
                next=f"ask for more, for example memory={2 * memory_mib}MiB",
                detail={"limit_mib": str(memory_mib), "peak_bytes": str(peak_bytes or ""), "engine": exit.detail},
            ),
        )
    if exit.cause == "pids":
        message = f"the container reached its limit of {pids} processes and threads and was ended"
        error = ErrorInfo(
            code=ErrorCode.EXITED, message=message, next="start fewer at a time", detail={"engine": exit.detail}
        )
        return Ending(EndReason.PIDS_LIMIT, error)
    message = f"the container ended by itself ({exit_text(exit)})"
    return Ending(
        EndReason.CONTAINER_LOST, ErrorInfo(code=ErrorCode.CONTAINER_LOST, message=message, next="run the cell again")
    )


def how(exit: ContainerExit) -> str:
    """By what it ended."""
    return f"signal {exit.signal}" if exit.signal else f"exit code {exit.exit_code}"


def exit_text(exit: ContainerExit) -> str:
    """How it ended, and what was printed last."""
    return f"{how(exit)}: {exit.detail}" if exit.detail else how(exit)


def of_silence(seconds: float) -> Ending:
    """The ending of a container whose runner gives no sign."""
    message = f"the container gave no sign for {seconds:.0f} s and was ended"
    return Ending(
        EndReason.CONTAINER_LOST, ErrorInfo(code=ErrorCode.CONTAINER_LOST, message=message, next="run the cell again")
    )


def of_start(error: ErrorInfo) -> Ending:
    """The ending of a container that did not start."""
    return Ending(EndReason.START_FAILED, error)
