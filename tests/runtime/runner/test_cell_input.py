"""input(), getpass and %debug: the prompt goes out, the answer comes in, an interrupt ends the wait."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cellburst_protocol import messages as m
from tests.fakes.runner_harness import FakeWorker, started


async def _prompt(worker: FakeWorker, call: str, number: int = 0) -> m.StdinRequest:
    def prompts() -> list[Any]:
        return [e.message for e in worker.cell(call).events if isinstance(e.message, m.StdinRequest)]

    await worker.wait(lambda i: len(prompts()) > number)
    request = prompts()[number]
    assert isinstance(request, m.StdinRequest)
    return request


async def test_input_and_getpass(tmp_path: Path) -> None:
    code = "print('before', end='')\na = input('name? ')\nimport getpass\nb = getpass.getpass('key? ')\nprint(a, b)"
    async with started(tmp_path) as worker:
        call = worker.begin(code)
        request = await _prompt(worker, call)
        assert (request.prompt, request.password) == ("name? ", False)
        assert worker.cell(call).text() == "before"  # what was printed is shown before the prompt
        worker.send(m.StdinReply(call=call, value="Ada"))
        request = await _prompt(worker, call, 1)
        assert (request.prompt, request.password) == ("key? ", True)
        worker.send(m.StdinReply(call=call, value="s3"))
        assert (await worker.finish(call)).text() == "beforeAda s3\n"


async def test_an_interrupt_ends_a_prompt(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        call = worker.begin("input('? ')")
        await _prompt(worker, call)
        worker.send(m.Interrupt(call=call, level=1))
        assert (await worker.finish(call)).messages("error")[0]["ename"] == "KeyboardInterrupt"
        late = m.StdinReply(call=call, value="too late")
        call = worker.begin("print(input('again? '))")
        await _prompt(worker, call)
        worker.send(late)
        worker.send(m.StdinReply(call=call, value="in time"))
        assert (await worker.finish(call)).text() == "in time\n"


async def test_the_end_of_a_prompt(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        for fields, name in (({"eof": True}, "KeyboardInterrupt"), ({"value": "\x04"}, "EOFError")):
            call = worker.begin("input()")
            await _prompt(worker, call)
            worker.send(m.StdinReply(call=call, **fields))
            assert (await worker.finish(call)).messages("error")[0]["ename"] == name


async def test_without_stdin_input_raises(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        cell = await worker.run("input()", allow_stdin=False)
        assert cell.messages("error")[0]["ename"] == "StdinNotImplementedError"


async def test_debug_after_an_error(tmp_path: Path) -> None:
    async with started(tmp_path) as worker:
        await worker.run("def f(n):\n    return 1 / n\nf(0)")
        call = worker.begin("%debug")
        await _prompt(worker, call)
        worker.send(m.StdinReply(call=call, value="p n + 41"))
        await _prompt(worker, call, 1)
        worker.send(m.StdinReply(call=call, value="q"))
        cell = await worker.finish(call)
        assert cell.done.status == "ok" and "41" in cell.text()


async def test_a_thread_may_ask(tmp_path: Path) -> None:
    code = "import threading\nt = threading.Thread(target=lambda: print(input('t? ')))\nt.start(); t.join()"
    async with started(tmp_path) as worker:
        call = worker.begin(code)
        await _prompt(worker, call)
        worker.send(m.StdinReply(call=call, value="here"))
        assert (await worker.finish(call)).text() == "here\n"
