"""`python -m cellburst_jupyter.environment_told FOLDER [PACKS [IMAGE]]`: this environment, for programs that are no kernel.

The command line asks the interpreter that the notebook's kernel would be, as a program of its own, since what it describes is the
process it runs in. Without PACKS the environment is printed as JSON; with it, what a schedule keeps of it is written there
(`cellburst.schedule_environment`), and of the image that IMAGE names (FILE.py:NAME).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from .environment import collect_environment


def main(arguments: list[str]) -> int:
    """Tell it; the folder is the notebook's."""
    own = {"", os.getcwd()}  # noqa: PTH109 - what `-m` put there, as it put it
    sys.path[:] = [entry for entry in sys.path if entry not in own]
    folder = arguments[0] if arguments else ""
    spec = collect_environment(notebook_folder=folder)
    if len(arguments) < 2:
        sys.stdout.write(msgspec.json.encode(spec).decode() + "\n")
        return 0
    from cellburst.schedule_environment import tell

    if folder:
        os.chdir(folder)  # local files of an image are found as from the notebook
    tell(spec, Path(folder), Path(arguments[1]), arguments[2] if len(arguments) > 2 else "")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
