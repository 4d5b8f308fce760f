"""Secrets of a build's steps, on real gVisor: what a step sees, and that no file, log, error or key has a value."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cellburst.image_packs import PackedFile
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import Copy, ImageRecipe, RunCommands, Shell, User, layer_keys, secrets_of
from cellburst_runtime.image_build import BuiltImage
from cellburst_runtime.image_secrets import BuildSecrets, login_file
from tests.fakes.images import ImageHouse, content

VALUE = 's3cr3t-\'of "the"\n$HOME `test`'
gvisor = pytest.mark.gvisor


def hide(text: str) -> str:
    return text.replace("s3cr3t", "****").replace("other-value", "****")


def given(version: int = 1, **more: dict[str, str]) -> BuildSecrets:
    values = {"hub": {"TOKEN": VALUE}, **more}
    return BuildSecrets(values, dict.fromkeys(values, version), hide)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    made = ImageHouse(tmp_path)
    yield made
    await made.end()


async def build(house: ImageHouse, recipe: ImageRecipe, secrets: BuildSecrets) -> BuiltImage:
    return await house.builder().build(recipe, house.file, house.log.append, secrets)


def files_with(text: str, *folders: Path) -> list[Path]:
    found = []
    for folder in folders:
        for place, _, names in os.walk(folder):
            paths = [Path(place) / name for name in names]
            found += [
                path
                for path in paths
                if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
            ]
    return found


@gvisor
async def test_a_step_has_its_secrets_and_nothing_else_does(house: ImageHouse) -> None:
    # While it runs it looks for itself in all that the sandbox's engine was told.
    look = 'printf %s "$TOKEN" | wc -c > /size; test "$TOKEN" = "$(cat /expected)" && echo same > /same; echo "$TOKEN"'
    prepare = Copy(pack=house.packs.write([PackedFile("expected", content=VALUE.encode())]), destination="/")
    with_secret = RunCommands(commands=[look, 'echo "${TOKEN:+there}" > /twice'], secrets=["hub:TOKEN"])
    after = RunCommands(
        commands=['echo "${TOKEN:-gone}" > /after; ls /cellburst/build/secrets > /listed', "rm /expected"]
    )
    during: list[Path] = []
    log = house.log.append

    def looked(line: str) -> None:
        log(line)
        if "****" in line:  # the step has just said it: it runs
            during.extend(files_with("s3cr3t-", house.state, house.folder / "data"))

    recipe = house.recipe(prepare, Shell(arguments=["/bin/sh", "-e", "-c"]), with_secret, after)
    with await house.builder().build(recipe, house.file, looked, given()) as image:
        assert content(image, "/size").split() == [str(len(VALUE)).encode()]
        assert (content(image, "/same"), content(image, "/twice")) == (b"same\n", b"there\n")
        assert (content(image, "/after"), content(image, "/listed")) == (b"gone\n", b"")
    # The file `expected` of this test's own, in its layer; and the mount in memory while the step ran.
    assert {path.name for path in during} <= {"expected", "environment", "environment.json"}
    assert {path.name for path in files_with("s3cr3t-", house.images)} == {"expected"}
    assert any("****" in line for line in house.log) and not any("s3cr3t" in line for line in house.log)
    [log_file] = (house.images / "logs").iterdir()
    assert "s3cr3t" not in log_file.read_text()


@gvisor
async def test_the_image_s_own_user_can_read_it_and_an_error_does_not_tell_it(house: ImageHouse) -> None:
    step = RunCommands(commands=['id -u; echo "said $TOKEN"; exit 3'], secrets=["hub"])
    with pytest.raises(CellburstError) as caught:
        await build(house, house.recipe(User(user="someone"), step), given(other={"MORE": "x"}))
    info = caught.value.info
    assert (
        info.code is ErrorCode.IMAGE_BUILD and "1234" in info.detail["output"] and "said ****" in info.detail["output"]
    )
    assert "s3cr3t" not in info.text() + str(info.detail) + "".join(house.log) + str(caught.value)
    assert house.leftovers() == []


@gvisor
async def test_a_new_version_builds_anew_and_another_value_of_the_same_does_not(house: ImageHouse) -> None:
    recipe = house.recipe(RunCommands(commands=["echo built"], secrets=["hub"]), "echo after")
    with await build(house, recipe, given()) as first, await build(house, recipe, given(2)) as second:
        assert first.keys[:2] == second.keys[:2] and not set(first.keys[2:]) & set(second.keys[2:])
    house.log.clear()
    with await build(house, recipe, BuildSecrets({"hub": {"TOKEN": "other-value"}}, {"hub": 2}, hide)) as third:
        assert third.keys == second.keys and not any("done in" in line for line in house.log)


@gvisor
async def test_a_secret_that_did_not_come_is_named(house: ImageHouse) -> None:
    for secrets, words in ((BuildSecrets(), "'hub' did not come"), (given(), "no key ELSE")):
        with pytest.raises(CellburstError, match=words) as caught:
            await build(house, house.recipe(RunCommands(commands=["true"], secrets=["hub:ELSE"])), secrets)
        assert caught.value.code is ErrorCode.NOT_FOUND


def test_keys_have_names_and_versions_only() -> None:
    steps = [RunCommands(commands=["true"], secrets=["b:KEY", "a"])]
    assert secrets_of(steps) == ["b:KEY", "a"]
    plain = layer_keys(steps, architecture="x")
    assert layer_keys(steps, architecture="x", versions={"a": 1, "b": 1}) != plain
    assert layer_keys(steps, architecture="x", versions={"a": 1, "b": 1}) != layer_keys(
        steps, architecture="x", versions={"a": 1, "b": 2}
    )
    without = [RunCommands(commands=["true"])]
    assert layer_keys(without, architecture="x", versions={"a": 1}) == layer_keys(without, architecture="x")


async def test_a_login_without_its_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CellburstError, match="REGISTRY_PASSWORD"):
        async with login_file(tmp_path, "example.org/a", {"REGISTRY_USERNAME": "me"}):
            pass
    assert list(tmp_path.iterdir()) == []
