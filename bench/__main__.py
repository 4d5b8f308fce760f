"""`python -m bench [NAME …]`: run all benchmarks, or those whose name contains one of the words."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from . import cells, gateway_load, images, panel, schedules, snapshots, values, volumes
from .harness import House, house
from .report import Figure, line, write_page

BENCHES = [
    cells.warm_cell, cells.print_latency, cells.many_lines, cells.first_cell, values.gigabyte, values.interrupt_during_transfer,
    snapshots.template_start, snapshots.warm_start, snapshots.torch_start, snapshots.many_restores, snapshots.park_and_resume, snapshots.two_templates_at_once, images.images,
    volumes.volumes, gateway_load.two_hundred_sessions, schedules.schedules_at_once, panel.panel,
]  # fmt: skip


def engine_of(place: House) -> str:
    """The engine that the worker of this run preferred; "" where the bench started none."""
    answer = subprocess.run(
        [sys.executable, "-m", "cellburst", "status", "--json"],
        env={**os.environ, **place.environment},
        capture_output=True,
        check=False,
    )
    if answer.returncode:
        return ""
    workers = json.loads(answer.stdout)["workers"]
    return str(workers[0]["inventory"]["engines"][0]["name"]) if workers else "none"


def main() -> int:
    words = sys.argv[1:]
    figures: list[Figure] = []
    engine = ""
    for bench in BENCHES:
        if words and not any(word in bench.__name__ for word in words):
            continue
        with house() as place:
            for figure in bench(place):
                print(line(figure), flush=True)
                figures.append(figure)
            if bench not in (
                gateway_load.two_hundred_sessions,
                schedules.schedules_at_once,
                images.images,
                snapshots.template_start,
                snapshots.torch_start,
                snapshots.many_restores,
                snapshots.two_templates_at_once,
            ):
                engine = engine_of(place) or engine
    if not words:
        write_page(figures, engine)
    missed = [f.name for f in figures if not f.met]
    print(f"{len(figures)} figures, {len(missed)} missed" + (f": {', '.join(missed)}" if missed else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
