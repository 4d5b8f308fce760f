"""What a session's secrets put into the environment of an executor, and take away again."""

from __future__ import annotations

import os
from typing import Optional


class SecretEnvironment:
    """One executor's. User code may change the variables: what it set itself is left alone when a secret goes."""

    def __init__(self) -> None:
        self._given: dict[str, str] = {}
        self._before: dict[str, Optional[str]] = {}

    def take(self, environment: dict[str, str]) -> None:
        """From now on exactly these variables come from secrets. A variable that one covered is as it was before."""
        for key in [key for key in self._given if key not in environment]:
            value, before = self._given.pop(key), self._before.pop(key)
            if os.environ.get(key) == value:
                if before is None:
                    del os.environ[key]
                else:
                    os.environ[key] = before
        for key, value in environment.items():
            if key not in self._given:
                self._before[key] = os.environ.get(key)
            if self._given.get(key) != value:
                os.environ[key] = value
            self._given[key] = value
