"""What a worker that was killed leaves of a bucket: its next start uploads what was closed, and ends what showed it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cellburst_protocol.buckets import BucketSource, bucket_options
from cellburst_runtime.bucket_mount import Bucket, BucketMount
from cellburst_runtime.cgroups import Cgroups
from cellburst_runtime.mounts import mounts_below
from cellburst_runtime.proc import HELPER_MARK, marked
from cellburst_runtime.record import ContainerRecord, load_record
from cellburst_runtime.removal import Remover
from tests.fakes.s3 import BUCKET, S3

pytestmark = pytest.mark.gvisor  # root, and FUSE


@pytest.fixture
def s3() -> Iterator[S3]:
    made = S3()
    try:
        yield made
    finally:
        made.close()


async def test_the_next_start_ends_it(s3: S3) -> None:
    with tempfile.TemporaryDirectory(prefix="cbb") as base:
        folder = Path(base) / "c-left"
        folder.mkdir()
        ContainerRecord(id="c-left", engine="gvisor", helpers=True).save(folder)
        source = BucketSource(name=BUCKET, endpoint_url=s3.url)
        told: list[str] = []
        shown = BucketMount(
            Bucket(source, False, bucket_options(source, s3.keys)), folder / ".m", folder / "cache", told.append
        )
        await shown.start("c-left", (os.getuid(), os.getgid()))
        (folder / ".m" / "kept").write_bytes(b"k" * 5_000_000)
        assert len(marked("c-left", HELPER_MARK)) == 1
        # From here on nobody holds it: what a killed worker leaves is the process, the mount and the record.
        child, shown._child = shown._child, None
        assert child is not None and shown._watch is not None
        shown._watch.cancel()
        await asyncio.gather(shown._watch, return_exceptions=True)
        try:
            record = load_record(folder)
            assert record is not None
            await Remover(Cgroups()).remove(record, folder)
            assert not marked("c-left", HELPER_MARK) and not mounts_below(Path(base)) and not folder.exists()
        finally:
            await child.wait()
            await child.close()
        assert s3.all() == {"kept": b"k" * 5_000_000} and not told
