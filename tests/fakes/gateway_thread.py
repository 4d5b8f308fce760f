"""A real gateway on a thread of its own, for tests of callers that block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cellburst.endpoint import Endpoint
from cellburst.loop import LoopThread
from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig


@contextlib.contextmanager
def gateway_on_thread(folder: Path, **changes: Any) -> Iterator[tuple[Gateway, Endpoint]]:
    """Serve from `folder`/data until the end of the block."""
    config = GatewayConfig(data_folder=folder / "data", run_folder=folder / "run", local_worker=False)
    thread = LoopThread("test-gateway")
    try:
        gateway = Gateway(replace(config, **changes))
        thread.submit(gateway.start()).result(30)
        try:
            yield gateway, Endpoint(url=gateway.hub.url, token=gateway.hub.secrets.token)
        finally:
            thread.submit(gateway.close()).result(30)
    finally:
        thread.stop()
