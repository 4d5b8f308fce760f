"""A build's secrets through a real worker: what the gateway and the disk are told has no value in it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.images import Copy, FromScratch, ImageRecipe, RunCommands
from cellburst_runtime import image_sandbox
from cellburst_worker.images import build_secrets
from tests.fakes.images import ImageHouse
from tests.worker.test_image_container import failed
from tests.worker.test_parking_gvisor import house

VALUE = "s3cr3t-value-of-the-hub"
SECRETS = {"hub": m.BuildSecret(version=3, values={"TOKEN": VALUE})}


def test_what_a_build_is_given_hides_its_values() -> None:
    given = build_secrets(SECRETS)
    assert given.versions == {"hub": 3} and given.environment(["hub:TOKEN"]) == {"TOKEN": VALUE}
    assert given.hide(f"it is {VALUE}!") == "it is ****(hub.TOKEN)!" and VALUE not in repr(given)


class Pieces:
    """A program's output, a piece with each read; the last one comes only after `wait_for`."""

    def __init__(self, pieces: Sequence[str], wait_for: asyncio.Event | None = None) -> None:
        self._pieces, self._wait_for = [piece.encode() for piece in pieces if piece], wait_for

    async def read(self, size: int) -> bytes:
        if len(self._pieces) <= 1 and self._wait_for is not None:
            await self._wait_for.wait()
        return self._pieces.pop(0) if self._pieces else b""


def read_lines(values: Sequence[str], pieces: Sequence[str]) -> list[str]:
    """The lines of a log."""
    secrets = build_secrets({"s": m.BuildSecret(version=1, values={f"K{n}": value for n, value in enumerate(values)})})
    lines: list[str] = []
    tail: deque[str] = deque(maxlen=1000)
    stream = cast(asyncio.StreamReader, Pieces(pieces))
    asyncio.run(image_sandbox._read_lines(stream, tail, lines.append, secrets.stream() if secrets.stream else None))
    assert lines == list(tail)
    return lines


@st.composite
def printed(draw: st.DrawFn) -> tuple[list[str], list[str]]:
    """Values, and output with some of them in it, cut into pieces as reads cut it."""
    alphabet = "abcé\n"
    values = draw(st.lists(st.text(alphabet=alphabet, min_size=6, max_size=12), min_size=1, max_size=3))
    parts = draw(
        st.lists(st.one_of(st.text(alphabet=alphabet + "\r-", max_size=30), st.sampled_from(values)), max_size=6)
    )
    text = "".join(parts)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    return values, [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(printed())
@settings(max_examples=150, deadline=None)
@example((["abcabc"], ["--------abca", "bc"]))
@example((["aaaaaa\nbbbbbb"], ["aaaaaa", "\nbbbbbb"]))
def test_lines_are_cut_after_their_values_are_hidden(case: tuple[list[str], list[str]]) -> None:
    values, pieces = case
    secrets = build_secrets({"s": m.BuildSecret(version=1, values={f"K{n}": value for n, value in enumerate(values)})})
    whole = secrets.hide("".join([*pieces, "!"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_sandbox, "LINE_BYTES", 10)
        lines = read_lines(values, [*pieces, "!"])
        cut = [line.encode()[:10].decode(errors="ignore").rstrip() for line in whole.replace("\r", "\n").split("\n")]
    assert lines == [line for line in cut if line]


def test_no_part_of_a_value_shows_where_a_line_is_cut() -> None:
    for before in range(image_sandbox.LINE_BYTES - len(VALUE) - 2, image_sandbox.LINE_BYTES + 1):
        [line] = read_lines([VALUE], ["-" * before, VALUE, " and more\n"])
        assert line.strip("-") in "****(s.K0) and more" and VALUE[:4] not in line, line
    assert read_lines(["short"], ["as it is: short\nä"]) == ["as it is: short", "ä"]


async def test_a_line_that_looks_like_a_values_beginning_is_shown_in_time() -> None:
    lines: list[str] = []
    shown = asyncio.Event()

    def log(line: str) -> None:
        lines.append(line)
        shown.set()

    two = build_secrets({"hub": m.BuildSecret(version=1, values={"A": "s\n\n\n\n\n\nsecret"})})
    assert two.stream is not None
    stream = cast(
        asyncio.StreamReader, Pieces(["its\n", "end"], shown)
    )  # more is printed only after the first line was shown
    async with asyncio.timeout(60):
        await image_sandbox._read_lines(stream, deque(), log, two.stream())
    assert lines == ["its", "end"]


@pytest.mark.gvisor
@pytest.mark.netns
async def test_a_build_that_prints_its_secret_and_fails(short_path: Path) -> None:
    async with house(short_path) as h:
        base = ImageHouse(short_path / "images-of-the-test")
        [pack] = [step.pack for step in base.base() if isinstance(step, Copy)]
        target = h.gateway.folder / "blobs" / pack.hash[:2] / pack.hash
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(base.file(pack.hash).read_bytes())
        command = 'echo "it is $TOKEN"; printf "%4090s$TOKEN"; exit 3'  # of the second a cut line has the beginning
        steps = [FromScratch(), Copy(pack=pack, destination="/"), RunCommands(commands=[command], secrets=["hub"])]
        ended = await failed(
            h, "c1", recipe=ImageRecipe(steps=steps), build_secrets=SECRETS, prepare_call="call-0", engine="gvisor"
        )
        assert ended.error is not None and ended.error.code is ErrorCode.IMAGE_BUILD
        assert "it is ****(hub.TOKEN)" in ended.error.message and VALUE[:6] not in repr(ended)
        lines = [line for _, event in h.gateway.containers["c1"].of(m.BuildLog) for line in event.lines]
        assert "it is ****(hub.TOKEN)" in lines and not any(VALUE[:6] in line for line in lines)
        data = [path for path in (short_path / "data").rglob("*") if path.is_file() and not path.is_symlink()]
        assert data and not [path for path in data if VALUE[:6].encode() in path.read_bytes()]
