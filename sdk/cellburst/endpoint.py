"""Where a gateway is and what opens it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Endpoint:
    """`url` is "http(s)://host:port", or inside a container "unix:PATH" of the socket its worker passes on. `embedded` says
    that this user's own gateway may be started when it is down."""

    url: str
    token: str = field(repr=False)
    embedded: bool = False
    run_folder: Path | None = None

    @property
    def unix_path(self) -> str:
        """The Unix socket to dial, "" for a TCP address."""
        return self.url.removeprefix("unix:") if self.url.startswith("unix:") else ""
