"""A large array comes home without being copied once more, and is the notebook's own from then on."""

from __future__ import annotations

import os

import pytest

from bench.harness import House, Kernel
from cellburst.local_files import lies_on_this_machine

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(120)]

MAPPED = "print(sum('/blobs/' in line for line in open('/proc/self/maps')))"
SUMS = "print(int(big.sum()), int(big[0]))"


def test_a_large_array_is_mapped_and_stays_when_container_and_blob_are_gone(place: House, kernel: Kernel) -> None:
    kernel.check("%%modal out=big\nimport numpy as np\nbig = np.ones(9_000_000)\nsame = big")
    log = (place.folder / "data" / "logs" / "worker.log").read_text()
    assert "taken only when it is whole" not in log, "it was copied out of the container while it was written"
    if lies_on_this_machine(os.stat(place.folder).st_dev):
        assert kernel.check(MAPPED).text == "1\n"
    assert not [p for p in (place.folder / "data" / "blobs").glob("??/*") if p.stat().st_size >= 72_000_000]
    assert kernel.check(SUMS).text == "9000000 1\n"
    kernel.check("%%modal\nsame[:] = 7")
    kernel.check("big[0] = 5\nsaved = big")
    kernel.check("%modal stop")
    assert kernel.check(SUMS).text == "9000004 5\n"
    kernel.check("del big, saved")
    assert kernel.check(MAPPED).text == "0\n", "its disk space is free again"
