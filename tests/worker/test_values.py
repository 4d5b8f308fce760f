"""Seals, true hashes, and files that a container must not get us to take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from blake3 import blake3

from cellburst_protocol import mac
from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_protocol.messages import NameGroup, ValuePart
from cellburst_worker.blobs import BlobFolder
from cellburst_worker.values import check, place, take

KEY = mac.value_key(b"k" * 32, "call-1")


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def inline(data: bytes) -> ValuePart:
    return ValuePart(hash=blake3(data).hexdigest(), size_bytes=len(data), at="inline")


def group(*parts: ValuePart, names: tuple[str, ...] = ("x",)) -> NameGroup:
    return NameGroup(names=list(names), hash=mac.group_hash(parts), parts=list(parts))


def file_group(name: str, size_bytes: int) -> NameGroup:
    return NameGroup(names=["x"], hash="", parts=[ValuePart(hash=f"file:{name}", size_bytes=size_bytes, at="blob")])


def is_sealed(path: Path) -> bool:
    """Whether a kernel may map the blob (see `cellburst_worker.blobs`)."""
    return not path.stat().st_mode & 0o222


def test_a_right_seal_passes_and_every_wrong_one_is_refused() -> None:
    good = group(inline(b"abc"))
    check([good], [b"abc"], KEY, mac.sign(KEY, "in", [good]))
    for key, seal, data in [
        (KEY, "", b"abc"),
        (KEY, mac.sign(KEY, "out", [good]), b"abc"),
        (KEY, mac.sign(mac.value_key(b"k" * 32, "call-2"), "in", [good]), b"abc"),
        ("", mac.sign(KEY, "in", [good]), b"abc"),
        (KEY, mac.sign(KEY, "in", [good]), b"abd"),
        (KEY, mac.sign(KEY, "in", [good]), b"abcd"),
    ]:
        with pytest.raises(PlatformError) as problem:
            check([good], [data], key, seal)
        assert problem.value.code is ErrorCode.INTEGRITY


def test_a_group_with_another_groups_hash_is_refused() -> None:
    forged = NameGroup(names=["x"], hash=group(inline(b"other")).hash, parts=[inline(b"abc")])
    with pytest.raises(PlatformError, match="another hash than its parts"):
        check([forged], [b"abc"], KEY, mac.sign(KEY, "in", [forged]))


def test_what_is_there_already_needs_no_seal() -> None:
    check([group(ValuePart(hash="ab" * 32, size_bytes=5))], [], KEY, "")


def test_a_blob_is_shown_by_link_and_readable(blobs: BlobFolder, tmp_path: Path) -> None:
    data = b"z" * 1000
    part = ValuePart(hash=blake3(data).hexdigest(), size_bytes=1000, at="blob")
    temporary = blobs.temporary()
    temporary.write_bytes(data)
    temporary.chmod(0o600)
    blobs.adopt(temporary, part.hash)
    shown = tmp_path / "in"
    shown.mkdir()
    place([part, part], blobs, shown)
    assert (shown / part.hash).read_bytes() == data
    assert (shown / part.hash).stat().st_mode & 0o777 == 0o644, "readable; as little sealed as before"
    assert (shown / part.hash).stat().st_ino == blobs.path(part.hash).stat().st_ino
    for bad in (
        ValuePart(hash="00" * 32, size_bytes=1),
        ValuePart(hash=part.hash, size_bytes=999),
        ValuePart(hash="../x", size_bytes=1),
    ):
        with pytest.raises(PlatformError):
            place([bad], blobs, tmp_path / "in2")


def test_files_get_their_true_hash_and_leave_the_container(blobs: BlobFolder, out: Path) -> None:
    data = os.urandom(3_000_000)
    (out / "r1").write_bytes(data)
    mixed = NameGroup(
        names=["x"], hash="",
        parts=[ValuePart(hash="", size_bytes=0, at="inline"), ValuePart(hash="file:r1", size_bytes=len(data), at="blob")],
    )  # fmt: skip
    taken = take([mixed], [b"pickle"], blobs, out)
    assert not taken.refused and not list(out.iterdir())
    (true,) = taken.groups
    assert [p.hash for p in true.parts] == [blake3(b"pickle").hexdigest(), blake3(data).hexdigest()]
    assert true.hash == mac.group_hash(true.parts) and true.parts[0].size_bytes == 6
    assert blobs.path(true.parts[1].hash).read_bytes() == data
    assert not is_sealed(blobs.path(true.parts[1].hash)), "the container may still have it open for writing"
    assert not list((blobs.folder / "tmp").iterdir())


def evil_symlink(out: Path) -> NameGroup:
    (out / "r1").symlink_to("/etc/passwd")
    return file_group("r1", Path("/etc/passwd").stat().st_size)


def evil_folder(out: Path) -> NameGroup:
    (out / "r1").mkdir()
    return file_group("r1", (out / "r1").stat().st_size)


def evil_pipe(out: Path) -> NameGroup:
    os.mkfifo(out / "r1")
    return file_group("r1", 0)


def evil_size(out: Path) -> NameGroup:
    (out / "r1").write_bytes(b"1234")
    return file_group("r1", 5)


def evil_path(out: Path) -> NameGroup:
    (out.parent / "secret").write_bytes(b"1234")
    return file_group("../secret", 4)


def evil_absolute(out: Path) -> NameGroup:
    return file_group("/etc/hostname", Path("/etc/hostname").stat().st_size)


def evil_hash(out: Path) -> NameGroup:
    return NameGroup(names=["x"], hash="", parts=[ValuePart(hash="ab" * 32, size_bytes=4, at="blob")])


def evil_there(out: Path) -> NameGroup:
    return NameGroup(names=["x"], hash="", parts=[ValuePart(hash="ab" * 32, size_bytes=4)])


def evil_missing(out: Path) -> NameGroup:
    return file_group("r9", 4)


@pytest.mark.parametrize(
    "evil",
    [evil_symlink, evil_folder, evil_pipe, evil_size, evil_path, evil_absolute, evil_hash, evil_there, evil_missing],
    ids=lambda f: f.__name__,
)
def test_a_container_cannot_pass_off_other_files(evil, blobs: BlobFolder, out: Path) -> None:  # type: ignore[no-untyped-def]
    bad = evil(out)
    (out / "good").write_bytes(b"good")
    taken = take([bad, file_group("good", 4)], [], blobs, out)
    assert [info.code for _, info in taken.refused] == [ErrorCode.INTEGRITY]
    assert [g.parts[0].hash for g in taken.groups] == [blake3(b"good").hexdigest()]
    assert not list((blobs.folder / "tmp").iterdir())
    assert len(list(blobs.folder.glob("??/*"))) == 1


def test_a_file_that_keeps_another_name_is_copied(blobs: BlobFolder, out: Path) -> None:
    (out / "r1").write_bytes(b"first")
    os.link(out / "r1", out / "kept")
    taken = take([file_group("r1", 5)], [], blobs, out)
    (out / "kept").write_bytes(b"later")
    kept = blobs.path(taken.groups[0].parts[0].hash)
    assert kept.read_bytes() == b"first" and is_sealed(kept)


def test_showing_a_blob_to_a_container_seals_nothing(blobs: BlobFolder, out: Path, tmp_path: Path) -> None:
    (out / "r1").write_bytes(b"moved")
    (part,) = take([file_group("r1", 5)], [], blobs, out).groups[0].parts
    place([part], blobs, tmp_path)
    assert not is_sealed(blobs.path(part.hash))


def test_too_few_and_too_many_buffers_are_refused(blobs: BlobFolder, out: Path) -> None:
    part = ValuePart(hash="", size_bytes=0, at="inline")
    for buffers in ([], [b"1", b"2"]):
        with pytest.raises(PlatformError, match="buffers than inline parts"):
            take([NameGroup(names=["x"], hash="", parts=[part])], buffers, blobs, out)


def test_a_seal_of_the_way_out_is_what_the_caller_checks(blobs: BlobFolder, out: Path) -> None:
    taken = take(
        [NameGroup(names=["x"], hash="lie", parts=[ValuePart(hash="lie", size_bytes=9, at="inline")])],
        [b"1"],
        blobs,
        out,
    )
    mac.verify(KEY, "out", taken.groups, mac.sign(KEY, "out", taken.groups))
    assert taken.groups[0].parts[0].size_bytes == 1
