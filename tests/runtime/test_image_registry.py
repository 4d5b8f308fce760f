"""Images of a registry, and Dockerfiles against what buildah alone makes of them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cellburst.image import Image
from cellburst.image_dockerfile import parse
from cellburst_protocol.errors import CellburstError, ErrorCode, RequestError
from cellburst_protocol.images import Copy, FromRegistry, ImageRecipe, RunCommands
from cellburst_runtime.image_build import BuiltImage
from cellburst_runtime.image_files import Ownership, place_pack
from cellburst_runtime.image_root import mount_root
from cellburst_runtime.mounts import unmount_below
from tests.fakes.images import ImageHouse, content
from tests.fakes.registry import Registry, run, running_registry

pytestmark = pytest.mark.gvisor


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    folder = tmp_path_factory.mktemp("registry")
    with running_registry(folder) as made:
        house = ImageHouse(folder)
        root = folder / "root"
        root.mkdir()
        [copy] = [step for step in house.base() if isinstance(step, Copy)]
        place_pack(root, house.file(copy.pack.hash), "/", single=False, owner=Ownership())
        (root / "tmp").chmod(0o1777)
        made.push(
            "busy:1",
            root,
            config={"config.env": "FROM_BASE=yes", "config.workingdir": "/base", "config.entrypoint": "/bin/sh"},
        )
        made.push("busy:arm", root, config={"architecture": "arm64"})
        yield made


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    made = ImageHouse(tmp_path)
    yield made
    await made.end()


async def test_an_image_of_a_registry(house: ImageHouse, registry: Registry) -> None:
    steps = [
        FromRegistry(reference=registry.name("busy:1")),
        RunCommands(commands=["echo $FROM_BASE $(pwd) > /tmp/said"]),
    ]
    with await house.build(ImageRecipe(steps=steps)) as image:
        assert content(image, "/tmp/said") == b"yes /base\n"
        assert image.entrypoint == ["/bin/sh"] and image.workdir == "/base" and image.python == ""


async def test_images_that_are_not_there_or_not_for_this_machine(house: ImageHouse, registry: Registry) -> None:
    with pytest.raises(RequestError, match="is for arm64"):
        await house.build(ImageRecipe(steps=[FromRegistry(reference=registry.name("busy:arm"))]))
    with pytest.raises(CellburstError, match="skopeo failed: exit code") as caught:
        await house.build(ImageRecipe(steps=[FromRegistry(reference=registry.name("none:1"))]))
    assert caught.value.code is ErrorCode.IMAGE_BUILD and "manifest unknown" in caught.value.info.message


DOCKERFILE = r"""
# syntax comment
ARG BASE=%(base)s
FROM ${BASE} AS builder
ARG WORD=default
WORKDIR /build/deep
COPY src/ .
COPY --chmod=600 one.txt two.txt /build/texts/
RUN mkdir -p out && echo "$WORD" > out/word \
    # a comment inside
    && ln -s word out/link && chmod 640 out/word && cat main.c > out/main

FROM ${BASE}
ENV A=1 B="two words" C='$A'
ENV D=${A}x E=$FROM_BASE
LABEL who=cares
EXPOSE 80
COPY one.txt /renamed
COPY one.txt /into/
COPY *.txt /all/
COPY --chown=someone:someone src /owned
COPY --from=builder /build/deep/out /from/
COPY --from=0 /build/texts/one.txt /from/one
RUN ["/bin/mkdir", "-m", "700", "/json form"]
SHELL ["/bin/sh", "-e", "-c"]
RUN echo "$A:$B:$C:$D:$E" > /env; rm /all/two.txt; rm -rf /home; touch /new
USER someone
WORKDIR /home/someone
RUN id -u > /tmp/who && echo $HOME >> /tmp/who
CMD ["echo", "hello"]
"""


def make_context(folder: Path) -> Path:
    (folder / "src/sub").mkdir(parents=True)
    for name, text in (
        ("one.txt", "1"),
        ("two.txt", "2"),
        ("src/main.c", "int"),
        ("src/sub/x", "x"),
        ("src/skipped.log", "l"),
        (".hidden", "h"),
    ):
        (folder / name).write_text(text)
    (folder / "src/tool").write_text("#!/bin/sh\n")
    (folder / "src/tool").chmod(0o755)
    (folder / "src/link").symlink_to("sub/x")
    (folder / ".dockerignore").write_text("**/*.log\n")
    os.chmod(folder / "src/sub", 0o755)
    return folder


async def test_a_dockerfile_gives_the_tree_that_buildah_gives(
    house: ImageHouse, registry: Registry, tmp_path: Path
) -> None:
    context = make_context(tmp_path / "context")
    file = tmp_path / "Dockerfile"
    file.write_text(DOCKERFILE % {"base": registry.name("busy:1")})
    recipe = Image.from_dockerfile(file, context_dir=context, build_args={"WORD": "given"}).recipe(tmp_path / "packs")
    house.packs.files.update(recipe.files)
    theirs = buildah_tree(file, context, tmp_path / "buildah", WORD="given")
    with await house.build(recipe.recipe) as image:
        ours = await our_tree(image, tmp_path / "mounted")
        assert image.cmd == ["echo", "hello"] and image.user == "someone" and image.environment["D"] == "1x"
    assert {
        path: (theirs.get(path), ours.get(path))
        for path in theirs.keys() | ours.keys()
        if theirs.get(path) != ours.get(path)
    } == {}
    assert ours["tmp/who"][-1] == b"1234\n/home/someone\n" and ours["env"][-1] == b"1:two words:$A:1x:yes\n"
    assert ours["from/word"][-1] == b"given\n" and len(ours) > 200


def buildah_tree(file: Path, context: Path, work: Path, **arguments: str) -> dict[str, tuple[object, ...]]:
    store = [f"--root={work}/root", f"--runroot={work}/run", "--storage-driver=vfs"]
    (work / "tmp").mkdir(parents=True)
    given = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    environment = {**os.environ, "TMPDIR": f"{work}/tmp"}
    options = [
        "--isolation=chroot",
        "--tls-verify=false",
        "--layers=false",
        *given,
        "-t",
        "made",
        "-f",
        str(file),
        str(context),
    ]
    done = subprocess.run(["buildah", *store, "bud", *options], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    try:
        container = run("buildah", *store, "from", "--pull-never", "made").strip()
        return tree(Path(run("buildah", *store, "mount", container).strip()))
    finally:
        run("buildah", *store, "rm", "--all")
        run("buildah", *store, "rmi", "--all", "--force")


async def our_tree(image: BuiltImage, place: Path) -> dict[str, tuple[object, ...]]:
    place.mkdir()
    await mount_root(place, image.layers, None, None)
    try:
        return tree(place)
    finally:
        assert await unmount_below(place) == []


# Made by the engines themselves, or beneath which they mount.
ENGINES_OWN = {
    "proc",
    "sys",
    "dev",
    "run",
    "cellburst",
    "etc/resolv.conf",
    "etc/hosts",
    "etc/hostname",
    "tmp/.cellburst",
    "root",
    "run/.containerenv",
}


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """path -> (type and mode, owner, content or target) of everything."""
    found: dict[str, tuple[object, ...]] = {}
    for path in root.rglob("*"):
        name = path.relative_to(root).as_posix()
        if name in ENGINES_OWN or name.startswith(("dev/", "cellburst/", "run/", "proc/", "sys/")):
            continue
        status = path.lstat()
        link = stat.S_ISLNK(status.st_mode)
        what = str(path.readlink()) if link else path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        found[name] = (oct(status.st_mode) if not link else "link", status.st_uid, status.st_gid, what)
    return found


async def test_dockerfile_commands_go_on_an_image(house: ImageHouse, registry: Registry, tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    image = Image.from_registry(registry.name("busy:1")).dockerfile_commands(
        ["COPY one.txt /x/", "RUN cat /x/one.txt > /y"], context_dir=context
    )
    recipe = image.recipe(tmp_path / "packs")
    house.packs.files.update(recipe.files)
    with await house.build(recipe.recipe) as built:
        assert content(built, "/y") == b"1"


@pytest.mark.parametrize(("text", "words"), [
    ("FROM a\nRUM x", "line 2: 'RUM x' is no instruction"), ("RUN x", "stands before FROM"), ("FROM a\nRUN", "RUN needs an argument"),
    ("FROM a\nCOPY gone /", "there is no 'gone'"), ("FROM a\nCOPY ../../etc/passwd /", "there is no"), ("FROM a\nADD https://x/y /", "from the network"),
    ("FROM a\nONBUILD RUN x", "not supported"), ("FROM a\nRUN <<EOF\nx\nEOF", "here-documents"), ("FROM a b c d", "not FROM image"), ("# nothing", "has no FROM"),
    ("FROM a\nCOPY one.txt two.txt /x", "end the destination with /"), ("FROM a\nCOPY $NOT_SET /x", "NOT_SET is not set"),
    ("FROM a\nRUN --mount=type=secret,id=x cat", "is not supported"), ("FROM a\nSHELL bash", "JSON form"), ("FROM --platform=linux/s390x a", "s390x"),
    ("FROM a\nCOPY skipped.log /x", "dockerignore"),
])  # fmt: skip
def test_dockerfiles_that_are_refused(text: str, words: str, tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    (context / "skipped.log").write_text("x")
    file = tmp_path / "Dockerfile"
    file.write_text(text)
    with pytest.raises(RequestError, match=words) as caught:
        Image.from_dockerfile(file, context_dir=context).recipe(tmp_path / "packs")
    assert str(file) in caught.value.info.message


def test_lines_are_joined_and_comments_left_out() -> None:
    found = parse("# c\nFROM a\nRUN x \\\n  # c\n\n  y\nCOPY --from=b --chown=1:2 c d\n", "f")
    assert [(i.name, i.flags, i.text, i.line) for i in found] == [
        ("FROM", {}, "a", 2), ("RUN", {}, "x   y", 3), ("COPY", {"from": "b", "chown": "1:2"}, "c d", 7)
    ]  # fmt: skip


def test_the_programs_are_there() -> None:
    assert all(shutil.which(name) for name in ("docker-registry", "buildah", "skopeo", "umoci"))
