"""The protocol's version and how two sides agree on one.

The major number changes when an old side could misread a new one; a minor number only adds fields with defaults or
messages that are sent after both sides were seen to know them. The lower minor is used.
"""

from __future__ import annotations

from .errors import ErrorCode, error

PROTOCOL_VERSION = (1, 0)


def negotiate(theirs: tuple[int, int], software: str) -> tuple[int, int]:
    """The version to speak with a peer that offers `theirs`. Raises RequestError (VERSION) when there is none."""
    if theirs[0] != PROTOCOL_VERSION[0]:
        older = "the other side" if theirs[0] < PROTOCOL_VERSION[0] else "this side"
        raise error(
            ErrorCode.VERSION,
            f"protocol {theirs[0]}.{theirs[1]} of {software} does not fit {PROTOCOL_VERSION[0]}.{PROTOCOL_VERSION[1]}",
            next=f"{older} is older: install the same version of cellburst on both",
        )
    return (PROTOCOL_VERSION[0], min(theirs[1], PROTOCOL_VERSION[1]))
