"""What every HTTP route shares: Host and Origin rules, the token, errors as JSON, no traceback to anyone."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import msgspec
from tornado.web import HTTPError, RequestHandler

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error

from .auth import Authenticator
from .store_rows import Role, TokenRecord

if TYPE_CHECKING:
    from .hub import Hub

STATUS_OF = {
    ErrorCode.UNAUTHENTICATED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.VOLUME_CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.BUSY: 429,
    ErrorCode.DISK_FULL: 507,
    ErrorCode.UNAVAILABLE: 503,
    ErrorCode.STORE: 503,
}
STATUS_OF_FAULT = {"request": 400, "user_code": 400, "capacity": 503, "platform": 500}

log = logging.getLogger(__name__)


def status_of(code: ErrorCode) -> int:
    """The HTTP status for an error."""
    return STATUS_OF.get(code, STATUS_OF_FAULT[code.fault.value])


class Base(RequestHandler):
    """A route that needs a token, unless `open_to_all`."""

    open_to_all = False
    for_containers = False  # whether code in a container may use it, with a token of its own
    token: TokenRecord | None = None
    token_hash = ""

    def initialize(self, hub: Hub, auth: Authenticator) -> None:
        """Tornado gives each handler these."""
        self.hub = hub
        self.auth = auth

    def set_default_headers(self) -> None:
        """No version of the server, nothing cached, no types guessed."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        """Check Host, Origin and token before anything else, also before a body is read."""
        try:
            self.auth.check_host(self.request.host)
            self.auth.check_origin(self.request.headers.get("Origin"), self.request.host)
            if not self.open_to_all:
                self.token, self.token_hash = self.auth.bearer(self.request.headers.get("Authorization"))
                if self.token.role is Role.CONTAINER and not self.for_containers:
                    raise error(ErrorCode.FORBIDDEN, "this is not for code in a container", next="do it outside")
        except CellburstError as why:
            self.refuse(why.info)

    def refuse(self, info: ErrorInfo) -> None:
        """Answer with an error as JSON."""
        self.clear()
        self.set_status(status_of(info.code))
        if info.code is ErrorCode.UNAUTHENTICATED:
            self.set_header("WWW-Authenticate", "Bearer")
        if self.get_status() >= 401 and self.request.method in ("PUT", "POST"):
            self.set_header("Connection", "close")  # what remains of the body is not read
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(info) if self.request.method != "HEAD" else None)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Tornado's own refusals and our defects, as JSON."""
        why = kwargs.get("exc_info", (None, None))[1]
        if isinstance(why, CellburstError):
            self.refuse(why.info)
            return
        codes = {404: ErrorCode.NOT_FOUND, 405: ErrorCode.BAD_ARGUMENT, 413: ErrorCode.TOO_LARGE}
        code = codes.get(status_code, ErrorCode.BAD_ARGUMENT if status_code < 500 else ErrorCode.INTERNAL)
        text = "there is nothing at this address" if status_code == 404 else self._reason
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(ErrorInfo(code=code, message=text)))

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Defects go to the log whole, refusals do not."""
        if isinstance(value, HTTPError | CellburstError):
            return
        log.error("a request failed", exc_info=value, extra={"route": self.request.path[:200]})


class NothingHere(Base):
    """Every other address: 404 for those who may ask, 401 for the rest."""

    def prepare(self) -> None:
        """Refuse in either case."""
        super().prepare()
        if not self._finished:
            self.refuse(ErrorInfo(code=ErrorCode.NOT_FOUND, message="there is nothing at this address"))
