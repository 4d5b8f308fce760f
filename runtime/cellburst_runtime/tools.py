"""Programs of this machine that the runtime starts: where they are, and how to run one with a time limit."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COMMAND_SECONDS = 20.0  # mount, mkfs and runsc's short commands end within a second; this catches only hangs
_CHECKOUT = Path(__file__).resolve().parents[2]
# System folders that an ordinary user's PATH often lacks.
_SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class CommandResult:
    """How a command ended: its exit code (None: it ran past its limit and was killed) and what it printed."""

    exit_code: int | None
    output: str
    errors: str

    @property
    def ok(self) -> bool:
        """Whether it ended with code 0."""
        return self.exit_code == 0

    def reason(self) -> str:
        """The last line it printed to stderr, else its exit code, for a message."""
        lines = [line for line in self.errors.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit code {self.exit_code}"


async def run_command(arguments: Sequence[str], *, seconds: float = COMMAND_SECONDS) -> CommandResult:
    """Run a command to its end without a terminal; after `seconds` it is killed. A missing program is exit code 127."""
    try:
        process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as problem:
        return CommandResult(127, "", f"{arguments[0]}: {problem.strerror}")
    try:
        async with asyncio.timeout(seconds):
            output, errors = await process.communicate()
    except TimeoutError:
        return CommandResult(None, "", f"{Path(arguments[0]).name} gave no answer within {seconds:g} s")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return CommandResult(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


def find_program(name: str) -> str:
    """The path of a system program, also from the folders of system administration; "" when it is not there."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_PATH) or ""


def find_uv() -> str:
    """uv's program: beside this Python, else on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else find_program("uv")


def find_runsc(data_folder: Path) -> str:
    """gVisor's program: `$CELLBURST_RUNSC`, the tools of the data folder, those of the checkout, then PATH; or ""."""
    configured = os.environ.get("CELLBURST_RUNSC")
    if configured is not None:
        return configured if os.access(configured, os.X_OK) else ""
    for candidate in (data_folder / "tools" / "runsc", _CHECKOUT / ".tools" / "runsc"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return str(candidate)
    return find_program("runsc")
