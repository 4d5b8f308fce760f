"""On a machine with a real GPU: inventory, a cell on it (torch matmul, `process` engine), NVML's figures, the lease's cost.

    python bench/gpu_check.py

Prints JSON; without a GPU it says so and exits with 3. It simulates nothing.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

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
    from bench.harness import house

    with house(simulate_gpus="") as place:
        kernel = place.kernel()
        try:
            kernel.check("%load_ext cellburst_jupyter")
            ran = kernel.run(CELL)
            figures = usage(kernel)
            cost = kernel.check("%modal cost").text
            status = kernel.check("%modal status").text
        finally:
            kernel.close()
    print(json.dumps({"gpu": names, "output": ran.text, "error": ran.error, "seconds": ran.seconds, "usage": figures,
                      "cost": cost, "status": status}, indent=2))  # fmt: skip
    return 1 if ran.error or not figures else 0


def usage(kernel: object) -> list[str]:
    """The last GPU figures that reached the kernel in the card's data."""
    ran = kernel.check(  # type: ignore[attr-defined]
        "from cellburst_jupyter import card\nprint(card.last_usage_text())"
    )
    return [line for line in ran.text.splitlines() if line]


if __name__ == "__main__":
    sys.exit(main())
