"""Buckets in containers: which one, by which secret, and how a line says it. No I/O.

    /PATH:s3://BUCKET[/PREFIX][?secret=NAME&endpoint=URL&ro&requester_pays]

A secret's keys are those of AWS (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, perhaps `AWS_SESSION_TOKEN` and `AWS_REGION`) or
Google's S3 keys (`GOOGLE_ACCESS_KEY_ID`, `GOOGLE_ACCESS_KEY_SECRET`). Without a secret a bucket is read as anybody may.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Collection, Mapping
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import msgspec

from .errors import ErrorCode, error
from .secrets import check_name as check_secret_name
from .secrets import shown

SCHEME = "s3://"
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_KEYS = {
    "AWS_ACCESS_KEY_ID": "access_key_id", "AWS_SECRET_ACCESS_KEY": "secret_access_key", "AWS_SESSION_TOKEN": "session_token",
    "AWS_REGION": "region", "AWS_DEFAULT_REGION": "region",
}  # fmt: skip
_GOOGLE_KEYS = {"GOOGLE_ACCESS_KEY_ID": "access_key_id", "GOOGLE_ACCESS_KEY_SECRET": "secret_access_key"}
_FORM = "s3://BUCKET/PREFIX?secret=NAME&endpoint=https://HOST&ro&requester_pays"
_REGION = re.compile(r"[a-z0-9-]{1,40}")  # it becomes a part of a host's name
# Read in the same way by all that read it: no "\\", no user, nothing after the path.
_ENDPOINT = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?")
MAX_PREFIX_BYTES = 900  # of a key's 1,024


class BucketSource(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A bucket and how it is reached; never a credential. `key_prefix` ends without "/"; `secret` is a secret's name."""

    name: str
    endpoint_url: str = ""  # "": Amazon's
    key_prefix: str = ""
    secret: str = ""
    requester_pays: bool = False

    @property
    def text(self) -> str:
        """For people: s3://BUCKET/PREFIX."""
        return f"{SCHEME}{self.name}" + (f"/{self.key_prefix}" if self.key_prefix else "")


def bucket_id(source: BucketSource, path: str) -> str:
    """What stands for a bucket at a path where volumes have their id."""
    return "b-" + hashlib.sha256(msgspec.json.encode([source, path])).hexdigest()[:16]


def parse_bucket(text: str) -> tuple[BucketSource, bool]:
    """What a line says after `/PATH:`, and whether read-only. Raises RequestError (BAD_ARGUMENT)."""
    address, _, query = text.removeprefix(SCHEME).partition("?")
    name, _, prefix = address.partition("/")
    given = dict(parse_qsl(query, keep_blank_values=True))
    flags = {"ro", "requester_pays"}
    if unknown := sorted(given.keys() - flags - {"secret", "endpoint"}):
        raise error(ErrorCode.BAD_ARGUMENT, f"{shown(unknown[0])} is no option of a bucket", allowed=_FORM)
    if wrong := sorted(flag for flag in flags & given.keys() if given[flag] not in ("", "1")):
        raise error(ErrorCode.BAD_ARGUMENT, f"{wrong[0]}={shown(given[wrong[0]])}: it has no value", allowed=_FORM)
    source = BucketSource(
        name=name, endpoint_url=given.get("endpoint", ""), key_prefix=prefix.rstrip("/"), secret=given.get("secret", ""),
        requester_pays="requester_pays" in given,
    )  # fmt: skip
    return check_bucket(source), "ro" in given


def bucket_text(source: BucketSource, *, read_only: bool) -> str:
    """As a line says it."""
    given = {"secret": source.secret, "endpoint": source.endpoint_url}
    parts = [urlencode({key: value}, quote_via=quote, safe=":/") for key, value in given.items() if value]
    parts += [word for word, is_so in (("ro", read_only), ("requester_pays", source.requester_pays)) if is_so]
    return source.text + ("?" + "&".join(parts) if parts else "")


def check_bucket(source: BucketSource) -> BucketSource:
    """Whether there can be such a bucket. Raises RequestError (BAD_ARGUMENT)."""
    if not _BUCKET.fullmatch(source.name) or ".." in source.name:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(source.name)} is no bucket's name",
            allowed="3 to 63 small letters, digits, '.' and '-'", next=f"for example {SCHEME}training-data",
        )  # fmt: skip
    prefix = source.key_prefix
    parts = prefix.split("/") if prefix else []
    if (
        any(part in ("", ".", "..") for part in parts)
        or not prefix.isprintable()
        # As a line says it, these end the prefix.
        or any(character in prefix for character in "?,")
        or prefix.endswith(" ")
        or len(prefix.encode()) > MAX_PREFIX_BYTES
    ):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(prefix)} is no prefix of keys", next="for example datasets/2026",
            allowed=f"parts separated by '/', none empty, '.' or '..', without '?' and ',', at most {MAX_PREFIX_BYTES} bytes",
        )  # fmt: skip
    if source.secret:
        check_secret_name(source.secret)
    if source.endpoint_url:
        _check_endpoint(source.endpoint_url)
    return source


def bucket_options(source: BucketSource, values: Mapping[str, str]) -> dict[str, str]:
    """The options of the bucket's connection out of its secret's values; see `check_bucket_keys`.

    Raises RequestError (BAD_ARGUMENT) for a region that is none.
    """
    known = _GOOGLE_KEYS if _GOOGLE_KEYS.keys() <= values.keys() else _KEYS
    options = {option: values[key] for key, option in known.items() if values.get(key)}
    if not _REGION.fullmatch(options.get("region", "none")):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"the region in secret {source.secret!r} is none", allowed="small letters, digits and '-'",
            next=f"cellburst secret update {source.secret} AWS_REGION=us-east-1",
        )  # fmt: skip
    return options


def check_bucket_keys(source: BucketSource, keys: Collection[str]) -> None:
    """Whether a secret of these keys opens a bucket. Raises RequestError (NOT_FOUND) naming what it lacks."""
    wanted = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    if missing := [key for key in wanted if key not in keys]:
        if _GOOGLE_KEYS.keys() <= set(keys):
            return
        raise error(
            ErrorCode.NOT_FOUND, f"secret {source.secret!r} has no {missing[0]}, which {source.text} needs",
            allowed=f"{' and '.join(wanted)}, or {' and '.join(_GOOGLE_KEYS)}",
            next=f"cellburst secret create {source.secret} {missing[0]}=…",
        )  # fmt: skip


def is_refused_address(text: str) -> bool:
    """Whether an address is where machines keep credentials of their own (169.254.169.254 and the like)."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_link_local or address.is_multicast or address.is_unspecified or text == "fd00:ec2::254"


def is_address(text: str) -> bool:
    """Whether it is an IP address, as it is written."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_endpoint(url: str) -> None:
    why = ""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        why, parts, host = "it cannot be read", urlsplit(""), ""
    if not why and (parts.scheme not in ("http", "https") or not host):
        why = "it does not begin with http:// or https:// and a host"
    elif parts.username is not None or parts.password is not None:
        why = "a credential stood in it, which belongs into a secret"
    elif not why and not _ENDPOINT.fullmatch(url):
        why = "it has more than a host, a port and a path"
    elif is_refused_address(host):
        why = "that address is the machine's own affair"
    if why:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"{shown(url.rpartition('@')[2])} is no endpoint of a bucket: {why}",
            allowed="https://HOST or http://HOST:PORT", next="for example endpoint=https://minio.example.org",
        )  # fmt: skip
