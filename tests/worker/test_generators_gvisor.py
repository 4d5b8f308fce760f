"""What sessions of one template draw: libraries' generators that were made without a seed, and modules that seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.worker.test_edited_sources_gvisor import source  # noqa: F401 - a fixture
from tests.worker.test_parking_gvisor import cell, house, until
from tests.worker.test_warm_pool_gvisor import at_once, details  # noqa: F401 - a fixture

pytestmark = pytest.mark.gvisor

DRAW = """
import random, sys
print('mypkg.own' in sys.modules, 'mypkg.inner' in sys.modules)
import mypkg.own
print(random.random(), mypkg.own.mine.random(), mypkg.own.numbers.random(), mypkg.own.known.random())
import mypkg.inner
print(random.random())
"""


async def test_each_session_draws_its_own_but_for_what_was_seeded(
    short_path: Path,
    source: Path,  # noqa: F811
) -> None:
    source.write_text("import random\nrandom.seed(123)\n")
    own = "import random\nimport numpy\nmine, known, numbers = random.Random(), random.Random(5), numpy.random.default_rng()"
    (source.parent / "own.py").write_text(own)
    async with house(short_path, templates=True, warm=False) as h:
        first, _ = await h.ready("g1")
        await cell(first, "call-1", "import mypkg.inner, mypkg.own")
        await until(h.runtime.snapshots.templates, 120)
        drawn = []
        for id in ("g2", "g3"):
            container, ready = await h.ready(id)
            assert ready.start == "template", details(ready)
            there, numbers, seeded = (await cell(container, "call-1", DRAW)).splitlines()
            assert there == "True False"  # the one that seeds is left to who imports it
            assert float(seeded) == random.Random(123).random()
            drawn.append(numbers.split())
        same = [one == other for one, other in zip(*drawn, strict=True)]
        assert same == [False, False, False, True], drawn
