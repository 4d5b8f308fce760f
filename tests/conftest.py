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

# What only root's set-up installs, or only root may do. As root nothing is skipped: what is missing there is a failure.
ROOT_ONLY = {
    "gvisor": "needs root and runsc",
    "netns": "needs root and network namespaces",
    "postgres": "needs PostgreSQL's server programs, which `make test` installs as root",
    "browser": "needs Chromium, which `make test` installs as root",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without root the rest is tested, and the summary says what was not."""
    if os.geteuid() == 0:
        return
    for item in items:
        for marker, why in ROOT_ONLY.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=why))


@pytest.fixture(scope="session")
def debian_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for the images of all tests, `data/images` in it, so that a Debian is made once (30 s)."""
    return tmp_path_factory.mktemp("debian")
