"""On a machine with a real GPU: inventory, a cell on it (torch matmul, `process` engine), NVML's figures, the lease's cost.

    python bench/gpu_check.py

Prints JSON. `usage` are NVML's figures as they reached the notebook: what the run card's data said of each GPU, second by
second. Exits with 3 where there is no GPU (it simulates nothing), with 1 where the cell failed or no figures of a real one
came.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.harness import House, house

CELL = """%%modal gpu=any memory=8GiB card=on
import time, torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
b = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
for _ in range(3): a @ b
torch.cuda.synchronize()
start = time.perf_counter(); rounds = 0
while time.perf_counter() - start < 6:
    for _ in range(50): c = a @ b
    torch.cuda.synchronize(); rounds += 50
tflops = 2 * 8192**3 * rounds / (time.perf_counter() - start) / 1e12
device = torch.cuda.get_device_name()
peak_mib = torch.cuda.max_memory_allocated() / 2**20
print(device, round(tflops), "TFLOP/s")
"""
FIGURES = ("utilization_ratio", "memory_used_mib", "power_watts", "temperature_celsius")


def main() -> int:
    import pynvml

    try:
        pynvml.nvmlInit()
        names = [
            pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(i)) for i in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError as why:
        print(json.dumps({"gpu": None, "why": f"NVML finds no GPU on this machine: {why}"}))
        return 3
    os.environ["CELLBURST_ENGINE"] = "process"
    with house(simulate_gpus="") as place:
        found = check(place, CELL)
    print(json.dumps({"gpu": names, **found}, indent=2))
    return int(bool(problems(found)))


def check(place: House, code: str, stop_when: Callable[[str, dict[str, Any]], bool] | None = None) -> dict[str, Any]:
    """Run the cell as from a person's notebook and collect what that shows.

    The cell is interrupted once, when `stop_when`, given its output and the card's state so far, says so.
    """
    states: list[dict[str, Any]] = []
    output: list[str] = []
    stopped = False
    kernel = place.kernel()

    def hook(message: dict[str, Any]) -> None:
        nonlocal stopped
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            output.append(content["text"])
        elif kind in ("comm_open", "comm_msg") and "card" in content["data"].get("state", {}):
            states.append(content["data"]["state"]["card"])
        if stop_when is not None and not stopped and states and stop_when("".join(output), states[-1]):
            stopped = True
            kernel.interrupt()

    try:
        kernel.check("%load_ext cellburst_jupyter")
        ran = kernel.run(code, hook, allow_stdin=True)
        after = [kernel.run(line) for line in ("%modal cost", "%modal status", "%modal stop")]
    finally:
        kernel.close()
    cost, status, _ = (each.text or each.error for each in after)
    usage: list[list[dict[str, Any]]] = []
    for state in states:  # two states a second, one report a second
        if state["gpus"] and state["gpus"] not in usage[-1:]:
            usage.append(state["gpus"])
    last = states[-1] if states else {}
    return {
        "output": ran.text, "error": ran.error, "seconds": ran.seconds, "usage": usage,
        "simulated": last.get("simulated"), "hardware": last.get("hardware"), "place": last.get("place"),
        "shown": [chart["label"] for chart in last.get("charts", [])], "cost": cost, "status": status,
    }  # fmt: skip


def problems(found: dict[str, Any]) -> list[str]:
    """Why what `check` found is not proof of a real GPU with its figures; empty if it is."""
    gpus = [gpu for report in found["usage"] for gpu in report]
    wrong = [f"the cell failed: {found['error']}"] if found["error"] else []
    wrong += [f"no report has {name}" for name in FIGURES if not any(gpu.get(name) is not None for gpu in gpus)]
    if found["simulated"] or any(gpu.get("simulated") for gpu in gpus):
        wrong.append("the GPU is simulated")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
