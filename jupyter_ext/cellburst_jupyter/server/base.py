"""What all handlers share: login, permission, XSRF, bodies that are checked, errors as JSON."""

from __future__ import annotations

from collections.abc import AsyncIterable
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec
from jupyter_server.base.handlers import APIHandler
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, error
from cellburst_protocol.framing import Buffer

from .gateway import Gateway
from .settings import CellburstServer

RESOURCE = "cellburst"  # what an Authorizer is asked about: `read`, `write` or `execute` on it
STATUS_OF = {
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.CONFLICT: 409,
    ErrorCode.VOLUME_CONFLICT: 409,
    ErrorCode.TOO_LARGE: 413,
    ErrorCode.GATEWAY_DOWN: 503,
    ErrorCode.LINK_CLOSED: 503,
    ErrorCode.DISK_FULL: 507,
}
STATUS_OF_FAULT = {"request": 400, "user_code": 400, "capacity": 503, "platform": 502}
T = TypeVar("T")


class Base(APIHandler):
    """One route. Subclasses decorate every verb with `authenticated` and `authorized`."""

    auth_resource = RESOURCE

    def initialize(self, gateway: Gateway, options: CellburstServer) -> None:
        """Tornado gives each handler these."""
        self.gateway = gateway
        self.server_options = options

    def body(self, kind: type[T]) -> T:
        """The request's JSON body. Raises CellburstError (BAD_ARGUMENT) naming the field that is wrong."""
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=kind)
        except msgspec.MsgspecError as why:
            # Only the path of the field is told: the text around it may hold a secret's value.
            field = str(why).rpartition("at `")[2].rstrip("`") if "at `" in str(why) else "body"
            raise error(ErrorCode.BAD_ARGUMENT, f"the request's {field} is of the wrong shape") from None

    def answer(self, value: Any) -> None:
        """Finish with a struct as JSON."""
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        self.finish(msgspec.json.encode(value))

    async def send_file(self, name: str, size_bytes: int, pieces: AsyncIterable[Buffer]) -> None:
        """Finish with a file of so many bytes that the browser is to keep: never with a type that it would run.

        Raises what `pieces` raises before the first one; after it the connection is closed, so that the file is seen as broken.
        """
        self.set_header("Content-Type", "application/octet-stream")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}")
        self.set_header("Content-Length", str(size_bytes))
        self.set_header("Cache-Control", "no-store")
        try:
            async for piece in pieces:
                self.write(bytes(piece))
                await self.flush()
        except StreamClosedError:
            return  # the browser gave it up
        except CellburstError:
            if not self._headers_written:
                raise
            self.request.connection.stream.close()  # type: ignore[union-attr]  # fewer bytes than were said
            return
        self.finish(set_content_type="application/octet-stream")  # for an empty file: else Jupyter calls it JSON

    def refuse(self, info: ErrorInfo) -> None:
        """Finish with an error as JSON. The gateway's own refusals of its token are not the browser's: 502, never 401 or 403."""
        self.clear()
        self.set_status(STATUS_OF.get(info.code, STATUS_OF_FAULT[info.code.fault.value]))
        if info.code in (ErrorCode.UNAUTHENTICATED, ErrorCode.FORBIDDEN):
            self.set_status(502)
        self.set_header("Content-Type", "application/json")
        self.finish(msgspec.json.encode(info))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Errors of ours as they are, Jupyter's refusals as Jupyter answers them."""
        why = kwargs.get("exc_info", (None, None))[1]
        if isinstance(why, CellburstError):
            self.refuse(why.info)
        elif isinstance(why, TimeoutError):
            self.refuse(
                ErrorInfo(code=ErrorCode.UNAVAILABLE, message="the gateway did not answer in time", next="try again")
            )
        else:
            super().write_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: BaseException | None, tb: Any) -> None:
        """Refusals are no defects."""
        if not isinstance(value, CellburstError | HTTPError):
            super().log_exception(typ, value, tb)
