"""A whole house: a real gateway, worker and engine, and real kernels that run notebooks' cells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench.harness import House, Kernel, house


@pytest.fixture(scope="module")
def place() -> Iterator[House]:
    """One gateway and worker for a module, with two simulated A100. It makes no containers that a test did not ask for:
    some compare what is on the machine."""
    with house("A100:2", warm_pool=False) as made:
        yield made


@pytest.fixture
def kernel(place: House) -> Iterator[Kernel]:
    """A kernel with the magic; its session is stopped afterwards."""
    made = place.kernel()
    try:
        made.check("%load_ext cellburst_jupyter")
        yield made
        made.run("%modal stop")
    finally:
        made.close()


@pytest.fixture(scope="module")
def shared(place: House) -> Iterator[Kernel]:
    """One kernel for tests that leave its session as it was."""
    made = place.kernel()
    try:
        made.check("%load_ext cellburst_jupyter")
        made.check("%%modal\nwarm = 1")
        yield made
    finally:
        made.close()
