"""Who may have made a value: MACs over pickled values, checked before anything is unpickled.

A call's value key is HMAC-SHA256(gateway master key, call, input, attempt). The gateway gives it to the worker with the
call and to the authenticated caller; it never enters a container. The caller signs what it sends and the worker checks
it before the runner sees it; the worker signs what comes out and the caller checks it before unpickling.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from blake3 import blake3

from .errors import ErrorCode, error
from .messages import NameGroup, ValuePart


def value_key(master_key: bytes, call: str, input: int = 0, attempt: int = 1) -> str:
    """The value key of one attempt, in hex."""
    return hmac.new(master_key, f"{call}|{input}|{attempt}".encode(), hashlib.sha256).hexdigest()


def group_hash(parts: Iterable[ValuePart]) -> str:
    """A group's identity: BLAKE3 over its parts' hashes in order."""
    hasher = blake3()
    for part in parts:
        hasher.update(bytes.fromhex(part.hash))
    return hasher.hexdigest()


def sign(key: str, purpose: str, groups: Iterable[NameGroup]) -> str:
    """MAC over names, part hashes and sizes of the groups. `purpose` tells directions apart: "in", "out", "side:ID"."""
    digest = hmac.new(bytes.fromhex(key), purpose.encode() + b"\0", hashlib.sha256)
    for group in groups:
        digest.update("\0".join(sorted(group.names)).encode() + b"\1")
        for part in group.parts:
            digest.update(f"{part.hash}:{part.size_bytes};".encode())
        digest.update(b"\2")
    return digest.hexdigest()


def verify(key: str, purpose: str, groups: Iterable[NameGroup], mac: str) -> None:
    """Raises PlatformError (INTEGRITY) unless `mac` is `sign(...)` of the same. The bytes themselves are checked against
    their parts' hashes by whoever reads them."""
    if not hmac.compare_digest(sign(key, purpose, groups), mac):
        raise error(
            ErrorCode.INTEGRITY,
            "values came back with a wrong seal and were not opened",
            next="run the cell again; if it stays, something between this kernel and the worker changes data",
        )
