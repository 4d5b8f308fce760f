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


class VolumeConflict(RequestError):
    """Somebody else changed a file of a volume after it was read here: nothing was published. `paths` are those files, `by` is
    who changed the first."""

    @property
    def paths(self) -> list[str]:
        """The files, at most 100."""
        return self.info.detail.get("paths", "").splitlines()

    @property
    def by(self) -> str:
        """A session, a host."""
        return self.info.detail.get("by", "")


class VolumeFileExists(RequestError, FileExistsError):
    """A file is there already, and `force` was not given."""


class VolumeFileMissing(RequestError, FileNotFoundError):
    """A volume has nothing of that name."""


__all__ = [
    "CapacityError",
    "CellburstError",
    "ErrorCode",
    "ErrorInfo",
    "LinkClosed",
    "PlatformError",
    "RequestError",
    "UserCodeError",
    "VolumeConflict",
    "VolumeFileExists",
    "VolumeFileMissing",
]
