"""One tree of errors. Told apart by code, never by text; each code says whose fault it is.

    CellburstError
     +-- RequestError      the request: wrong argument, unknown name, malformed message      (fault "request")
     +-- UserCodeError     the user's code: raised, exited, used up its memory               (fault "user_code")
     +-- CapacityError     what was asked is not there, or not free                           (fault "capacity")
     +-- PlatformError     ours: a worker lost, a full disk, a link closed                    (fault "platform")

An error on the wire is an `ErrorInfo`: a sentence, the value given, what is allowed, and the next thing to do.
"""

from __future__ import annotations

import enum

import msgspec


class Fault(enum.StrEnum):
    """Whose fault an error is."""

    REQUEST = "request"
    USER_CODE = "user_code"
    CAPACITY = "capacity"
    PLATFORM = "platform"


class ErrorCode(enum.StrEnum):
    """Every error that crosses a process. The value is `fault.name`, so the fault needs no second table."""

    # the request
    BAD_ARGUMENT = "request.bad_argument"
    BAD_MESSAGE = "request.bad_message"
    UNKNOWN_GPU = "request.unknown_gpu"
    NOT_YET = "request.not_yet"
    UNAUTHENTICATED = "request.unauthenticated"
    FORBIDDEN = "request.forbidden"
    NOT_FOUND = "request.not_found"
    CONFLICT = "request.conflict"
    BUSY = "request.busy"
    VERSION = "request.version"
    UNPICKLABLE = "request.unpicklable"
    UNKNOWN_NAME = "request.unknown_name"
    TOO_LARGE = "request.too_large"
    PYTHON_DIFFERS = "request.python_differs"
    BUDGET = "request.budget"
    VOLUME_CONFLICT = "request.volume_conflict"
    # the user's code
    RAISED = "user_code.raised"
    EXITED = "user_code.exited"
    OUT_OF_MEMORY = "user_code.out_of_memory"
    TIMEOUT = "user_code.timeout"
    INTERRUPTED = "user_code.interrupted"
    IMAGE_BUILD = "user_code.image_build"
    # capacity
    NO_SUCH_HARDWARE = "capacity.no_such_hardware"
    NO_WORKER = "capacity.no_worker"
    QUEUE_FULL = "capacity.queue_full"
    # the platform
    WORKER_LOST = "platform.worker_lost"
    CONTAINER_LOST = "platform.container_lost"
    START_FAILED = "platform.start_failed"
    LINK_CLOSED = "platform.link_closed"
    GATEWAY_DOWN = "platform.gateway_down"
    DISK_FULL = "platform.disk_full"
    STORE = "platform.store"
    INTEGRITY = "platform.integrity"
    INTERNAL = "platform.internal"
    UNAVAILABLE = "platform.unavailable"

    @property
    def fault(self) -> Fault:
        """Whose fault it is."""
        return Fault(self.value.partition(".")[0])


class ErrorInfo(msgspec.Struct, omit_defaults=True, kw_only=True):
    """An error as it crosses a process.

    `message` is one sentence that contains the value given; `allowed` says what is permitted and `next` the next thing
    to do, each empty where there is nothing to say. `detail` is for machines.
    """

    code: ErrorCode
    message: str
    allowed: str = ""
    next: str = ""
    detail: dict[str, str] = {}

    def text(self) -> str:
        """The whole of it for a person: one to three lines."""
        lines = [self.message]
        if self.allowed:
            lines.append(f"Allowed: {self.allowed}")
        if self.next:
            lines.append(f"Next: {self.next}")
        return "\n".join(lines)


class CellburstError(Exception):
    """Base of every error of ours; `info` is what crosses the wire."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info.text())
        self.info = info

    @property
    def code(self) -> ErrorCode:
        """The error's code."""
        return self.info.code


class RequestError(CellburstError):
    """The request was wrong; nothing was done."""


class UserCodeError(CellburstError):
    """The user's code failed, or was stopped for what it did."""


class CapacityError(CellburstError):
    """What was asked for is not there or not free."""


class PlatformError(CellburstError):
    """A part of the platform failed."""


_BY_FAULT: dict[Fault, type[CellburstError]] = {
    Fault.REQUEST: RequestError,
    Fault.USER_CODE: UserCodeError,
    Fault.CAPACITY: CapacityError,
    Fault.PLATFORM: PlatformError,
}


def from_info(info: ErrorInfo) -> CellburstError:
    """The exception of the tree for an error that came over the wire."""
    return _BY_FAULT[info.code.fault](info)


def error(code: ErrorCode, message: str, *, allowed: str = "", next: str = "", **detail: str) -> CellburstError:
    """Make an error of the right class: `raise error(ErrorCode.NOT_FOUND, "...", next="...")`."""
    return from_info(ErrorInfo(code=code, message=message, allowed=allowed, next=next, detail=detail))
