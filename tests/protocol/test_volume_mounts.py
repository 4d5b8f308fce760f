"""`volumes=`: what it may say, and what of it can stand in one container together."""

from __future__ import annotations

import pytest

from cellburst_protocol.buckets import BucketSource
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


@pytest.mark.parametrize("path", ["/a,b", "/a:b", '/a"b', "/a,/b:c"])
def test_a_path_that_no_line_could_say_is_refused_also_from_a_program(path: str) -> None:
    with pytest.raises(CellburstError, match="no line could say it"):
        check_mounts([VolumeMount(volume="", name="ds", path=path)])


def test_there_is_a_most_of_them() -> None:
    mounts = [VolumeMount(volume="", name=f"v{n}", path=f"/v{n}") for n in range(MAX_VOLUMES + 1)]
    check_mounts(mounts[:-1])
    with pytest.raises(CellburstError, match="volumes in one"):
        check_mounts(mounts)


def test_buckets_and_network_file_systems_of_a_line() -> None:
    text = "/b:s3://training-data/a/b?secret=aws&endpoint=http://127.0.0.1:9000&ro&requester_pays,/d:data,/n:nfs://scratch?ro,/p:s3://open-data"
    mounts = parse_volumes(text)
    bucket, volume, shared, public = mounts
    assert text_of(mounts) == text
    assert bucket.bucket == BucketSource(
        name="training-data", endpoint_url="http://127.0.0.1:9000", key_prefix="a/b", secret="aws", requester_pays=True
    )
    assert (bucket.kind, bucket.read_only, volume.kind) == ("bucket", True, "volume")
    assert (shared.kind, shared.name, shared.read_only, public.bucket) == (
        "shared", "nfs://scratch", True, BucketSource(name="open-data"),
    )  # fmt: skip
    # The same bucket in another way is another mount, and its folder's name is none that a volume could have.
    assert not same_mounts(
        [bucket], parse_volumes("/b:s3://training-data/a/b?secret=other&endpoint=http://127.0.0.1:9000&ro")
    )
    assert volume.folder_name == "data" and all(one.folder_name.startswith("_") for one in (bucket, shared, public))


@pytest.mark.parametrize("text", [
    "/b:s3://", "/b:s3://AB", "/b:s3://ab", "/b:s3://a..b.c", "/b:s3://abc/../x", "/b:s3://abc//x", "/b:s3://abc/a\x00b", "/b:s3://abc?what=1",
    "/b:s3://abc?ro=yes", "/b:s3://abc?secret=<x>", "/b:s3://abc?endpoint=minio:9000", "/b:s3://abc?endpoint=http://u:p@h", "/usr/b:s3://abc",
    "/b:s3://abc?endpoint=http://169.254.169.254", "/b:s3://abc?endpoint=http://[fe80::1]", "/b:s3://abc?endpoint=http://0.0.0.0", "/b:nfs://",
    "/b:nfs://a/b", "/b:nfs://abc?rw", "/b:nfs://abc,/c:nfs://abc", "/b:s3://abc,/b/c:nfs://abc", "/b:s3://abc/" + "x" * 901,
    "/b:s3://abc?endpoint=http://h:x", "/b:s3://abc?endpoint=http://[::ffff:169.254.169.254]", "/b:s3://abc?endpoint=https://@h",
    "/b:s3://abc?endpoint=https://h\\@x", "/b:s3://abc?endpoint=https://h%20x", "/b:s3://abc?endpoint=https://h/a;b",
])  # fmt: skip
def test_no_such_bucket_or_network_file_system(text: str) -> None:
    with pytest.raises(CellburstError) as caught:
        parse_volumes(text)
    info = caught.value.info
    assert info.code is ErrorCode.BAD_ARGUMENT and info.allowed and "u:p" not in info.text()
