"""`%modal restart` and `%modal cost` in a whole house."""

from __future__ import annotations

import re

import pytest

from bench.harness import Kernel

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
PRICE = r"(<\$0\.0001|\$0\.00(?!00)\d+|\$(?!0\.00)\d+\.\d+)"  # an amount that is not nothing


def test_restart_gives_a_fresh_process_without_the_names(kernel: Kernel) -> None:
    kernel.check("%%modal\nimport sys, threading, uuid\nlock = threading.Lock()\nsys.mine = mark = str(uuid.uuid4())")
    kept = kernel.check("%%modal\nprint(sys.mine == mark, type(lock).__name__)").text
    assert kept.startswith("True lock"), "before: the same process, with its names"
    told = kernel.check("%modal restart").text
    assert "its names there are gone" in told and "the next %%modal cell gets a fresh container" in told
    after = kernel.check("%%modal\nimport sys\nprint(hasattr(sys, 'mine'), 'lock' in globals(), mark)").text
    here = kernel.check("print(mark)").text.strip()
    assert after.splitlines()[-1] == f"False False {here}", (
        "nothing of the old process; what had come home is sent again"
    )
    problem = kernel.run("%%modal\nlock.acquire()").error
    assert "`lock` stayed in a container that is gone" in problem and "run the cell that made it again" in problem


def test_cost_says_what_the_session_has_cost(kernel: Kernel) -> None:
    kernel.check("%%modal gpu=A100\nx = 1")
    running, in_all = kernel.check("%modal cost").text.splitlines()
    assert re.match(rf"default +{PRICE} +\d+ s  .*A100.*  running at \$\d+\.\d\d/h$", running), running
    assert re.match(rf"in all +{PRICE}  ", in_all), in_all
    kernel.check("%modal restart")
    kernel.check("%%modal gpu=A100\nx = 2")
    lines = kernel.check("%modal cost").text.splitlines()
    assert len(lines) == 3 and lines[-1].startswith("in all")
    ended, now = lines[:-1]
    assert re.match(rf"default +{PRICE} +\d+ s  A100.* \(simulated\), .*cores, \d+ MiB  ended$", ended), ended
    assert "A100" in now and "running at $" in now, now
    assert all(re.match(rf"default +{PRICE} ", line) for line in lines[:-1]), lines
