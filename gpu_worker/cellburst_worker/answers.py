"""What a runner answers to the worker itself (ready, frozen, names loaded), handed to whoever asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from cellburst_protocol.errors import ErrorCode, ErrorInfo, PlatformError, error
from cellburst_protocol.framing import Buffer
from cellburst_protocol.messages import Message, RunnerFrozen, RunnerHello, RunnerNamesLoaded, RunnerReady
from cellburst_protocol.runner_wire import Incoming
from cellburst_runtime.engine import Container, ContainerExit

from .endings import how
from .runner_link import RunnerLink

ANSWERS = (RunnerReady, RunnerFrozen, RunnerNamesLoaded)

_T = TypeVar("_T")


class Answers:
    """At most one question of each kind is open. An answer that nobody waits for is dropped."""

    def __init__(self) -> None:
        self._waiting: dict[type[Any], asyncio.Future[tuple[Any, list[memoryview]]]] = {}

    def expect(self, kind: type[_T]) -> asyncio.Future[tuple[_T, list[memoryview]]]:
        """The next answer of this kind."""
        future: asyncio.Future[tuple[Any, list[memoryview]]] = asyncio.get_running_loop().create_future()
        self._waiting[kind] = future
        return future

    def received(self, incoming: Incoming) -> None:
        """Hand over what came."""
        future = self._waiting.pop(type(incoming.message), None)
        if future is not None and not future.done():
            future.set_result((incoming.message, incoming.buffers))


class Ended(PlatformError):
    """A container ended instead of answering. `plain`: the message without what its engine and runner printed last."""

    def __init__(self, doing: str, exit: ContainerExit, why: str) -> None:
        said = f"the container ended while it {doing}"
        super().__init__(ErrorInfo(code=ErrorCode.START_FAILED, message=f"{said}: {why}"))
        self.plain = f"{said} ({how(exit)})"


class Talk:
    """Asks one container's runner, and notices when the container ends instead of answering.

    `on_exit(exit)` gives the words for that end; `doing` ends the sentence "the container ended while it ...".
    """

    def __init__(
        self,
        link: RunnerLink,
        answers: Answers,
        on_exit: Callable[[ContainerExit], Awaitable[str]],
        doing: str = "started",
    ) -> None:
        self._link, self._answers, self._on_exit, self._doing = link, answers, on_exit, doing

    async def hello(self, container: Container, seconds: float) -> RunnerHello:
        """Its first sign. Raises PlatformError (START_FAILED)."""
        return await self._or_exit(container, self._link.hello, seconds, "its runner said nothing")

    async def ask(
        self, container: Container, question: Message, answer: type[_T], seconds: float, what: str,
        buffers: Sequence[Buffer] = (),
    ) -> tuple[_T, list[memoryview]]:  # fmt: skip
        """Send and wait for the answer. `what` is said when none comes. Raises PlatformError (START_FAILED)."""
        future = self._answers.expect(answer)
        sending = asyncio.create_task(self._link.send(question, buffers))
        try:
            await self._or_exit(container, sending, seconds, what)
            return await self._or_exit(container, future, seconds, what)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _or_exit(self, container: Container, future: asyncio.Future[_T], seconds: float, what: str) -> _T:
        exited = asyncio.create_task(container.wait())
        try:
            either: set[asyncio.Future[Any]] = {future, exited}
            await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if future.done():
                return future.result()
            if exited.done():
                why = await self._on_exit(exited.result())
                raise Ended(self._doing, exited.result(), why)
            raise error(ErrorCode.START_FAILED, f"the container is up but {what} within {seconds:g} s")
        finally:
            exited.cancel()
            await asyncio.gather(exited, return_exceptions=True)
