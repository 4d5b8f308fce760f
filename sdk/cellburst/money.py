"""Money as people read it. On the wire and in the record it is exact decimal text."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation


def usd_text(amount: str, *, per_hour: bool = False) -> str:
    """Decimal text in US dollars (a second's price with `per_hour`) for a person: `$1.23`, `$0.0042`, `<$0.0001`.

    "" is nothing, and what is no number is `$?`.
    """
    try:
        value = Decimal(amount or "0") * (3600 if per_hour else 1)
    except InvalidOperation:
        return "$?"
    if value >= Decimal("0.1") or value == 0:
        return f"${value:.2f}"
    return f"${value:.4f}" if value >= Decimal("0.0001") else "<$0.0001"
