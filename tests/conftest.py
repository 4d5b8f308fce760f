"""For all tests: property tests draw the same examples in every run, so that a red run is somebody's change.

`HYPOTHESIS_PROFILE=explore` draws new ones; what it finds becomes a test of its own.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.fixture(scope="session")
def debian_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the images of all tests, `data/images` in it, so that a Debian is made once (30 s)."""
    return tmp_path_factory.mktemp("debian")
