"""`python -m cellburst_worker`: chooses the parts, joins the gateway, ends cleanly on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Coroutine
from typing import TypeVar

from cellburst_protocol.errors import CellburstError
from cellburst_protocol.private_folder import private_folder
from cellburst_runtime.membarrier import hide_membarrier
from cellburst_runtime.mirror import machine_id
from cellburst_runtime.runtime import Runtime
from cellburst_runtime.volume_tree import VolumeStore

from . import logs
from .clock import SystemClock
from .exchange import Exchange
from .gateway_link import GatewayLink, http_url, link_url
from .imports import Imports
from .options import Options, folder_id, lock, parse, worker_name
from .site import Site
from .volume_desk import VolumeDesk
from .volume_gateway import GatewayVolumes
from .volume_outbox import Outbox
from .worker import Identity, Worker

log = logging.getLogger(__name__)
_T = TypeVar("_T")


async def serve(options: Options) -> None:
    """Run a worker until SIGTERM, SIGINT or the gateway's Shutdown. Raises CellburstError for what cannot work."""
    url = link_url(options.join)
    options.read_token()  # a missing file is said at once and not in a loop
    private_folder(options.data_folder, "data folder", "a worker")
    private_folder(options.run_folder, "run folder", "a worker")
    stop = _stop_by_signal()
    with lock(options.run_folder):
        runtime = await _unless(stop, Runtime.create(
            run_folder=options.run_folder, data_folder=options.data_folder,
            simulate_gpus=options.simulate_gpus, engine=options.engine,
            image_limit_bytes=options.max_images_bytes, snapshot_limit_bytes=options.max_snapshots_bytes,
        ))  # fmt: skip
        if runtime is None:
            log.info("stopped before the machine's engines were tried to the end")
            return
        removed = await runtime.collect_garbage()
        spools = options.data_folder / "spool" / folder_id(options.run_folder)
        shutil.rmtree(spools, ignore_errors=True)  # of a worker that is gone, as its containers are
        exchange = Exchange(options.data_folder / "blobs", http_url(url), options.read_token, options.token_owners)
        imports = Imports(options.data_folder / "snapshots" / "imports")
        volumes = GatewayVolumes(http_url(url), options.read_token, options.token_owners)
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
            await _until_stopped(stop, worker, GatewayLink(url, options.read_token, worker, options.token_owners))
        finally:
            await runtime.close()


def _stop_by_signal() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; the second ends this process at once."""
    asked = asyncio.Event()

    def stop(number: int) -> None:
        if asked.is_set():
            os._exit(128 + number)  # the next worker here removes what is left
        asked.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return asked


async def _unless(stop: asyncio.Event, work: Coroutine[None, None, _T]) -> _T | None:
    """The result of `work`; None when `stop` came first, after the work has undone what it had begun."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            return await working
        return None
    finally:
        stopping.cancel()


async def _until_stopped(stop: asyncio.Event, worker: Worker, link: GatewayLink) -> None:
    running = [asyncio.create_task(link.run()), asyncio.create_task(worker.beat())]
    running.append(asyncio.create_task(worker.image_watch.run()))
    asked = [asyncio.create_task(event.wait()) for event in (stop, worker.shutdown_asked)]
    try:
        done, _ = await asyncio.wait({*running, *asked}, return_when=asyncio.FIRST_COMPLETED)
        await worker.shutdown()
        for task in done:
            task.result()  # what ended by itself failed: let it be seen
    finally:
        for task in (*running, *asked):
            task.cancel()
        await asyncio.gather(*running, *asked, return_exceptions=True)


def main() -> int:
    """The program. Returns its exit status."""
    options = parse(sys.argv[1:])
    logs.configure(options.log_json)
    if options.engine != "process":
        hide_membarrier()
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
