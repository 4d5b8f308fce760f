"""Many sessions at once, as a gateway shows them: made over one link by the true protocol, without a kernel or a container each."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence

from bench.harness import House
from cellburst_protocol.messages import Message, SessionStream, Status, StopSession
from cellburst_protocol.messages_control import GetStatus
from tests.fakes.fake_kernel import FakeKernel

WAIT_SECONDS = 60.0

HOSTILE = [
    "<script>window.pwned = 1;<!-- .ipynb",
    "<img src=x onerror='window.pwned = 2'>.ipynb",
    "\"quotes\" 'and' `ticks` & &lt;entities&gt;.ipynb",
    "📈 emoji 👩🏽\u200d🔬.ipynb",
    "\u202egnp.ipynb\u202c right to left \u05d0\u05d1\u05d2.ipynb",
    "n" * 249 + ".ipynb",
]  # the last has 255 bytes, which is the most that Linux's file systems take


def in_thread(house: House, *steps: Message | Sequence[str]) -> list[Message]:
    """Do things with the house's gateway on a loop of its own (Playwright has this thread's): notebooks' paths become sessions,
    messages are asked. Returns the answers."""
    answers: list[Message] = []
    problems: list[BaseException] = []

    def work() -> None:
        try:
            answers.extend(asyncio.run(_do(house, steps)))
        except BaseException as why:  # told where it is waited for
            problems.append(why)

    thread = threading.Thread(target=work, name="crowd")
    thread.start()
    thread.join(WAIT_SECONDS + 30)
    if problems:
        raise problems[0]
    assert not thread.is_alive()
    return answers


def sessions_of(house: House) -> dict[str, str]:
    """Ids of live sessions by notebook."""
    status = in_thread(house, GetStatus())[0]
    assert isinstance(status, Status)
    return {row.notebook: row.id for row in status.sessions}


def stop(house: House, session: str) -> None:
    """End one."""
    in_thread(house, StopSession(session=session))


async def _do(house: House, steps: Sequence[Message | Sequence[str]]) -> list[Message]:
    served = json.loads((house.folder / "run" / "gateway.json").read_text())
    token = (house.folder / "data" / "token").read_text().strip()
    kernel = await FakeKernel(served["url"], token, role="cli").dial()
    answers: list[Message] = []
    try:
        for step in steps:
            if isinstance(step, Message):
                answers.append(await kernel.peer.request(step, timeout_seconds=30))
            else:
                await _open(kernel, step)
    finally:
        await kernel.close()
    return answers


async def _open(kernel: FakeKernel, notebooks: Sequence[str]) -> None:
    streams = [kernel.peer.open(SessionStream(notebook=path, name="default", kernel_id="crowd")) for path in notebooks]
    async with asyncio.timeout(WAIT_SECONDS):
        for stream in streams:  # each is answered by its SessionInfo: the session is there then
            await stream.recv()
