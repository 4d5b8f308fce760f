"""Names of volumes and secrets for completion: asked for when they are needed, kept for a moment, never waited for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.messages import ListSecrets, SecretList

if TYPE_CHECKING:
    from .notebook import Notebook

WAIT_SECONDS = 0.3  # a person types on after that; the answer is there at the next key
KEPT_SECONDS = 5.0


class Later:
    """A list that is asked for on a thread of its own."""

    def __init__(self, ask: Callable[[], list[str]], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._found: list[str] = []
        self._at = float("-inf")
        self._asking: threading.Event | None = None

    def names(self) -> list[str]:
        """What is known: asked for anew when that is old. What cannot be asked has no names."""
        if self._clock() - self._at > KEPT_SECONDS and self._asking is None:
            self._asking = threading.Event()
            threading.Thread(target=self._fetch, args=(self._asking,), daemon=True, name="completion").start()
        asking = self._asking
        if asking is not None:
            asking.wait(WAIT_SECONDS)
        return self._found

    def _fetch(self, done: threading.Event) -> None:
        try:
            self._found = self._ask()
        except (CellburstError, OSError, TimeoutError):
            self._found = []
        finally:
            self._at = self._clock()
            self._asking = None
            done.set()


class NamesThere:
    """Volumes and secrets of the gateway that this kernel is linked to; none before its first cell."""

    def __init__(self, notebook: Notebook) -> None:
        self._notebook = notebook
        self._volumes = Later(self._ask_volumes)
        self._secrets = Later(self._ask_secrets)

    def of(self, key: str) -> list[str]:
        """Names for `volumes=` or `secrets=`; nothing is started for them."""
        if key not in ("volumes", "secrets") or not self._notebook.has_hub or not self._notebook.hub.connected:
            return []
        return (self._volumes if key == "volumes" else self._secrets).names()

    def _ask_volumes(self) -> list[str]:
        from cellburst.volume import Volume

        return [row.name for row in Volume.list_all()]

    def _ask_secrets(self) -> list[str]:
        answer = self._notebook.hub.request(ListSecrets(), 5.0)
        return [row.name for row in answer.rows] if isinstance(answer, SecretList) else []
