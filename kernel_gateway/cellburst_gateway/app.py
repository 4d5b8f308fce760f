"""The gateway put together: folders, record, parts, listener; and taken apart in the right order."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import ssl
from typing import IO, Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from cellburst_protocol.clock import Clock
from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import Hello
from cellburst_protocol.peer import Peer
from cellburst_protocol.private_folder import private_folder
from cellburst_protocol.states import EndReason

from . import folders, recovery
from .auth import WORKSPACE, Authenticator
from .blobs import BlobFolder
from .build_leases import BuildLeases
from .cell_volumes import users_of_shared
from .cells import Cells
from .chunks import make_chunk_store
from .clock import SystemClock
from .config import GatewayConfig
from .container_link import ContainerLink, live_record, token_record
from .fleet import Fleet
from .http_base import NothingHere
from .http_routes import BlobRoute, Health, MetricsRoute
from .hub import Hub
from .images import Images
from .inbox import Inbox
from .kernel_link import KernelLink
from .link import CHECK_SECONDS, MAX_WEBSOCKET_BYTES, LinkHandler, Links
from .local_worker import LocalWorker
from .log_keeping import LogKeeper
from .logstore import LogStore
from .metrics import Metrics
from .mirrors import Mirrors
from .network_file_systems import NetworkFileSystems
from .nfs_routes import nfs_routes
from .parking import Parking
from .placer import Placer
from .prices import PriceTable
from .run_routes import run_routes
from .schedules import Schedules
from .secret_desk import SecretDesk
from .sessions import Sessions
from .store import Store
from .store_rows import Owner, Role, TokenRecord
from .volume_routes import volume_routes
from .volumes import Volumes
from .worker_events import WorkerEvents
from .worker_link import WorkerLink

VERSION = "0.1.0"
TICK_SECONDS = 0.25  # how late an idle end, a budget stop or a lost worker may be noticed
EVICT_SECONDS = 60.0
LOGS_SECONDS = 3600.0  # between two looks for logs that are too old; they are kept for days
STOP_CONTAINERS_SECONDS = 20.0
FAREWELL_SECONDS = 0.5  # for the last events to reach kernels
MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024  # of routes other than blobs, which raise it for themselves

log = logging.getLogger(__name__)


def build(config: GatewayConfig, clock: Clock, store: Store, held: folders.Secrets, instance: str) -> Hub:
    """Make the parts and let them know each other. Raises CellburstError for prices or a record that cannot be read."""
    data = config.data_folder
    proof = secrets.token_hex(16)
    proof_path = data / "blob-proof"
    folders.write_private(proof_path, proof)
    hub = Hub(
        config=config, clock=clock, store=store, logs=LogStore(data / "sessions"), prices=PriceTable.load(config.prices_file),
        metrics=Metrics(), blobs=BlobFolder(data / "blobs", WORKSPACE), inbox=Inbox(data / "inbox"), secrets=held,
        instance=instance, epoch=store.acquire_gateway_lock(instance, now=clock.wall()), version=VERSION,
        proof_path=proof_path, proof=proof, started_monotonic=clock.monotonic(),
        local_worker_wanted_at=clock.monotonic() if config.local_worker else None,
    )  # fmt: skip
    hub.metrics.counter("cellburst_record_errors_total", "Writes of the record that failed after the log had the fact.")
    hub.fleet, hub.sessions, hub.placer = Fleet(hub), Sessions(hub), Placer(hub)
    hub.cells, hub.events, hub.parking, hub.images = Cells(hub), WorkerEvents(hub), Parking(hub), Images(hub)
    hub.mirrors = Mirrors(hub)
    hub.build_leases = BuildLeases(hub)
    hub.schedules = Schedules(hub)
    hub.secret_desk = SecretDesk(hub)
    hub.volumes = Volumes(hub, make_chunk_store(config))
    hub.network_file_systems = NetworkFileSystems(
        config.data_folder / "shared", lambda *which: users_of_shared(hub, *which)
    )
    return hub


def routes(hub: Hub, auth: Authenticator, links: Links) -> Application:
    """Every route there is; anything else is `NothingHere`."""

    def serve_kernel(hello: Hello, token: TokenRecord, peer: Peer, loopback: bool) -> KernelLink | ContainerLink:
        if token.role is Role.CONTAINER:
            return ContainerLink(hub, token, peer)
        return KernelLink(hub, hello, token, peer)

    def serve_worker(hello: Hello, token: TokenRecord, peer: Peer, loopback: bool) -> WorkerLink:
        return WorkerLink(hub, hello, token, peer, loopback)

    base: dict[str, Any] = {"hub": hub, "auth": auth}
    link = base | {"links": links, "serve_kernel": serve_kernel, "serve_worker": serve_worker}
    return Application(
        [
            (r"/health", Health, base),
            (r"/metrics", MetricsRoute, base),
            (r"/blobs/([^/]*)", BlobRoute, base),
            *volume_routes(base),
            *nfs_routes(base),
            *run_routes(base),
            (r"/link", LinkHandler, link),
        ],
        default_handler_class=NothingHere,
        default_handler_args=base,
        websocket_max_message_size=MAX_WEBSOCKET_BYTES,
        log_function=lambda handler: None,
    )


class Gateway:
    """One gateway from start to stop."""

    def __init__(self, config: GatewayConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or SystemClock()
        self.links = Links()
        self.instance = secrets.token_hex(8)
        self._lock: IO[str] | None = None
        self._server: HTTPServer | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._local: LocalWorker | None = None
        self._logs: LogKeeper
        self.hub: Hub
        self.auth: Authenticator

    async def start(self) -> None:
        """Serve. Raises CellburstError with nothing left behind that another start would trip over."""
        config = self.config
        private_folder(config.data_folder, "data folder", "a gateway")
        private_folder(config.run_folder, "run folder", "a gateway")
        self._lock = folders.lock(config.data_folder / "gateway.lock")
        try:
            held = folders.load_secrets(config.data_folder)
            store = Store.open(config.database or config.data_folder / "record.sqlite", now=self.clock.wall())
            self.hub = build(config, self.clock, store, held, self.instance)
            self.auth = Authenticator(store, self.clock, config)
            self.auth.container_token = lambda token: token_record(self.hub, token)
            self.auth.container_alive = lambda container: live_record(self.hub, container)
            self.auth.seed(Owner(WORKSPACE, "user"), held.token, held.worker_token)
            self.hub.blobs.remove_stale(self.clock.wall())
            self.hub.network_file_systems.drop_drafts()
            sockets = self._bind()
            recovery.recover(self.hub)
            self.hub.schedules.take_up()
            self._logs = LogKeeper(
                self.hub.logs, store, lambda session: self.hub.sessions.get(session) is not None, config.log_keep_days
            )  # not before all sessions that have not ended are known
            self.hub.logs.make_room = self._logs.make_room
        except BaseException:
            self._lock.close()
            raise
        self._server = HTTPServer(
            routes(self.hub, self.auth, self.links), ssl_options=self._tls(), max_header_size=MAX_HEADER_BYTES,
            max_body_size=MAX_BODY_BYTES, idle_connection_timeout=60.0,
        )  # fmt: skip
        self._server.add_sockets(sockets)
        folders.write_announcement(config.run_folder, self._announcement())
        self._ticker = asyncio.get_running_loop().create_task(self._tick())
        if config.local_worker:
            self._local = LocalWorker(self.hub)
            self._local.start()
        log.info("serving", extra={"url": self.hub.url, "epoch": self.hub.epoch, "pid": os.getpid()})

    def _announcement(self) -> dict[str, object]:
        return {
            "pid": os.getpid(), "url": self.hub.url, "data_folder": str(self.config.data_folder), "instance": self.instance,
            "started_unix_seconds": self.clock.wall(), "version": VERSION,
        }  # fmt: skip

    def _bind(self) -> list[Any]:
        """Listen. Without a port of the operator's, on the one of last time: workers that still run dial that."""
        config = self.config
        memory = config.data_folder / "port"
        last = 0
        if not config.port:
            with contextlib.suppress(OSError, ValueError):
                last = int(memory.read_text("ascii"))
        for port in [last, 0] if last else [config.port]:
            try:
                sockets = bind_sockets(port, config.host, reuse_port=False)
                break
            except (OSError, OverflowError) as why:
                if port == last and last:
                    continue
                raise _bind_error(config.host, port, why) from None
        port = sockets[0].getsockname()[1]
        folders.write_private(memory, str(port))
        host = f"[{config.host}]" if ":" in config.host else config.host
        self.hub.url = f"{config.scheme}://{host}:{port}"
        return sockets

    def _tls(self) -> ssl.SSLContext | None:
        if self.config.tls_cert is None or self.config.tls_key is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_cert_chain(self.config.tls_cert, self.config.tls_key)
        except (OSError, ssl.SSLError) as why:
            raise error(ErrorCode.BAD_ARGUMENT, f"the certificate or its key cannot be used: {why}") from None
        return context

    async def _tick(self) -> None:
        tokens_at = placed_at = evicted_at = self.clock.monotonic()
        self.hub.network_file_systems.sweep()
        logs_at = evicted_at - LOGS_SECONDS
        while True:
            await asyncio.sleep(TICK_SECONDS)
            now = self.clock.monotonic()
            try:
                self.hub.fleet.tick()
                self.hub.sessions.tick()
                self.hub.schedules.tick()
                self.hub.volumes.tick()
                if now - placed_at >= 1.0:
                    placed_at = now
                    self.hub.placer.tick()
                if now - tokens_at >= CHECK_SECONDS:
                    tokens_at = now
                    self.links.check_tokens()
                if now - evicted_at >= EVICT_SECONDS:
                    evicted_at = now
                    self.hub.network_file_systems.sweep()
                    limit = self.config.max_blobs_bytes
                    await asyncio.to_thread(self.hub.blobs.evict, limit, self.clock.wall())
                if now - logs_at >= LOGS_SECONDS:
                    logs_at = now
                    unwritten = await asyncio.to_thread(self._logs.unwritten, self.clock.wall())
                    self._logs.drop_old(unwritten, self.clock.wall())
            except CellburstError as why:
                log.error("the regular look could not be taken: %s", why.info.message)
            except Exception:
                log.exception("the regular look failed")

    async def stop(self) -> None:
        """End sessions, containers and the local worker, then everything else. Leaves nothing running, and parked what is."""
        hub = self.hub
        hub.stopping = True
        log.info("stopping", extra={"containers": len(hub.fleet.containers)})
        for session in hub.sessions:
            try:
                hub.sessions.shut_down(session)
            except CellburstError as why:
                log.error("a session could not be ended: %s", why.info.message)
        if not await hub.fleet.stop_all(EndReason.SHUTDOWN, STOP_CONTAINERS_SECONDS):
            log.warning("some containers were not reported ended", extra={"containers": len(hub.fleet.containers)})
        await asyncio.sleep(FAREWELL_SECONDS if self.links.open else 0)
        if self._local is not None:
            await self._local.stop()
        await self.close()
        folders.remove_announcement(self.config.run_folder, self.instance)
        log.info("stopped")

    async def close(self) -> None:
        """Stop serving and let go of everything, without ending containers."""
        if self._ticker is not None:
            self._ticker.cancel()
        self.links.close_all()
        if self._server is not None:
            self._server.stop()
            await self._server.close_all_connections()
        await self.hub.settle()
        self.hub.write_now()
        self.hub.logs.close()
        await asyncio.to_thread(self.hub.volumes.close)
        await asyncio.to_thread(self.hub.network_file_systems.close)
        self.hub.store.close()
        if self._lock is not None:
            self._lock.close()


def _bind_error(host: str, port: int, why: Exception) -> CellburstError:
    number = getattr(why, "errno", None)
    if number == errno.EADDRINUSE:
        return error(
            ErrorCode.CONFLICT,
            f"port {port} on {host} is in use by another program",
            next="choose another --port, or 0 for any free one",
        )
    return error(
        ErrorCode.BAD_ARGUMENT, f"cannot listen on {host} port {port}: {why}", next="choose another --host or --port"
    )
