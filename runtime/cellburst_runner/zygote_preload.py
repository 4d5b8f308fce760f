"""Imports modules into a fork server, and says of which it must keep off.

A fork has what its parent imported, and only the thread that forked. So no preloaded module may leave a thread running, touch
the GPU's driver, or decide by what a fork server has not: the notebook's IPython, a GPU. Such a module is named in `Refused`;
it has been imported by then, so that the process is of no use any more.
"""

from __future__ import annotations

import builtins
import importlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

from . import generators
from .freeze_sources import file_of

LEAVING_SECONDS = 0.5  # a thread that was told to end does so within this
CLOCK_NS = 20_000_000  # file systems stamp with the kernel's coarse clock, which is a tick or two behind
_GPU_QUESTIONS = ("is_available", "device_count", "_lazy_init")  # of torch.cuda
_DRIVERS = (b"libcuda.so", b"/dev/nvidia")  # in the list of what is mapped


class Refused(Exception):
    """A module must not be preloaded. `name` is what was to be imported."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name


def preload(names: Sequence[str]) -> list[str]:
    """Import modules in this order; returns those that could be. Raises Refused."""
    done = []
    asked: list[str] = []
    with generators.watching(), _traps(asked) as trap_torch:
        for name in names:
            try:
                importlib.import_module(name)
            except (Exception, SystemExit):  # the module's own code: not there any more, or not for this machine
                pass
            else:
                done.append(name)
            trap_torch()
            why = asked[0] if asked else _unfit()
            if why:
                raise Refused(name, why)
            try:
                generators.look(name)
            except generators.Seeds as seeds:
                raise Refused(name, str(seeds).removeprefix(f"{name} ")) from None
    return done


def _unfit() -> str:
    """Why this process must not fork any more; "" if it may."""
    if not one_thread():
        return "started a thread"
    try:
        with open("/proc/self/maps", "rb") as file:
            mapped = file.read()
    except OSError:
        return ""
    return "loaded the GPU's driver" if any(driver in mapped for driver in _DRIVERS) else ""


def threads() -> int:
    """How many threads this process has, those of C libraries too."""
    return len(os.listdir("/proc/self/task"))


def one_thread() -> bool:
    """Whether there is only one. Threads that libraries end at a fork (OpenBLAS does) are ended; others get a moment."""
    if threads() == 1:
        return True
    _fork_nothing()
    until = time.monotonic() + LEAVING_SECONDS
    while threads() > 1:
        if time.monotonic() > until:
            return False
        time.sleep(0.005)
    return True


def _fork_nothing() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


@contextmanager
def _traps(asked: list[str]) -> Iterator[Callable[[], None]]:
    """While open, `asked` gets a line for the first question that a fork server answers otherwise than a cell's process would.

    Whoever keeps a trap (`from torch.cuda import is_available`) has what it stands for, for good. Yields a function that sets
    the traps in torch as soon as that is imported.
    """
    undo: list[tuple[Any, str, Any]] = []

    def set_trap(owner: Any, name: str, what: str) -> None:
        real: Optional[Callable[..., Any]] = getattr(owner, name, None)
        if real is None:
            return
        undo.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, _trap(real, asked, what))

    def trap_torch() -> None:
        cuda = sys.modules.get("torch.cuda")
        if cuda is not None and not any(owner is cuda for owner, _, _ in undo):
            for name in _GPU_QUESTIONS:
                set_trap(cuda, name, "asks for a GPU when it is imported")

    shells: Any = sys.modules.get("IPython.core.interactiveshell")
    if shells is not None:
        set_trap(shells.InteractiveShell, "initialized", "asks for IPython when it is imported")
    had_name = hasattr(builtins, "get_ipython")
    if not had_name:
        vars(builtins)["get_ipython"] = _trap(lambda: None, asked, "asks for IPython when it is imported")
    trap_torch()
    try:
        yield trap_torch
    finally:
        for owner, name, own in reversed(undo):
            if own is None:
                delattr(owner, name)  # it was a base class's
            else:
                setattr(owner, name, own)
        if not had_name:
            vars(builtins).pop("get_ipython", None)


def _trap(real: Callable[..., Any], asked: list[str], what: str) -> Callable[..., Any]:
    def trap(*args: Any, **options: Any) -> Any:
        if not asked:
            asked.append(what)
        return real(*args, **options)

    return trap


Stamp = tuple[int, int, int]


def stamps() -> dict[str, Stamp]:
    """Inode, size and mtime (ns) of the file of each imported module."""
    found = {}
    for module in list(sys.modules.values()):
        path = file_of(module)
        if os.path.isabs(path):
            stamp = _stamp(path)
            if stamp is not None:
                found[path] = stamp
    return found


def changed(before: dict[str, Stamp]) -> str:
    """The first file that is not as it was; "" if all are."""
    return next((path for path, stamp in before.items() if _stamp(path) != stamp), "")


def newer(found: dict[str, Stamp], since_ns: int) -> str:
    """The first file that was written after `since_ns` (wall clock): it may not be what was imported."""
    since_ns -= CLOCK_NS
    return next((path for path, stamp in found.items() if stamp[2] > since_ns), "")


def _stamp(path: str) -> Optional[Stamp]:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
