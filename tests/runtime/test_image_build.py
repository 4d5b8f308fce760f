"""Building images on real gVisor: steps are layers, made once, whole or not at all, and cannot reach outside."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from cellburst.image_packs import PackedFile
from cellburst_protocol.errors import CellburstError, ErrorCode, RequestError, UserCodeError
from cellburst_protocol.images import (
    MAX_STEPS,
    Cmd,
    Copy,
    CopyFrom,
    Entrypoint,
    Env,
    FromStage,
    ImageRecipe,
    RunCommands,
    Shell,
    User,
    Workdir,
)
from cellburst_runtime.image_root import mount_root
from cellburst_runtime.mounts import mount, unmount_below
from tests.fakes.images import ImageHouse, content, until, wait_line

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.gvisor
UUID = "head -c 16 /dev/urandom | od -x > /id"  # another result each time it runs


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[ImageHouse]:
    made = ImageHouse(tmp_path)
    yield made
    await made.end()


async def failure(house: ImageHouse, *commands: str) -> CellburstError:
    with pytest.raises(CellburstError) as caught:
        await house.build(house.recipe(*commands))
    return caught.value


async def test_commands_make_layers_and_an_equal_recipe_makes_none(house: ImageHouse) -> None:
    recipe = house.recipe("echo one > /a; mkdir /d; id -u > /d/uid", "cat /a > /b; rm /a; ls -a /tmp > /tmp/list")
    with await house.build(recipe) as image:
        assert content(image, "/b") == b"one\n" and content(image, "/d/uid") == b"0\n"
        assert content(image, "/tmp/list").split() == [b".", b"..", b".cellburst", b"list"]
        assert os.major((image.layers[0] / "a").stat().st_rdev) == 0  # deleted in the last layer
        assert image.environment["PATH"].startswith("/usr/local/sbin") and len(image.keys) == 4
    assert sum("done in" in line for line in house.log) == 4
    house.log.clear()
    with await house.build(recipe) as again:
        assert again.instance == image.instance and again.id == image.id
    assert not any("done in" in line for line in house.log) and sum("there already" in line for line in house.log) == 4


async def test_a_hostile_step_reads_and_changes_nothing_outside(house: ImageHouse, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("do not tell")
    commands = [
        f"cat {secret} /root/.bashrc /proc/1/root{secret}; ls /root /home /work 2>&1; cat /etc/shadow; true",
        f"mkdir -p {tmp_path}; echo changed > {secret}; echo x > /proc/sys/kernel/hostname; true",
        "mknod /disk b 254 0 && dd if=/disk bs=1 count=1; mount -t tmpfs none /mnt; mount -o remount,rw /sys; true",
        "mkdir /j; chroot /j /bin/true; cd / && chroot . /bin/ls ../../../../..; kill -9 -1; true",
        "wget -T 2 -O - http://127.0.0.1:1/ ; nc -w 1 169.254.169.254 80 </dev/null; true",
    ]
    with await house.build(house.recipe(*(RunCommands(commands=[text]) for text in commands[:3]))) as image:
        assert secret.read_text() == "do not tell"
        assert "do not tell" not in "\n".join(house.log) and not any(line.startswith("/work") for line in house.log)
        assert any(line == "root:*:1::::::" for line in house.log)  # the image's own
        assert not any((layer / "disk").exists() for layer in image.layers)
    for text in commands[3:]:
        try:
            (await house.build(house.recipe(text))).release()
        except UserCodeError:
            pass  # ended by its own kill
    assert secret.read_text() == "do not tell"


async def test_links_that_a_step_left_lead_nowhere_outside(house: ImageHouse, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    pack = house.packs.write([PackedFile("x", content=b"planted")])
    trap = f"ln -s {outside} /trap; ln -s /../../../../../..{outside} /up; ln -s {outside} /work; rm -rf /etc; ln -s {outside} /etc"
    steps = [
        trap,
        *(Copy(pack=pack, destination=place) for place in ("/trap", "/up/y", "/etc")),
        Workdir(path="/work/w"),
        "true",
    ]
    with await house.build(house.recipe(*steps)) as image:
        assert content(image, f"{outside}/x") == b"planted"
    assert list(outside.iterdir()) == []


async def test_a_failing_step_says_what_and_leaves_nothing(house: ImageHouse) -> None:
    problem = await failure(
        house, "echo kept > /kept", "for i in $(seq 60); do echo line $i; done; echo oh >&2; exit 7"
    )
    assert problem.code is ErrorCode.IMAGE_BUILD and "Step 4 of 4" in problem.info.message
    assert "exit code 7" in problem.info.message and problem.info.message.count("for i in $(seq 60)") == 1
    assert problem.info.detail["output"].splitlines() == [*(f"line {n}" for n in range(22, 61)), "oh"]
    layers = {path.name for path in (house.images / "layers").iterdir()}
    assert len(layers) == 3 and house.leftovers() == []
    house.log.clear()
    with await house.build(house.recipe("echo kept > /kept", "true")):
        assert sum("there already" in line for line in house.log) == 3


async def test_the_log_of_a_build_is_kept(house: ImageHouse) -> None:
    await failure(house, "echo words; false")
    builder = house.builder()
    [name] = [path.stem for path in (house.images / "logs").iterdir()]
    text = builder.logs(name[:10])
    assert "$ echo words; false" in text and "words" in text.splitlines() and "exit code 1" in text
    with pytest.raises(RequestError, match="no build"):
        builder.logs("0123456789")


async def test_what_an_image_says_about_running(house: ImageHouse) -> None:
    steps = [
        Env(variables={"A": "1", "B": "$A"}), Env(variables={"C": "${A}x$D"}, scope={"D": "y"}), Workdir(path="/srv"), Workdir(path="app"),
        Entrypoint(arguments=["/e"]), Cmd(arguments=["c"]), Shell(arguments=["/bin/sh", "-e", "-c"]), User(user="someone"),
        RunCommands(commands=["echo $A $B $C $D $(pwd) $(id -u) $(id -g) $HOME $ARG > /tmp/said", ["/bin/touch", "/tmp/two words"]],
                    environment={"ARG": "only now"}),
    ]  # fmt: skip
    with await house.build(house.recipe("chmod 1777 /tmp; mkdir -m 777 -p /srv/app", *steps)) as image:
        assert content(image, "/tmp/said") == b"1 $A 1xy /srv/app 1234 1235 /home/someone only now\n"
        assert content(image, "/tmp/two words") == b""
        assert image.environment["C"] == "1xy" and "ARG" not in image.environment
        assert (image.workdir, image.entrypoint, image.cmd, image.user) == ("/srv/app", ["/e"], ["c"], "someone")
    with pytest.raises(RequestError, match="no user 'nobody-here'"):
        await house.build(house.recipe(User(user="nobody-here"), "true"))


async def test_local_files_are_copied_and_checked(house: ImageHouse) -> None:
    tree = house.packs.write(
        [
            PackedFile("a/run", content=b"#!/bin/sh\n", executable=True),
            PackedFile("a/l", link="run"),
            PackedFile("b", content=b"B"),
        ]
    )
    single = house.packs.write([PackedFile("name", content=b"one")])
    steps = [
        Copy(pack=tree, destination="/t", owner="someone", mode=""), Copy(pack=single, destination="/x/y", single=True, mode="600"),
        Copy(pack=single, destination="/x/", single=True), "ls -ln /t/a/run /x/y > /said",
    ]  # fmt: skip
    with await house.build(house.recipe(*steps, adds=[Copy(pack=single, destination="/later", single=True)])) as image:
        said = content(image, "/said").decode()
        assert "-rwxr-xr-x" in said and "1234" in said and "1235" in said and "-rw-------" in said
        assert content(image, "/x/name") == content(image, "/later") == b"one" and image.id != image.base_id
        assert (image.layers[-3 - 1].parent.name) in image.keys
    house.packs.files[single.hash].write_bytes(b"other")
    with pytest.raises(CellburstError) as caught:
        await house.build(house.recipe(Copy(pack=single, destination="/again", single=True)))
    assert caught.value.code is ErrorCode.INTEGRITY


async def test_an_add_changes_no_layer_below(house: ImageHouse) -> None:
    def add(text: bytes) -> Copy:
        return Copy(pack=house.packs.write([PackedFile("f", content=text)]), destination="/app")

    with (
        await house.build(house.recipe(UUID, adds=[add(b"1")])) as first,
        await house.build(house.recipe(UUID, adds=[add(b"2")])) as second,
    ):
        assert first.base_id == second.base_id and first.id != second.id
        assert content(first, "/id") == content(second, "/id") and content(second, "/app/f") == b"2"


async def test_a_stage_gives_files(house: ImageHouse) -> None:
    stage = [
        *house.base(),
        RunCommands(commands=["mkdir -p /out/d; echo built > /out/d/f; ln -s f /out/d/l; chmod 700 /out/d/f"]),
    ]
    with await house.build(house.recipe(CopyFrom(steps=stage, sources=["/ou?/d"], destination="/in"))) as image:
        assert content(image, "/in/f") == b"built\n" and str((image.layers[0] / "in/l").readlink()) == "f"
        assert (image.layers[0] / "in/f").stat().st_mode & 0o7777 == 0o700
    with pytest.raises(RequestError, match="not in that stage"):
        await house.build(house.recipe(CopyFrom(steps=stage, sources=["/none"], destination="/in")))


async def test_forced_steps_run_again_and_those_behind_them(house: ImageHouse) -> None:
    recipe = house.recipe(UUID, RunCommands(commands=["cp /id /second"], force=True), "cp /second /third")
    with await house.build(recipe) as first, await house.build(recipe) as second:
        assert first.keys[:3] == second.keys[:3] and first.keys[3] != second.keys[3] and first.keys[4] != second.keys[4]
        assert content(first, "/id") == content(second, "/third")


def stages(house: ImageHouse) -> ImageRecipe:
    """A stage over a stage over a stage, each with as many steps as there may be."""
    steps = house.recipe(*["true"] * (MAX_STEPS - 2)).steps
    for _ in range(2):
        steps = [FromStage(steps=steps), *(RunCommands(commands=["true"]) for _ in range(MAX_STEPS - 1))]
    return ImageRecipe(steps=steps)


async def test_an_image_of_a_hundred_layers_is_built_and_mounted(house: ImageHouse, tmp_path: Path) -> None:
    """Their names are longer than what mount(2) takes."""
    packs = [house.packs.write([PackedFile(f"f{n}", content=str(n).encode())]) for n in range(97)]
    copies = [Copy(pack=pack, destination="/files") for pack in packs]
    with await house.build(house.recipe(*copies, "cat /files/f0 /files/f96 > /said")) as image:
        assert len(image.keys) == 100 and content(image, "/said") == b"096"
        root = tmp_path / "whole" / "root"
        for folder in (root, root.parent / "upper", root.parent / "work"):
            folder.mkdir(parents=True)
        await mount_root(root, image.layers, root.parent / "upper", root.parent / "work")
        try:
            assert sorted(os.listdir(root / "files")) == sorted(f"f{n}" for n in range(97))
            (root / "files" / "f0").unlink()
        finally:
            assert await unmount_below(root) == []
        assert sorted(path.name for path in root.parent.iterdir()) == ["root", "upper", "work"]  # no links are left


async def test_recipes_that_cannot_be_built_here(house: ImageHouse) -> None:
    for recipe, words in (
        (house.recipe("true"), "aarch64"), (house.recipe(*["true"] * MAX_STEPS), f"{MAX_STEPS + 2} steps"),
        (stages(house), "layers with those of its stages"),
    ):  # fmt: skip
        recipe.architecture = "aarch64" if words == "aarch64" else ""
        with pytest.raises(RequestError, match=words):
            await house.build(recipe)
    recipe = house.recipe("true")
    recipe.steps = recipe.steps[2:]
    with pytest.raises(RequestError, match="begins with a base"):
        await house.build(recipe)


async def side(house: ImageHouse, command: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, str(ROOT / "tests/fakes/image_side.py"), str(house.folder), str(house.state), command,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


async def test_two_processes_make_a_layer_once(house: ImageHouse) -> None:
    other = await side(house, UUID)
    assert other.stdout is not None
    try:
        await wait_line(other.stdout, f"$ {UUID}")  # it is at the step now
        with await house.build(house.recipe(UUID)) as image:
            rest = (await other.stdout.read()).decode()
    finally:
        await other.wait()
    assert f"INSTANCE {image.instance}" in rest
    assert not any("Step 3 of 3" in line and "done in" in line for line in house.log)


async def test_a_killed_build_leaves_a_usable_store(house: ImageHouse) -> None:
    command = "echo running; sleep 1000"
    other = await side(house, command)
    assert other.stdout is not None
    await wait_line(other.stdout, "running\n")
    other.send_signal(signal.SIGKILL)
    await other.wait()
    while await other.stdout.read(65_536):
        pass
    assert house.leftovers() != []  # a sandbox that nobody waits for
    with await house.build(house.recipe("echo fine > /fine")) as image:
        assert content(image, "/fine") == b"fine\n"
    assert house.leftovers() == []


async def test_a_cancelled_build_leaves_nothing(house: ImageHouse) -> None:
    building = asyncio.create_task(house.build(house.recipe("echo running; sleep 1000")))
    await until(lambda: "running" in house.log)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await building
    assert house.leftovers() == []


async def test_a_step_that_takes_too_long_or_too_much_memory_is_ended(house: ImageHouse) -> None:
    house.machine = replace(house.machine, step_seconds=1.0)
    assert "it ran for 1 s" in (await failure(house, "sleep 1000")).info.message
    house.machine = replace(house.machine, step_seconds=60.0, memory_mib=256)
    problem = await failure(house, "tail -c 900000000 /dev/zero")
    assert "256 MiB" in problem.info.message


async def test_a_damaged_layer_is_found_and_made_again(house: ImageHouse) -> None:
    recipe = house.recipe(UUID, "cp /id /copy")
    with await house.build(recipe) as image:
        damaged = image.layers[1] / "id"
        first = content(image, "/id")
    damaged.write_bytes(first[:10])
    with await house.build(recipe) as image:  # by another process, which looks once
        assert content(image, "/id") != first and content(image, "/copy") == content(image, "/id")
    again = image.layers[1] / "id"
    status, text = again.stat(), again.read_bytes()
    again.write_bytes(text[:-2] + b"?\n")
    os.utime(again, ns=(status.st_atime_ns, status.st_mtime_ns))
    builder = house.builder()
    found = await builder.verify()
    assert [(layer.key, layer.problems) for layer in found.damaged] == [(image.keys[2], ["id: another content"])]
    assert found.layers == 4 and found.damaged[0].step.startswith("run_commands head")
    with await house.build(recipe, builder) as image:
        assert content(image, "/id") not in (first, text) and (await builder.verify()).damaged == []


async def test_eviction_takes_the_least_recently_used_and_nothing_in_use(house: ImageHouse) -> None:
    builder = house.builder()
    old, new, live = [await house.build(house.recipe(f"echo {n} > /n"), builder) for n in ("old", "new", "live")]
    old.release(), new.release()
    for number, image in enumerate((old, live, new)):
        os.utime(house.images / "layers" / image.keys[-1] / "meta.json", (1000 + number, 1000 + number))
    sizes = {meta.key: meta.size_bytes for meta, _ in builder.store.list_layers()}
    freed = await builder.prune(max_bytes=sum(sizes.values()) - 1)
    assert freed == sizes[old.keys[-1]] and {r.id for r in builder.ls()} == {new.id, live.id}
    await builder.prune(max_bytes=0, keep=[new.keys[-1]])
    assert {r.id for r in builder.ls()} == {new.id, live.id} and content(live, "/n") == b"live\n"
    await builder.prune(max_bytes=0)
    assert [record.id for record in builder.ls()] == [live.id] and content(live, "/n") == b"live\n"
    live.release()
    await builder.prune(max_bytes=0)
    assert builder.ls() == [] and list((house.images / "layers").iterdir()) == []


async def test_a_store_never_grows_over_its_bound(house: ImageHouse) -> None:
    with await house.build(house.recipe("dd if=/dev/zero of=/z bs=1M count=4")) as image:
        pass
    builder = house.builder()
    builder.room.max_bytes = 5 << 20
    with await house.build(house.recipe("dd if=/dev/zero of=/y bs=1M count=2"), builder) as other:
        assert not (house.images / "layers" / image.keys[-1]).exists() and content(other, "/y") == bytes(2 << 20)
        assert sum(meta.size_bytes for meta, _ in builder.store.list_layers()) <= 5 << 20


async def test_a_full_disk_fails_the_step_and_not_the_store(house: ImageHouse) -> None:
    house.images.mkdir(parents=True)
    await mount("none", house.images, kind="tmpfs", options="size=16m")
    try:
        problem = await failure(house, "dd if=/dev/zero of=/big bs=1M count=64")
        assert problem.code is ErrorCode.DISK_FULL and "No space left" in problem.info.message
        pack = house.packs.write([PackedFile("big", content=bytes(32 << 20))])
        with pytest.raises(CellburstError) as caught:
            await house.build(house.recipe(Copy(pack=pack, destination="/")))
        assert caught.value.code is ErrorCode.DISK_FULL
        with await house.build(house.recipe("echo fits > /small")) as image:
            assert content(image, "/small") == b"fits\n"
    finally:
        process = await asyncio.create_subprocess_exec("umount", str(house.images))
        assert await process.wait() == 0
