"""Keeping a session's store when its container is gone: unmounted for good, and its disk image moved away.

The image has no journal and is mounted again later, so it must be whole: never a lazy unmount, and not moved before the
kernel has written all of it for good, or let go of it.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from cellburst_protocol.errors import ErrorCode, error

from .mounts import mounts_below
from .record import load_record
from .tools import find_program, run_command

RELEASE_SECONDS = 10.0  # a mount namespace of an ended sandbox is taken down within milliseconds
_POLL_SECONDS = 0.01
_LOOPS = Path("/sys/block")


async def keep_store(folder: Path, destination: Path) -> str:
    """Move the disk image of an ended container's store to `destination` (the same disk); returns that path.

    Returns "" and does nothing where the container has no image: no store, or one in memory. The container's layer cannot
    be read any more. Raises PlatformError (STORE) and leaves the image with the container when something still uses it.
    """
    record = load_record(folder)
    if record is None or not record.store or not Path(record.store).is_file():
        return ""
    image = Path(record.store)
    finished = await _finish(folder / "layer")
    await _unmount(folder)
    if not finished:
        await _released(image)
    await asyncio.to_thread(_move, image, destination)
    record.store = ""
    record.save(folder)
    return str(destination)


async def _finish(store: Path) -> bool:
    """Give back what was deleted, and have the kernel write all of it and no more: the image is then whole although a mount
    namespace of another container, made while this was mounted, may still show it. False: that cannot be done here."""
    if (trim := find_program("fstrim")) is not None:
        await run_command([trim, str(store)])
    return (await run_command([find_program("mount") or "mount", "-o", "remount,ro", str(store)])).ok


async def _unmount(folder: Path) -> None:
    program = find_program("umount") or "umount"
    give_up = time.monotonic() + RELEASE_SECONDS
    while places := mounts_below(folder):
        results = [await run_command([program, str(place)]) for place in places]
        busy = [result.reason() for result in results if not result.ok]
        if busy and time.monotonic() > give_up:
            raise _in_use(folder, busy[0])
        if busy:
            await asyncio.sleep(_POLL_SECONDS)


async def _released(image: Path) -> None:
    """Wait until no loop device stands on the image: unmounting in one namespace may leave it mounted in another."""
    give_up = time.monotonic() + RELEASE_SECONDS
    while device := _loop_of(image):
        if time.monotonic() > give_up:
            raise _in_use(image, f"{device} has it")
        await asyncio.sleep(_POLL_SECONDS)


def _loop_of(image: Path) -> str:
    wanted = str(image.resolve())
    for backing in _LOOPS.glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().rstrip("\n") == wanted:
                return backing.parts[-3]
        except OSError:
            continue  # detached while we look
    return ""


def _move(image: Path, destination: Path) -> None:
    try:
        image.rename(destination)
    except OSError as problem:
        raise error(
            ErrorCode.STORE, f"{image} could not be moved to {destination}: {problem.strerror}",
            allowed="a place on the same disk",
        ) from problem  # fmt: skip
    destination.chmod(0o600)


def _in_use(path: Path, reason: str) -> Exception:
    return error(
        ErrorCode.STORE, f"what the session wrote could not be put away: {path} is still in use ({reason})",
        next="park it again, or keep only its names",
    )  # fmt: skip
