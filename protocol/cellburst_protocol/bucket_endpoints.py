"""Which servers buckets may be at: the operator says it, because the worker's machine connects to them. No I/O.

A server may send whoever asks it elsewhere (a redirect), also to where only the worker's machine reaches. So a user's word is not
enough. An entry of the gateway's `bucket_endpoints` is one of

    public                     the large services' S3 endpoints, by https
    minio.example.org          that host and those below it, by https at its usual port
    http://127.0.0.1:9000      exactly that scheme, host and port
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from .buckets import BucketSource, is_address
from .errors import ErrorCode, error
from .secrets import shown

PUBLIC = "public"
_AMAZON = "https://s3.amazonaws.com"
# Only what serves S3 itself: below amazonaws.com and others are also names that anybody can rent, and web sites that redirect.
_REGION = r"[a-z]{2}(-[a-z]+)+-[0-9]{1,2}"
_PUBLIC_HOSTS = re.compile(
    rf"s3(-accelerate|-fips)?(\.dualstack)?(\.{_REGION})?\.amazonaws\.com(\.cn)?"
    rf"|s3-{_REGION}\.amazonaws\.com"
    r"|[0-9a-z]+(\.[a-z]+)?\.r2\.cloudflarestorage\.com"
    r"|storage\.googleapis\.com"
    r"|s3\.[a-z0-9-]+\.backblazeb2\.com"
    r"|[a-z0-9]+\.digitaloceanspaces\.com"
    r"|s3(\.[a-z0-9-]+)?\.wasabisys\.com"
)
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_PORTS = {"http": 80, "https": 443}


def check_entries(entries: Sequence[str]) -> tuple[str, ...]:
    """The entries as they are compared. Raises RequestError (BAD_ARGUMENT)."""
    return tuple(_entry(text) for text in entries)


def check_trusted(source: BucketSource, entries: Sequence[str]) -> None:
    """Whether the operator trusts a bucket's endpoint; both are checked ones. Raises RequestError (FORBIDDEN)."""
    url = source.endpoint_url or _AMAZON
    if any(_allows(entry, url) for entry in entries):
        return
    wanted = [*entries, _origin(url) if source.endpoint_url else PUBLIC]
    line = "bucket_endpoints = [" + ", ".join(f'"{entry}"' for entry in wanted) + "]"
    raise error(
        ErrorCode.FORBIDDEN, f"{shown(_origin(url))} is no endpoint that this gateway's operator trusts with {source.text}",
        allowed=", ".join(entries) or "none",
        next=f"the operator adds it below [gateway] in the gateway's configuration: {line}",
    )  # fmt: skip


def _allows(entry: str, url: str) -> bool:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
    if "://" in entry:
        return _origin(url) == entry
    if parts.scheme != "https" or port != _PORTS["https"]:
        return False
    if entry == PUBLIC:
        return _PUBLIC_HOSTS.fullmatch(host) is not None
    return host == entry or host.endswith(f".{entry}")


def _origin(url: str) -> str:
    """Scheme, host, and port where it is not the usual one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port not in (None, _PORTS.get(parts.scheme)) else "")


def _entry(text: str) -> str:
    lowered = text.strip().lower()
    why = ""
    if "://" in lowered:
        try:
            parts = urlsplit(lowered)
            lowered = _origin(lowered)
        except ValueError:
            why, parts = "it cannot be read", urlsplit("")
        if not why and (parts.scheme not in _PORTS or not parts.hostname or parts.username is not None):
            why = "it has no http:// or https:// and host alone"
        elif not why and (parts.path not in ("", "/") or parts.query or parts.fragment):
            why = "it has more than a host and a port"
        elif not why and not (_HOST.fullmatch(parts.hostname or "") or is_address(parts.hostname or "")):
            why = "its host is no name and no address"
    elif not _HOST.fullmatch(lowered) or is_address(lowered) or lowered.rpartition(".")[2].isdigit():
        why = "a name alone is a host's; an address or a port takes a URL"
    if why:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"configuration: gateway.bucket_endpoints has {shown(text)}: {why}",
            allowed=f"{PUBLIC}, HOST, https://HOST, http://HOST:PORT", next='for example "http://127.0.0.1:9000"',
        )  # fmt: skip
    return lowered
