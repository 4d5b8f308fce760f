"""The runner's side of its wire against the golden vectors."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from cellburst_protocol import framing, runner_wire
from cellburst_runner import wire

VECTORS: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[3] / "protocol" / "golden" / "runner_wire.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: json.loads(v["head"])["t"])
def test_both_ways_as_the_vector(vector: dict[str, Any]) -> None:
    buffers = [bytes.fromhex(b) for b in vector["buffers"]]
    data = bytes.fromhex(vector["wire"])
    assert wire.encode(json.loads(vector["head"]), buffers) == data
    (body,) = wire.Decoder().feed(data)
    head, found = wire.split(body)
    assert wire.decode_head(head) == json.loads(vector["head"])
    assert [bytes(b) for b in found] == buffers


def test_a_stream_in_odd_pieces_is_cut_into_its_messages() -> None:
    data = b"".join(bytes.fromhex(v["wire"]) for v in VECTORS)
    decoder = wire.Decoder()
    bodies = [body for start in range(0, len(data), 7) for body in decoder.feed(data[start : start + 7])]
    assert [bytes(wire.split(b)[0]).decode() for b in bodies] == [v["head"] for v in VECTORS]


def test_limits_are_those_of_the_protocol() -> None:
    assert wire.MAX_MESSAGE_BYTES == framing.MAX_MESSAGE_BYTES
    assert wire.INITIAL_CREDIT_BYTES == runner_wire.INITIAL_CREDIT_BYTES
    assert wire.CONTROL_TAGS == runner_wire.CONTROL_TAGS


def test_too_large_is_refused_on_both_ends() -> None:
    with pytest.raises(wire.WireError, match="at most"):
        wire.encode({"t": "iopub"}, [bytes(wire.MAX_MESSAGE_BYTES)])
    with pytest.raises(wire.WireError, match="at most"):
        list(wire.Decoder().feed(struct.pack(">I", wire.MAX_MESSAGE_BYTES + 1)))


@pytest.mark.parametrize(
    "body", [b"", b"\x00\x00\x00\x09{}", struct.pack(">I", 2) + b"{}" + struct.pack(">HI", 1, 50) + b"x"]
)
def test_a_body_that_does_not_add_up_is_refused(body: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.split(body)


@pytest.mark.parametrize("head", [b"{", b"[]", b"{}", b'{"t":1}', b"\xff"])
def test_a_head_that_is_none_is_refused(head: bytes) -> None:
    with pytest.raises(wire.WireError):
        wire.decode_head(head)


def test_non_byte_buffers_and_lone_surrogates_pass() -> None:
    import array

    data = wire.encode({"t": "x", "text": "a\ud800b"}, [memoryview(array.array("d", [1.0, 2.0])), b""])
    (body,) = wire.Decoder().feed(data)
    head, buffers = wire.split(body)
    assert wire.decode_head(head)["text"] == "a?b"
    assert [len(b) for b in buffers] == [16, 0]
