"""Where the key of the secrets lies: the OS keyring of a person's session, else the file DATA/secret-key (0600).

The first secret that is put makes the key; which of the two places was taken then is found by looking. A key that is there but
is not the one that the record was encrypted with, or none where there should be one, leaves the secrets *sealed*: nothing is
read, nothing overwritten, and the reason says where to put the key back. A new key (`rotate`) lies beside the old one until the
record has it: a gateway that is killed in between finds the right one by what the record says.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .folders import write_private
from .secret_box import KEY_BYTES, key_id

KEYRING_SECONDS = 5.0  # a keyring that asks its user for a password in a window nobody sees
SERVICE = "cellburst"

log = logging.getLogger(__name__)


class KeyPlace:
    """A place for one key under a name. Methods raise OSError-like errors as CellburstError (UNAVAILABLE)."""

    words: str

    def read(self, name: str) -> str | None:
        """Its hex text, None where there is none."""
        raise NotImplementedError

    def write(self, name: str, text: str) -> None:
        """Put it there, durably."""
        raise NotImplementedError

    def remove(self, name: str) -> None:
        """Take it away; no error when it is not there."""
        raise NotImplementedError


class FilePlace(KeyPlace):
    """DATA/<name>, mode 0600."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.words = f"the file {folder / 'secret-key'}"

    def read(self, name: str) -> str | None:
        path = self._folder / name
        try:
            if path.stat().st_mode & 0o077:
                path.chmod(0o600)
            return path.read_text("ascii").strip()
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as why:
            raise error(ErrorCode.UNAVAILABLE, f"the key file {path} cannot be read: {why}") from None

    def write(self, name: str, text: str) -> None:
        write_private(self._folder / name, text)
        _flush_folder(self._folder)

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)


class KeyringPlace(KeyPlace):
    """The OS keyring, by `keyring`; `folder` tells the houses of one user apart."""

    words = "this user's keyring (service cellburst)"

    def __init__(self, ring: Any, folder: Path) -> None:
        self._ring = ring
        self._house = hashlib.sha256(str(folder).encode()).hexdigest()[:16]

    def read(self, name: str) -> str | None:
        found = _bounded(lambda: self._ring.get_password(SERVICE, f"{name}-{self._house}"))
        return None if found is None else str(found)

    def write(self, name: str, text: str) -> None:
        _bounded(lambda: self._ring.set_password(SERVICE, f"{name}-{self._house}", text))

    def remove(self, name: str) -> None:
        if self.read(name) is not None:
            _bounded(lambda: self._ring.delete_password(SERVICE, f"{name}-{self._house}"))


class KeyHolder:
    """The key in use. `choice`: "auto", "file" or "keyring", as the operator says (`[secrets] key_store`)."""

    def __init__(self, folder: Path, choice: str = "auto", ring: Any = None) -> None:
        self._file = FilePlace(folder)
        self._keyring = KeyringPlace(ring, folder) if ring is not None else None
        self._folder, self._choice, self._looked = folder, choice, ring is not None

    def find(self, known: Collection[str]) -> bytes | None:
        """The key that the record's `known` key ids name. None: there is none yet, and none is needed.

        Raises PlatformError (UNAVAILABLE, "sealed") when the secrets cannot be opened, with the way out.
        """
        wrong = ""
        for place in self._places():
            found = {name: _key(place, name) for name in ("secret-key.next", "secret-key")}
            usable = {name: key for name, key in found.items() if key is not None}
            for name, key in usable.items():
                if set(known) == {key_id(key)}:
                    if name == "secret-key.next":  # killed between the record's commit and the change of places
                        self._settle(place)
                    return key
            if usable and not known:
                place.remove("secret-key.next")
                return usable.get("secret-key")
            if usable:
                wrong = f"the key in {place.words} is not the one that they were encrypted with"
        if not known:
            return None
        raise sealed(wrong or f"their key is not there (neither {self._words()})")

    def make(self) -> bytes:
        """The first key, or the first after all secrets of a lost one are gone."""
        key = secrets.token_bytes(KEY_BYTES)
        place = self._preferred()
        place.write("secret-key", key.hex())
        log.info("a key for secrets was made", extra={"place": place.words})
        return key

    def next_key(self, current: bytes) -> bytes:
        """Put a new key beside the one in use; `settle` after the record has it, `forget` if it has not."""
        key = secrets.token_bytes(KEY_BYTES)
        self._place_of(current).write("secret-key.next", key.hex())
        return key

    def settle(self, key: bytes) -> str:
        """The record has the new key: it takes the place of the old one. Returns that place, in words."""
        for place in self._places():
            if _key(place, "secret-key.next") == key:
                self._settle(place)
                return place.words
        raise sealed("the new key is not where it was put")

    def forget(self) -> None:
        """The record has not the new key."""
        for place in self._places():
            with contextlib.suppress(CellburstError, OSError):
                place.remove("secret-key.next")

    def set_aside(self) -> None:
        """All that a lost key encrypted is gone: what lies in its place and is no key is kept as secret-key.lost."""
        for place in self._places():
            try:
                _key(place, "secret-key")
            except CellburstError:
                text = place.read("secret-key")
                place.write("secret-key.lost", text or "")
                place.remove("secret-key")

    def _settle(self, place: KeyPlace) -> None:
        text = place.read("secret-key.next")
        assert text is not None
        place.write("secret-key", text)
        place.remove("secret-key.next")

    def _place_of(self, key: bytes) -> KeyPlace:
        for place in self._places():
            if _key(place, "secret-key") == key:
                return place
        return self._preferred()

    def _places(self) -> list[KeyPlace]:
        self._look_for_keyring()
        places: list[KeyPlace] = []
        if self._choice != "keyring":
            places.append(self._file)
        if self._choice != "file" and self._keyring is not None:
            places.append(self._keyring)
        return places

    def _preferred(self) -> KeyPlace:
        places = self._places()
        if not places:
            raise error(
                ErrorCode.UNAVAILABLE, "[secrets] key_store = 'keyring', and no keyring of this user can be reached",
                next="start the gateway in a desktop session, or set key_store = 'file'",
            )  # fmt: skip
        return places[-1]

    def _words(self) -> str:
        return " nor ".join(place.words for place in self._places()) or "in a keyring that can be reached"

    def _look_for_keyring(self) -> None:
        if not self._looked and self._choice != "file":
            self._looked = True
            ring = usable_keyring()
            self._keyring = KeyringPlace(ring, self._folder) if ring is not None else None


def usable_keyring() -> Any:
    """The keyring of a desktop session, or None: on a server there is none that is open when nobody is logged in."""
    desktop = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY") or sys.platform in ("darwin", "win32")
    if not desktop:
        return None
    try:
        import keyring
        from keyring.backends.fail import Keyring as Fail
        from keyring.backends.null import Keyring as Null

        ring = _bounded(keyring.get_keyring)
        if isinstance(ring, Fail | Null) or ring.priority < 1:
            return None
        _bounded(lambda: ring.get_password(SERVICE, "probe"))
    except Exception as why:  # its backends raise what they like; the file is as good
        log.info("no keyring", extra={"why": type(why).__name__})
        return None
    return ring


def sealed(why: str) -> CellburstError:
    """The secrets cannot be opened."""
    return error(
        ErrorCode.UNAVAILABLE, f"the secrets are sealed: {why}",
        allowed="lists work; what needs a value waits for the key",
        next="put the key back where it was (a backup of the data folder has the file `secret-key`); if it is lost for good, "
        "`cellburst secret delete --all-sealed` removes what it encrypted",
        sealed="1",
    )  # fmt: skip


def _key(place: KeyPlace, name: str) -> bytes | None:
    text = place.read(name)
    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise sealed(f"what lies in {place.words} is no key: {KEY_BYTES * 2} hexadecimal digits are")
    return key


def _bounded(ask: Callable[[], Any]) -> Any:
    """Ask a keyring, but not for ever. Raises PlatformError (UNAVAILABLE)."""
    answer: list[Any] = []
    problem: list[BaseException] = []

    def work() -> None:
        try:
            answer.append(ask())
        except BaseException as why:
            problem.append(why)

    thread = threading.Thread(target=work, name="keyring", daemon=True)
    thread.start()
    thread.join(KEYRING_SECONDS)
    if answer:
        return answer[0]
    why = f"{type(problem[0]).__name__}: {problem[0]}" if problem else f"no answer within {KEYRING_SECONDS:g} s"
    raise error(ErrorCode.UNAVAILABLE, f"the keyring cannot be used: {why}", next="unlock it")


def _flush_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
