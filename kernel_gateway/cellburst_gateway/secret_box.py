"""Secrets as they lie in the record: AES-256-GCM, bound to where they belong. Pure but for the nonce.

The associated data of a secret is its workspace, name, version and key: bytes of another row, an older version put back, a cut
tag, all fail the same way. What one row alone cannot tell, that it is not an older row as a whole, the workspace's *list*
does: a sealed count of names and versions, written with every change. (An older copy of the whole record opens: it is one.)
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from cellburst_protocol.errors import CellburstError, ErrorCode, error

KEY_BYTES = 32
NONCE_BYTES = 12  # NIST SP 800-38D section 8.2.2: random ones are safe for 2**32 messages of one key
_LIST = "\0list"  # no secret's name
_dictionary: msgspec.json.Decoder[dict[str, str]] = msgspec.json.Decoder(dict[str, str])
_versions: msgspec.json.Decoder[dict[str, int]] = msgspec.json.Decoder(dict[str, int])


@dataclass(frozen=True)
class Sealed:
    """Encrypted bytes as the record has them: hex, and which key opens them."""

    key_id: str
    nonce: str
    ciphertext: str


class SecretBox:
    """Seals and opens with one key. `repr` shows none of it."""

    def __init__(self, key: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import (
            AESGCM,
        )  # 40 ms that a house without secrets does not pay

        if len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes")
        self._cipher: Any = AESGCM(key)
        self.key_id = key_id(key)

    def __repr__(self) -> str:
        return f"SecretBox({self.key_id})"

    def seal(self, workspace: str, name: str, version: int, values: Mapping[str, str]) -> Sealed:
        """Encrypt one version of a secret."""
        return self._seal(workspace, name, version, msgspec.json.encode(dict(values)))

    def open(self, workspace: str, name: str, version: int, sealed: Sealed) -> dict[str, str]:
        """The values of exactly this version. Raises PlatformError (INTEGRITY)."""
        what = f"secret {name!r} (version {version})"
        values: dict[str, str] = _decoded(_dictionary, self._open(workspace, name, version, sealed, what), what)
        return values

    def seal_list(self, workspace: str, version: int, versions: Mapping[str, int]) -> Sealed:
        """Encrypt the versions of all secrets of a workspace; `version` counts its changes."""
        return self._seal(workspace, _LIST, version, msgspec.json.encode(dict(versions)))

    def open_list(self, workspace: str, version: int, sealed: Sealed) -> dict[str, int]:
        """The versions. Raises PlatformError (INTEGRITY)."""
        what = "the list of secrets"
        versions: dict[str, int] = _decoded(_versions, self._open(workspace, _LIST, version, sealed, what), what)
        return versions

    def _seal(self, workspace: str, name: str, version: int, data: bytes) -> Sealed:
        nonce = os.urandom(NONCE_BYTES)
        ciphertext = self._cipher.encrypt(nonce, data, _associated(workspace, name, version, self.key_id))
        return Sealed(self.key_id, nonce.hex(), ciphertext.hex())

    def _open(self, workspace: str, name: str, version: int, sealed: Sealed, what: str) -> bytes:
        from cryptography.exceptions import InvalidTag

        try:
            if sealed.key_id != self.key_id:
                raise ValueError("another key")
            nonce, ciphertext = bytes.fromhex(sealed.nonce), bytes.fromhex(sealed.ciphertext)
            data: bytes = self._cipher.decrypt(nonce, ciphertext, _associated(workspace, name, version, self.key_id))
        except (InvalidTag, ValueError):
            raise tampered(what) from None
        return data


def key_id(key: bytes) -> str:
    """What tells keys apart and says nothing of them."""
    return hashlib.blake2b(key, digest_size=8, person=b"cellburst key id").hexdigest()


def tampered(what: str) -> CellburstError:
    """The record has bytes that were not written by this gateway for this place."""
    return error(
        ErrorCode.INTEGRITY, f"{what} was changed in the record from outside: it is not used",
        next="put it anew (`cellburst secret create NAME KEY=- --replace`), and find out who changed the record",
    )  # fmt: skip


def _associated(workspace: str, name: str, version: int, key: str) -> bytes:
    parts = ("cellburst secret 1", workspace, name, str(version), key)
    return b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)


def _decoded(decoder: Any, data: bytes, what: str) -> Any:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError:
        raise tampered(what) from None
