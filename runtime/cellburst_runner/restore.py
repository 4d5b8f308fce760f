"""What a process must change about itself when it goes on elsewhere, or later, or as one of several copies.

Standard library only, and of the user's packages only those that are imported already: what was not imported is not affected.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    import asyncio  # the supervisor imports this file, and is up sooner without

# What the executor takes out of its environment at its start (`fallback_path`); user code does not see these.
_TAKEN_OUT = ("CELLBURST_SYS_PATH", "CELLBURST_BUNDLE")


def changes(before: dict[str, str], now: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """What to set and what to unset. A variable that both starts give alike is left as user code may have changed it."""
    to_set = {k: v for k, v in now.items() if before.get(k) != v}
    return to_set, [k for k in before if k not in now]


def adopt_environment(to_set: dict[str, str], to_unset: Sequence[str]) -> None:
    """Change `os.environ`, and what was derived from it: the time zone, matplotlib's backend, the notebook's part of the path
    is `adopt_path`'s."""
    for key in to_unset:
        os.environ.pop(key, None)
    os.environ.update({k: v for k, v in to_set.items() if k not in _TAKEN_OUT})
    if "TZ" in to_set or "TZ" in to_unset:
        time.tzset()
    backend = to_set.get("MPLBACKEND")
    matplotlib: Any = sys.modules.get("matplotlib")
    if backend and matplotlib is not None and hasattr(matplotlib, "use"):
        matplotlib.use(backend, force=False)


def adopt_path(before: str, now: str) -> None:
    """Replace the entries of `sys.path` that came from the last start's CELLBURST_SYS_PATH by this one's, at the end of it."""
    old = [entry for entry in before.split(os.pathsep) if entry]
    new = [entry for entry in now.split(os.pathsep) if entry]
    if old == new:
        return
    for entry in old:
        if entry not in new and entry in sys.path:
            sys.path.remove(entry)
    sys.path.extend(entry for entry in new if entry not in sys.path)


def adopt_folder(before: str, now: str) -> Optional[str]:
    """Change the working folder if this start has another one than the last, or if ours is gone. Returns a line if it cannot."""
    try:
        os.getcwd()
    except OSError:
        before = ""
    if not now or now == before:
        return None
    try:
        os.chdir(now)
    except OSError as why:
        return f"the working folder {now} could not be entered: {why.strerror}"
    return None


def stir() -> None:
    """Give OpenSSL fresh entropy: its generator was saved with the process, and one snapshot can be restored twice."""
    ssl: Any = sys.modules.get("ssl")
    if ssl is not None:
        ssl.RAND_add(os.urandom(64), 64.0)


def reseed() -> list[str]:
    """Seed anew what the copies of one snapshot share: `generators` says which. Returns a line for each that could not be."""
    import random
    import tempfile

    from . import generators

    random.seed(os.urandom(32))
    tempfile._name_sequence = None  # type: ignore[attr-defined]  # its own generator, the same in every copy
    notes = []
    try:
        notes += generators.reseed()
    except Exception as why:
        notes.append(
            f"modules' own generators could not be re-seeded ({type(why).__name__}: {why}); draws may repeat"[:500]
        )
    for name, seed in (
        ("numpy.random", _numpy), ("torch", _torch), ("uuid", _uuid), ("multiprocessing.process", _authkey),
    ):  # fmt: skip
        module = sys.modules.get(name)
        if module is not None:
            try:
                seed(module)
            except Exception as why:  # a version that has it elsewhere, or a module that is only half imported
                notes.append(f"{name} could not be re-seeded ({type(why).__name__}: {why}); its draws may repeat"[:500])
    stir()
    return notes


def _numpy(module: Any) -> None:
    module.seed([int.from_bytes(os.urandom(4), "big") for _ in range(8)])


def _torch(module: Any) -> None:
    module.default_generator.manual_seed(int.from_bytes(os.urandom(8), "big") >> 1)


def _uuid(module: Any) -> None:
    module._node = None  # the network card's address, which is another now
    module._last_timestamp = None


def _authkey(module: Any) -> None:
    module.current_process().authkey = os.urandom(32)


def delay_timers(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    """Have a loop's timers fire so much later. The clock went on while the process did not: without this every timeout and
    heartbeat of user code would fire at once. The order of the timers stays, so that the heap stays one."""
    scheduled = getattr(loop, "_scheduled", None)
    if not isinstance(scheduled, list) or seconds <= 0:
        return
    for timer in scheduled:
        timer._when += seconds
