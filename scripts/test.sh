#!/usr/bin/env bash
# All tests, in two runs at once. Those with sandboxes, networks or a browser wait for most of their time; all others run
# beside them, at a lower priority so that they do not slow them. What the others printed follows at the end.
set -uo pipefail
cd "$(dirname "$0")/.."
real="gvisor or netns or browser or house"
log=$(mktemp)
others=
trap '[ -n "$others" ] && { kill -INT "$others"; wait "$others"; } 2>/dev/null; rm -f "$log"' EXIT
trap 'exit 130' INT TERM

# A shell starts what is in the background with SIGINT ignored, and every program below would inherit that.
env --default-signal=INT nice -n 10 .venv/bin/python -m pytest -q -m "not ($real)" >"$log" 2>&1 &
others=$!
.venv/bin/python -m pytest -q -m "$real"
status=$?
wait "$others"
others_status=$?
others=
echo "── the tests without sandboxes, networks or a browser ──"
cat "$log"
[ "$status" = 0 ] && [ "$others_status" = 0 ]
