"""A real ipykernel with the extension loaded, linked to a fake gateway that speaks the true protocol."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from cellburst_protocol import messages as m
from tests.fakes.fake_gateway_for_kernel import TOKEN, Cell, FakeKernelGateway

WAIT_SECONDS = 30.0
Message = dict[str, Any]


async def play_ok(cell: Cell) -> None:
    """Runs, says nothing, ends."""
    cell.emit(m.CellStarted())
    cell.done()
    cell.end()


class Notebook:
    """What a front end sees of one kernel."""

    def __init__(self, client: BlockingKernelClient, manager: KernelManager) -> None:
        self.client = client
        self.manager = manager
        self.iopub: list[Message] = []

    def send(self, code: str, allow_stdin: bool = False) -> str:
        """Send a cell; its message id."""
        return str(self.client.execute(code, allow_stdin=allow_stdin))

    def finish(self, id: str) -> Message:
        """The cell's execute_reply content, when all its output has come."""
        while True:
            reply = self.client.get_shell_msg(timeout=WAIT_SECONDS)
            if reply["parent_header"].get("msg_id") == id:
                break
        self.until(lambda msg: _of(msg, id) and msg["content"].get("execution_state") == "idle")
        content: Message = reply["content"]
        return content

    def until(self, wanted: Callable[[Message], bool]) -> Message:
        """The first IOPub message, seen or to come, that is wanted."""
        for seen in self.iopub:
            if wanted(seen):
                return seen
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            message = self.client.get_iopub_msg(timeout=WAIT_SECONDS)
            self.iopub.append(message)
            if wanted(message):
                return dict(message)
        raise TimeoutError("the message did not come")

    def run(self, code: str, allow_stdin: bool = False) -> tuple[Message, list[Message]]:
        """Run a cell; its reply and its output messages."""
        id = self.send(code, allow_stdin)
        return self.finish(id), self.output(id)

    def output(self, id: str) -> list[Message]:
        """The output messages of a cell so far."""
        return [x for x in self.iopub if _of(x, id) and x["msg_type"] not in ("status", "execute_input")]

    def value(self, expression: str) -> str:
        """The text of an expression's value in the kernel."""
        _, output = self.run(expression)
        return str(output[-1]["content"]["data"]["text/plain"])


def _of(message: Message, id: str) -> bool:
    return bool(message["parent_header"].get("msg_id") == id)


@pytest.fixture
def gateway() -> Iterator[FakeKernelGateway]:
    with FakeKernelGateway({"ok": play_ok}) as served:
        yield served


@pytest.fixture
def notebook(gateway: FakeKernelGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Notebook]:
    for name, value in {
        "CELLBURST_GATEWAY": gateway.url, "CELLBURST_TOKEN": TOKEN, "CELLBURST_DATA": str(tmp_path / "data"),
        "CELLBURST_CONFIG": str(tmp_path / "no.toml"), "IPYTHONDIR": str(tmp_path / "ipython"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    (tmp_path / "nb").mkdir()
    manager = KernelManager(transport="ipc", connection_file=str(tmp_path / "k.json"))
    manager.ip = str(tmp_path / "k")
    manager.start_kernel(
        cwd=str(tmp_path / "nb"), extra_arguments=["--InteractiveShellApp.extensions=cellburst_jupyter"]
    )
    client = manager.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=WAIT_SECONDS)
        yield Notebook(client, manager)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        manager.cleanup_resources()
