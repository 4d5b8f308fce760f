"""The part of `test_rootless.py` that runs as an ordinary user: a house, a kernel, one cell; what was seen, as JSON.

    python -m tests.house.rootless_side FOLDER [warm]

FOLDER is the user's own and holds everything; the environment leads there already. With `warm` a second session is started when
a container waits for one, parked, and brought back when the next one waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.harness import CELL_TIMEOUT_SECONDS, House, Kernel

# Runs until it is interrupted, which is done when the card has said what there is to say.
CELL = """%%modal gpu=A100
import colorsys, os, time
token_seen = os.path.exists({token!r})
try:
    print("begun")
    while True:
        time.sleep(0.02)
except KeyboardInterrupt:
    print("interrupted")
"""

SETTLED_SECONDS = 5.0  # more than a session must be quiet before containers like it are made anew
WARM_CELL = """%%modal session=warm card=off
import os, sys
print('token_seen' in globals(), 'colorsys' in sys.modules, open('later.txt').read(), os.environ['CELLBURST_CONTAINER'][:2])
kept = 41
"""


def cellburst(*arguments: str) -> str:
    """The standard output of a `cellburst` command."""
    command = [sys.executable, "-m", "cellburst", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def warm_container(taken: str) -> dict[str, Any]:
    """What `cellburst status` says of a container that waits and is not `taken`; each question is a process, so no spinning. One
    that has waited for a while is not about to be made anew because a cell had imported more."""
    for _ in range(100):
        (worker,) = json.loads(cellburst("status", "--json"))["workers"]
        for one in (worker.get("snapshots") or {}).get("warm", []):
            if one["id"] != taken and one["age_seconds"] > SETTLED_SECONDS:
                return {**one, "told": " ".join(cellburst("status").split())}
    raise RuntimeError("no container waits")


def phases_of(name: str) -> list[tuple[str, str]]:
    """By which steps the session of this name came up."""
    row = next(row for row in json.loads(cellburst("status", "--json"))["sessions"] if row["name"] == name)
    return [(phase["name"], phase.get("detail", "")) for phase in row["container"]["phases"]]


def use_warm(kernel: Kernel) -> dict[str, Any]:
    """What a session finds that was given a container which waited, and what of it comes back when it was parked."""
    waits = warm_container("")
    (Path(kernel.check("import os; print(os.getcwd())").text.strip()) / "later.txt").write_text("later")
    found = kernel.check(WARM_CELL).text
    phases = phases_of("warm")
    parked = kernel.check("%modal park session=warm").text
    warm_container(waits["id"])
    back = kernel.check("%%modal session=warm card=off\nprint(kept + 1)").text
    return {
        "waits": waits,
        "found": found,
        "phases": phases,
        "parked": parked,
        "back": back,
        "phases_back": phases_of("warm"),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    place = House(folder, {"CELLBURST_DATA": str(folder / "data"), "CELLBURST_RUN": str(folder / "run")})
    card: dict[str, Any] = {}
    text: list[str] = []
    kernel = place.kernel()
    try:
        kernel.check("%load_ext cellburst_jupyter")

        def hook(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                text.append(content["text"])
            elif message["msg_type"] == "error":
                text.append("\n".join(content["traceback"]))
            elif message["msg_type"].startswith("comm_"):
                card.update(content["data"].get("state", {}).get("card", {}))
            if "begun" in "".join(text) and card.get("notes") and "interrupted" not in card:
                card["interrupted"] = True
                kernel.interrupt()

        kernel.client.execute_interactive(
            CELL.format(token=str(folder / "data" / "token")), output_hook=hook, timeout=CELL_TIMEOUT_SECONDS,
            allow_stdin=True,  # a person sits there: the card is the live one
        )  # fmt: skip
        home = kernel.check("print(token_seen)").text
        status, as_json = cellburst("status"), json.loads(cellburst("status", "--json"))
        warm = use_warm(kernel) if "warm" in sys.argv[2:] else {}
    finally:
        down = cellburst("down")
        kernel.close()
    seen = {
        "uid": os.getuid(), "text": "".join(text), "card": card, "home": home, "status": " ".join(status.split()),
        "workers": as_json["workers"], "sessions": as_json["sessions"], "down": down,
        "warm": warm,
    }  # fmt: skip
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
