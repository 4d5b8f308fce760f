"""Small things the supervisor does at its start and for its executor: links, the subreaper bit, messages of its own."""

from __future__ import annotations

import os
import uuid
from datetime import datetime, timezone
from typing import Any

from . import wire

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def make_subreaper() -> None:
    """Ask the kernel to give orphans below us to us, so that they are reaped; where that cannot be had, init does it."""
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def make_links(links: dict[str, str]) -> None:
    """Make symbolic links (path -> target); an earlier link is replaced, anything else at a path is left alone."""
    for path, target in links.items():
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            if os.path.islink(path):
                os.unlink(path)
            os.symlink(target, path)
        except OSError:
            continue  # a read-only place: the engine made what must be there


def change_links(before: dict[str, str], links: dict[str, str]) -> None:
    """Make the links of another start; those of the last one that it lacks are removed, where they still are ours."""
    for path, target in before.items():
        try:
            if path not in links and os.readlink(path) == target:
                os.unlink(path)
        except OSError:
            continue  # gone, or not a link any more
    make_links(links)


def stream_message(name: str, text: str, parent: dict[str, Any]) -> tuple[bytes, int]:
    """A Jupyter stream message as JSON, and the bytes of its text: for output that the executor could not send itself."""
    header = {
        "msg_id": uuid.uuid4().hex, "msg_type": "stream", "username": "cellburst", "session": "",
        "date": datetime.now(timezone.utc).isoformat(), "version": "5.3",
    }  # fmt: skip
    content = {"name": name, "text": text}
    message = {"header": header, "parent_header": parent, "metadata": {}, "content": content}
    return wire.encode_head(message), len(text.encode("utf-8", "replace"))
