"""Images with Python and packages: a real Debian by mmdebstrap, uv, apt, on real gVisor with a network of its own."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from cellburst.image import Image
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import AddPython, DebianSlim, ImageRecipe, PipInstall, RunCommands
from cellburst_runtime.image_build import BuiltImage, ImageBuilder
from cellburst_runtime.image_python import PythonPlaces, candidates
from cellburst_runtime.network import Networks
from cellburst_runtime.tools import find_uv
from tests.fakes.images import ImageHouse, content

pytestmark = [pytest.mark.gvisor, pytest.mark.netns, pytest.mark.timeout(600)]


@pytest.fixture
async def house(debian_store: Path) -> AsyncIterator[ImageHouse]:
    networks = Networks(debian_store / "run")
    made = ImageHouse(debian_store, networks)
    yield made
    await networks.close()
    await made.end()


async def build(house: ImageHouse, image: Image, builder: ImageBuilder | None = None) -> BuiltImage:
    recipe = image.recipe(house.folder / "packs")
    house.packs.files.update(recipe.files)
    return await house.build(recipe.recipe, builder)


async def test_a_debian_with_python_packages_and_commands(house: ImageHouse, tmp_path: Path) -> None:
    image = (
        Image.debian_slim("3.11").apt_install("hello").pip_install("six", "tomli-w")
        .run_commands("hello > /said; python -c 'import six, sys, tomli_w; print(six.__name__, sys.version_info[:2])' >> /said; pip list >> /said",
                      "cat /etc/os-release; cat /etc/resolv.conf /etc/apt/sources.list; ls -a /tmp /root > /left")
    )  # fmt: skip
    with await build(house, image) as built:
        said = content(built, "/said").decode()
        assert "Hello, world!" in said and "six (3, 11)" in said and "tomli_w" in said and "pip " in said
        assert built.python == "/usr/bin/python3" and built.python_version.startswith("3.11.")
        assert content(built, f"{built.site_packages}/six.py") and "uv-" not in content(built, "/left").decode()
        assert any("bookworm" in line for line in house.log)
        # Nothing of this machine is in the layers.
        for layer in built.layers[:-1]:
            for name in ("etc/resolv.conf", "etc/hostname"):
                place = layer / name
                assert not place.exists() or place.read_bytes() == b""
            assert not (layer / "cellburst").exists() or not any((layer / "cellburst").rglob("*.conf"))


async def test_packages_and_the_cache_share_their_files(house: ImageHouse) -> None:
    recipe = ImageRecipe(steps=[DebianSlim(), PipInstall(packages=["six"])])
    with await house.build(recipe) as built:
        place = built.layers[0] / built.site_packages.lstrip("/") / "six.py"
        assert place.is_file() and not place.is_symlink() and place.stat().st_nlink > 1


async def test_code_of_an_image_cannot_reach_the_shared_cache(house: ImageHouse) -> None:
    cache = house.folder / "data" / "uv-cache"
    (await house.build(ImageRecipe(steps=[DebianSlim(), PipInstall(packages=["six"])]))).release()

    def files() -> set[Path]:
        return {path.relative_to(cache) for path in cache.rglob("*")}

    before = files()
    assert before
    # uv asks the image's Python what it is: that can be anything a command has put there.
    trap = '#!/bin/sh\\ntouch "$UV_CACHE_DIR/planted" && touch /tmp/sprung\\nexec /usr/bin/real-python "$@"\\n'
    plant = f"cd /usr/bin; mv python3.11 real-python; printf '{trap}' > python3.11; chmod 755 python3.11"
    recipe = ImageRecipe(steps=[DebianSlim(), RunCommands(commands=[plant]), PipInstall(packages=["six"])])
    with await house.build(recipe) as built:
        assert content(built, f"{built.site_packages}/six.py") and content(built, "/tmp/sprung") == b""
    assert files() == before


async def test_an_unknown_package_is_told_in_uvs_words(house: ImageHouse) -> None:
    with pytest.raises(CellburstError) as caught:
        await build(house, Image.debian_slim("3.11").pip_install("no-such-package-by-anyone-h8"))
    message = caught.value.info.message
    assert (
        caught.value.code is ErrorCode.IMAGE_BUILD
        and "Step 2 of 2: pip_install failed: `uv pip install no-such-package-by-anyone-h8` failed" in message
    )
    assert "no-such-package-by-anyone-h8 was not found" in message and "exit code 1" in message
    with pytest.raises(CellburstError, match=r"(?s)apt-get install no-such-deb-h8.*Unable to locate package"):
        await build(house, Image.debian_slim("3.11").apt_install("no-such-deb-h8"))


async def test_a_source_package_is_built_in_the_sandbox(house: ImageHouse, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    (tmp_path / "p/setup.py").write_text(
        "import os, setuptools\nsetuptools.setup(name='h8p', version=f'1.{os.getuid()}', py_modules=['h8p'])\n"
    )
    (tmp_path / "p/h8p.py").write_text("x = 1\n")
    image = Image.debian_slim("3.11").add_local_dir(tmp_path / "p", "/src", copy=True).pip_install("/src")
    with await build(house, image) as built:
        assert content(built, f"{built.site_packages}/h8p.py") == b"x = 1\n"


async def test_a_function_runs_while_building(house: ImageHouse) -> None:
    def leave(text: str, *, times: int) -> None:
        from pathlib import Path

        Path("/left").write_text(f"{text * times} {sys.version_info[1]}")

    def fail() -> None:
        raise ValueError("not today")

    with await build(house, Image.debian_slim("3.11").run_function(leave, args=("x",), kwargs={"times": 3})) as built:
        assert content(built, "/left") == b"xxx 11"
    with pytest.raises(CellburstError, match=r"(?s)run_function .*fail.*ValueError: not today"):
        await build(house, Image.debian_slim("3.11").run_function(fail))


async def test_a_locked_project(house: ImageHouse, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname="p"\nversion="1"\nrequires-python=">=3.11"\ndependencies=["six==1.16.0"]\n'
    )
    with await build(house, Image.debian_slim("3.11").uv_sync(str(tmp_path), frozen=False)) as built:
        assert b'__version__ = "1.16.0"' in content(built, f"{built.site_packages}/six.py")


async def test_another_python_is_copied_in(house: ImageHouse) -> None:
    places = PythonPlaces(find_uv(), house.folder / "pythons")
    version = ""
    for minor in (12, 13, 10, 11):
        async with aclosing(candidates(places, f"3.{minor}", house.log.append)) as here:
            found = await anext(here, None)
        if found:
            version = f"3.{minor}"
            break
    assert version, "this machine has no other Python, and uv could not download one"
    steps = [DebianSlim(), AddPython(python_version=version), PipInstall(packages=["six"])]
    run = RunCommands(commands=["python -c 'import six, ssl, sys; print(sys.version_info[1])' > /said; pip --version"])
    with await house.build(ImageRecipe(steps=[*steps, run])) as built:
        assert content(built, "/said").decode().strip() == version.partition(".")[2]
        assert built.python == f"/usr/local/bin/python{version}" and built.site_packages.startswith("/usr/local/lib")
