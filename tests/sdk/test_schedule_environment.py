"""What a schedule keeps of an environment, and the image that it names."""

from __future__ import annotations

import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from cellburst import schedule_environment
from cellburst.image import Image
from cellburst.schedule_edit import edited, image_to_read, taken_over
from cellburst.schedule_environment import (
    Kept,
    describe_environment,
    file_and_name,
    frozen_environment,
    image_in_file,
    with_image,
)
from cellburst.scheduling import Asked, draft
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.images import Copy, DebianSlim, Env, ImageRecipe, PipInstall, python_minor
from tests.sdk.test_schedule_edit import info_of
from tests.sdk.test_scheduling import MIRROR, save

IMAGES = """
import cellburst
print("said while it was read")
one = cellburst.Image.debian_slim("3.11").add_local_file("data.txt", "/data/")
two = cellburst.Image.debian_slim("3.12")
"""


def test_this_environment_is_kept_with_our_own_packages_as_sources(tmp_path: Path) -> None:
    kept = frozen_environment(tmp_path / "packs")
    assert kept.environment is not None and kept.notes == ()
    steps = kept.environment.recipe.steps
    assert python_minor(steps) == ".".join(map(str, sys.version_info[:2]))
    [pip] = [step for step in steps if isinstance(step, PipInstall)]
    assert f"msgspec=={msgspec.__version__}" in pip.packages and pip.no_deps
    assert not any(text.startswith("cellburst") for text in pip.packages), "it need be in no index"
    [copy], [env] = ([step for step in steps if isinstance(step, kind)] for kind in (Copy, Env))
    assert isinstance(copy, Copy) and copy.pack.hash == kept.environment.sources and isinstance(env, Env)
    assert kept.environment.roots == [] and env.variables["PYTHONPATH"] == "/opt/mirror/installed:/opt/mirror/ours"
    with tarfile.open(kept.files[copy.pack.hash]) as pack:
        names = pack.getnames()
    for package in schedule_environment.OURS:
        assert f"ours/{package}/__init__.py" in names
    assert not any("labextension" in name or "__pycache__" in name or "gateway/" in name for name in names)


def test_editable_sources_are_kept_without_keys_and_within_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "src"
    for name in ("mine/core.py", "mine/data.csv", ".git/config", "keys/id_rsa", "mine/.env", "build/x.py", "a.ipynb"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    wheel = tmp_path / "local.py"
    wheel.write_text("from a wheel")

    def packages(files: dict[str, Path]) -> tuple[list[str], list[Path]]:
        files |= {"local.py": wheel, "cellburst/gone.py": tmp_path / "gone.py"}
        return ["six==1.17.0", "cellburst==9"], [root, root]

    monkeypatch.setattr("cellburst.image_mirror.frozen_packages", packages)
    kept = frozen_environment(tmp_path / "packs")
    assert kept.environment is not None and kept.environment.roots == [str(root)]
    [pip] = [step for step in kept.environment.recipe.steps if isinstance(step, PipInstall)]
    assert pip.packages == ["six==1.17.0"]
    with tarfile.open(kept.files[kept.environment.sources]) as pack:
        names = [name for name in pack.getnames() if not name.startswith("ours/")]
    assert names == ["0/keys", "0/mine", "0/mine/core.py", "0/mine/data.csv", "installed/local.py"]
    monkeypatch.setattr(schedule_environment, "MAX_FOLDER_BYTES", 10)
    kept = frozen_environment(tmp_path / "packs")
    assert kept.environment is None and "the environment is not kept" in kept.notes[0] and "10 B" in kept.notes[0]
    made = draft(save(tmp_path, "x = 1"), MIRROR, Asked(every="1d"), beside=kept)
    assert made.spec.frozen is None and made.notes[-1:] == list(kept.notes)


def test_an_image_is_named_by_its_file_and_variable(tmp_path: Path) -> None:
    (tmp_path / "images.py").write_text(IMAGES)
    (tmp_path / "bad.py").write_text("1 / 0")
    assert file_and_name("a/b.py:img") == ("a/b.py", "img") and file_and_name("b.py") == ("b.py", "")
    assert file_and_name("img") == ("", "img") and file_and_name("b.py:1") == ("", "b.py:1")
    assert isinstance(image_in_file("images.py:two", tmp_path), Image)
    for text, said in (
        ("img", "names no file"), ("gone.py:img", "there is no file"), ("images.py", "has 2 images"),
        ("images.py:tow", "'tow' is no image"), ("bad.py:x", "ZeroDivisionError"),
    ):  # fmt: skip
        with pytest.raises(CellburstError, match=said):
            image_in_file(text, tmp_path)
    plain = with_image(Kept(), Image.mirror(), tmp_path)
    assert plain.recipe is None and "own environment" in plain.notes[0]


def bare_python(folder: Path) -> Path:
    """An interpreter that has nothing installed."""
    program = folder / "bare"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    program.chmod(0o755)
    return program


def test_an_interpreter_tells_its_environment_and_reads_the_image(tmp_path: Path) -> None:
    (tmp_path / "images.py").write_text(IMAGES)
    (tmp_path / "data.txt").write_text("beside the notebook")
    packs = tmp_path / "packs"
    packs.mkdir()
    spec, kept = describe_environment(sys.executable, tmp_path, packs, "images.py:one")
    assert spec.executable == sys.executable and spec.notebook_folder == str(tmp_path)
    assert kept.environment is not None and kept.recipe is not None and kept.recipe.steps == [DebianSlim()]
    [add] = kept.recipe.adds
    made = draft(save(tmp_path, "import nobody_has_this"), spec, Asked(every="1d", image="images.py:one"), beside=kept)
    assert made.spec.recipe == kept.recipe and made.spec.image_name == "images.py:one" and made.findings == []
    assert {add.pack.hash, kept.environment.sources} <= made.frozen.sources.keys()
    (tmp_path / "data.txt").unlink()
    with pytest.raises(CellburstError, match=r"data\.txt"):
        describe_environment(sys.executable, tmp_path, packs, "images.py:one")
    with pytest.raises(CellburstError) as refused:
        describe_environment("/nowhere/python", tmp_path, tmp_path / "none")
    assert refused.value.code is ErrorCode.NOT_FOUND
    with pytest.raises(CellburstError, match="No module named"):
        describe_environment(str(bare_python(tmp_path)), tmp_path, packs)


def test_an_edit_keeps_its_image_changes_it_or_takes_it_away(tmp_path: Path) -> None:
    (tmp_path / "images.py").write_text(IMAGES)
    kept = Kept(recipe=ImageRecipe(steps=[DebianSlim()]))
    other = Kept(recipe=ImageRecipe(steps=[DebianSlim(), PipInstall(packages=["six"])]))
    asked = Asked(every="1d", image="img")
    info = info_of(draft(save(tmp_path, "x = 1"), MIRROR, asked, beside=kept).spec)
    assert image_to_read(info.spec, asked, take=False) == image_to_read(info.spec, asked, take=True) == ""
    assert edited(info, asked).spec.recipe == kept.recipe
    assert edited(info, replace(asked, image="")).spec.recipe is None
    named = replace(asked, image="images.py:one")
    assert image_to_read(info.spec, named, take=False) == "images.py:one"
    assert edited(info, named, other).spec.recipe == other.recipe
    with pytest.raises(CellburstError, match="names no file"):
        image_to_read(info.spec, replace(asked, image="another"), take=False)
    made = taken_over(info, MIRROR)
    assert made.spec.recipe == kept.recipe and "stays as it is kept" in made.notes[-1], (
        "only its kernel has the variable"
    )
    info = info_of(draft(Path(info.spec.notebook), MIRROR, named, beside=other).spec)
    assert (
        image_to_read(info.spec, named, take=False) == "" and image_to_read(info.spec, named, take=True) == named.image
    )
    assert taken_over(info, MIRROR, beside=kept).spec.recipe == kept.recipe
