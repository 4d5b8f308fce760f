"""Buckets as lines say them, and which endpoints the operator trusts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellburst_protocol.bucket_endpoints import PUBLIC, check_entries, check_trusted
from cellburst_protocol.buckets import BucketSource, bucket_id, bucket_options, check_bucket, is_refused_address
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.volume_mounts import parse_volumes, text_of
from cellburst_protocol.volumes import VolumeMount

_SOURCES = st.builds(
    BucketSource,
    name=st.text("abz09.-", min_size=3, max_size=12),
    endpoint_url=st.sampled_from(["", "https://minio.example.org", "http://127.0.0.1:9000/a/b", "http://[::1]:9000"]),
    key_prefix=st.text(st.sampled_from(list("ab/?,&=#%+:; .\\\"'\t\n\x00\u00a0\u202eäé中\ud800")), max_size=10),
    secret=st.sampled_from(["", "aws", "my-secret.1"]),
    requester_pays=st.booleans(),
)


@given(source=_SOURCES, read_only=st.booleans(), beside=st.booleans())
def test_what_is_accepted_is_the_same_again_out_of_its_text(
    source: BucketSource, read_only: bool, beside: bool
) -> None:
    try:
        check_bucket(source)
    except CellburstError:
        return
    mount = VolumeMount(
        volume=bucket_id(source, "/b"), name=source.text, path="/b", read_only=read_only, kind="bucket", bucket=source
    )
    mounts = [mount, *([VolumeMount(volume="", name="ds", path="/d")] if beside else [])]
    assert parse_volumes(text_of(mounts)) == mounts


@pytest.mark.parametrize("prefix", ["a?b", "a,b", "a\nb", "a\x00", "a\u202eb", "a ", "a/", "/a", "a//b", "a/../b"])
def test_a_prefix_that_a_line_cannot_say_is_refused(prefix: str) -> None:
    with pytest.raises(CellburstError, match="no prefix of keys"):
        check_bucket(BucketSource(name="abc", key_prefix=prefix))


@pytest.mark.parametrize("name", ["a?b", "a,b", "a\nbc", "abc\n", "a b", "a/b"])
def test_a_name_that_a_line_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(CellburstError, match="no bucket's name"):
        check_bucket(BucketSource(name=name))


def test_an_address_in_the_clothes_of_another() -> None:
    assert is_refused_address("::ffff:169.254.169.254") and is_refused_address("::ffff:a9fe:a9fe")
    assert not is_refused_address("::ffff:192.0.2.1")


def test_a_region_is_a_part_of_a_name() -> None:
    keys = {"AWS_ACCESS_KEY_ID": "i", "AWS_SECRET_ACCESS_KEY": "k"}
    assert bucket_options(BucketSource(name="abc"), keys | {"AWS_REGION": "eu-central-1"})["region"] == "eu-central-1"
    for region in ("x@127.0.0.1/", "a.b", "A", "a\n"):
        with pytest.raises(CellburstError, match="the region"):
            bucket_options(BucketSource(name="abc", secret="aws"), keys | {"AWS_REGION": region})


OWN = check_entries([PUBLIC, "http://127.0.0.1:9000", "Example.org", "https://s3.corp.test:8443/"])


@pytest.mark.parametrize("endpoint", [
    "", "https://s3.amazonaws.com", "https://s3.eu-central-1.amazonaws.com", "https://s3-us-west-2.amazonaws.com",
    "https://s3.dualstack.us-east-1.amazonaws.com/", "https://S3.us-gov-west-1.amazonaws.com:443", "https://abc123.r2.cloudflarestorage.com",
    "https://abc123.eu.r2.cloudflarestorage.com", "https://storage.googleapis.com", "https://s3.us-west-004.backblazeb2.com",
    "https://nyc3.digitaloceanspaces.com", "https://s3.eu-central-1.wasabisys.com", "http://127.0.0.1:9000", "http://127.0.0.1:9000/x",
    "https://example.org", "https://minio.example.org", "https://s3.corp.test:8443",
])  # fmt: skip
def test_what_the_operator_trusts(endpoint: str) -> None:
    check_trusted(check_bucket(BucketSource(name="abc", endpoint_url=endpoint)), OWN)


@pytest.mark.parametrize("endpoint", [
    "https://evilamazonaws.com", "https://s3.evilamazonaws.com", "https://s3.amazonaws.com.evil.test", "http://s3.amazonaws.com",
    "https://s3.amazonaws.com:8443", "https://ec2-192-0-2-1.compute-1.amazonaws.com", "https://x.execute-api.us-east-1.amazonaws.com",
    "https://b.s3-website-us-east-1.amazonaws.com", "https://s3-website-us-east-1.amazonaws.com", "https://s3-website.eu-central-1.amazonaws.com",
    "https://s3-me-1.us-east-1.elb.amazonaws.com", "https://s3.amazonaws.com.", "https://evilr2.cloudflarestorage.com",
    "https://127.0.0.1:9000", "http://127.0.0.1", "http://127.0.0.1:9001", "http://localhost:9000", "http://2130706433:9000",
    "http://[::ffff:127.0.0.1]:9000", "http://[::1]:9000", "http://10.0.0.1", "http://0x7f000001:9000", "https://evilexample.org",
    "http://example.org", "https://example.org:8080", "https://s3.corp.test", "https://a.s3.corp.test:8443", "http://s3.corp.test:8443",
])  # fmt: skip
def test_all_others_are_refused_with_the_line_that_allows_them(endpoint: str) -> None:
    source = check_bucket(BucketSource(name="abc", endpoint_url=endpoint))
    with pytest.raises(CellburstError) as caught:
        check_trusted(source, OWN)
    info = caught.value.info
    assert info.code is ErrorCode.FORBIDDEN
    line = info.next.partition("bucket_endpoints = [")[2]
    entries = [text.strip(' "]') for text in line.split(",")]
    assert entries[:-1] == list(OWN) and endpoint.rstrip("/").lower().startswith(entries[-1])
    if not endpoint.endswith("."):  # such a name is none
        check_trusted(source, check_entries(entries[-1:]))


def test_amazon_is_one_of_them() -> None:
    with pytest.raises(CellburstError, match=r"s3\.amazonaws\.com") as caught:
        check_trusted(BucketSource(name="abc"), check_entries(["http://127.0.0.1:9000"]))
    assert 'bucket_endpoints = ["http://127.0.0.1:9000", "public"]' in caught.value.info.next


@pytest.mark.parametrize("entry", [
    "", "http://", "ftp://h", "https://u@h", "https://:p@h", "https://h/x", "https://h?x", "h:9000", "127.0.0.1", "::1", "1.2.3", "a..b", "-a",
    "*.example.org", "http://h:99999", "http://[x", "https://h\\@x", "a b",
])  # fmt: skip
def test_an_entry_that_is_none(entry: str) -> None:
    with pytest.raises(CellburstError, match="bucket_endpoints"):
        check_entries([entry])
