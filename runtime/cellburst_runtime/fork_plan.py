"""Which containers of the `process` engine can come out of the same fork server, and how that server is started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.messages import MirrorSpec

from .bundle import Bundle
from .mirror import MirrorPlan
from .snapshot_key import image_parts, snapshot_key


@dataclass(frozen=True)
class ForkPlan:
    """What a server needs to be the parent of a container's processes. `python` is the interpreter's command, `main` the
    runner's file, `environment` what all containers of `key` have alike; `containers` the folder of their folders."""

    key: str
    python: tuple[str, ...]
    main: str
    environment: Mapping[str, str]
    folder: str
    containers: Path


def fork_key(image: MirrorSpec, plan: MirrorPlan, bundle: Bundle | None, packages: Path) -> str:
    """Equal for containers that one server can make. `packages` holds `cellburst_runner`. Blocks for milliseconds."""
    # what the interpreter and libraries read when they are loaded; the image's own variables are in image_parts
    made = {name: value for name, value in plan.environment.items() if image.environment.get(name) != value}
    parts = image_parts(image, packages)
    parts["environment"] = json.dumps([made, plan.python, plan.working_folder], sort_keys=True)
    if bundle is not None:
        parts["bundle"] = bundle.packages.name
    return snapshot_key(parts)


def fork_plan(
    key: str, plan: MirrorPlan, bundle: Bundle | None, main: str, folder: str, containers: Path
) -> ForkPlan:  # fmt: skip
    """How the server of a container is started. `main`: the runner's file; `folder`: where cells run."""
    environment = dict(plan.environment)
    if bundle is not None:
        environment["CELLBURST_BUNDLE"] = str(bundle.packages)
    return ForkPlan(key, tuple(plan.python), main, environment, folder, containers)
