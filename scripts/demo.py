"""`make demo`: execute a notebook through a real Jupyter kernel and show each cell's output, the starts and the cost.

    python scripts/demo.py [NOTEBOOK]

Uses this machine's GPU when NVML finds one, else declares a simulated A100 (which computes nothing) and says so.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from cellburst import embedded
from cellburst.config import settings
from cellburst.link import Link
from cellburst.money import usd_text
from cellburst_protocol.messages import CostReport, GetCost, GetStatus, Status

ROOT = Path(__file__).resolve().parent.parent
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def real_gpus() -> list[str]:
    """Names of this machine's GPUs by NVML; none where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return []


def show_outputs(cell: nbformat.NotebookNode, number: int) -> None:
    """Print what a person would see under a cell, figures as one line."""
    first = next((line for line in cell.source.splitlines() if line.strip()), "")
    print(f"\n\033[1m[{number}] {first}\033[0m" + (" …" if len(cell.source.splitlines()) > 1 else ""))
    for output in cell.get("outputs", []):
        match output.output_type:
            case "stream":
                text = output.text.rpartition("\r")[2] if "\r" in output.text else output.text
            case "error":
                text = "\n".join(output.traceback)
            case _:
                text = output.data.get("text/plain", "")
                if "image/png" in output.data:
                    text = f"(figure, {len(output.data['image/png']) * 3 // 4 // 1024} KB) {text}"
        if text.strip():
            print("    " + text.rstrip().replace("\n", "\n    "))


async def ask_gateway() -> tuple[Status, CostReport]:
    """What the gateway says of its sessions and money after the run."""
    link = Link(embedded.ensure_gateway, role="cli")
    await link.connect()
    assert link.peer is not None
    status = await link.peer.request(GetStatus())
    cost = await link.peer.request(GetCost())
    await link.close()
    assert isinstance(status, Status) and isinstance(cost, CostReport)
    return status, cost


def main() -> int:
    notebook_path = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "examples" / "quickstart.ipynb").resolve()
    gpus = real_gpus()
    if gpus:
        print(f"GPU: {', '.join(gpus)}")
    else:
        os.environ.setdefault("CELLBURST_SIMULATE_GPUS", "A100:1")
        simulated = os.environ["CELLBURST_SIMULATE_GPUS"]
        print(
            f"GPU: none on this machine; {simulated} is SIMULATED (placement and prices are real, it computes nothing)"
        )
    os.environ["JPY_SESSION_NAME"] = str(notebook_path)

    notebook = nbformat.read(notebook_path, as_version=4)
    shown = [0]

    def executed(cell: nbformat.NotebookNode, cell_index: int, execute_reply: object) -> None:
        shown[0] += 1
        show_outputs(cell, shown[0])

    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(notebook_path.parent)}},
        on_cell_executed=executed, store_widget_state=True,
    )  # fmt: skip
    start = time.perf_counter()
    failed = False
    try:
        client.execute()
    except CellExecutionError:
        failed = True
    seconds = time.perf_counter() - start
    target = notebook_path.parent / "out" / f"{notebook_path.stem}.executed.ipynb"
    target.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, target)
    report(seconds)
    print(f"notebook: {target}")
    print("still running, for the next cell: `.venv/bin/cellburst status`; `.venv/bin/cellburst down` ends everything")
    return 1 if failed else 0


def report(seconds: float) -> None:
    """The run's starts, engine and cost, as the gateway recorded them."""
    status, cost = asyncio.run(ask_gateway())
    print(f"\nrun:    {seconds:.1f} s")
    for row in status.sessions:
        if row.container is None:
            continue
        container = row.container
        gpus = ", ".join(g.type + (" (SIMULATED)" if g.simulated else "") for g in container.gpus) or "no GPU"
        print(
            f"engine: {container.engine} ({'isolated' if container.isolates else 'NOT isolated'}, network {container.network})"
        )
        phases = ", ".join(f"{p.name} {p.seconds:.2f} s" for p in container.phases)
        print(f"start:  {phases}; session {row.name}, {gpus}, {container.cpu:g} cores, {container.memory_mib} MiB")
    for line in cost.lines:
        print(f"cost:   {usd_text(line.usd)} for {line.seconds:.1f} s of {line.what or line.name}")
    print(f"        {cost.price_note}")
    print(f"data:   {settings().folders.data}")


if __name__ == "__main__":
    sys.exit(main())
