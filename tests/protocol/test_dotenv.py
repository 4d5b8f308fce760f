"""`.env` files by the table that the panel's reading of pasted ones (labextension/src/dotenv.ts) is tested with as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cellburst_protocol import dotenv
from cellburst_protocol.errors import CellburstError

CASES: list[dict[str, Any]] = json.loads((Path(__file__).parent / "dotenv_cases.json").read_text())


@pytest.mark.parametrize("case", CASES, ids=lambda case: repr(case["text"]))
def test_a_file_is_read_by_the_table(case: dict[str, Any]) -> None:
    if "refused_line" in case:
        with pytest.raises(CellburstError, match=f"^line {case['refused_line']} "):
            dotenv.parse(case["text"])
        return
    parsed = dotenv.parse(case["text"])
    assert (parsed.values, parsed.duplicates) == (case["values"], case.get("duplicates", []))
