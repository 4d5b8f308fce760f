"""Images with Python and packages: a real Debian by mmdebstrap, uv, apt, on real gVisor with a network of its own."""

from __future__ import annotations

import os
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
from cellburst_runtime.tools import find_uv, run_command
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
    many = [f"no-such-package-by-anyone-h8-{number}" for number in range(20)]
    with pytest.raises(CellburstError) as caught:
        await build(house, Image.debian_slim("3.11").pip_install(*many))
    shown = caught.value.info.message.partition("`")[2].partition("`")[0]
    assert shown.endswith(" …") and set(shown.split()[3:-1]) < set(many)  # no word is cut
    assert caught.value.info.detail["command"].split()[3:] == many
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


async def test_a_mirror_with_steps_has_a_python_for_the_packages_of_this_one(
    house: ImageHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv, venv = find_uv(), tmp_path / "venv"
    for words in (
        ["venv", "--python", sys.executable, str(venv)],
        ["pip", "install", "--python", str(venv), "six", "tomli-w"],
    ):
        made = await run_command([uv, *words], seconds=120.0)
        assert made.ok, made.reason()
    [packages] = venv.glob("lib/python*/site-packages")
    here = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    check = f"import six, sys, tomli_w; assert sys.version_info >= {sys.version_info[:3]}; print(sys.version_info[:2])"
    image = Image.mirror().run_commands(f'python3 -c "{check}" > /said')
    with monkeypatch.context() as inside:
        inside.setattr(sys, "path", [str(packages), *(path for path in sys.path if "site-packages" not in path)])
        made_recipe = image.recipe(house.folder / "packs")
    [pip] = [step for step in made_recipe.recipe.steps if isinstance(step, PipInstall)]
    assert [text.partition("==")[0] for text in pip.packages] == ["six", "tomli-w"]
    house.packs.files.update(made_recipe.files)
    with await house.build(made_recipe.recipe) as built:
        assert content(built, "/said").decode().strip() == str(sys.version_info[:2])
        assert [int(n) for n in built.python_version.split(".")] >= [int(n) for n in here.split(".")]


async def test_a_frozen_package_that_cannot_be_had_is_named_with_the_nearest_that_can(house: ImageHouse) -> None:
    frozen = PipInstall(packages=["six==1.16.99", "tomli-w==1.0.0"], no_deps=True)
    with pytest.raises(CellburstError) as caught:
        await house.build(ImageRecipe(steps=[DebianSlim(), frozen]))
    info = caught.value.info
    assert info.code is ErrorCode.IMAGE_BUILD and "no version of six==1.16.99" in info.detail["output"]
    assert "six 1.16.99 cannot be had for this image; the nearest that can: 1.16.0, 1.17.0" in info.message
    assert info.next.startswith("`%pip install six==1.16.0` here")


async def test_a_python_before_the_least_is_passed_over(house: ImageHouse) -> None:
    minor = f"{sys.version_info[0]}.{sys.version_info[1]}"
    places = PythonPlaces(find_uv(), house.folder / "pythons-of-none")
    async with aclosing(candidates(places, minor, house.log.append, least=f"{minor}.999")) as here:
        assert await anext(here, None) is None
    async with aclosing(candidates(places, minor, house.log.append, least=f"{minor}.0")) as here:
        assert await anext(here) is not None


async def test_a_python_that_is_nowhere_is_told_with_what_to_do(house: ImageHouse) -> None:
    for step, words in (
        (AddPython(python_version="3.99"), "no Python 3.99 for this image"),
        (
            AddPython(python_version="3.11", least="3.11.999"),
            "no Python 3.11.999 or a later 3.11 .*Debian bookworm has 3.11.2",
        ),
    ):
        with pytest.raises(CellburstError, match=words) as caught:
            await house.build(ImageRecipe(steps=[DebianSlim(), step]))
        assert caught.value.code is ErrorCode.BAD_ARGUMENT and "uv python install" in caught.value.info.next
        assert caught.value.info.detail["step"].startswith("Step 2 of 2: add_python")


async def test_a_package_that_decayed_is_fetched_again_and_not_taken_from_the_cache(house: ImageHouse) -> None:
    # A cache of its own: what is damaged here must not be in layers of other tests.
    builder = ImageBuilder(house.images, house.machine, uv_cache=house.folder / "data" / "uv-cache-of-decay")
    recipe = ImageRecipe(steps=[DebianSlim(), PipInstall(packages=["six>=1"])])
    with await house.build(recipe, builder) as built:
        module = built.layers[0] / built.site_packages.lstrip("/") / "six.py"
        status, whole = module.stat(), module.read_bytes()
    assert status.st_nlink > 1 and b"Copyright" in whole
    module.write_bytes(whole.replace(b"Copyright", b"Copywrong"))  # the cache's file is this one
    os.utime(module, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = await builder.verify()
    assert [layer.key for layer in found.damaged] == [built.keys[-1]]
    assert found.damaged[0].problems[0].endswith("six.py: another content")
    with await house.build(recipe, builder) as built:
        assert content(built, f"{built.site_packages}/six.py") == whole
    module.write_bytes(whole[:100])  # found by the look at the next use
    with await house.build(
        recipe, ImageBuilder(house.images, house.machine, uv_cache=builder.downloads.cache)
    ) as built:
        assert content(built, f"{built.site_packages}/six.py") == whole
        assert (await builder.verify()).damaged == []
