"""A bare `%%modal` cell whose kernel is on another machine than the worker: its environment is built there. Real parts all through.

The kernel only says that it is elsewhere, and its packages are read from a small folder of the test's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.harness import House, Kernel, house
from tests.house.test_parking import cellburst

pytestmark = [pytest.mark.gvisor, pytest.mark.netns, pytest.mark.timeout(600)]

# What the environment is built on, made before a cell waits for it: the first one of a test session takes a minute.
BASE = """
import cellburst, cellburst.image_mirror
cellburst.image_mirror.distributions = lambda: iter(())
base = cellburst.Image.mirror().env({"A": "1"})
"""


@pytest.fixture
def place(debian_store: Path) -> Iterator[House]:
    """A house whose images, and what they are made from, are shared by the tests of this session."""
    with house("A100:1", warm_pool=False) as made:
        (made.folder / "data").mkdir(mode=0o700)
        for name in ("images", "uv-cache", "bundles"):
            (debian_store / "data" / name).mkdir(parents=True, exist_ok=True)
            (made.folder / "data" / name).symlink_to(debian_store / "data" / name)
        (made.folder / "base.py").write_text(BASE)
        command = [sys.executable, "-m", "cellburst", "image", "build", str(made.folder / "base.py")]
        subprocess.run(command, env={**os.environ, **made.environment}, timeout=500, check=True, capture_output=True)
        yield made


def installed(site: Path, name: str, version: str, **files: str) -> Path:
    """What an installer leaves of a package; its dist-info folder."""
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    for file, text in files.items():
        (info / file.replace("_json", ".json")).write_text(text)
    return info


def environment(folder: Path) -> str:
    """A cell that has the kernel be on another machine, with one package of an index, an editable one and one of a local file."""
    site, project = folder / "site", folder / "project"
    project.mkdir()
    (project / "edited.py").write_text("said = 'from its source'\n")
    installed(site, "six", "1.17.0")
    editable = {"url": project.as_uri(), "dir_info": {"editable": True}}
    installed(site, "edited", "0.1", direct_url_json=json.dumps(editable))
    (site / "own.py").write_text("said = 'as it was installed'\n")
    (folder / "own-2.0-py3-none-any.whl").touch()
    local = {"url": (folder / "own-2.0-py3-none-any.whl").as_uri(), "archive_info": {}}
    record = "own.py,,\nown-2.0.dist-info/METADATA,,\n"
    purely = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
    installed(site, "own", "2.0", WHEEL=purely, RECORD=record, direct_url_json=json.dumps(local))
    return f"""
from importlib.metadata import distributions
import cellburst.image_mirror, cellburst_jupyter.environment
cellburst_jupyter.environment.machine_id = lambda: 'another-machine'
cellburst.image_mirror.distributions = lambda: distributions(path=[{str(site)!r}])
"""


LOOK = """%%modal
import os, sys, six, edited, own
from importlib.metadata import version
x = [1]
print(six.__version__, edited.said, own.said, version('own'), sys.version_info[:2], 'psutil' in sys.modules)
try:
    import pytest
except ImportError:
    print('nothing else')
print(greet(), sys.prefix)
print(os.listdir(), open('sub/beside.txt').read())
with open('made.txt', 'w') as file:
    file.write('there')
del edited, own, six
"""


def test_a_bare_cell_is_built_where_its_kernel_is_not(place: House, kernel: Kernel, tmp_path: Path) -> None:
    folder = place.folder / "notebook-0"
    (folder / "sub").mkdir()
    (folder / "sub" / "beside.txt").write_text("beside it")
    (folder / ".env").write_text("SECRET=1")
    kernel.check(environment(tmp_path))
    here = kernel.check(
        "import sys\ndef greet(): return f'hello {sys.version_info[:2]}'\nprint(sys.version_info[:2])"
    ).text.strip()
    ran = kernel.check(LOOK)
    said, card = ran.text, "".join(str(one["content"]) for one in ran.messages if "display_data" in one["msg_type"])
    assert f"1.17.0 from its source as it was installed 2.0 {here} False" in said, said
    assert "nothing else" in said and f"hello {here}" in said, said
    assert "this environment is to be built on" in card and "building, step 3 of 5: pip_install six" in card, card
    # Its folder is a copy, and the session's own.
    assert "went along as it is now: 1 files" in said and "['sub'] beside it" in said, said
    assert "written there: made.txt" in said and not (folder / "made.txt").exists(), said
    kernel.check("%modal get made.txt")
    assert (folder / "made.txt").read_text() == "there"
    (folder / "given.txt").write_text("from here")
    kernel.check("%modal put given.txt")
    kernel.check("%modal park")
    back = kernel.check(
        "%%modal\nimport own\nx.append(2); print(x, own.said, open('given.txt').read(), open('sub/beside.txt').read())\ndel own"
    ).text
    assert "[1, 2] as it was installed from here beside it" in back and "names only" not in back, back
    (session,) = [s for s in json.loads(cellburst(place, "status", "--json"))["sessions"] if s["state"] != "ended"]
    assert session["container"]["image"], session
