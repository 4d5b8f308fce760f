"""`bench/gpu_check.py`, as far as it goes without a GPU: its way through a whole house, on simulated ones."""

from __future__ import annotations

import pytest

from bench.gpu_check import FIGURES, check, problems
from bench.harness import House

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
# Runs until it is interrupted, which is done when the card has said what there is to say.
CELL = """%%modal gpu=any
import time
try:
    print("begun")
    while True:
        time.sleep(0.02)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_the_figures_of_the_gpu_come_with_the_card_and_are_called_simulated(place: House) -> None:
    found = check(place, CELL, lambda output, card: "begun" in output and bool(card["container"] and card["charts"]))
    assert found["error"] == "" and "interrupted" in found["output"].splitlines()
    assert found["usage"], "no figures came"
    for (gpu,) in found["usage"]:
        assert gpu["simulated"] is True and gpu["uuid"].startswith("SIM-")
        assert all(gpu[name] is not None for name in FIGURES) and gpu["memory_total_mib"] == 40 * 1024
    assert (found["simulated"], found["hardware"]) == (True, "A100-40GB SIMULATED")
    assert found["shown"][0].startswith("GPU (simulated) over the last ")
    assert found["shown"][0].endswith("now 0 %, 0 MiB of 40.0 GiB, 0 W, 0 °C")
    assert "$" in found["cost"] and "A100" in found["status"]
    assert problems(found) == ["the GPU is simulated"], "which is no proof of a real one"
