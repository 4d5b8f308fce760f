"""`volumes=`: what it may say, and what of it can stand in one container together."""

from __future__ import annotations

import pytest

from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.volume_mounts import MAX_VOLUMES, check_mounts, parse_volumes, same_mounts, text_of
from cellburst_protocol.volumes import VolumeMount


def test_what_a_line_says() -> None:
    mounts = parse_volumes("/data:ds, /m/x/:models.v2:ro,/w:out:last_write_wins")
    assert mounts == [
        VolumeMount(volume="", name="ds", path="/data"),
        VolumeMount(volume="", name="models.v2", path="/m/x", read_only=True),
        VolumeMount(volume="", name="out", path="/w", last_write_wins=True),
    ]
    assert text_of(mounts) == "/data:ds,/m/x:models.v2:ro,/w:out:last_write_wins"
    assert same_mounts(mounts, mounts[::-1]) and not same_mounts(mounts, mounts[1:])


@pytest.mark.parametrize("text", [
    "", "/data", "/data:", "data:ds", "//data:ds", "/:ds", "/a//b:ds", "/a/.:ds", "/usr:ds", "/dev/shm:ds", "/cellburst/x:ds", "/etc:ds",
    "/a\nb:ds", "/a\u202eb:ds", "/" + "x" * 5000 + ":ds", "/data:<script>", "/data:a/b", "/data:ds:ro:rw", "/a:x,/a:y", "/a:x,/b:x", "/a:x,/a/b:y",
    "/nb:x", "/nb/in:x", "/home:x",
])  # fmt: skip
def test_what_cannot_be_is_refused_with_the_way_out(text: str) -> None:
    with pytest.raises(CellburstError) as caught:
        parse_volumes(text, notebook_folder="/home/me/nb" if text.startswith("/home") else "/nb")
    info = caught.value.info
    assert info.code is ErrorCode.BAD_ARGUMENT and info.allowed and len(info.message) < 300


def test_there_is_a_most_of_them() -> None:
    mounts = [VolumeMount(volume="", name=f"v{n}", path=f"/v{n}") for n in range(MAX_VOLUMES + 1)]
    check_mounts(mounts[:-1])
    with pytest.raises(CellburstError, match="volumes in one"):
        check_mounts(mounts)
