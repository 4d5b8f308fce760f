"""What a container of an image is given beside the image: environment, /etc, places; and which packages it lacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode, RequestError
from cellburst_protocol.images import DebianSlim, FilePack, ImageRecipe
from cellburst_protocol.messages import MirrorSpec, StartContainer
from cellburst_protocol.resources import Resources
from cellburst_runtime import bundle
from cellburst_runtime.brought_folders import BroughtFolders
from cellburst_runtime.bundle import Bundle, bundle_for_image
from cellburst_runtime.image_build import BuiltImage
from cellburst_runtime.image_plan import plan_image, recipe_of, shown_spec
from cellburst_runtime.mirror import machine_id

SITE = "usr/lib/python3/dist-packages"


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    made = tmp_path / "layer"
    for name in ("etc", "usr/bin", SITE):
        (made / name).mkdir(parents=True)
    return made


def image(layer: Path, **changes: Any) -> BuiltImage:
    fields: dict[str, Any] = {
        "id": "i", "base_id": "i", "instance": "n", "layers": [layer], "keys": ["k"], "workdir": "", "entrypoint": [], "cmd": [],
        "environment": {"PATH": "/opt/bin:/usr/bin"}, "user": "", "python": "/usr/bin/python3", "python_version": "3.11.2",
        "site_packages": f"/{SITE}", "held": [], **changes,
    }  # fmt: skip
    return BuiltImage(**fields)


def spec(**changes: Any) -> MirrorSpec:
    fields: dict[str, Any] = {
        "executable": "/usr/bin/python3", "python_version": "3.11.2", "prefix": "/usr", "base_prefix": "/usr", "user": "ada",
        "home": "/home/ada", "uid": 1234, **changes,
    }  # fmt: skip
    return MirrorSpec(**fields)


def test_the_environment_is_the_images_under_the_kernels_under_ours(layer: Path) -> None:
    variables = {
        "PATH": "/opt/bin:/usr/bin", "A": "image", "LANG": "image", "HOME": "/root", "TORCH_HOME": "/weights", "XDG_CACHE_HOME": "/c",
        "LD_LIBRARY_PATH": "/opt/lib", "OMP_NUM_THREADS": "64",
    }  # fmt: skip
    kernels = {
        "LANG": "de_DE.UTF-8",
        "PYTHONPATH": "/nb",
        "LD_LIBRARY_PATH": "/conda",
        "HF_HOME": "/hf",
        "PYTHONHASHSEED": "1",
    }
    given = plan_image(spec(environment=kernels), image(layer, environment=variables), cpu=2.0).environment
    assert (given["A"], given["LANG"], given["PYTHONHASHSEED"]) == ("image", "de_DE.UTF-8", "1")
    assert given["HOME"] == "/home/user" and given["USER"] == "ada" and given["XDG_CACHE_HOME"] == "/home/user/.cache"
    assert given["TORCH_HOME"] == "/weights" and given["HF_HOME"] == "/home/user/.cache/huggingface"
    assert given["LD_LIBRARY_PATH"] == "/opt/lib" and "PYTHONPATH" not in given and given["OMP_NUM_THREADS"] == "2"
    assert given["PATH"] == "/usr/bin:/opt/bin" and given["SHELL"] == "/bin/sh"
    (layer / "usr/bin/bash").touch()
    assert plan_image(spec(), image(layer)).environment["SHELL"] == "/bin/bash"


def test_a_time_zone_that_the_image_lacks_is_told_by_localtime(layer: Path) -> None:
    plan = plan_image(spec(environment={"TZ": "Etc/GMT+3"}), image(layer))
    assert "TZ" not in plan.environment and plan.root_files["/etc/timezone"] == b"Etc/GMT+3\n"
    (layer / "usr/share/zoneinfo/Etc").mkdir(parents=True)
    (layer / "usr/share/zoneinfo/Etc/GMT+3").touch()
    assert plan_image(spec(environment={"TZ": "Etc/GMT+3"}), image(layer)).environment["TZ"] == "Etc/GMT+3"


def test_people_are_the_images_and_the_user(layer: Path) -> None:
    (layer / "etc/passwd").write_text(
        "root:x:0:0::/root:/bin/sh\nada:x:7:7::/:/bin/sh\nold:x:1234:1:::\nwww:x:33:33::/:\nbroken\n"
    )
    (layer / "etc/group").write_text("root:x:0:\nwww:x:33:ada\n")
    plan = plan_image(spec(), image(layer))
    assert [line.split(":")[0] for line in plan.root_files["/etc/passwd"].decode().splitlines()] == [
        "root",
        "www",
        "ada",
    ]
    assert plan.root_files["/etc/passwd"].endswith(b"ada:x:1234:1234:ada:/home/user:/bin/bash\n")
    assert plan.root_files["/etc/group"] == b"root:x:0:\nwww:x:33:ada\nada:x:1234:\n"
    assert not {"/etc/os-release", "/etc/ld.so.cache", "/etc/bash.bashrc"} & set(plan.root_files)  # the image's own
    assert "/etc/nsswitch.conf" in plan.root_files
    (layer / "etc/nsswitch.conf").touch()
    assert "/etc/nsswitch.conf" not in plan_image(spec(), image(layer)).root_files


def test_places_are_the_same_for_every_notebook(layer: Path, tmp_path: Path) -> None:
    plans = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plans.append(plan_image(spec(notebook_folder=str(tmp_path / name)), image(layer, workdir="/srv")))
    assert plans[0] == plans[1] or plans[0].root_files.keys() == plans[1].root_files.keys()
    assert plans[0].mounts == plans[1].mounts and plans[0].environment == plans[1].environment
    assert plans[0].working_folder == "/cellburst/work" and plans[0].own_folders == ("/srv",)
    assert plan_image(spec(), image(layer, workdir="/srv")).working_folder == "/srv"
    assert plan_image(spec(), image(layer)).working_folder == "/home/user"


def test_pythons_that_cannot_run_cells(layer: Path) -> None:
    with pytest.raises(RequestError, match="no Python"):
        plan_image(spec(), image(layer, python="", python_version=""))
    with pytest.raises(RequestError, match=r"3\.8\.1 is too old"):
        plan_image(spec(), image(layer, python_version="3.8.1"))


def test_a_mirror_recipe_is_a_recipe_only_elsewhere(layer: Path, tmp_path: Path) -> None:
    recipe, folder_of = ImageRecipe(steps=[DebianSlim()], mirror=True), BroughtFolders(tmp_path).path
    (tmp_path / "empty").mkdir()
    request = StartContainer(
        container="c", lease="l", epoch=1, session="s", notebook="n", resources=Resources(), gpus=[],
        image=spec(machine_id=machine_id(), notebook_folder="/nb"), recipe=recipe,
    )  # fmt: skip
    assert recipe_of(request) is None and shown_spec(request, folder_of) == (request.image, [])
    request.image.machine_id = "another"
    assert recipe_of(request) is recipe
    request.image.mounts = ["/nowhere/data"]
    shown, notes = shown_spec(request, folder_of)
    assert (shown.notebook_folder, shown.mounts, shown.uid) == (str(tmp_path / "empty"), [], 1000)
    recipe.folder = FilePack(hash="ab" * 32, size_bytes=1, files=1)
    assert shown_spec(request, folder_of)[0].notebook_folder == str(tmp_path / ("ab" * 32))
    assert "%modal put" in notes[0] and "another machine: /nowhere/data." in notes[1]
    # It is ours, and shown all the same.
    assert plan_image(shown, image(layer), private_folders=[tmp_path.parent]).working_folder == "/cellburst/work"
    request.recipe, request.image.machine_id = ImageRecipe(steps=[DebianSlim()]), machine_id()
    assert recipe_of(request) is not None


async def test_the_bundle_is_for_images_without_ipykernel(
    layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make(folder: Path, version: str) -> Bundle:
        return Bundle(folder, version)

    monkeypatch.setattr(bundle, "make_bundle", make)
    assert await bundle_for_image(image(layer), tmp_path) == Bundle(tmp_path, "3.11.2")
    for name in ("ipykernel-7.1.0.dist-info", "cloudpickle"):
        (layer / SITE / name).mkdir()
    assert await bundle_for_image(image(layer), tmp_path) is None
    top = tmp_path / "top"
    (top / SITE).mkdir(parents=True)
    if os.geteuid() == 0:  # a later step has removed it
        os.mknod(top / SITE / "cloudpickle", 0o600 | 0o020000, os.makedev(0, 0))
        assert await bundle_for_image(image(layer, layers=[top, layer]), tmp_path) is not None
    (top / SITE / "ipykernel-5.1.0.dist-info").mkdir()
    with pytest.raises(CellburstError) as caught:
        await bundle_for_image(image(layer, layers=[top]), tmp_path)
    assert caught.value.code is ErrorCode.START_FAILED and "too old" in caught.value.info.message
    (layer / "lib").mkdir()
    (layer / f"lib/ld-musl-{os.uname().machine}.so.1").touch()
    assert await bundle_for_image(image(layer), tmp_path) is None
    (layer / SITE / "cloudpickle").rmdir()
    with pytest.raises(CellburstError, match="musl"):
        await bundle_for_image(image(layer), tmp_path)
