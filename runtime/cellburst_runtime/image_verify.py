"""Reads layers to their last byte and compares them with the checksums that were taken when they were made.

`python -m cellburst_runtime.image_verify IMAGES [--slow] KEY...` does the reading, in a process of its own: it must not hold up
whoever serves containers meanwhile. It prints one line of JSON (`Checked`) for each layer that is there. `--slow` gives way to
everything else: at idle priority for processor and disk, and at a bounded rate.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import sys
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path

import msgspec

from .file_lock import try_lock
from .image_manifest import Damage, Rest, find_damage
from .image_store import ImageStore, LayerMeta, load_meta

SLOW_BYTES_PER_SECOND = 32 << 20  # 20 GiB in eleven minutes, a tenth of what a plain disk gives
_IOPRIO_SET = {
    "x86_64": 251,
    "aarch64": 30,
    "riscv64": 30,
    "ppc64le": 273,
    "s390x": 282,
}  # glibc has no function for it
_IDLE_CLASS = 3 << 13  # IOPRIO_CLASS_IDLE, ioprio_set(2)
_LINE_BYTES = 8 << 20


class Checked(msgspec.Struct, kw_only=True):
    """One layer, read. `problems` is empty for a whole one; `shared` as in `Damage`."""

    key: str
    instance: str
    problems: list[str] = []
    shared: list[tuple[int, int]] = []


class Damaged(msgspec.Struct, kw_only=True):
    """A layer that was found damaged and put aside: the next build that needs it makes it anew."""

    key: str
    step: str
    size_bytes: int
    problems: list[str]


class Verified(msgspec.Struct, kw_only=True):
    """What `verify` found: layers and bytes that were read, and those of them that were damaged."""

    layers: int = 0
    size_bytes: int = 0
    damaged: list[Damaged] = []


async def verify(store: ImageStore, layers: Sequence[LayerMeta], *, slow: bool = False) -> Verified:
    """Read these layers; put those aside that are damaged. Cancelling it ends the reading. Raises OSError."""
    whole = Verified()
    known = {meta.key: meta for meta in layers}
    async with aclosing(_read(store.folder, list(known), slow)) as reading:
        async for checked in reading:
            meta = known[checked.key]
            if checked.instance != meta.instance:
                continue  # made anew since it was listed
            whole.layers += 1
            whole.size_bytes += meta.size_bytes
            if not checked.problems:
                store.verified(meta)
                continue
            await store.damaged(Damage(checked.problems, {(device, inode) for device, inode in checked.shared}))
            if await store.drop(meta):
                whole.damaged.append(
                    Damaged(key=meta.key, step=meta.step, size_bytes=meta.size_bytes, problems=checked.problems)
                )
    return whole


def most_overdue(store: ImageStore, now: float, every_seconds: float) -> LayerMeta | None:
    """The layer that was compared longest ago, if that is `every_seconds` before `now` (Unix seconds). Blocks."""
    found = [(store.verified_at(meta), meta.key, meta) for meta, _ in store.list_layers()]
    at, _, meta = min(found, key=lambda each: each[:2], default=(now, "", None))
    return meta if meta is not None and now - at >= every_seconds else None


async def _read(folder: Path, keys: Sequence[str], slow: bool) -> AsyncGenerator[Checked, None]:
    if not keys:
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cellburst_runtime.image_verify", str(folder), *(["--slow"] if slow else []), *keys,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while line := await process.stdout.readline():
            yield msgspec.json.decode(line, type=Checked)
        if await process.wait() != 0:
            raise OSError(f"reading the layers ended with exit code {process.returncode}")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


class _Pace:
    """Holds a reader to a rate, and ends this process when nobody waits for it any more."""

    def __init__(self, bytes_per_second: float) -> None:
        self._rate, self._began, self._bytes = bytes_per_second, time.monotonic(), 0
        self._parent = os.getppid()

    def rest(self, size_bytes: int) -> None:
        self._bytes += size_bytes
        if os.getppid() != self._parent:
            sys.exit(1)
        ahead = self._bytes / self._rate - (time.monotonic() - self._began)
        if ahead > 0:
            time.sleep(ahead)


def _give_way() -> None:
    """Idle priority for processor and disk, where the system has that."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, 1, 0, _IDLE_CLASS)  # what it returns changes nothing: the rate holds too


def _check(folder: Path, key: str, rest: Rest) -> Checked | None:
    held = try_lock(folder / "locks" / f"{key}.use", shared=True)
    if held is None:
        return None  # being deleted
    with held:
        meta = load_meta(folder / "layers", key)
        if meta is None:
            return None
        damage = find_damage(folder / "layers" / key, meta.manifest_hash, deep=True, rest=rest)
        return Checked(key=key, instance=meta.instance, problems=damage.problems, shared=sorted(damage.shared))


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    folder, *words = arguments
    slow = "--slow" in words
    if slow:
        _give_way()
    pace = _Pace(SLOW_BYTES_PER_SECOND if slow else float("inf"))
    for key in words:
        if key != "--slow" and (checked := _check(Path(folder), key, pace.rest)) is not None:
            sys.stdout.buffer.write(msgspec.json.encode(checked) + b"\n")
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
