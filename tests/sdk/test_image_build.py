"""`Image.build` and `cellburst image` against a real gateway whose worker is simulated."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner, Result

from cellburst import Image
from cellburst.blobs import BlobClient
from cellburst.cli import main
from cellburst.endpoint import Endpoint
from cellburst.image_build import build, load_images, packed, send_files
from cellburst.image_progress import StepLines
from cellburst_gateway.app import Gateway
from cellburst_gateway.config import GatewayConfig
from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo
from cellburst_protocol.images import MAX_RECIPE_BYTES, packs
from tests.fakes.blob_server import BlobServer
from tests.fakes.fake_worker import FakeWorker
from tests.gateway.house import House

FAILED = ErrorInfo(code=ErrorCode.IMAGE_BUILD, message="step 2 of 2 failed: false: exit code 1", next="mend it")
NO_FOLDER = m.Welcome(protocol=(1, 0), software="test", gateway_instance="i", epoch=1, workspace="w", principal="p")
FILE = """
import cellburst
base = cellburst.Image.debian_slim("3.11")
_hidden = base.apt_install("git")
"""


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may start a gateway of the person who runs it."""
    for name, value in {
        "CELLBURST_GATEWAY": "http://127.0.0.1:9", "CELLBURST_TOKEN": "none", "CELLBURST_DATA": str(tmp_path / "own"),
        "CELLBURST_CONFIG": str(tmp_path / "no.toml"), "CELLBURST_RUN": str(tmp_path / "r"),
        "COLUMNS": "200",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    gateway = Gateway(GatewayConfig(data_folder=tmp_path / "data", run_folder=tmp_path / "run", local_worker=False))
    await gateway.start()
    house = House(gateway)
    monkeypatch.setenv("CELLBURST_GATEWAY", house.url)
    monkeypatch.setenv("CELLBURST_TOKEN", house.token)
    yield house
    await house.close()


async def cellburst(*arguments: str) -> Result:
    """Run a command, while the gateway serves it."""
    return await asyncio.to_thread(CliRunner().invoke, main, list(arguments))


def steps(*titles: str) -> list[m.BuildLog]:
    lines = [["first line", "last line of it"]] * len(titles)
    return [
        m.BuildLog(lines=line, step=number, steps=len(titles), title=title)
        for number, (title, line) in enumerate(zip(titles, lines, strict=True), 1)
    ]


# -- Image.build ----------------------------------------------------------------------------------------------------------


async def test_an_image_is_built_with_its_files_and_returned(
    house: House, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    worker = await house.worker()
    worker.images.lines = steps("debian_slim bookworm", "copy 1 files to /data")
    (tmp_path / "data.txt").write_text("what the image gets")
    image = Image.debian_slim("3.11").add_local_file(tmp_path / "data.txt", "/data/", copy=True)
    assert await asyncio.to_thread(image.build) is image
    (asked,) = worker.images.builds
    (pack,) = packs(asked.recipe)
    assert b"what the image gets" in house.gateway.hub.blobs.path(pack.hash).read_bytes()
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 1 of 2: debian_slim bookworm" and said[1] == "step 2 of 2: copy 1 files to /data"
    assert "was there already" in said[2] and "1.0 MB on fake" in said[2] and len(said) == 3


async def test_a_step_that_fails_is_raised_as_it_was_said(house: House) -> None:
    worker = await house.worker()
    worker.images.result = m.ImageBuilt(error=FAILED)
    with pytest.raises(CellburstError) as caught:
        await asyncio.to_thread(build, Image.debian_slim("3.11"))
    assert caught.value.info == FAILED


async def test_a_build_ends_when_it_is_interrupted(house: House, tmp_path: Path) -> None:
    worker = await house.worker()
    worker.images.hold = True
    (tmp_path / "image.py").write_text(FILE)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "cellburst", "image", "build", str(tmp_path / "image.py"), stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            assert b"apt_install git" in await process.stderr.readline()  # the worker's: it waits for more
            process.send_signal(signal.SIGINT)
            assert await process.wait() != 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
    await house.until(lambda: worker.images.given_up == 1)


async def test_a_gateway_that_goes_ends_the_build(house: House) -> None:
    worker = await house.worker()
    worker.images.hold = True
    waiting = asyncio.create_task(asyncio.to_thread(build, Image.debian_slim("3.11")))
    await house.until(lambda: bool(worker.images.builds))
    house.gateway.links.close_all()
    with pytest.raises(CellburstError) as caught:
        await waiting
    assert caught.value.code in (ErrorCode.LINK_CLOSED, ErrorCode.WORKER_LOST)  # whichever link closes first


def test_a_recipe_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with (
        pytest.raises(CellburstError) as caught,
        packed(Image.debian_slim("3.11").run_commands("x" * MAX_RECIPE_BYTES)),
    ):
        raise AssertionError("not reached")
    assert caught.value.code is ErrorCode.TOO_LARGE


# -- files by HTTP --------------------------------------------------------------------------------------------------------


def test_files_go_by_http_where_there_is_no_common_folder(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(range(256)) * 20_000)
    server = BlobServer("the token")
    counts: list[int] = []
    try:
        blobs = BlobClient(Endpoint(server.url, "the token"), NO_FOLDER)
        with packed(Image.debian_slim("3.11").add_local_file(tmp_path / "big", "/big")) as recipe:
            assert send_files(recipe, blobs, lambda text: None) == sum(p.size_bytes for p in packs(recipe.recipe))
            (pack,) = packs(recipe.recipe)
            blobs.put_file(pack.hash, recipe.files[pack.hash], counts.append)
        assert blake3(server.blobs[pack.hash]).hexdigest() == pack.hash
        assert sum(counts) == pack.size_bytes and len(counts) > 2
        server.refusals = 10
        with pytest.raises(CellburstError) as caught:
            blobs.put_file("ab" * 32, tmp_path / "big")
        assert caught.value.code is ErrorCode.STORE
        with pytest.raises(CellburstError, match="gone could not be stored"):
            blobs.put_file("ab" * 32, tmp_path / "gone")
    finally:
        server.close()


# -- the command ----------------------------------------------------------------------------------------------------------


async def test_build_takes_the_only_image_of_a_file_or_the_one_named(house: House, tmp_path: Path) -> None:
    worker = await house.worker()
    file = tmp_path / "image.py"
    file.write_text(FILE)
    done = await cellburst("image", "build", str(file))
    assert done.exit_code == 0 and "was there already" in done.stdout and "step 1 of 2: apt_install git" in done.stderr
    assert "a line" not in done.stderr
    file.write_text(FILE + "second = base.workdir('/x')\n")
    two = await cellburst("image", "build", str(file))
    assert (
        two.exit_code == 1
        and "2 images" in two.stderr
        and "base, second" in two.stderr
        and "image.py::base" in two.stderr
    )
    named = await cellburst("image", "build", f"{file}::second", "-v", "--worker", "fake")
    assert named.exit_code == 0 and "  a line" in named.stderr
    assert len(worker.images.builds) == 2 and worker.images.builds[1].worker == "fake"
    unknown = await cellburst("image", "build", f"{file}::third")
    assert unknown.exit_code == 1 and "no image 'third'" in unknown.stderr


async def test_a_failed_build_is_said_with_its_exit_code(house: House, tmp_path: Path) -> None:
    worker = await house.worker()
    worker.images.result = m.ImageBuilt(error=FAILED)
    (tmp_path / "image.py").write_text(FILE)
    done = await cellburst("image", "build", str(tmp_path / "image.py"))
    assert done.exit_code == 1 and "false: exit code 1" in done.stderr and "Next: mend it" in done.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1", ["declares no image", "debian_slim()"]),
        ("def f():\n    1 / 0\nf()", ["line 2", "ZeroDivisionError"]),
        ("import cellburst\ni = cellburst.Image.debian_slim().apt_install('no/good')", ["'no/good'"]),
    ],
)
def test_a_file_that_declares_none_or_fails(text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "image.py").write_text(text)
    done = CliRunner().invoke(main, ["image", "build", str(tmp_path / "image.py")])
    assert done.exit_code == 1
    assert all(word in done.stderr for word in words) and "image_build.py" not in done.stderr


def test_a_file_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_the_image.py").write_text("NAME = 'git'\n")
    (tmp_path / "image.py").write_text(
        "import cellburst, beside_the_image, dataclasses\n"
        "@dataclasses.dataclass\nclass A:\n    x: 'int' = 1\n"
        "image = cellburst.Image.debian_slim('3.11').apt_install(beside_the_image.NAME)\n"
    )
    before = list(sys.path)
    assert list(load_images(tmp_path / "image.py")) == ["image"] and sys.path == before


async def test_ls_logs_and_prune(house: House) -> None:
    nothing = await cellburst("image", "ls")
    assert nothing.exit_code == 0 and "no images" in nothing.stdout
    worker: FakeWorker = await house.worker()
    titles = ["debian_slim bookworm", "apt_install git[x]", "pip_install numpy", "env A", "env B"]
    worker.images.rows = [
        m.ImageRow(id="ab" * 20, steps=titles, size_bytes=2_000_000, last_used_unix_seconds=1.0, used_by=["c-1"])
    ]
    listed = await cellburst("image", "ls")
    assert listed.exit_code == 0, listed.output
    for word in ("abababababab", "2.0 MB", "days ago", "fake", "c-1"):
        assert word in listed.stdout
    whole = json.loads((await cellburst("image", "ls", "--json")).stdout)
    assert whole["images"][0]["steps"] == titles and whole["size_bytes"] == 2_000_000
    assert (await cellburst("image", "logs", "abab")).stdout == "the log of abab\n"
    unknown = await cellburst("image", "logs", "cd")
    assert unknown.exit_code == 1 and "cellburst image ls" in unknown.stderr
    pruned = await cellburst("image", "prune")
    assert pruned.stdout == "freed 2.0 MB; 0 B are left\n"
    assert worker.images.asked[-1] == m.PruneImages(max_bytes=0)
    await cellburst("image", "prune", "--max", "1GiB")
    assert worker.images.asked[-1] == m.PruneImages(max_bytes=2**30)
    for nothing_kept in ("0", "0GiB", "0.0 mb"):
        done = await cellburst("image", "prune", "--max", nothing_kept)
        assert done.exit_code == 0 and worker.images.asked[-1] == m.PruneImages(max_bytes=0)
    wrong = await cellburst("image", "prune", "--max", "lots")
    assert wrong.exit_code == 1 and "20GiB" in wrong.stderr


async def test_verify_tells_what_is_damaged_and_ends_with_one(house: House) -> None:
    worker: FakeWorker = await house.worker()
    worker.images.rows = [m.ImageRow(id="ab" * 20, steps=["debian_slim"], size_bytes=2_000_000)]
    whole = await cellburst("image", "verify")
    assert whole.exit_code == 0 and whole.stdout == "1 layer, 2.0 MB read: all whole\n"
    assert worker.images.asked[-1] == m.VerifyImages()
    worker.images.damaged = [
        m.DamagedLayer(
            id="cd" * 20, step="pip_install numpy[x]", problems=["usr/[a].so: another content"], size_bytes=1_000_000,
            used_by=["c-1", "parked p-2"],
        )
    ]  # fmt: skip
    found = await cellburst("image", "verify", "--worker", "fake")
    assert found.exit_code == 1
    for words in (
        "damaged: pip_install numpy[x] (cdcdcdcdcdcd, 1.0 MB) on fake",
        "  usr/[a].so: another content",
        "still shown to c-1, parked p-2",
        "1 damaged and put aside; the next build makes them anew",
    ):
        assert words in found.stdout, (words, found.stdout)
    unknown = await cellburst("image", "verify", "--worker", "other")
    assert unknown.exit_code == 1 and "no worker 'other'" in unknown.stderr


def test_a_line_that_is_said_twice_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = StepLines.to_stderr()
    for log in (*steps("a [b]"), *steps("a [b]")):
        lines.log(log)
    assert capsys.readouterr().err == "step 1 of 1: a [b]\n"
