"""The one line that a user's very first remote cell adds: what was set up, where, what it costs, what isolates it."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path

from cellburst.config import folders
from cellburst_protocol.messages import ContainerInfo

MARK = "first-use-told"


def first_use_line(container: ContainerInfo, embedded: bool, data: Path | None = None) -> str:
    """The line, or "" if this user has been told before. Remembers by a file in the data folder."""
    mark = (data or folders().data) / MARK
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except OSError:  # told before, or not to be remembered: then saying it each time would be worse than never
        return ""
    return describe(container, embedded, mark.parent)


def describe(container: ContainerInfo, embedded: bool, data: Path) -> str:
    """Says what the first cell set up."""
    where = f"a gateway and a worker of yours on this machine (data in {data}; `cellburst down` ends them)"
    gpus = container.gpus
    what = f"{len(gpus)} × {gpus[0].type}" if len(gpus) > 1 else gpus[0].type if gpus else "no GPU"
    if any(gpu.simulated for gpu in gpus):
        what += " (SIMULATED: there is no such GPU, CUDA calls fail)"
    how = f"sandboxed by {container.engine}" if container.isolates else f"by {container.engine}, which isolates nothing"
    try:
        rate = f"${Decimal(container.usd_per_second) * 3600:.2f}/h"
    except InvalidOperation:
        rate = "an unknown price"
    price = f"{rate} ({container.price_note or 'reference price'})"
    return f"first use: {where if embedded else 'the configured gateway'}; this cell has {what}, {how}, at {price}"
