"""The environment that a notebook's runs will have, described by its own interpreter."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.messages import MirrorSpec

DESCRIBE_SECONDS = 60.0


def describe_environment(python: str, folder: Path) -> MirrorSpec:
    """The environment of an interpreter, described by itself. Raises RequestError (NOT_FOUND)."""
    try:
        told = subprocess.run(
            [python, "-m", "cellburst_jupyter.environment_told", str(folder)],
            capture_output=True, timeout=DESCRIBE_SECONDS, check=True, cwd="/",
        )  # fmt: skip
        return msgspec.json.decode(told.stdout, type=MirrorSpec)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError) as why:
        raise error(
            ErrorCode.NOT_FOUND, f"the environment of {python} cannot be described: {why}",
            next="install cellburst there (`pip install 'cellburst[jupyter]'`), or give another --python",
        ) from None  # fmt: skip
