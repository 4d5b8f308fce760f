"""The environment that a schedule was made with, against the one that is there now. Reads names in folders, runs nothing.

A run uses the live environment of the gateway's machine, which goes on changing: what differs is said in the run's record, so
that a result of March and one of May can be told apart.
"""

from __future__ import annotations

import os
from pathlib import Path

from cellburst_protocol.messages import MirrorSpec
from cellburst_protocol.packages import package_changes, packages_named

SHOWN_CHANGES = 12


def environment_changes(image: MirrorSpec | None) -> list[str]:
    """What is installed differently now, a line each. Empty where nothing is, or where nothing was noted. Blocks."""
    if image is None or not image.packages:
        return []
    if not Path(image.executable).exists():
        return [f"its interpreter {image.executable} is not there any more"]
    now: dict[str, str] = {}
    for folder in image.sys_path:  # the first one with a package is the one that is imported
        try:
            now = packages_named(os.listdir(folder)) | now  # noqa: PTH208 - names only, from folders of thousands
        except OSError:
            continue
    return package_changes(image.packages, now)


def told(changes: list[str]) -> str:
    """One line for the run's record, "" for no changes."""
    if not changes:
        return ""
    more = f", and {len(changes) - SHOWN_CHANGES} more" if len(changes) > SHOWN_CHANGES else ""
    return f"the environment is not as it was when this was scheduled: {', '.join(changes[:SHOWN_CHANGES])}{more}"
