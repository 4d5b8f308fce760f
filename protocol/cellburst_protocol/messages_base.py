"""What all messages have in common."""

from __future__ import annotations

import msgspec


class Base(msgspec.Struct, omit_defaults=True, kw_only=True, tag_field="t"):
    """Base of every message: a JSON object whose field `t` is its tag; defaults are left out."""
