"""Random generators of modules that are imported for a template: which ones each copy of it seeds anew."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cellburst_runner import generators

# Two copies of one process are two forks of it: each re-seeds as after a restore and says what it draws.
COPIES = """
import json, os, sys
sys.path[:0] = {path!r}
from cellburst_runner import restore
from cellburst_runner.cell_imports import ImportLog
before = __import__
assert ImportLog('').preload({modules!r}) == {modules!r}
import builtins, random
assert builtins.__import__ is before and random.seed.__self__ is random._inst
assert random.Random.seed.__module__ == 'random'
for copy in range(2):
    pid = os.fork()
    if pid == 0:
        notes = restore.reseed()
        print(json.dumps([notes, eval({draws!r})]), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
MADE = """
import random
import numpy as np
mine, seeded, later, again = random.Random(), random.Random(5), random.Random(), random.Random(5)
later.seed(5); again.seed()
class Own(random.Random): pass
own = Own()
rng, known = np.random.default_rng(), np.random.default_rng(5)
child = np.random.default_rng().spawn(1)[0] if hasattr(rng, 'spawn') else rng
legacy, legacy_known, reset = np.random.RandomState(), np.random.RandomState(5), np.random.RandomState()
reset.seed(5)
mine.random(), rng.random()
"""


def copies(tmp_path: Path, module: str, draws: str) -> list[object]:
    """What two copies of a process that has imported the module's text draw."""
    (tmp_path / "drawing.py").write_text(module)
    path = [str(tmp_path), str(Path(__file__).parents[3] / "runtime")]
    code = COPIES.format(path=path, modules=["drawing"], draws=draws)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert [notes for notes, _ in found] == [[], []]
    return [drawn for _, drawn in found]


def drawn(name: str) -> str:
    return f"__import__('drawing').{name}"


@pytest.mark.parametrize("name", ["mine", "again", "own", "rng", "child", "legacy"])
def test_one_made_without_a_seed_draws_others_in_each_copy(tmp_path: Path, name: str) -> None:
    one, other = copies(tmp_path, MADE, f"[{drawn(name)}.random() for _ in range(3)]")
    assert one != other


@pytest.mark.parametrize("name", ["seeded", "later", "known", "legacy_known", "reset"])
def test_one_made_with_a_seed_draws_what_it_always_draws(tmp_path: Path, name: str) -> None:
    made = MADE.replace("mine.random(), rng.random()", "")
    one, other = copies(tmp_path, made, f"float({drawn(name)}.random())")
    namespace: dict[str, object] = {}
    exec(made, namespace)
    assert one == other == namespace[name].random()  # type: ignore[attr-defined]


OF_THEIR_OWN = """
import random
class Asks(random.Random):
    def seed(self, a): super().seed(a)
class Once(random.Random):
    made = False
    def seed(self, a=None):
        if self.made: raise ValueError('once')
        self.made = True
        super().seed(a)
asks, once, plain = Asks(), Once(), random.Random()
"""


@pytest.mark.parametrize("name", ["asks", "once", "plain"])
def test_one_whose_seed_is_its_own_is_seeded_too_and_keeps_nobody_from_it(tmp_path: Path, name: str) -> None:
    one, other = copies(tmp_path, OF_THEIR_OWN, f"[{drawn(name)}.random() for _ in range(3)]")
    assert one != other


def test_one_that_cannot_be_seeded_is_told_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    np = pytest.importorskip("numpy")
    watched, rng = generators.Watched(), np.random.default_rng(5)
    watched.of_numpy += [object(), rng.bit_generator]
    monkeypatch.setattr(generators, "_watched", watched)
    (line,) = generators.reseed()
    assert line.startswith("a object could not be re-seeded") and line.endswith("its draws may repeat")
    assert rng.random() != np.random.default_rng(5).random()


def test_what_is_spawned_of_one_made_without_a_seed_differs_too(tmp_path: Path) -> None:
    one, other = copies(tmp_path, MADE, f"{drawn('rng')}.bit_generator.seed_seq.spawn(1)[0].generate_state(1).tolist()")
    assert one != other


@pytest.mark.parametrize("preload", ["ImportLog('').preload", "zygote_preload.preload"])
@pytest.mark.parametrize(
    ("seeding", "library"),
    [
        ("import random; random.seed(123)", "random"),
        ("from random import seed; seed(123)", "random"),
        ("import numpy as np; np.random.seed(123)", "numpy"),
        ("import numpy; numpy.random.seed(seed=123)", "numpy"),
        ("import random; random.seed(123); raise ValueError", "random"),
        ("import torch; torch.manual_seed(123)", "torch"),
    ],
)
def test_a_module_that_seeds_a_global_generator_is_not_for_a_template(
    tmp_path: Path, seeding: str, library: str, preload: str
) -> None:
    (tmp_path / "drawing.py").write_text(seeding)
    (tmp_path / "user.py").write_text("import drawing")
    (tmp_path / "torch.py").write_text("def manual_seed(seed): pass")  # the real one is not everywhere
    code = f"""
import sys
sys.path[:0] = {[str(tmp_path), str(Path(__file__).parents[3] / "runtime")]!r}
from cellburst_runner import generators, zygote_preload
from cellburst_runner.cell_imports import ImportLog
try:
    {preload}(['colorsys', 'user'])
except (generators.Seeds, zygote_preload.Refused) as why:
    assert why.name == 'user'
    assert str(why) == 'user seeds the random generator of {library} when it is imported', why
else:
    raise AssertionError('it was imported')
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("seeding", "draw"),
    [
        ("import random; random.random(); random.seed()", "__import__('random').random()"),
        ("import random; random.seed(123); random.seed(None)", "__import__('random').random()"),
        ("import numpy as np; np.random.random()", "__import__('numpy').random.random()"),
    ],
)
def test_one_that_only_draws_has_not(tmp_path: Path, seeding: str, draw: str) -> None:
    one, other = copies(tmp_path, seeding, draw)
    assert one != other


def test_what_a_module_put_over_the_import_stays(tmp_path: Path) -> None:
    text = """
import builtins
before = builtins.__import__
def mine(*arguments, **options):
    return before(*arguments, **options)
builtins.__import__ = mine
"""
    (tmp_path / "drawing.py").write_text(text)
    code = f"""
import sys
sys.path[:0] = {[str(tmp_path), str(Path(__file__).parents[3] / "runtime")]!r}
from cellburst_runner.cell_imports import ImportLog
assert ImportLog('').preload(['drawing']) == ['drawing']
import builtins, colorsys, random, drawing
assert builtins.__import__ is drawing.mine
random.seed(5)
from cellburst_runner import generators
generators.look('drawing')  # it was after the imports
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
