"""Where blobs are exchanged with the gateway: its own folder when this is its machine, else HTTP. Chosen at each Welcome."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import ValuePart, Welcome

from .blobs import BlobFolder, GatewayBlobs

FETCH_TRIES = 5  # a call waits for these values: give it an error in seconds rather than silence
RETRY_SECONDS = 0.5
MAX_PROOF_BYTES = 4096

log = logging.getLogger(__name__)


class Exchange:
    """`folder` is where this worker's values lie now. Until a gateway shares its own, that is a folder of the worker's."""

    def __init__(
        self, own_folder: Path, url: str, token: Callable[[], str], owners: Callable[[], Iterable[int]] = tuple
    ) -> None:
        self._own = own_folder
        self._gateway = GatewayBlobs(url, token, owners)
        self.shared = False
        self.folder = BlobFolder(own_folder)

    def welcomed(self, welcome: Welcome) -> None:
        """Use the gateway's folder if its proof can be read here."""
        self.shared = _shares_machine(welcome)
        self.folder = BlobFolder(Path(welcome.blob_folder) if self.shared else self._own)
        log.info("values go by %s", "the gateway's blob folder" if self.shared else "HTTP")

    async def bring(self, parts: Iterable[ValuePart]) -> None:
        """Have these blobs in `folder`. Raises PlatformError (INTEGRITY, UNAVAILABLE, DISK_FULL)."""
        if self.shared:
            return
        for part in parts:
            for left in reversed(range(FETCH_TRIES)):
                try:
                    await asyncio.to_thread(self._gateway.fetch, part.hash, part.size_bytes, self.folder)
                    break
                except CellburstError as why:
                    if why.code is not ErrorCode.UNAVAILABLE or not left:
                        raise
                await asyncio.sleep(RETRY_SECONDS)

    async def publish(self, hashes: Iterable[str]) -> None:
        """Let the gateway have these blobs; while it is away they wait here. Raises what it refuses for good."""
        for hash in hashes:
            while not self.shared:
                try:
                    await asyncio.to_thread(self._gateway.send, hash, self.folder)
                    break
                except CellburstError as why:
                    if why.code is not ErrorCode.UNAVAILABLE:
                        raise
                await asyncio.sleep(RETRY_SECONDS)


def _shares_machine(welcome: Welcome) -> bool:
    if not (welcome.blob_folder and welcome.blob_proof and welcome.blob_proof_path):
        return False
    try:
        with open(welcome.blob_proof_path, "rb") as file:
            found = file.read(MAX_PROOF_BYTES).strip()
    except OSError:
        return False
    return hmac.compare_digest(found, welcome.blob_proof.encode())
