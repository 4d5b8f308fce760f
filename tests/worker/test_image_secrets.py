"""A build's secrets through a real worker: what the gateway and the disk are told has no value in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import ErrorCode
from cellburst_protocol.images import Copy, FromScratch, ImageRecipe, RunCommands
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


@pytest.mark.gvisor
@pytest.mark.netns
async def test_a_build_that_prints_its_secret_and_fails(short_path: Path) -> None:
    async with house(short_path) as h:
        base = ImageHouse(short_path / "images-of-the-test")
        [pack] = [step.pack for step in base.base() if isinstance(step, Copy)]
        target = h.gateway.folder / "blobs" / pack.hash[:2] / pack.hash
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(base.file(pack.hash).read_bytes())
        command = 'echo "it is $TOKEN"; exit 3'
        steps = [FromScratch(), Copy(pack=pack, destination="/"), RunCommands(commands=[command], secrets=["hub"])]
        ended = await failed(
            h, "c1", recipe=ImageRecipe(steps=steps), build_secrets=SECRETS, prepare_call="call-0", engine="gvisor"
        )
        assert ended.error is not None and ended.error.code is ErrorCode.IMAGE_BUILD
        assert "it is ****(hub.TOKEN)" in ended.error.message and VALUE not in repr(ended)
        lines = [line for _, event in h.gateway.containers["c1"].of(m.BuildLog) for line in event.lines]
        assert "it is ****(hub.TOKEN)" in lines and not any(VALUE in line for line in lines)
        data = [path for path in (short_path / "data").rglob("*") if path.is_file() and not path.is_symlink()]
        assert data and not [path for path in data if VALUE.encode() in path.read_bytes()]
