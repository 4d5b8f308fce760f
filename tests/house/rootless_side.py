"""The part of `test_rootless.py` that runs as an ordinary user: a house, a kernel, one cell; what was seen, as JSON.

    python -m tests.house.rootless_side FOLDER

FOLDER is the user's own and holds everything; the environment leads there already.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.harness import CELL_TIMEOUT_SECONDS, House

# Runs until it is interrupted, which is done when the card has said what there is to say.
CELL = """%%modal gpu=A100
import os, time
token_seen = os.path.exists({token!r})
try:
    print("begun")
    while True:
        time.sleep(0.02)
except KeyboardInterrupt:
    print("interrupted")
"""


def cellburst(*arguments: str) -> str:
    """The standard output of a `cellburst` command."""
    command = [sys.executable, "-m", "cellburst", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


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
    finally:
        down = cellburst("down")
        kernel.close()
    seen = {
        "uid": os.getuid(), "text": "".join(text), "card": card, "home": home, "status": " ".join(status.split()),
        "workers": as_json["workers"], "sessions": as_json["sessions"], "down": down,
    }  # fmt: skip
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
