"""What a build says on its way to the gateway: batched, bounded, with the step that it is at."""

from __future__ import annotations

import asyncio

from cellburst_protocol.images import DebianSlim, Env, ImageRecipe, PipInstall
from cellburst_protocol.messages import BuildLog
from cellburst_worker.images import MOST_CHARACTERS, MOST_LINES, BuildLogs

RECIPE = ImageRecipe(steps=[DebianSlim(), PipInstall(packages=["six"]), Env(variables={"A": "1"})])


async def test_lines_come_in_messages_with_their_step() -> None:
    sent: list[BuildLog] = []
    logs = BuildLogs(RECIPE, sent.append)
    logs.line("Step 1 of 3: debian_slim bookworm: there already")
    assert [(log.step, log.steps, log.title) for log in sent] == [(1, 3, "debian_slim bookworm")]  # the first at once
    logs.line("Step 2 of 3: pip_install six")
    logs.line("Resolved 1 package")
    assert len(sent) == 1  # not more than one in that time
    logs.close()
    assert sent[1] == BuildLog(
        lines=["Step 2 of 3: pip_install six", "Resolved 1 package"], step=2, steps=3, title="pip_install six"
    )
    assert logs.made == 0 and logs.summary() == "built before"
    logs.line("Step 2 of 3: pip_install six: done in 1.2 s")
    logs.close()
    assert logs.made == 1 and logs.summary() == "1 of 3 steps made" and sent[-1].title == "pip_install six"
    logs.close()
    assert len(sent) == 3


async def test_what_waits_is_sent_by_itself() -> None:
    sent: list[BuildLog] = []
    more = asyncio.Event()

    def send(log: BuildLog) -> None:
        sent.append(log)
        if len(sent) == 2:
            more.set()

    logs = BuildLogs(RECIPE, send)
    logs.line("one")
    logs.line("two")
    await asyncio.wait_for(more.wait(), 30)
    assert [log.lines for log in sent] == [["one"], ["two"]]
    logs.close()


async def test_a_flood_is_cut_in_the_middle() -> None:
    sent: list[BuildLog] = []
    logs = BuildLogs(RECIPE, sent.append)
    logs.line("begin")
    for number in range(1000):
        logs.line(f"{number} {'x' * 5000}")
    logs.line("a\nb")
    logs.close()
    lines = sent[1].lines
    assert len(sent) == 2 and len(lines) == MOST_LINES + 1 and max(map(len, lines)) == MOST_CHARACTERS
    assert lines[0].startswith("0 ") and lines[-2:] == ["a", "b"] and "902 lines left out" in lines[MOST_LINES // 2]
