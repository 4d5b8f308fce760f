"""Cellburst: serverless GPUs that you run yourself, from a notebook or a program."""

from cellburst_protocol import SOFTWARE_VERSION as __version__

__all__ = ["__version__"]
