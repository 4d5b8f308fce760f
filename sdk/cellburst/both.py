"""Methods that block, each with an `.aio` twin, written once as a coroutine.

    class Thing:
        @both
        async def size(self) -> int: …

    thing.size()              # blocks: also in a notebook, whose own event loop runs (and waits for the cell)
    await thing.size.aio()    # the coroutine

`both_iter` is for asynchronous generators (an iterator; `.aio()` an asynchronous one), `both_context` for those with one `yield`
(`with` and `async with`). The `_static` ones are for functions of the class. Blocking calls run on the process's loop
thread (`loop.py`); an interrupt cancels the coroutine.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from .loop import LoopThread

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it on the loop thread and wait. Raises RuntimeError on that thread itself, which would wait for ever."""
    shared = LoopThread.shared()
    if threading.get_ident() == getattr(shared, "_thread").ident:  # noqa: B009  # its own module's, and read only
        coroutine.close()
        raise RuntimeError("a blocking call on the thread that would do its work: use its .aio twin there")
    future = shared.submit(coroutine)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


class Both(Generic[P, T]):
    """A function to call, with its twin."""

    def __init__(self, function: Callable[P, Coroutine[Any, Any, T]]) -> None:
        functools.update_wrapper(self, getattr(function, "func", function))  # of a bound one: the method itself
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call it and wait."""
        return run(self._function(*args, **kwargs))

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T]:
        """The coroutine."""
        return self._function(*args, **kwargs)


class BothIter(Generic[P, T]):
    """An iterator, with its twin."""

    def __init__(self, function: Callable[P, AsyncGenerator[T, None]]) -> None:
        functools.update_wrapper(self, getattr(function, "func", function))  # of a bound one: the method itself
        self._function = function

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
        """Iterate; each step waits for the next value."""
        generator = self._function(*args, **kwargs)
        try:
            while (found := run(_next(generator))) is not None:
                yield found[0]
        finally:
            run(generator.aclose())

    def aio(self, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        """The asynchronous iterator."""
        return self._function(*args, **kwargs)


async def _next(generator: AsyncGenerator[T, None]) -> tuple[T] | None:
    try:
        return (await anext(generator),)
    except StopAsyncIteration:
        return None


class BothContext(Generic[T]):
    """What `with` and `async with` take."""

    def __init__(self, context: contextlib.AbstractAsyncContextManager[T]) -> None:
        self._context = context

    def __enter__(self) -> T:
        return run(self._context.__aenter__())

    def __exit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return run(self._context.__aexit__(kind, why, trace))

    async def __aenter__(self) -> T:
        return await self._context.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        return await self._context.__aexit__(kind, why, trace)


class _Method(Generic[S, P, T]):
    def __init__(self, function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> None:
        self.__doc__ = function.__doc__
        self._function = function

    def __get__(self, instance: S, owner: type[S]) -> Both[P, T]:
        if instance is None:
            return self  # type: ignore[return-value]  # for help() and inspect
        return Both(functools.partial(self._function, instance))


class _IterMethod(Generic[S, P, T]):
    def __init__(self, function: Callable[Concatenate[S, P], AsyncGenerator[T, None]]) -> None:
        self.__doc__ = function.__doc__
        self._function = function

    def __get__(self, instance: S, owner: type[S]) -> BothIter[P, T]:
        if instance is None:
            return self  # type: ignore[return-value]
        return BothIter(functools.partial(self._function, instance))


def both(function: Callable[Concatenate[S, P], Coroutine[Any, Any, T]]) -> _Method[S, P, T]:
    """For a method."""
    return _Method(function)


def both_iter(function: Callable[Concatenate[S, P], AsyncGenerator[T, None]]) -> _IterMethod[S, P, T]:
    """For a method that is an asynchronous generator."""
    return _IterMethod(function)


def both_static(function: Callable[P, Coroutine[Any, Any, T]]) -> Both[P, T]:
    """For a function of the class."""
    return Both(function)


def both_context(function: Callable[P, AsyncIterator[T]]) -> Callable[P, BothContext[T]]:
    """For an asynchronous generator with one `yield`; a method too."""
    make = contextlib.asynccontextmanager(function)

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> BothContext[T]:
        return BothContext(make(*args, **kwargs))

    return wrapped
