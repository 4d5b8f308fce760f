"""DNS messages, as far as a forwarder needs them (RFC 1035, EDNS RFC 6891): read a question, judge an answer. Pure."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

A, PTR, AAAA, OPT, SVCB, HTTPS, ANY = 1, 12, 28, 41, 64, 65, 255
NO_ERROR, SERVER_FAILURE, NAME_ERROR, NOT_IMPLEMENTED = 0, 2, 3, 4
INTERNET = 1
PAYLOAD_BYTES = 1232  # what passes everywhere unfragmented (DNS flag day 2020)
PLAIN_BYTES = 512  # without EDNS
_HEADER = struct.Struct("!6H")
_QUESTION_TAIL = struct.Struct("!2H")
_RECORD = struct.Struct("!2HIH")
_MOST_LABELS = 128
# Names of clouds' metadata services and of networks that are not the internet (RFC 6761, RFC 6762, ICANN's .internal).
_REFUSED_SUFFIXES = ("localhost", "local", "internal", "home.arpa", "lan", "intranet", "corp", "localdomain")
_REFUSED_NAMES = frozenset({"metadata", "instance-data", "metadata.azure.com", "metadata.tencentyun.com"})


class BadMessage(ValueError):
    """Bytes that are no DNS message we handle."""


@dataclass(frozen=True)
class Question:
    """A query's one question. `raw` are its bytes; `payload_bytes` the longest UDP answer the asker takes."""

    id: int
    name: str
    type: int
    klass: int
    raw: bytes
    recursion: bool = True
    payload_bytes: int = PLAIN_BYTES


def read_question(data: bytes) -> Question:
    """The question of a query. Raises BadMessage for anything but a plain query with one question."""
    try:
        ident, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
        if flags & 0xF800 or questions != 1 or answers or authority:
            raise BadMessage("not a query with one question")
        name, at = _name(data, _HEADER.size)
        kind, klass = _QUESTION_TAIL.unpack_from(data, at)
        end = at + _QUESTION_TAIL.size
        payload = _payload(data, end, additional)
    except (struct.error, IndexError) as why:
        raise BadMessage(f"cut short: {why}") from None
    return Question(ident, name, kind, klass, bytes(data[_HEADER.size : end]), bool(flags & 0x0100), payload)


def query(question: Question, ident: int) -> bytes:
    """The query that we send in its place: our id, one question, EDNS, and nothing else that came."""
    return _HEADER.pack(ident, 0x0100, 1, 0, 0, 1) + question.raw + b"\0" + _RECORD.pack(OPT, PAYLOAD_BYTES, 0, 0)


def reply(question: Question, code: int = NO_ERROR, *, truncated: bool = False) -> bytes:
    """An answer of ours without records."""
    flags = 0x8080 | code | (0x0100 if question.recursion else 0) | (0x0200 if truncated else 0)
    return _HEADER.pack(question.id, flags, 1, 0, 0, 0) + question.raw


def refused(question: Question) -> int | None:
    """The code of the answer to a question that is never forwarded, else None.

    IPv6 addresses have none (a container has no IPv6), nor have HTTPS records, whose hints would pass by our look at A.
    """
    if question.klass != INTERNET or question.type in (ANY, 251, 252):
        return NOT_IMPLEMENTED
    name = question.name.rstrip(".").lower()
    labels = name.split(".")
    if not name or name in _REFUSED_NAMES or len(labels) == 1 or any(name.endswith("." + s) for s in _REFUSED_SUFFIXES):
        # The root and top-level domains have records that resolvers ask for, but no addresses.
        return NAME_ERROR if question.type in (A, AAAA, HTTPS) or name in _REFUSED_NAMES or not _is_top(name) else None
    if name.endswith((".in-addr.arpa", ".ip6.arpa")) and not _public_pointer(labels):
        return NAME_ERROR
    return NO_ERROR if question.type in (AAAA, HTTPS, SVCB) else None


def judge(data: bytes, question: Question, ident: int) -> bool:
    """May this answer be given to a container? False if any record holds an address that is not global.

    Raises BadMessage if it is no answer to this question (a forged or broken one).
    """
    try:
        got, flags, questions, *counts = _HEADER.unpack_from(data)
        if got != ident or not flags & 0x8000 or questions != 1:
            raise BadMessage("not an answer to our query")
        name, at = _name(data, _HEADER.size)
        if name.lower() != question.name.lower() or _QUESTION_TAIL.unpack_from(data, at) != (
            question.type,
            question.klass,
        ):
            raise BadMessage("an answer to another question")
        at += _QUESTION_TAIL.size
        for _ in range(sum(counts)):
            _, at = _name(data, at)
            kind, _, _, size = _RECORD.unpack_from(data, at)
            at += _RECORD.size
            record = data[at : at + size]
            if len(record) != size:
                raise BadMessage("a record is cut short")
            at += size
            if kind in (SVCB, HTTPS) or (kind in (A, AAAA) and not _is_open(record)):
                return False
    except (struct.error, IndexError) as why:
        raise BadMessage(f"cut short: {why}") from None
    return True


def is_truncated(data: bytes) -> bool:
    """Does the answer's TC bit ask to come again by TCP?"""
    return len(data) > 3 and bool(data[2] & 0x02)


def with_id(data: bytes, ident: int) -> bytes:
    """The message under another id."""
    return ident.to_bytes(2, "big") + data[2:]


def is_open_address(text: str) -> bool:
    """Is this a global unicast IPv4 address, as far as containers are concerned?"""
    address = ipaddress.ip_address(text)
    if address.version != 4 or address.is_multicast:
        return False
    documentation = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")  # nobody's, and open in network_rules too
    if any(address in ipaddress.ip_network(d) for d in documentation):
        return True
    return address.is_global and text != "168.63.129.16"


def _is_open(record: bytes) -> bool:
    return len(record) == 4 and is_open_address(str(ipaddress.IPv4Address(record)))


def _is_top(name: str) -> bool:
    return name == "" or (name.isalpha() and name not in _REFUSED_SUFFIXES)


def _public_pointer(labels: list[str]) -> bool:
    digits = labels[:-2][::-1]
    try:
        return labels[-2] == "in-addr" and len(digits) == 4 and is_open_address(".".join(digits))
    except ValueError:
        return False


def _payload(data: bytes, at: int, additional: int) -> int:
    """The UDP size of the asker's OPT record, within sense."""
    for _ in range(min(additional, 4)):
        _, at = _name(data, at)
        kind, size, _, length = _RECORD.unpack_from(data, at)
        if kind == OPT:
            return max(PLAIN_BYTES, min(int(size), PAYLOAD_BYTES))
        at += _RECORD.size + length
    return PLAIN_BYTES


def _name(data: bytes, at: int) -> tuple[str, int]:
    """The name at an offset, and where it ends. Follows compression, which may only point backwards."""
    labels: list[str] = []
    end = -1
    for _ in range(_MOST_LABELS):
        size = data[at]
        if size & 0xC0 == 0xC0:
            end = at + 2 if end < 0 else end
            target = int.from_bytes(data[at : at + 2], "big") & 0x3FFF
            if target >= at:
                raise BadMessage("a name points forwards")
            at = target
        elif size & 0xC0:
            raise BadMessage("a label of no known kind")
        elif size == 0:
            return ".".join(labels), end if end >= 0 else at + 1
        else:
            label = data[at + 1 : at + 1 + size]
            if len(label) != size:
                raise BadMessage("a label is cut short")
            labels.append(label.decode("latin-1"))
            at += 1 + size
    raise BadMessage("a name without end")
