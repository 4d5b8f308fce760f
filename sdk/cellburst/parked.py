"""Parked sessions as people read them, in the notebook and on the command line."""

from __future__ import annotations

import time

from cellburst_protocol.messages import ParkedInfo, SnapshotUsage

from .sizes import size_text


def parked_text(parked: ParkedInfo, now: float) -> str:
    """Size, place, age and expiry: `1.2 GB on w-1, 3 h ago, kept until Sat 28 Nov 13:40`. `now` is unix seconds."""
    if not parked.parked_unix_seconds:  # the gateway supposes that it was, and has not heard it
        return f"not known until its worker {parked.worker} is back"
    where = f" on {parked.worker}" if parked.worker else ""
    age = age_text(now - parked.parked_unix_seconds)
    return f"{_size(parked)}{where}, {age} ago{_until(parked)}"


def parked_now_text(parked: ParkedInfo) -> str:
    """What is said of a session when it has been parked: `1.2 GB on w-1, kept until Sat 28 Nov 13:40`."""
    where = f" on {parked.worker}" if parked.worker else ""
    return f"{_size(parked)}{where}{_until(parked)}"


def age_text(seconds: float) -> str:
    """A duration in one unit: `40 s`, `5 min`, `3 h`, `6 days`."""
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h"
    return f"{seconds // 86400:.0f} days"


def usage_text(usage: SnapshotUsage) -> str:
    """What a worker keeps: `2 parked 3.4 GB, 3 templates 1.2 GB, at most 50.0 GB together`."""
    words = [
        f"{usage.parked_count} parked {size_text(usage.parked_bytes)}",
        f"{usage.template_count} template{'s' * (usage.template_count != 1)} {size_text(usage.template_bytes)}",
    ]
    if usage.limit_bytes:
        words.append(f"at most {size_text(usage.limit_bytes)} together")
    if usage.warm:
        memory = sum(container.memory_mib for container in usage.warm)
        words.append(f"{len(usage.warm)} warm with {memory / 1024:.1f} GiB of memory")
    return ", ".join(words)


def _size(parked: ParkedInfo) -> str:
    return size_text(parked.size_bytes) + (" (names only)" if parked.kind == "names" else "")


def _until(parked: ParkedInfo) -> str:
    if not parked.expires_unix_seconds:
        return ""
    return time.strftime(", kept until %a %d %b %H:%M", time.localtime(parked.expires_unix_seconds))
