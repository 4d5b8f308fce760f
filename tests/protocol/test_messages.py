"""Messages: every one round-trips, is documented, and says its units."""

import re
from decimal import Decimal
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cellburst_protocol import messages
from cellburst_protocol.errors import CellburstError, ErrorCode, ErrorInfo, Fault, RequestError, from_info
from cellburst_protocol.version import PROTOCOL_VERSION, negotiate

ALL = get_args(messages.Message)
UNITS = re.compile(r"(^|_)(seconds|bytes|mib|ratio|watts|celsius|second|usd|cores|pid|count)$|^uid$")
COUNTS = {"sequence", "last_sequence", "acknowledged_sequence", "from_sequence", "input", "attempt", "execution_count", "epoch", "level", "position",
          "number", "index", "length", "exit_code", "signal", "cpu", "count", "protocol", "code",
          "step", "steps", "revision", "version"}  # fmt: skip


@pytest.mark.parametrize("kind", ALL)
def test_each_message_is_documented_and_tagged(kind: type[msgspec.Struct]) -> None:
    assert kind.__doc__ and kind.__struct_config__.tag
    doc = (Path(messages.__file__).parent.parent / "PROTOCOL.md").read_text()
    assert doc.startswith("# The wire")


def test_tags_are_unique() -> None:
    tags = [k.__struct_config__.tag for k in ALL]
    assert len(tags) == len(set(tags))


def test_numeric_fields_carry_their_unit() -> None:
    structs = [v for v in vars(messages).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]
    for struct in structs:
        for name, hint in get_type_hints(struct).items():
            if hint in (int, float, int | None, float | None):
                assert UNITS.search(name) or name in COUNTS, f"{struct.__name__}.{name} has no unit"


def test_money_never_is_a_float() -> None:
    structs = [v for v in vars(messages).values() if isinstance(v, type) and issubclass(v, msgspec.Struct)]
    for struct in structs:
        for name, hint in get_type_hints(struct).items():
            if "usd" in name:
                assert hint in (str, str | None, Decimal, dict[str, str]), f"{struct.__name__}.{name}"


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    try:
        messages.decode(data)
    except RequestError as refused:
        assert refused.code is ErrorCode.BAD_MESSAGE


def test_a_wrong_field_is_named() -> None:
    with pytest.raises(RequestError, match="sequence"):
        messages.decode(b'{"t":"ack","sequence":"seven"}')


def test_a_newer_side_may_add_fields() -> None:
    assert messages.decode(b'{"t":"ack","sequence":7,"colour":"blue"}') == messages.Ack(sequence=7)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_has_a_fault_and_a_class(code: ErrorCode) -> None:
    assert code.fault in Fault
    made = from_info(ErrorInfo(code=code, message="x", next="do y"))
    assert type(made) is not CellburstError and "Next: do y" in str(made)


def test_versions() -> None:
    assert negotiate(PROTOCOL_VERSION, "x") == PROTOCOL_VERSION
    assert negotiate((PROTOCOL_VERSION[0], 99), "x") == PROTOCOL_VERSION
    with pytest.raises(RequestError, match="does not fit"):
        negotiate((PROTOCOL_VERSION[0] + 1, 0), "cellburst 9")
