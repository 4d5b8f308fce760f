"""Cellburst: serverless GPUs that you run yourself, from a notebook or a program."""

from typing import TYPE_CHECKING

from cellburst_protocol import SOFTWARE_VERSION as __version__

from .hooks import before_snapshot, on_restore

if TYPE_CHECKING:
    from .cloud_bucket_mount import CloudBucketMount
    from .image import FilePatternMatcher, Image
    from .network_file_system import NetworkFileSystem
    from .secret import Secret
    from .volume import Volume

__all__ = [
    "CloudBucketMount", "FilePatternMatcher", "Image", "NetworkFileSystem", "Secret", "Volume", "__version__", "before_snapshot",
    "on_restore",
]  # fmt: skip


def __getattr__(name: str) -> object:
    # The command and the notebook's hooks import this package at each start: images only when they are used.
    if name in ("FilePatternMatcher", "Image"):
        from . import image

        return getattr(image, name)
    if name == "Secret":
        from .secret import Secret

        return Secret
    if name == "CloudBucketMount":
        from .cloud_bucket_mount import CloudBucketMount

        return CloudBucketMount
    if name == "NetworkFileSystem":
        from .network_file_system import NetworkFileSystem

        return NetworkFileSystem
    if name == "Volume":
        from .volume import Volume

        return Volume
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
