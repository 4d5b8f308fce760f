"""Who asks: bearer tokens of the Authorization header, and the Host and Origin rules of every route.

A token is taken from the header only, never from a URL or a body, and looked up by its SHA-256, so that neither a
comparison's time nor the record tells anything about it.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable
from urllib.parse import urlsplit

from cellburst_protocol.clock import Clock
from cellburst_protocol.errors import CellburstError, ErrorCode, error

from .config import GatewayConfig, is_loopback
from .store import Store
from .store_rows import Owner, Role, TokenRecord
from .store_tokens import hash_token

MAX_TOKEN_CHARACTERS = 512  # ours have 43; hashing a megabyte for a stranger would be a gift
MAX_LOGGED_FAILURES = 20  # a minute; the rest is counted
WORKSPACE = "home"
CONTAINER_PREFIX = "cbc."
USER_TOKEN_NAME = "user token file"  # noqa: S105 - a label, not a secret
WORKER_TOKEN_NAME = "worker token file"  # noqa: S105

log = logging.getLogger(__name__)


class Authenticator:
    """Decides who a request is from."""

    def __init__(self, store: Store, clock: Clock, config: GatewayConfig) -> None:
        self._store = store
        self._clock = clock
        self._config = config
        self.failures = 0
        self._logged: list[float] = []
        # Tokens of containers are not recorded: `app` says who knows them (a whole token, or a container by its id).
        self.container_token: Callable[[str], TokenRecord] | None = None
        self.container_alive: Callable[[str], TokenRecord] | None = None

    def seed(self, owner: Owner, token: str, worker_token: str) -> None:
        """Record the tokens of the secret files; those that an earlier file held are revoked."""
        now = self._clock.wall()
        self._store.ensure_workspace(owner, now=now)
        wanted = {
            USER_TOKEN_NAME: self._store.add_token(
                hash_token(token), owner, name=USER_TOKEN_NAME, role=Role.USER, now=now
            ),
            WORKER_TOKEN_NAME: self._store.add_token(
                hash_token(worker_token), owner, name=WORKER_TOKEN_NAME, role=Role.WORKER, now=now
            ),
        }
        for known in self._store.list_tokens(owner.workspace):
            if known.name in wanted and known.id != wanted[known.name].id and known.revoked is None:
                self._store.revoke_token(known.id, now=now)

    def bearer(self, header: str | None) -> tuple[TokenRecord, str]:
        """The token of an Authorization header, and its hash. Raises RequestError (UNAUTHENTICATED)."""
        scheme, _, token = (header or "").partition(" ")
        token = token.strip()
        try:
            if scheme.lower() != "bearer" or not token or len(token) > MAX_TOKEN_CHARACTERS:
                raise error(
                    ErrorCode.UNAUTHENTICATED, "this gateway needs a token", allowed="a header `Authorization: Bearer TOKEN`",
                    next="the token of this user's own gateway is the file `token` in its data folder",
                )  # fmt: skip
            if token.startswith(CONTAINER_PREFIX) and self.container_token is not None:
                found = self.container_token(token)
                return found, CONTAINER_PREFIX + found.id
            hashed = hash_token(token)
            return self.check(hashed), hashed
        except CellburstError as why:
            if why.code is ErrorCode.UNAUTHENTICATED:
                self._failed()
            raise

    def check(self, hashed: str) -> TokenRecord:
        """Whose token it is now, by what `bearer` gave with it. Raises RequestError (UNAUTHENTICATED)."""
        if hashed.startswith(CONTAINER_PREFIX) and self.container_alive is not None:
            return self.container_alive(hashed.removeprefix(CONTAINER_PREFIX))
        return self._store.authenticate(hashed, now=self._clock.wall())

    def _failed(self) -> None:
        self.failures += 1
        now = self._clock.monotonic()
        self._logged = [at for at in self._logged if now - at < 60]
        if len(self._logged) < MAX_LOGGED_FAILURES:
            self._logged.append(now)
            log.warning("a request without a valid token was refused", extra={"failures": self.failures})

    # -- Host and Origin -------------------------------------------------------------------------------------------

    def check_host(self, host_header: str) -> None:
        """Refuse names that are not ours: a page that rebinds its own name to this address. Raises RequestError."""
        name = host_name(host_header)
        known = {self._config.host.lower(), *self._config.allowed_hosts}
        if is_loopback(name) or name in known:
            return
        if not self._config.is_loopback and _is_address(name):
            return  # an address cannot be rebound; the certificate says who it is
        raise error(
            ErrorCode.FORBIDDEN, f"this gateway does not answer to the host name {name[:80]!r}",
            next="use its address, or add the name to gateway.allowed_hosts",
        )  # fmt: skip

    def check_origin(self, origin: str | None, host_header: str) -> None:
        """Refuse requests that a page of another origin makes. Programs send no Origin. Raises RequestError."""
        if origin is None:
            return
        if urlsplit(origin).netloc.lower() != host_header.lower() or not origin.startswith(("http://", "https://")):
            raise error(ErrorCode.FORBIDDEN, f"requests of pages from {origin[:80]!r} are not answered here")


def host_name(host_header: str) -> str:
    """The name in a Host header, without its port."""
    host = host_header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
