"""A cell that runs %%modal itself: code in a container with a link of its own to the gateway, through real parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.harness import house
from cellburst_jupyter.environment import collect_environment
from cellburst_protocol.messages import CellAccepted, GetStatus, IOPub, Status, StopSession
from cellburst_protocol.states import CallState
from tests.fakes.fake_kernel import FakeKernel

pytestmark = [pytest.mark.gvisor, pytest.mark.netns]

CELL = """
%load_ext cellburst_jupyter
sent = list(range(10))
big = bytes(3_000_000)
get_ipython().run_cell_magic('modal', 'gpu=A100', 'total = sum(sent) + len(big)\\nback = big + b"!"\\nprint("deep", total)')
print("home", total, len(back))
"""


def text(kernel: FakeKernel, call: str) -> str:
    found = []
    for (_, of, event), buffers in zip(kernel.events, kernel.buffers, strict=True):
        if of == call and isinstance(event, IOPub) and event.msg_type in ("stream", "error"):
            content: dict[str, Any] = json.loads(buffers[0])["content"]
            found.append(content.get("text") or "\n".join(content.get("traceback", [])))
    return "".join(found)


async def test_a_cell_inside_a_cell(tmp_path: Path) -> None:
    with house("A100:1") as place:
        up = [sys.executable, "-m", "cellburst", "up"]
        subprocess.run(up, env={**os.environ, **place.environment}, timeout=60, check=True, capture_output=True)
        announced = json.loads((place.folder / "run" / "gateway.json").read_text())
        kernel = await FakeKernel(announced["url"], (place.folder / "data" / "token").read_text()).dial()
        try:
            info = await kernel.session(notebook=str(tmp_path / "outer.ipynb"))
            image = collect_environment(notebook_folder=str(tmp_path))
            accepted = await kernel.run(CELL, call="outer", image=image, with_link=True)
            assert isinstance(accepted, CellAccepted)
            ended = await kernel.ended("outer", 100)
            said = text(kernel, "outer")
            assert ended.state is CallState.SUCCEEDED, said
            assert "deep 3000045" in said and "home 3000045 3000001" in said
            status = await kernel.peer.request(GetStatus())
            assert isinstance(status, Status)
            inner = [row for row in status.sessions if row.id != info.session]
            assert len(inner) == 1 and inner[0].notebook.startswith(f"in:{info.session}:")
            assert inner[0].container is not None and inner[0].container.gpus[0].type.startswith("A100")
            await kernel.peer.request(StopSession(session=info.session))
            status = await kernel.peer.request(GetStatus())
            assert isinstance(status, Status) and status.sessions == []  # the inner one ended with it
        finally:
            await kernel.close()
