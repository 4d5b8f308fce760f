"""Starts the runner: `python -I …/cellburst_runner/__main__.py` is the supervisor; it starts executors by the same file
with `executor` and descriptor numbers as arguments. `zygote` is a fork server, out of which both come without a start of
Python's. Runs by path, so that nothing has to be on the user's `sys.path`."""

import os
import sys

if not __package__:
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or ".") != _here]
    sys.path.insert(0, os.path.dirname(_here))  # before the user's own copy of this package, if there is one

if len(sys.argv) > 1 and sys.argv[1] in ("executor", "zygote"):
    # ipykernel would load the debugger, which nobody can reach here: half a second, threads, a warning on stderr
    sys.modules["debugpy"] = None  # type: ignore[assignment]  # cell_kernel.make_app takes it out again
    from cellburst_runner.fallback_path import extend_path

    extend_path()
    if sys.argv[1] == "zygote":
        from cellburst_runner.zygote import main as zygote_main

        zygote_main(int(sys.argv[2]), int(sys.argv[3]))
    else:
        from cellburst_runner.cell_executor import main as executor_main

        executor_main([int(number) for number in sys.argv[2:7]])
else:
    from cellburst_runner.supervisor import main

    sys.exit(main())
