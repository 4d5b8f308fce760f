"""Completion and inspection of names in a real container, while it is idle and while its main thread is busy."""

from __future__ import annotations

from typing import Any

import pytest

from bench.harness import Kernel

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(180)]
MADE = "class Shelf:\n    def thousands(self):\n        'counts them'\nonly_there = Shelf()"
# The thread that runs cells is taken, the interpreter is not: how long an answer takes is no matter of this test.
BUSY = "import time\nprint('begun', flush=True)\nwhile True:\n    time.sleep(0.02)"
# The interpreter is taken too, by the session's first cell, and whoever imports jedi waits for good.
HELD = """
import importlib.machinery, sys, threading
class Never:
    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name == 'jedi' else None
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        threading.Event().wait()
sys.meta_path.insert(0, Never())
n = 0
print('begun', flush=True)
while True:
    n += 1
"""
CODE = "%%modal\nonly_there.thousand"


def make(kernel: Kernel) -> None:
    """A name that only the container has."""
    kernel.check("%%modal card=off\n" + MADE)
    kernel.check("del only_there, Shelf")


def asked(kernel: Kernel, kind: str, code: str) -> dict[str, Any]:
    """The reply's content. A container that is slow just then counts as silent after 300 ms: asked again, within bounds."""
    for _ in range(100):
        ask = kernel.client.complete if kind == "complete" else kernel.client.inspect
        id = ask(code, len(code))
        reply = kernel.client.get_shell_msg(timeout=30)
        assert reply["parent_header"]["msg_id"] == id, f"{reply['msg_type']} came first"
        content: dict[str, Any] = reply["content"]
        if content.get("matches") or content.get("found"):
            return content
    raise AssertionError(f"the container never answered {kind}")


def is_known(kernel: Kernel) -> None:
    assert asked(kernel, "complete", CODE)["matches"] == ["thousands"]
    assert "counts them" in asked(kernel, "inspect", CODE + "s")["data"]["text/plain"]


def test_a_container_answers_while_its_cell_runs(kernel: Kernel) -> None:
    make(kernel)
    is_known(kernel)
    cell = kernel.client.execute("%%modal card=off\n" + BUSY)
    while kernel.client.get_iopub_msg(timeout=60)["content"].get("text") != "begun\n":
        pass
    is_known(kernel)  # the cell's own reply has not come
    kernel.interrupt()
    reply = kernel.client.get_shell_msg(timeout=60)
    assert reply["parent_header"]["msg_id"] == cell and reply["content"]["ename"] == "KeyboardInterrupt"


def test_a_container_answers_beside_a_first_cell_that_holds_the_interpreter(kernel: Kernel) -> None:
    cell = kernel.client.execute("%%modal card=off\n" + MADE + HELD)
    while kernel.client.get_iopub_msg(timeout=60)["content"].get("text") != "begun\n":
        pass
    is_known(kernel)
    kernel.interrupt()
    reply = kernel.client.get_shell_msg(timeout=60)
    assert reply["parent_header"]["msg_id"] == cell and reply["content"]["ename"] == "KeyboardInterrupt"


def test_a_container_answers_while_a_detached_cell_runs(kernel: Kernel) -> None:
    make(kernel)
    is_known(kernel)
    kernel.check("%%modal detach\n" + BUSY)
    is_known(kernel)
    assert "busy" in kernel.check("%modal status").text
