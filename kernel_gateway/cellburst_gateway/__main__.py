"""`python -m cellburst_gateway`: serves until SIGTERM, SIGINT or a Shutdown request."""

from __future__ import annotations

import asyncio
import signal
import sys

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.private_folder import private_folder

from . import logging_setup
from .app import Gateway
from .config import GatewayConfig, from_arguments

EXIT_WRONG = 2  # command line, configuration, folder
EXIT_CONFLICT = 3  # another gateway, or the port is in use


async def serve(config: GatewayConfig) -> None:
    """Serve until asked to stop. Raises CellburstError when it cannot start."""
    private_folder(config.data_folder, "data folder", "a gateway")
    logging_setup.set_up(config.data_folder)
    gateway = Gateway(config)
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # before it is announced: who can find it may also stop it
        loop.add_signal_handler(number, signalled.set)
    await gateway.start()
    waits = [loop.create_task(event.wait()) for event in (signalled, gateway.hub.shutdown)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for waiting in waits:
        waiting.cancel()
    await gateway.stop()


def main(arguments: list[str] | None = None) -> int:
    """The program; returns its exit code."""
    try:
        asyncio.run(serve(from_arguments(arguments)))
    except CellburstError as why:
        sys.stderr.write(f"cellburst gateway: {why}\n")
        return EXIT_CONFLICT if why.code is ErrorCode.CONFLICT else EXIT_WRONG
    return 0


if __name__ == "__main__":
    sys.exit(main())
