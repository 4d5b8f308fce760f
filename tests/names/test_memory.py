"""Large values cost one copy a process, and nothing when they have not changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.names.other_side import Notebook

SIZE_BYTES = 256_000_000


def _high_water_bytes(pid: int | str) -> int:
    """The most memory a process ever held."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def test_a_large_array_is_never_held_twice(notebook: Notebook) -> None:
    notebook.modal("import numpy as np\nx = 1")
    notebook.ns["big"] = np.ones(SIZE_BYTES // 8)
    there = notebook.container.process.pid
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before, before_there = _high_water_bytes("self"), _high_water_bytes(there)
    notebook.modal("s = float(big[-1])")
    assert notebook.ns["s"] == 1
    assert _high_water_bytes("self") - before < 0.3 * SIZE_BYTES
    assert _high_water_bytes(there) - before_there < 1.3 * SIZE_BYTES
    assert notebook.sent_bytes > SIZE_BYTES
    notebook.modal("s = float(big[0])")
    assert notebook.sent_bytes < 1000

    notebook.modal(f"home = np.full({SIZE_BYTES // 8}, 2.0)")
    before, before_there = _high_water_bytes("self"), _high_water_bytes(there)
    notebook.modal("1", out=("home",))
    assert notebook.ns["home"][-1] == 2
    assert _high_water_bytes("self") - before < 1.3 * SIZE_BYTES
    assert _high_water_bytes(there) - before_there < 0.3 * SIZE_BYTES


def test_buffers_of_the_notebook_are_given_up(notebook: Notebook) -> None:
    notebook.ns["raw"] = bytearray(100_000)
    notebook.modal("n = len(raw)")
    notebook.ns["raw"].extend(b"x")
    assert notebook.ns["n"] == 100_000
