"""The worker's side of the runner's wire against the golden vectors, and what it does with bad input."""

from __future__ import annotations

import importlib.util
import json
import re
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cellburst_protocol import messages as m
from cellburst_protocol.errors import CellburstError
from cellburst_protocol.framing import MAX_MESSAGE_BYTES, FramingError
from cellburst_protocol.runner_wire import CONTROL_TAGS, RunnerDecoder, to_runner, to_runner_raw

PROTOCOL = Path(__file__).parents[2] / "protocol"
VECTORS: list[dict[str, Any]] = json.loads((PROTOCOL / "golden" / "runner_wire.json").read_text(encoding="utf-8"))


def _id(vector: dict[str, Any]) -> str:
    return f"{vector['direction']}-{json.loads(vector['head'])['t']}"


def test_the_golden_file_is_what_its_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("golden_generate", PROTOCOL / "golden" / "generate.py")
    assert spec is not None and spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.FILE.read_text(encoding="utf-8") == generate.text(), "run python protocol/golden/generate.py"


def test_every_message_of_the_page_has_a_vector() -> None:
    page = (PROTOCOL / "PROTOCOL.md").read_text(encoding="utf-8")
    table = page[page.index("| to the runner | from the runner |") :].split("\n\n")[0]
    named = set(re.findall(r"`([a-z_]+)`", table))
    assert named == {json.loads(v["head"])["t"] for v in VECTORS}


@pytest.mark.parametrize("vector", VECTORS, ids=_id)
def test_encodes_as_the_vector(vector: dict[str, Any]) -> None:
    buffers = [bytes.fromhex(b) for b in vector["buffers"]]
    assert b"".join(bytes(p) for p in to_runner_raw(vector["head"].encode(), buffers)).hex() == vector["wire"]


@pytest.mark.parametrize("vector", VECTORS, ids=_id)
def test_decodes_the_vector_byte_by_byte(vector: dict[str, Any]) -> None:
    decoder = RunnerDecoder()
    wire = bytes.fromhex(vector["wire"])
    found = [message for byte in wire for message in decoder.feed(bytes([byte]))]
    assert len(found) == 1
    head = json.loads(vector["head"])
    assert found[0].head.decode() == vector["head"]
    assert [bytes(b).hex() for b in found[0].buffers] == vector["buffers"]
    assert found[0].credit_bytes == (0 if head["t"] in CONTROL_TAGS else len(wire))
    assert found[0].call == head.get("call", "")
    # what the struct does not know is the call of an event, nothing else
    again = json.loads(m.encode(found[0].message))
    assert {**head, "call": ""} == {**again, "call": ""} or head == again


def test_several_messages_in_one_chunk_come_in_order() -> None:
    chunk = b"".join(bytes.fromhex(v["wire"]) for v in VECTORS)
    assert [i.head.decode() for i in RunnerDecoder().feed(chunk)] == [v["head"] for v in VECTORS]


def test_a_size_over_the_limit_is_refused_before_it_is_read() -> None:
    with pytest.raises(FramingError, match=str(MAX_MESSAGE_BYTES + 1)):
        RunnerDecoder().feed(struct.pack(">I", MAX_MESSAGE_BYTES + 1))


@pytest.mark.parametrize(
    "body", [b"", b"\x00\x00\x00\x09{}", struct.pack(">I", 2) + b"{}" + struct.pack(">HI", 1, 50) + b"x"]
)
def test_a_body_that_does_not_add_up_is_refused(body: bytes) -> None:
    with pytest.raises(FramingError):
        RunnerDecoder().feed(struct.pack(">I", len(body)) + body)


@pytest.mark.parametrize("head", [b"{}", b"[1]", b'{"t":"no_such"}', b'{"t":"runner_pong"}', b"\xff\xfe"])
def test_a_head_of_the_wrong_shape_is_a_request_error(head: bytes) -> None:
    wire = b"".join(bytes(p) for p in to_runner_raw(head))
    with pytest.raises((CellburstError, msgspec.MsgspecError)):
        RunnerDecoder().feed(wire)


def test_a_message_over_the_limit_is_not_sent() -> None:
    with pytest.raises(FramingError):
        to_runner(m.NamesData(call="c", groups=[]), [bytes(MAX_MESSAGE_BYTES)])
