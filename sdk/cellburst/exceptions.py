"""The errors a user can meet, one tree; see `cellburst_protocol.errors` for the codes."""

from cellburst_protocol.errors import (
    CapacityError,
    CellburstError,
    ErrorCode,
    ErrorInfo,
    PlatformError,
    RequestError,
    UserCodeError,
)
from cellburst_protocol.peer import LinkClosed

__all__ = [
    "CapacityError",
    "CellburstError",
    "ErrorCode",
    "ErrorInfo",
    "LinkClosed",
    "PlatformError",
    "RequestError",
    "UserCodeError",
]
