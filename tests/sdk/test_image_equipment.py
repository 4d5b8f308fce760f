"""What a step is given beside the image: checked where it is declared, in its struct, and in the layer's key or not."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cellburst import Image, NetworkFileSystem, Secret, Volume
from cellburst_protocol.errors import ErrorCode, RequestError
from cellburst_protocol.images import (
    AptInstall,
    FromStage,
    PipInstall,
    RunCommands,
    RunFunction,
    StepVolume,
    Working,
    describe,
    every_step,
    gpus_of,
    layer_keys,
    volumes_of,
)

BASE = Image.debian_slim("3.11")
DATA = Volume.from_name("data")


def steps_of(image: Image, folder: Path) -> list[Working]:
    return [step for step in every_step(image.recipe(folder).recipe.steps) if isinstance(step, Working)]


def key(image: Image, folder: Path) -> str:
    return layer_keys(image.recipe(folder).recipe.steps, architecture="x")[-1]


def refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        make()
    assert caught.value.code is ErrorCode.BAD_ARGUMENT and (caught.value.info.next or caught.value.info.allowed)


def test_steps_have_what_they_are_given(tmp_path: Path) -> None:
    hub = Secret.from_name("hub")
    shared = NetworkFileSystem.from_name("scratch", create_if_missing=True)
    image = (
        BASE.pip_install("a", secrets=[hub], gpu="a100", env={"A": "1", "B": None})
        .apt_install("git", gpu=["H100", "A100:2"])
        .run_commands("true", volumes={"/data/": DATA.read_only()}, gpu="my-card")
        .run_function(os.getcwd, volumes={Path("/v"): DATA}, network_file_systems={"/n": shared}, memory=512, timeout=60, cpu=2)
        .dockerfile_commands("RUN make", env={"A": "1"}, secrets=[hub], gpu="any")
    )  # fmt: skip
    pip, apt, run, function, make = steps_of(image, tmp_path)
    assert isinstance(pip, PipInstall) and (pip.secrets, pip.gpu, pip.environment) == (["hub"], "A100", {"A": "1"})
    assert isinstance(apt, AptInstall) and apt.gpu == "H100,A100:2"
    assert isinstance(run, RunCommands) and run.volumes == [StepVolume(name="data", path="/data", read_only=True)]
    assert run.gpu == "MY-CARD"  # the gateway knows which cards there are
    assert isinstance(function, RunFunction) and (function.cpu, function.memory_mib, function.timeout_seconds) == (
        2.0, 512, 60.0
    )  # fmt: skip
    assert function.volumes == [
        StepVolume(name="data", path="/v"), StepVolume(name="scratch", path="/n", kind="shared", create=True)
    ]  # fmt: skip
    assert (make.gpu, make.secrets, make.environment) == ("any", ["hub"], {"A": "1"})
    recipe = image.recipe(tmp_path).recipe
    assert gpus_of(recipe.steps) == ["A100", "H100,A100:2", "MY-CARD", "any"]
    assert [one.path for one in volumes_of(recipe.steps)] == ["/data", "/v", "/n"]
    assert describe(pip) == "pip_install a with gpu A100"


def test_a_dockerfiles_own_variables_stay_and_its_stages_have_it_too(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM a:1 AS b\nRUN one\nFROM b\nARG A=own\nRUN two\n")
    image = Image.from_dockerfile(tmp_path / "Dockerfile", context_dir=tmp_path, env={"A": "x", "B": "y"}, gpu="T4")
    recipe = image.recipe(tmp_path / "packs").recipe
    assert isinstance(recipe.steps[0], FromStage)
    one, two = steps_of(image, tmp_path / "packs")
    assert (one.gpu, one.environment) == ("T4", {"A": "x", "B": "y"})
    assert (two.gpu, two.environment) == ("T4", {"A": "own", "B": "y"})


def test_names_are_in_the_key_and_what_changes_nothing_is_not(tmp_path: Path) -> None:
    plain = key(BASE.run_function(os.getcwd), tmp_path)
    made = Volume.from_name("data", create_if_missing=True)
    with_data = key(BASE.run_function(os.getcwd, volumes={"/v": DATA}), tmp_path)
    assert key(BASE.run_function(os.getcwd, volumes={"/v": made}), tmp_path) == with_data
    assert key(BASE.run_function(os.getcwd, cpu=2, memory=512, timeout=60), tmp_path) == plain
    others = [
        key(BASE.run_function(os.getcwd, gpu="A100"), tmp_path),
        key(BASE.run_function(os.getcwd, gpu="T4"), tmp_path),
        key(BASE.run_function(os.getcwd, env={"A": "1"}), tmp_path),
        key(BASE.run_function(os.getcwd, volumes={"/w": DATA}), tmp_path),
        key(BASE.run_function(os.getcwd, volumes={"/v": DATA.read_only()}), tmp_path),
    ]
    assert len({plain, with_data, *others}) == 7


def test_what_cannot_be_is_refused_where_it_is_declared() -> None:
    refused(lambda: BASE.run_commands("true", gpu="A100:0"), "run_commands: .*'A100:0' is not a GPU request")
    refused(lambda: BASE.pip_install("a", gpu=[1]), "no GPU request")  # type: ignore[list-item]
    refused(lambda: BASE.run_commands("true", volumes={"/v": "data"}), "is no Volume")  # type: ignore[dict-item]
    refused(lambda: BASE.run_commands("true", volumes={"v": DATA}), "not absolute")
    refused(lambda: BASE.run_commands("true", volumes={"/v": DATA, "/v/": Volume.from_name("b")}), "both to be at /v")
    refused(lambda: BASE.run_commands("true", volumes={"/v": DATA, "/w": DATA}), "is at /v and at /w")
    refused(lambda: BASE.run_commands("true", volumes={"/usr/v": DATA}), "the system's")
    refused(lambda: BASE.run_commands("true", volumes={"/v": Volume("", id="v-1")}), "no ephemeral volume")
    refused(lambda: BASE.run_function(os.getcwd, network_file_systems={"/v": DATA}), "is no NetworkFileSystem")  # type: ignore[dict-item]
    refused(lambda: BASE.run_function(os.getcwd, memory=1), "run_function: memory='1'")
    refused(lambda: BASE.run_function(os.getcwd, cpu=0), "run_function: cpu='0'")
    refused(lambda: BASE.run_function(os.getcwd, timeout=-1), "run_function: timeout='-1'")
    refused(lambda: BASE.apt_install("git", env={"A B": "1"}), "is no variable")
