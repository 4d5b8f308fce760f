"""`python -m cellburst_jupyter.environment_told FOLDER`: this environment as JSON, for programs that are no kernel.

The command line asks the interpreter that the notebook's kernel would be, as a program of its own, since what it describes is the
process it runs in.
"""

from __future__ import annotations

import os
import sys

import msgspec

from .environment import collect_environment


def main(arguments: list[str]) -> int:
    """Print it; the folder is the notebook's."""
    own = {"", os.getcwd()}  # noqa: PTH109 - what `-m` put there, as it put it
    sys.path[:] = [entry for entry in sys.path if entry not in own]
    spec = collect_environment(notebook_folder=arguments[0] if arguments else "")
    sys.stdout.write(msgspec.json.encode(spec).decode() + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
