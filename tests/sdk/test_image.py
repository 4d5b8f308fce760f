"""Image: immutable, checked, and lazy about local files."""

from __future__ import annotations

import builtins
import importlib
import json
import os
import sys
import tarfile
import threading
from importlib.metadata import distributions
from pathlib import Path

import pytest

from cellburst import FilePatternMatcher, Image, Secret, image_mirror
from cellburst.image import Recipe
from cellburst_protocol.errors import ErrorCode, RequestError
from cellburst_protocol.images import (
    AddPython,
    AptInstall,
    Cmd,
    Copy,
    DebianSlim,
    Entrypoint,
    Env,
    FromRegistry,
    PipInstall,
    RunCommands,
    RunFunction,
    Shell,
    UvSync,
    Workdir,
    layer_keys,
    secrets_of,
)

BASE = Image.debian_slim("3.11")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def made(image: Image, tmp_path: Path) -> Recipe:
    return image.recipe(tmp_path / "packs")


def names(recipe: Recipe, step: object) -> dict[str, str]:
    """Names in a step's pack -> content, or the link's target."""
    with tarfile.open(recipe.files[step.pack.hash]) as archive:  # type: ignore[attr-defined]
        return {
            m.name: f"-> {m.linkname}" if m.issym() else (archive.extractfile(m).read().decode() if m.isfile() else "/")  # type: ignore[union-attr]
            for m in archive
        }


def refused(image: object, words: str, code: ErrorCode = ErrorCode.BAD_ARGUMENT) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        image()  # type: ignore[operator]
    assert caught.value.code is code and (caught.value.info.next or caught.value.info.allowed)


def test_each_method_gives_a_new_image(tmp_path: Path) -> None:
    one = BASE.pip_install("numpy")
    two, three = one.env({"A": "1"}), one.apt_install("git", ["curl"])
    assert made(one, tmp_path).recipe.steps == [DebianSlim(), PipInstall(packages=["numpy"])]
    assert made(two, tmp_path).recipe.steps[2:] == [Env(variables={"A": "1"})]
    assert made(three, tmp_path).recipe.steps[2:] == [AptInstall(packages=["git", "curl"])]
    with pytest.raises(AttributeError):
        one._base = "other"  # type: ignore[misc]


def test_the_steps_of_every_method(tmp_path: Path) -> None:
    image = (
        BASE.pip_install("a", ["b"], pre=True, extra_options="--no-deps --upgrade", index_url="https://i/", extra_index_url="https://e/", find_links="/l")
        .run_commands("x", ["y", "z"]).workdir("/w").entrypoint(["/e"]).cmd(["c"]).shell(["/bin/bash", "-c"]).run_function(len, args=("x",))
    )  # fmt: skip
    steps = made(image, tmp_path).recipe.steps[1:]
    pip = PipInstall(packages=["a", "b"], pre=True, options=["--no-deps", "--upgrade"], index_url="https://i/", extra_index_urls=["https://e/"], find_links=["/l"])  # fmt: skip
    assert steps[:6] == [pip, RunCommands(commands=["x", "y", "z"]), Workdir(path="/w"), Entrypoint(arguments=["/e"]), Cmd(arguments=["c"]), Shell(arguments=["/bin/bash", "-c"])]  # fmt: skip
    assert isinstance(steps[6], RunFunction) and steps[6].name == "len"


def test_registry_names(tmp_path: Path) -> None:
    for given, full in (
        ("debian", "docker.io/library/debian"),
        ("a/b:1", "docker.io/a/b:1"),
        ("ghcr.io/a/b", "ghcr.io/a/b"),
        ("localhost:5000/a", "localhost:5000/a"),
    ):
        assert made(Image.from_registry(given), tmp_path).recipe.steps == [FromRegistry(reference=full)]
    steps = made(Image.from_registry("debian", add_python="3.12"), tmp_path).recipe.steps
    assert steps[1] == AddPython(python_version="3.12")
    refused(lambda: Image.from_registry("-x"), "no image name")


@pytest.mark.parametrize("version", ["3", "3.99", "2.7", "3.11.4", "three", 3.11])
def test_impossible_python_versions(version: str) -> None:
    refused(lambda: Image.debian_slim(version), "python_version=.* is not there")
    refused(lambda: Image.from_registry("debian", add_python=version), "python_version=.* is not there")


def test_the_default_python_is_this_one(tmp_path: Path) -> None:
    own = f"{sys.version_info[0]}.{sys.version_info[1]}"
    assert made(Image.debian_slim(), tmp_path).recipe.steps == made(Image.debian_slim(own), tmp_path).recipe.steps


def test_arguments_that_are_none() -> None:
    refused(lambda: BASE.pip_install(), "nothing to do")
    refused(lambda: BASE.pip_install("--index-url x"), "is an option")
    refused(lambda: BASE.pip_install(3), "no string")  # type: ignore[arg-type]
    refused(lambda: BASE.pip_install("a", extra_options='"'), "extra_options")
    refused(lambda: BASE.apt_install("git; rm -rf /"), "no package name")
    refused(lambda: BASE.env({"A": 1}), "no variable")  # type: ignore[dict-item]
    refused(lambda: BASE.env({"A=B": "1"}), "no variable")
    refused(lambda: BASE.entrypoint("/bin/sh"), "no list of strings")
    refused(lambda: BASE.run_function("os.system"), "no function")  # type: ignore[arg-type]
    refused(lambda: BASE.add_local_file("a", "b"), "not absolute")
    refused(lambda: BASE.add_local_dir("a", "/b", ignore="*.py"), "no list of patterns")  # type: ignore[arg-type]


def test_missing_local_files_are_told_when_they_are_needed(tmp_path: Path) -> None:
    image = BASE.add_local_file("gone.txt", "/x")  # no error yet: this may run where the file is not
    refused(lambda: made(image, tmp_path), "no file 'gone.txt'", ErrorCode.NOT_FOUND)
    refused(lambda: made(BASE.add_local_dir("gone", "/x"), tmp_path), "no folder 'gone'", ErrorCode.NOT_FOUND)
    refused(lambda: made(BASE.add_local_python_source("gone_module"), tmp_path), "no such module", ErrorCode.NOT_FOUND)
    for image in (BASE.pip_install_from_requirements("gone.txt"), BASE.uv_sync("gone")):
        refused(lambda image=image: made(image, tmp_path), "no file", ErrorCode.NOT_FOUND)


def test_local_files(here: Path, tmp_path: Path) -> None:
    (here / "d/sub").mkdir(parents=True)
    (here / "d/a.py").write_text("A")
    (here / "d/sub/data.csv").write_text("1,2")
    (here / "d/sub/link").symlink_to("../a.py")
    image = (
        BASE.add_local_dir("d", "/app", copy=True, ignore=["**/*.csv"])
        .add_local_file("d/a.py", "/etc/")
        .add_local_dir("d", "/late")
    )
    recipe = made(image, tmp_path)
    copied = recipe.recipe.steps[1]
    assert names(recipe, copied) == {"a.py": "A", "sub": "/", "sub/link": "-> ../a.py"}
    assert [(add.destination, add.single) for add in recipe.recipe.adds] == [("/etc/a.py", True), ("/late", False)]
    assert "sub/data.csv" in names(recipe, recipe.recipe.adds[1])


def test_a_pack_depends_on_nothing_but_names_kinds_and_contents(here: Path, tmp_path: Path) -> None:
    for folder, umask in (("one", 0o077), ("two", 0o022)):
        (here / folder).mkdir()
        for name in ("b", "a") if umask == 0o022 else ("a", "b"):
            (here / folder / name).write_text(name)
            (here / folder / name).chmod(0o666 & ~umask)
        os.utime(here / folder / "a", (umask, umask))

    def key(folder: str) -> str:
        return layer_keys(made(BASE.add_local_dir(folder, "/x", copy=True), tmp_path).recipe.steps, architecture="a")[
            -1
        ]

    assert key("one") == key("two")
    (here / "two/a").chmod(0o755)
    assert key("one") != key("two")


def test_links_out_of_a_folder_are_refused(here: Path, tmp_path: Path) -> None:
    (here / "d").mkdir()
    for target in ("/etc/passwd", "../secret"):
        (here / "d/link").unlink(missing_ok=True)
        (here / "d/link").symlink_to(target)
        refused(lambda: made(BASE.add_local_dir("d", "/x"), tmp_path), "leads out of")
    made(BASE.add_local_dir("d", "/x", ignore=["link"]), tmp_path)


def test_five_gigabytes_are_refused(here: Path, tmp_path: Path) -> None:
    (here / "d").mkdir()
    with open(here / "d/big", "wb") as file:
        file.truncate(5 << 30)  # sparse
    refused(lambda: made(BASE.add_local_dir("d", "/x"), tmp_path), "5.0 GiB; the largest is .*big", ErrorCode.TOO_LARGE)


def test_a_build_step_after_a_mount_names_the_fix(here: Path) -> None:
    image = BASE.add_local_dir("d", "/x").add_local_file("f", "/y")
    for step in (
        lambda: image.pip_install("a"),
        lambda: image.env({"A": "1"}),
        lambda: image.add_local_file("f", "/z", copy=True),
    ):
        refused(step, r"cannot follow add_local_dir(.|\n)*copy=True")


def test_python_sources(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(here)
    (here / "my_package_h8/inner").mkdir(parents=True)
    for name in ("__init__.py", "inner/mod.py", "inner/data.txt"):
        (here / "my_package_h8" / name).write_text("x")
    (here / "my_module_h8.py").write_text("y")
    recipe = made(BASE.add_local_python_source("my_package_h8", "my_module_h8"), tmp_path)
    [add] = recipe.recipe.adds
    assert add.destination == "/root"
    assert names(recipe, add) == {
        "my_package_h8/__init__.py": "x",
        "my_package_h8/inner/mod.py": "x",
        "my_module_h8.py": "y",
    }


def test_requirements_projects_and_locks(here: Path, tmp_path: Path) -> None:
    (here / "r.txt").write_text("six\n")
    (here / "pyproject.toml").write_text(
        '[project]\nname="p"\nversion="1"\ndependencies=["a>1"]\n[project.optional-dependencies]\nx=["b"]\n'
    )
    recipe = made(BASE.pip_install_from_requirements("r.txt").uv_pip_install("c", requirements=["r.txt"]), tmp_path)
    one, two = recipe.recipe.steps[1:]
    assert isinstance(one, PipInstall) and isinstance(two, PipInstall) and names(recipe, one) == {"0/r.txt": "six\n"}
    assert (one.packages, one.requirements, two.packages, two.requirements) == ([], ["0/r.txt"], ["c"], ["0/r.txt"])
    project = made(BASE.pip_install_from_pyproject("pyproject.toml", ["x"]), tmp_path)
    assert project.recipe.steps[1] == PipInstall(packages=["a>1", "b"])
    with pytest.raises(RequestError, match="no optional dependencies 'y'"):
        made(BASE.pip_install_from_pyproject("pyproject.toml", ["y"]), tmp_path)
    refused(lambda: made(BASE.uv_sync("."), tmp_path), "no uv.lock", ErrorCode.NOT_FOUND)
    (here / "uv.lock").write_text("version = 1\n")
    step = made(BASE.uv_sync(".", extras=["x"]), tmp_path).recipe.steps[1]
    assert isinstance(step, UvSync) and step.extras == ["x"] and step.pack.files == 2


def test_imports_swallow_what_is_missing_here_and_are_preloaded(tmp_path: Path) -> None:
    image = Image.debian_slim("3.11")
    with image.imports():
        import surely_not_a_module_h8
    assert made(image.env({"A": "1"}), tmp_path).recipe.preload == ["surely_not_a_module_h8"]
    with pytest.raises(ZeroDivisionError), image.imports():
        1 / 0
    with image.imports():
        import surely_not_a_module_h8.inner  # noqa: F401

        importlib.import_module("never_asked_for")
    assert made(image, tmp_path).recipe.preload == ["surely_not_a_module_h8", "surely_not_a_module_h8.inner"]


def test_imports_that_were_made_before_are_preloaded_as_well(tmp_path: Path) -> None:
    """A notebook's cell is run again, with everything imported by the first run."""
    builtin, module_importer = builtins.__import__, importlib.import_module
    for _ in range(2):
        image = Image.debian_slim("3.11")
        with image.imports():
            import colorsys
            import xml.dom.minidom
            from concurrent import futures
            from json import decoder, loads

            importlib.import_module("cmd")
        assert colorsys and xml and futures and decoder and loads
        assert made(image, tmp_path).recipe.preload == [
            "colorsys", "xml.dom.minidom", "concurrent", "concurrent.futures", "json", "json.decoder",
            "cmd",
        ]  # fmt: skip
    assert builtins.__import__ is builtin and importlib.import_module is module_importer


def test_imports_of_other_threads_and_blocks_are_not_taken_for_this_one_s(tmp_path: Path) -> None:
    builtin = builtins.__import__
    one, other, outer = Image.debian_slim("3.11"), Image.debian_slim("3.11"), Image.debian_slim("3.11")
    opened, done = threading.Event(), threading.Event()

    def elsewhere() -> None:
        opened.wait(30)
        import zipapp  # noqa: F401 - of no block

        with other.imports():
            import this_one_is_missing  # noqa: F401
        done.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    with outer.imports(), one.imports():
        opened.set()
        assert done.wait(30)
        import tabnanny  # noqa: F401
    thread.join()
    assert made(one, tmp_path).recipe.preload == ["tabnanny"] == made(outer, tmp_path).recipe.preload
    assert made(other, tmp_path).recipe.preload == ["this_one_is_missing"]
    with pytest.raises(KeyError), one.imports():
        raise KeyError
    assert builtins.__import__ is builtin


def test_force_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert made(BASE.pip_install("a", force_build=True), tmp_path).recipe.steps[1].force
    monkeypatch.setenv("CELLBURST_FORCE_BUILD", "1")
    assert made(BASE.pip_install("a"), tmp_path).recipe.steps[0].force


def test_the_mirror_names_what_is_installed_here(tmp_path: Path) -> None:
    recipe = made(Image.mirror(), tmp_path).recipe
    assert recipe.mirror
    [pip] = [step for step in recipe.steps if isinstance(step, PipInstall)]
    import msgspec

    assert f"msgspec=={msgspec.__version__}" in pip.packages and pip.no_deps
    copies = [step for step in recipe.steps if isinstance(step, Copy)]  # this checkout is installed as editable
    assert not any(text.startswith("cellburst==") for text in pip.packages) and len(copies) == 1


def test_the_mirror_takes_what_no_index_has_as_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, wheels = tmp_path / "site", tmp_path / "wheels"
    wheels.mkdir()

    def installed(name: str, url: str = "", pure: str = "true", version: str = "1.0") -> None:
        info = site / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{name}.py").write_text(f"name = {name!r}")
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        (info / "WHEEL").write_text(f"Root-Is-Purelib: {pure}\n")
        listed = (f"{name}.py", "../../../bin/x", f"__pycache__/{name}.pyc", "gone.py")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in listed))
        if url:
            (info / "direct_url.json").write_text(json.dumps({"url": url, "archive_info": {}}))

    for file in ("mine.whl", "compiled.whl"):
        (wheels / file).touch()
    installed("mine", (wheels / "mine.whl").as_uri())
    installed("compiled", (wheels / "compiled.whl").as_uri(), pure="false")
    installed("packaged", (wheels / "of-a-builder.whl").as_uri())
    installed("cellburst")
    installed("torch", version="2.4.0+cu121")
    monkeypatch.setattr(image_mirror, "distributions", lambda: distributions(path=[str(site)]))
    given = made(Image.mirror(), tmp_path)
    recipe = given.recipe
    [pip] = [step for step in recipe.steps if isinstance(step, PipInstall)]
    assert pip.packages == ["compiled==1.0", "packaged==1.0", "torch==2.4.0+cu121"]
    assert pip.options == ["--torch-backend", "cu121"]
    (copy,) = [step for step in recipe.steps if isinstance(step, Copy)]
    assert list(names(given, copy)) == ["installed/cellburst.py", "installed/mine.py"]
    assert recipe.steps[-1] == Env(variables={"PYTHONPATH": "/opt/mirror/installed"})
    assert image_mirror.frozen_packages()[0] == ["cellburst==1.0", "compiled==1.0", "mine==1.0", *pip.packages[1:]]


@pytest.mark.parametrize(("patterns", "path", "ignored"), [
    (["*.py"], "a.py", True), (["*.py"], "d/a.py", False), (["**/*.py"], "d/a.py", True), (["**/*.py"], "a.py", True), (["d"], "d/e/f", True),
    (["/d/"], "d/e", True), (["*", "!keep"], "keep", False), (["*", "!keep"], "other", True), (["d/**", "!d/k"], "d/k", False),
    (["?.txt"], "a.txt", True), (["?.txt"], "ab.txt", False), (["[ab].c"], "a.c", True), (["[!ab].c"], "a.c", False), (["a.b"], "aXb", False),
    (["**/x"], "a/b/x/y", True), ([""], "a", False), (["./a"], "a", True),
])  # fmt: skip
def test_ignore_patterns_are_dockers(patterns: list[str], path: str, ignored: bool) -> None:
    assert FilePatternMatcher(*patterns)(Path(path)) is ignored
    assert (~FilePatternMatcher(*patterns))(Path(path)) is not ignored


def test_a_mirror_with_steps_behind_it_is_built_everywhere(tmp_path: Path) -> None:
    assert not made(Image.mirror().apt_install("git"), tmp_path).recipe.mirror


def test_secrets_of_steps_are_named(tmp_path: Path) -> None:
    hub = Secret.from_name("hub", required_keys=["TOKEN"])
    image = Image.from_registry("example.org/a:1", secret=hub).run_commands("true", secrets=[hub])
    steps = made(image.run_function(os.getcwd, secrets=[Secret.from_name("db")]), tmp_path).recipe.steps
    assert secrets_of(steps) == ["hub:TOKEN", "db"]
    first, second, third = steps
    assert isinstance(first, FromRegistry) and first.secret == "hub:TOKEN"
    assert isinstance(second, RunCommands) and second.secrets == ["hub:TOKEN"]
    assert isinstance(third, RunFunction) and third.secrets == ["db"]
    values = Secret.from_dict({"TOKEN": "hf_thevalue"})
    refused(lambda: BASE.run_commands("true", secrets=[values]), "has no name")
    refused(lambda: Image.from_registry("a:1", secret=values), "has no name")
    refused(lambda: BASE.run_commands("true", secrets=["hub"]), "str is no secret")  # type: ignore[list-item]
