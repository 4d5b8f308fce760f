"""One GPU and three notebooks: who waits is told the position in line and what for, and runs when it is free."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from bench.harness import House, Kernel, house

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(240)]
HELD = "%%modal gpu=A100 card=off\nimport time\nprint('begun', flush=True)\nwhile True:\n    time.sleep(0.02)"
CELL = "%%modal gpu=A100\nprint('it is mine')"
WAIT_SECONDS = 60.0


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    """One gateway and worker with a single simulated A100."""
    with house("A100:1", warm_pool=False) as made:
        yield made


def loaded(place: House, ending: contextlib.ExitStack) -> Kernel:
    """A kernel with the magic."""
    kernel = place.kernel()
    ending.callback(kernel.close)
    kernel.check("%load_ext cellburst_jupyter")
    return kernel


def until(kernel: Kernel, words: str) -> str:
    """What of a kernel's output has these words, live card or line of text alike; waits for it."""
    while True:
        message = kernel.client.get_iopub_msg(timeout=WAIT_SECONDS)
        shown = str(message["content"])
        if message["msg_type"] != "execute_input" and words in shown:
            return shown


def reply(kernel: Kernel, cell: str) -> str:
    """The status of a cell's reply; waits for it."""
    while (message := kernel.client.get_shell_msg(timeout=WAIT_SECONDS))["parent_header"]["msg_id"] != cell:
        pass
    return str(message["content"]["status"])


def test_who_waits_is_told_the_position_and_what_for_and_then_runs(place: House) -> None:
    with contextlib.ExitStack() as ending:
        holder, card, line = (loaded(place, ending) for _ in range(3))
        held = holder.client.execute(HELD)
        until(holder, "begun")

        second = card.client.execute(CELL, allow_stdin=True)  # as a person runs it: the card is live
        text = until(card, "waiting, next in line: ")
        assert "gpu=A100 " in text and "GPU 0 is held by bench.ipynb" in text
        third = line.client.execute(CELL, allow_stdin=False)  # as a program does: it gets a line of text
        text = until(line, "waiting, 2nd in line: ")
        assert "GPU 0 is held by bench.ipynb" in text and "1 ahead in the queue" in text

        holder.interrupt()
        assert reply(holder, held) == "error"
        holder.check("%modal stop")
        until(card, "it is mine")
        assert reply(card, second) == "ok"
        until(line, "waiting, next in line: ")
        card.check("%modal stop")
        until(line, "it is mine")
        assert reply(line, third) == "ok"
        line.check("%modal stop")
