"""Figures as JSON lines and as the table of docs/benchmarks.md."""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"


@dataclass(frozen=True)
class Figure:
    """One measured figure against what it should be at least. `value` has the unit; `detail` says how it came."""

    name: str
    value: float
    unit: str
    target: float
    direction: Literal["max", "min"]
    detail: str = ""

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.value <= self.target if self.direction == "max" else self.value >= self.target


def line(figure: Figure) -> str:
    """One JSON line."""
    return json.dumps({**asdict(figure), "met": figure.met})


def write_page(figures: list[Figure], engine: str) -> None:
    """Put the table of this run between the page's marks; the rest of the page stays."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    machine = f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}"
    rows = [
        f"Run of {now}: {machine}, engine `{engine}`.",
        "",
        "| figure | measured | at least | | how |",
        "| --- | --- | --- | --- | --- |",
    ]
    for f in figures:
        sign = "≤" if f.direction == "max" else "≥"
        rows.append(
            f"| {f.name} | {f.value:.3g} {f.unit} | {sign} {f.target:g} | {'met' if f.met else '**missed**'} | {f.detail} |"
        )
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n" + "\n".join(rows) + f"\n{END}{after}")
