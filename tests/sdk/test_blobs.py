"""Large blobs of this machine: mapped when nobody can change them any more, copied otherwise."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst import blobs as module
from cellburst import blobs_early, local_files
from cellburst.blobs import BlobClient
from cellburst.endpoint import Endpoint
from cellburst_protocol.errors import CellburstError, ErrorCode
from cellburst_protocol.messages import Welcome

DATA = bytes(range(256)) * 1024
SEALED, OPEN = 0o444, 0o644


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BlobClient:
    """A client on a folder of its own, for which a few kilobytes are large."""
    monkeypatch.setattr(module, "MAP_BYTES", 4096)
    monkeypatch.setattr(module, "lies_on_this_machine", lambda device: True)
    proof = tmp_path / "proof"
    proof.write_text("word")
    welcome = Welcome(
        protocol=(1, 0), software="test", gateway_instance="i", epoch=1, workspace="w", principal="p",
        blob_folder=str(tmp_path), blob_proof="word", blob_proof_path=str(proof),
    )  # fmt: skip
    return BlobClient(Endpoint("http://127.0.0.1:9", "no token"), welcome)


def store(folder: Path, data: bytes, mode: int, hash: str = "") -> tuple[str, Path]:
    """Lay a blob down as a worker does."""
    hash = hash or blake3(data).hexdigest()
    path = folder / hash[:2] / hash
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return hash, path


def is_mapped(path: Path) -> bool:
    """Whether this process has the file mapped, also when it was removed."""
    return any(str(path) in line for line in Path("/proc/self/maps").read_text().splitlines())


def test_a_sealed_blob_is_mapped_and_its_memory_is_the_callers_own(client: BlobClient, tmp_path: Path) -> None:
    hash, path = store(tmp_path, DATA, SEALED)
    view = client.get(hash, len(DATA))
    assert is_mapped(path) and view == DATA
    view[:4] = b"mine"
    assert path.read_bytes() == DATA
    client.discard(hash)
    assert not path.exists()
    assert bytes(view) == b"mine" + DATA[4:]
    del view
    assert not is_mapped(path)


def test_a_blob_that_somebody_may_still_write_to_is_copied(client: BlobClient, tmp_path: Path) -> None:
    hash, path = store(tmp_path, DATA, OPEN)
    view = client.get(hash, len(DATA))
    with open(path, "r+b") as file:
        file.write(b"later")
    assert view == DATA and not is_mapped(path)


def test_a_blob_on_a_file_system_that_other_machines_share_is_copied(
    client: BlobClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "lies_on_this_machine", lambda device: False)
    hash, path = store(tmp_path, DATA, SEALED)
    assert client.get(hash, len(DATA)) == DATA
    view = client.get(hash, len(DATA))
    assert not is_mapped(path) and not view.readonly


@pytest.mark.parametrize("mode", [SEALED, OPEN], ids=["sealed", "open"])
@pytest.mark.parametrize(
    "found", [DATA[:-1] + b"?", DATA[:-1], DATA + b"?", b""], ids=["other bytes", "shorter", "longer", "empty"]
)
def test_a_damaged_blob_is_an_error(client: BlobClient, tmp_path: Path, mode: int, found: bytes) -> None:
    hash, _ = store(tmp_path, found, mode, blake3(DATA).hexdigest())
    with pytest.raises(CellburstError) as caught:
        client.get(hash, len(DATA))
    assert caught.value.code is ErrorCode.INTEGRITY


def test_a_blob_that_is_gone_is_not_found(client: BlobClient) -> None:
    with pytest.raises(CellburstError) as caught:
        client.get(blake3(DATA).hexdigest(), len(DATA))
    assert caught.value.code is ErrorCode.NOT_FOUND


def test_only_mounts_of_local_kinds_count_as_this_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(
        "21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"
        "22 1 0:40 / /home rw - nfs4 server:/home rw\n"
        "23 1 0:41 / /odd\\040-\\040name rw - 9p share rw\n"
    )
    monkeypatch.setattr(local_files, "MOUNTS", mounts)
    local_files.lies_on_this_machine.cache_clear()
    try:
        found = [local_files.lies_on_this_machine(os.makedev(*n)) for n in ((8, 1), (0, 40), (0, 41), (8, 2))]
        assert found == [True, False, False, False]
        monkeypatch.setattr(local_files, "MOUNTS", tmp_path / "none")
        assert not local_files.lies_on_this_machine(os.makedev(9, 9))
    finally:
        local_files.lies_on_this_machine.cache_clear()


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="Linux shows its mounts there")
def test_the_real_list_of_mounts_is_understood() -> None:
    assert not local_files.lies_on_this_machine(os.stat("/proc").st_dev)


def test_an_interrupted_put_leaves_nothing(client: BlobClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(fd: int, data: memoryview) -> None:
        os.write(fd, data[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_all", interrupted)
    hash = blake3(DATA).hexdigest()
    with pytest.raises(KeyboardInterrupt):
        client.put(hash, DATA)
    assert not list((tmp_path / "tmp").iterdir()) and not client.has(hash)
    monkeypatch.undo()
    client.put(hash, DATA)
    assert not list((tmp_path / "tmp").iterdir()) and bytes(client.get(hash, len(DATA))) == DATA


NAME = "ab" * 16


def written_as(client: BlobClient, folder: Path, data: bytes, *, announced: int) -> tuple[str, Path]:
    """A result that is announced when `announced` bytes are there, and then written to its end and moved, as a worker does."""
    (folder / "tmp").mkdir(exist_ok=True)
    hash = blake3(data).hexdigest()
    with (folder / "tmp" / NAME).open("wb", buffering=0) as file:
        file.write(data[:announced])
        client.begin_get(NAME, len(data))
        file.write(data[announced:])
    (folder / hash[:2]).mkdir(exist_ok=True)
    return hash, (folder / "tmp" / NAME).rename(folder / hash[:2] / hash)


def test_a_result_is_read_while_it_is_written(client: BlobClient, tmp_path: Path) -> None:
    hash, path = written_as(client, tmp_path, DATA, announced=1000)
    (read,) = client._early._reads.values()
    assert read.done.wait(30)
    path.write_bytes(b"changed" + DATA[7:])  # the same file: what was read before counts
    view = client.get(hash, len(DATA))
    assert view == DATA
    view[:4] = b"mine"
    assert path.read_bytes()[:7] == b"changed"
    with pytest.raises(CellburstError) as damaged:
        client.get(hash, len(DATA))
    assert damaged.value.code is ErrorCode.INTEGRITY, "read once: the next time it is the file"


def test_another_file_or_other_bytes_than_announced_are_read_anew(client: BlobClient, tmp_path: Path) -> None:
    hash, path = written_as(client, tmp_path, DATA, announced=len(DATA))
    path.unlink()
    path.write_bytes(DATA)  # another file
    assert client.get(hash, len(DATA)) == DATA
    other = bytes(len(DATA))
    _written, path = written_as(client, tmp_path, other, announced=len(DATA))
    path.rename(tmp_path / hash[:2] / hash)  # the file, with bytes that are not this value's
    with pytest.raises(CellburstError):
        client.get(hash, len(DATA))


def test_a_result_that_breaks_off_is_given_up(
    client: BlobClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs_early, "STALLED_SECONDS", 0.0)
    hash, path = written_as(client, tmp_path, DATA[:1000], announced=500)
    path.rename(tmp_path / "tmp" / NAME)
    client.begin_get(NAME, len(DATA))
    for read in client._early._reads.values():
        assert read.done.wait(30) and read.view is None
    hash, _ = store(tmp_path, DATA, OPEN)
    assert client.get(hash, len(DATA)) == DATA


def test_only_regular_files_below_tmp_are_read_early(client: BlobClient, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    os.mkfifo(tmp_path / "tmp" / NAME)
    (tmp_path / "tmp" / ("cd" * 16)).symlink_to(tmp_path / "proof")
    for name in (NAME, "cd" * 16, "ef" * 16, "../proof", ""):
        client.begin_get(name, 4)
    assert client._early._reads == {}


def test_what_was_announced_and_not_taken_is_given_up(client: BlobClient, tmp_path: Path) -> None:
    hash, _ = written_as(client, tmp_path, DATA, announced=len(DATA))
    client.begin_get(NAME, 2**62)
    assert len(client._early._reads) == 1, "no more than half of this machine's memory"
    client.end_get()
    assert client._early._reads == {} and client.get(hash, len(DATA)) == DATA
