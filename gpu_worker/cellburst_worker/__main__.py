"""`python -m cellburst_worker`: chooses the parts, joins the gateway, ends cleanly on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys

from cellburst_protocol.errors import CellburstError
from cellburst_runtime.runtime import Runtime
from cellburst_runtime.volume_tree import VolumeStore

from . import logs
from .clock import SystemClock
from .exchange import Exchange
from .gateway_link import GatewayLink, http_url, link_url
from .imports import Imports
from .options import Options, folder_id, lock, machine_id, parse, private_folder, worker_name
from .site import Site
from .volume_gateway import GatewayVolumes
from .volume_outbox import Outbox
from .volumes import VolumeDesk
from .worker import Identity, Worker

log = logging.getLogger(__name__)


async def serve(options: Options) -> None:
    """Run a worker until SIGTERM, SIGINT or the gateway's Shutdown. Raises CellburstError for what cannot work."""
    url = link_url(options.join)
    options.read_token()  # a missing file is said at once and not in a loop
    private_folder(options.data_folder)
    private_folder(options.run_folder)
    with lock(options.run_folder):
        runtime = await Runtime.create(
            run_folder=options.run_folder, data_folder=options.data_folder,
            simulate_gpus=options.simulate_gpus, engine=options.engine,
        )  # fmt: skip
        removed = await runtime.collect_garbage()
        spools = options.data_folder / "spool" / folder_id(options.run_folder)
        shutil.rmtree(spools, ignore_errors=True)  # of a worker that is gone, as its containers are
        exchange = Exchange(options.data_folder / "blobs", http_url(url), options.read_token)
        imports = Imports(options.data_folder / "snapshots" / "imports")
        volumes = GatewayVolumes(http_url(url), options.read_token)
        folder = options.data_folder / "volumes"
        desk = VolumeDesk(
            VolumeStore(folder), volumes, Outbox(folder / "outbox", volumes),
            lambda id: runtime.snapshots.parked(id) is not None,
        )  # fmt: skip
        site = Site(
            runtime=runtime, clock=SystemClock(), exchange=exchange, spool_folder=spools, imports=imports,
            keeps_warm=options.warm_pool, volumes=desk, gateway=http_url(url),
        )  # fmt: skip
        inventory = await asyncio.to_thread(runtime.inventory)
        worker = Worker(Identity(worker_name(options), machine_id()), inventory, site)
        what = {
            "worker": worker_name(options),
            "gpus": len(inventory.gpus),
            "pid": os.getpid(),
            "garbage": len(removed),
        }
        log.info("worker starts", extra=what)
        try:
            await _until_stopped(worker, GatewayLink(url, options.read_token, worker))
        finally:
            await runtime.close()


async def _until_stopped(worker: Worker, link: GatewayLink) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _stop_signal, worker, number)
    running = [asyncio.create_task(link.run()), asyncio.create_task(worker.beat())]
    stop = asyncio.create_task(worker.shutdown_asked.wait())
    try:
        done, _ = await asyncio.wait({*running, stop}, return_when=asyncio.FIRST_COMPLETED)
        await worker.shutdown()
        for task in done:
            task.result()  # what ended by itself failed: let it be seen
    finally:
        for task in (*running, stop):
            task.cancel()
        await asyncio.gather(*running, stop, return_exceptions=True)


def _stop_signal(worker: Worker, number: int) -> None:
    if worker.shutdown_asked.is_set():
        os._exit(128 + number)  # the second one: now; the next worker here removes what is left
    worker.shutdown_asked.set()


def main() -> int:
    """The program. Returns its exit status."""
    options = parse(sys.argv[1:])
    logs.configure(options.log_json)
    try:
        asyncio.run(serve(options))
    except CellburstError as why:
        log.error("%s", why)
        return 2
    except KeyboardInterrupt:
        return 130
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
