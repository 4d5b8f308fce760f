"""What a step has beside the image: folders to mount on that leave nothing, limits, a secret in an index's address."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import CopyFrom, FilePack, RunCommands, RunFunction, StepVolume
from cellburst_runtime.engine import DeviceGrant, Mount
from cellburst_runtime.image_equipment import MountPoints, ShownVolume, check_limits
from cellburst_runtime.image_sandbox import Program, _environment
from cellburst_runtime.image_secrets import with_values
from tests.fakes.images import ImageHouse

FUNCTION = RunFunction(pack=FilePack(hash="a", size_bytes=1), name="f", cpu=2.0, memory_mib=512)


def below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_what_was_made_to_mount_on_is_removed_and_what_was_there_stays(tmp_path: Path) -> None:
    root, source = tmp_path / "root", tmp_path / "volume"
    (root / "srv/real").mkdir(parents=True)
    (root / "there").mkdir()
    (root / "link").symlink_to("/srv/real")
    before = below(root)
    shown = [
        ShownVolume(path, source, read_only)
        for path, read_only in (("/a/b/c", False), ("/link/d", True), ("/there", False))
    ]
    points = MountPoints.make(root, shown)
    assert [(mount.destination, mount.read_only) for mount in points.mounts] == [
        ("/a/b/c", False), ("/srv/real/d", True), ("/there", False)
    ]  # fmt: skip
    assert below(root) - before == {"a", "a/b", "a/b/c", "srv/real/d"}
    (root / "a/beside").touch()  # of the step
    points.remove()
    assert below(root) - before == {"a", "a/beside"}


def test_nothing_outside_is_removed_where_a_step_made_a_link_of_a_folder(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    (outside / "b").mkdir(parents=True)
    points = MountPoints.make(root, [ShownVolume("/a/b", tmp_path)])
    (root / "a").rename(root / "moved")
    (root / "a").symlink_to(outside)
    points.remove()
    assert (outside / "b").is_dir()


def test_a_file_in_the_way_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CellburstError, match="is a file") as caught:
        MountPoints.make(tmp_path, [ShownVolume("/new", tmp_path), ShownVolume("/file", tmp_path)])
    assert caught.value.code is ErrorCode.BAD_ARGUMENT and below(tmp_path) == {"file"}


def test_limits_that_the_machine_cannot_give_are_refused_in_stages_too() -> None:
    check_limits([FUNCTION], 2.0, 512)
    for cores, memory_mib in ((1.0, 512), (2.0, 511)):
        with pytest.raises(CellburstError, match="asks for cpu=2 and memory=512") as caught:
            check_limits([CopyFrom(steps=[FUNCTION], sources=["/a"], destination="/")], cores, memory_mib)
        assert caught.value.code is ErrorCode.NO_SUCH_HARDWARE


def test_an_address_has_the_values_of_its_secrets_and_of_nothing_else() -> None:
    assert with_values("https://${USER}:$TOKEN@host/simple", {"USER": "u", "TOKEN": "t"}) == "https://u:t@host/simple"
    with pytest.raises(CellburstError, match="no key HOME"):
        with_values("https://$HOME/", {"TOKEN": "t"})


def test_a_gpus_own_programs_are_found_first() -> None:
    devices = DeviceGrant(mounts=(Mount("/cellburst/bin", "/x"),), environment={"CUDA_VISIBLE_DEVICES": ""})
    assert _environment(Program([], {"PATH": "/own"}, devices=devices))["PATH"] == "/cellburst/bin:/own"
    assert _environment(Program([], {"PATH": "/own"})) == {"PATH": "/own"}


@pytest.mark.gvisor
async def test_variables_of_a_step_are_its_own_and_nobody_gives_what_nobody_has(tmp_path: Path) -> None:
    house = ImageHouse(tmp_path)
    first = RunCommands(commands=['echo "$COLOR" > /first'], environment={"COLOR": "blue"})
    image = await house.build(house.recipe(first, 'echo "${COLOR:-none}" > /second'))
    with image:
        files = [layer / name for layer in image.layers for name in ("first", "second") if (layer / name).is_file()]
        assert [file.read_text() for file in files] == ["none\n", "blue\n"]
    volume = StepVolume(name="v", path="/v")
    for step, what in ((RunCommands(commands=["true"], gpu="A100"), "gpu=A100"), (RunCommands(commands=["true"], volumes=[volume]), "volume v")):  # fmt: skip
        with pytest.raises(CellburstError, match=f"asks for {what}, and nothing came"):
            await house.build(house.recipe(step))
    await house.end()
