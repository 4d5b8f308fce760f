"""Seals of values: any change of names, bytes, sizes, purpose or key is noticed."""

import pytest

from cellburst_protocol.errors import ErrorCode, PlatformError
from cellburst_protocol.mac import group_hash, sign, value_key, verify
from cellburst_protocol.messages import NameGroup, ValuePart

KEY = value_key(b"master", "call", 0, 1)


def group(names: tuple[str, ...] = ("x",), hash: str = "ab" * 32, size: int = 3) -> NameGroup:
    parts = [ValuePart(hash=hash, size_bytes=size)]
    return NameGroup(names=list(names), hash=group_hash(parts), parts=parts)


def test_what_was_signed_verifies() -> None:
    verify(KEY, "out", [group()], sign(KEY, "out", [group()]))


@pytest.mark.parametrize(
    ("key", "purpose", "groups"),
    [
        (value_key(b"master", "call", 0, 2), "out", [group()]),
        (value_key(b"other", "call", 0, 1), "out", [group()]),
        (KEY, "in", [group()]),
        (KEY, "out", [group(("y",))]),
        (KEY, "out", [group(hash="ac" * 32)]),
        (KEY, "out", [group(size=4)]),
        (KEY, "out", [group(), group()]),
        (KEY, "out", []),
    ],
)
def test_anything_else_is_refused(key: str, purpose: str, groups: list[NameGroup]) -> None:
    with pytest.raises(PlatformError) as caught:
        verify(key, purpose, groups, sign(KEY, "out", [group()]))
    assert caught.value.code is ErrorCode.INTEGRITY
