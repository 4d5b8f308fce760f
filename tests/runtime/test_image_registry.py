"""Images of a registry, and Dockerfiles against what buildah alone makes of them.

One file over 400 lines: its registry is filled once for all of them.
"""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from cellburst import Secret
from cellburst.image import Image
from cellburst.image_dockerfile_parse import parse
from cellburst_protocol.errors import CellburstError, ErrorCode, RequestError
from cellburst_protocol.images import Copy, FromRegistry, ImageRecipe, RunCommands, secrets_of
from cellburst_runtime.image_archive import place_archive
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


# Each as written by hand in the wild: stages that build on each other, archives, links and owners, arguments.
OTHERS = {
    "stages": r"""
FROM %(base)s AS one
ARG NAME=first
ENV PATH=/opt/own:$PATH
RUN mkdir -p /opt/own && printf '#!/bin/sh\necho "$0"\n' > /opt/own/said && chmod 755 /opt/own/said && echo $NAME > /name
FROM one AS two
RUN said > /by-path; rm -r /opt/own; mkdir -p /opt/own; echo anew > /opt/own/file; ln /opt/own/file /opt/own/hard
WORKDIR relative
WORKDIR ../other
COPY --chown=1234 --chmod=4750 src/tool .
FROM two AS three
RUN chmod 4755 /base/other/tool && mkdir -p /tree/sub && echo x > /tree/sub/x && chown -R 5:6 /tree && ln -s x /tree/link
FROM two
COPY --from=three /base/other/tool /set-uid
COPY --from=three /tree /tree
COPY --from=three --chown=someone /tree /given
COPY --from=one /opt/own/ /first/
COPY --from=two /opt/own/f*e /second/
COPY --from=%(base)s /etc/passwd /etc/group /third/
RUN chmod 1777 /first && chmod 4755 /first/said && ln -s /nowhere /dangling && touch "/a name"
""",
    "archives": r"""
FROM %(base)s
RUN mkdir -m 700 /into
ADD plain.tar /into
ADD packed.tar.gz /new/place/
ADD best.tar.xz named-otherwise /mixed/
ADD --chown=someone:someone other.tar.bz2 /owned
ADD one.txt not-one.tar /files/
COPY plain.tar /kept/
""",
    "people": r"""
FROM %(base)s
ARG WHO=someone
ARG HOME_OF=/home/$WHO
ENV MODE="0750" GREETING=${UNSET:-hello}
COPY --chown=$WHO:1235 src $HOME_OF/
RUN echo "$GREETING $WHO" > /greeting && chmod $MODE /greeting && chown 7:8 /greeting
USER ${WHO}
WORKDIR $HOME_OF/deep/er
RUN touch mine && mkdir -m 711 sub && echo "$(id -u):$(id -g) $PWD" > /tmp/who
USER root:someone
RUN id -g >> /tmp/who
COPY ["one.txt", "name with space", "json dir/"]
""",
}


def make_archives(context: Path) -> None:
    """Archives with owners, modes, links and a set-uid program, in each way of packing; one by another name, and what is none."""
    folder = context.parent / "packed"
    (folder / "d/deep").mkdir(parents=True)
    (folder / "d/file").write_text("in the archive")
    (folder / "d/program").write_text("#!/bin/sh\n")
    (folder / "d/link").symlink_to("../gone")
    (folder / "d/hard").hardlink_to(folder / "d/file")
    os.chown(folder / "d/file", 1234, 1235)
    os.chown(folder / "d/deep", 1234, 0)
    (folder / "d/deep").chmod(0o2750)
    (folder / "d/program").chmod(0o4755)
    for name, how in (
        ("plain.tar", ""),
        ("packed.tar.gz", "z"),
        ("best.tar.xz", "J"),
        ("other.tar.bz2", "j"),
        ("named-otherwise", "z"),
    ):
        run("tar", f"-c{how}f", str(context / name), "-C", str(folder), "d")
    (context / "not-one.tar").write_text("text by that name")
    (context / "name with space").write_text("s")


@pytest.mark.parametrize("which", OTHERS)
async def test_other_dockerfiles_give_the_tree_that_buildah_gives(
    which: str, house: ImageHouse, registry: Registry, tmp_path: Path
) -> None:
    context = make_context(tmp_path / "context")
    make_archives(context)
    file = tmp_path / "Dockerfile"
    file.write_text(OTHERS[which] % {"base": registry.name("busy:1")})
    recipe = Image.from_dockerfile(file, context_dir=context).recipe(tmp_path / "packs")
    house.packs.files.update(recipe.files)
    theirs = buildah_tree(file, context, tmp_path / "buildah")
    with await house.build(recipe.recipe) as image:
        ours = await our_tree(image, tmp_path / "mounted")
    assert {
        path: (theirs.get(path), ours.get(path))
        for path in theirs.keys() | ours.keys()
        if theirs.get(path) != ours.get(path)
    } == {}
    assert len(ours) > 200


async def test_here_documents(house: ImageHouse, registry: Registry, tmp_path: Path) -> None:
    """buildah knows them from 1.33 on: what is compared here is what the Dockerfile reference says."""
    file = tmp_path / "Dockerfile"
    file.write_text(
        f"FROM {registry.name('busy:1')}\nARG WORD=given\nENV SET=env\n"
        "RUN <<EOF\nset -e\necho $WORD > /script\n# no comment of the Dockerfile's: $((1 + 2))\necho \\\n  joined >> /script\n\nEOF\n"
        "RUN cat <<-'A' > /a && cat <<B >> /a\n\t\tplain $WORD\n\tA\nof the shell $WORD\nB\n"
        "RUN <<EOF\n#!/bin/sh -e\necho by $0 > /interpreted\nls -a $(dirname $0) | wc -l >> /interpreted\nEOF\n"
        "COPY --chmod=600 <<one.conf <<'two.conf' one.txt /files/\nkey=$WORD ${SET} \\$WORD\none.conf\nkey=$WORD\ntwo.conf\n"
        'COPY <<-"E F" /single\n\tindented\n\tE F\n'
        'RUN ["/bin/sh", "-c", "echo \'<<EOF\' > /json"]\nRUN echo "<<NO" > /quoted\n'
    )
    recipe = Image.from_dockerfile(file, context_dir=make_context(tmp_path / "context")).recipe(tmp_path / "packs")
    house.packs.files.update(recipe.files)
    with await house.build(recipe.recipe) as image:
        assert content(image, "/script") == b"given\njoined\n"
        assert content(image, "/a") == b"plain $WORD\nof the shell given\n"
        assert content(image, "/interpreted").startswith(b"by /tmp/") and content(image, "/interpreted").endswith(
            b"\n3\n"
        )
        assert (
            content(image, "/files/one.conf") == b"key=given env $WORD\n" and content(image, "/files/one.txt") == b"1"
        )
        assert content(image, "/files/two.conf") == b"key=$WORD\n" and content(image, "/single") == b"indented\n"
        assert content(image, "/json") == b"<<EOF\n" and content(image, "/quoted") == b"<<NO\n"
        place = next(layer / "files/two.conf" for layer in image.layers if (layer / "files/two.conf").exists())
        assert stat.S_IMODE(place.stat().st_mode) == 0o600
        ours = await our_tree(image, tmp_path / "mounted")
        assert not [path for path in ours if path.startswith("tmp/")]


def test_an_archive_leads_nowhere_outside(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir(), outside.mkdir()
    (outside / "kept").write_text("kept")
    (root / "way-out").symlink_to(outside)  # as the image sees it: its own /tmp/...

    def unpack(*members: tuple[str, bytes, str]) -> int:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for name, kind, link in members:
                info = tarfile.TarInfo(name)
                info.type, info.linkname, info.size = kind, link, 1 if kind == tarfile.REGTYPE else 0
                archive.addfile(info, io.BytesIO(b"x") if info.size else None)
        with tarfile.open(tmp_path / "pack.tar", "w") as pack:
            pack.add(tmp_path / "a.tar", "a.tar")
        return place_archive(root, tmp_path / "pack.tar", "/d", owner=Ownership())

    file, link, hard = tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
    assert unpack(("up", link, "../way-out"), ("up/kept", file, "")) == 2
    assert unpack(("/absolute", file, ""), ("away", link, str(outside)), ("away/kept", file, "")) == 3
    assert (root / "d/absolute").is_file() and (outside / "kept").read_text() == "kept"
    assert [path.name for path in outside.iterdir()] == ["kept"]
    for members, words in (
        ([("../x", file, "")], "the path"), ([("h", hard, "../../outside/kept")], "does not hold"),
        ([("h", hard, "away/kept2")], "does not hold"), ([("p", tarfile.FIFOTYPE, "")], "neither a file"),
        ([("t", tarfile.CHRTYPE, "")], "neither a file"), ([("/", file, "")], "is a folder"),
    ):  # fmt: skip
        with pytest.raises(RequestError, match=words):
            unpack(*members)
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with tarfile.open(tmp_path / "pack.tar", "w") as pack:
        pack.add(tmp_path / "a.tar", "a.tar")
    with pytest.raises(RequestError, match="cannot be read"):
        place_archive(root, tmp_path / "pack.tar", "/d", owner=Ownership())


def test_the_login_is_of_one_registry(tmp_path: Path) -> None:
    file = tmp_path / "Dockerfile"
    file.write_text("FROM ghcr.io/me/base:1 AS b\nFROM b\nCOPY --from=ghcr.io/me/tools /t /t\n")

    def secrets(secret: Secret | dict[str, Secret]) -> list[str]:
        return secrets_of(
            Image.from_dockerfile(file, context_dir=tmp_path, secret=secret).recipe(tmp_path / "p").recipe.steps
        )

    mine = Secret.from_name("mine")
    assert secrets(mine) == ["mine"]
    file.write_text("FROM ghcr.io/me/base:1 AS b\nFROM debian:12\nCOPY --from=b /t /t\n")
    with pytest.raises(RequestError, match="images of 2 registries") as caught:
        secrets(mine)
    assert "docker.io, ghcr.io" in str(caught.value.info.allowed)
    assert secrets({"ghcr.io": mine}) == ["mine"] and secrets({"quay.io": mine}) == []
    assert secrets({"ghcr.io": mine, "docker.io": Secret.from_name("hub")}) == ["hub", "mine"]
    for wrong in ({"ghcr.io/me": mine}, {"": mine}):
        with pytest.raises(RequestError, match="is no registry"):
            secrets(wrong)


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
    ("FROM a\nONBUILD RUN x", "not supported"), ("FROM a\nRUN <<EOF\nx\nEOFF", "here-document EOF does not end"), ("FROM a\nADD x.tar.zst /", "no such archive"),
    ("FROM a\nCOPY --from=b <<E /x\nE", "in no stage"), ("FROM a\nCOPY <<E /x\n$NOT_SET\nE", "NOT_SET is not set"), ("FROM a\nCOPY <<E <<F /x\nE\nF", "end the destination"), ("FROM a b c d", "not FROM image"), ("# nothing", "has no FROM"),
    ("FROM a\nCOPY one.txt two.txt /x", "end the destination with /"), ("FROM a\nCOPY $NOT_SET /x", "NOT_SET is not set"),
    ("FROM a\nRUN --mount=type=secret,id=x cat", "is not supported"), ("FROM a\nSHELL bash", "JSON form"), ("FROM --platform=linux/s390x a", "s390x"),
    ("FROM a\nCOPY skipped.log /x", "dockerignore"),
])  # fmt: skip
def test_dockerfiles_that_are_refused(text: str, words: str, tmp_path: Path) -> None:
    context = make_context(tmp_path / "context")
    (context / "skipped.log").write_text("x")
    (context / "x.tar.zst").write_text("x")
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
