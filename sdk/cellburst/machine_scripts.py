"""The shell scripts of another machine: what installs, what keeps the worker, what holds a tunnel. POSIX sh and Linux's `/proc`.

    BASE/uv/VERSION/uv       what installs
    BASE/python/…            a Python of its own, where none there fits
    BASE/sandbox/HASH/runsc  gVisor
    BASE/versions/BUILD/     an environment with this version; `ready` in it when it is whole
    BASE/for/WHOSE/          one gateway's: worker.sh, hold.sh, clear.sh, worker-token, data and run (root's: data-root, run-root)

Values come as variables in front of a script, quoted by `machine_ssh`; no secret is ever in an argument. BASE is this user's
alone (0700); files in it are as usual, since containers are shown some and run as another user.
"""

from __future__ import annotations

import shlex

# $base $uid: a folder of this user's alone, also below /var/tmp, where others may have made one of that name.
FOLDER = r"""
set -eu
umask 077
mkdir -p "$base"
[ -O "$base" ] || { echo "$base belongs to another user" >&2; exit 3; }
chmod 700 "$base"
"""

# Payloads come gzipped, so that one that is cut off in the middle is seen as that; `{folder}` is quoted for the shell already.
_FILE = (
    'set -e; umask 022; d={folder}; mkdir -p "$d"; '
    'gzip -dc >"$d/.part.$$" && chmod 755 "$d/.part.$$" && mv "$d/.part.$$" "$d/{name}"'
)
_TREE = (
    'set -e; umask 022; d={folder}; rm -rf "$d.part"; mkdir -p "$d.part"; '
    'gzip -dc >"$d.part/.tar" && tar -x -C "$d.part" -f "$d.part/.tar" && rm "$d.part/.tar" && rm -rf "$d" && mv "$d.part" "$d"'
)


def file_line(folder: str, name: str) -> str:
    """The line that reads a gzipped file, a program or not."""
    return _FILE.format(folder=folder, name=name)


def tree_line(folder: str) -> str:
    """The line that reads a gzipped tar archive."""
    return _TREE.format(folder=folder)


_UV = r"""
umask 022
UV_PYTHON_INSTALL_DIR="$base/python"; UV_CACHE_DIR="$base/cache"; UV_PYTHON_BIN_DIR="$base/python/bin"
UV_NO_PROGRESS=1; NO_COLOR=1
export UV_PYTHON_INSTALL_DIR UV_CACHE_DIR UV_NO_PROGRESS NO_COLOR UV_PYTHON_BIN_DIR
uv="$base/uv/$uv_version/uv"
tries='import ssl, sqlite3, ctypes, zlib, bz2, lzma, hashlib, venv, multiprocessing.synchronize'
"""

# $base $uv_version $minor: prints `python=PATH` for one that fits, its own minor version first. Nothing is downloaded.
FIND_PYTHON = (
    _UV
    + r"""
for wish in "$minor" '>=3.11,<3.15'; do
  for found in "$("$uv" python find --no-python-downloads --no-project --no-config "$wish" 2>/dev/null)" \
    "$base"/python/sent-*/bin/python3.*; do
    [ -x "$found" ] && "$found" -c "$tries" 2>/dev/null && { echo "python=$found"; exit 0; }
  done
done
exit 0
"""
)

# $base $uv_version $minor: as uv installs one, from the network.
INSTALL_PYTHON = (
    _UV
    + r"""
UV_HTTP_TIMEOUT=20; UV_HTTP_RETRIES="${UV_HTTP_RETRIES:-1}"; export UV_HTTP_TIMEOUT UV_HTTP_RETRIES
"$uv" python install --no-bin "$minor" >&2 || exit 4
found=$("$uv" python find --no-python-downloads --no-project --managed-python "$minor") || exit 4
"$found" -c "$tries" >&2 || exit 4
echo "python=$found"
"""
)

# $found: the one that was sent from here. It is tried before it is used.
TRY_PYTHON = _UV + '"$found" -c "$tries" >&2 || exit 4\necho "python=$found"\n'

# $base $uv_version $build $python $wheel $version: `constraints.txt` and the wheel lie in BASE/incoming/BUILD.
INSTALL = (
    _UV
    + r"""
set -e
to="$base/versions/$build"; from="$base/incoming/$build"
rm -rf "$to"
mkdir -p "$base/versions"
"$uv" venv --quiet --no-project --no-config --python "$python" "$to" >&2
sed '/^uv==/d' "$from/constraints.txt" >"$from/versions.txt"
echo 'uv ; python_version < "0"' >"$from/left-out.txt"
"$uv" pip install --quiet --python "$to/bin/python" --overrides "$from/left-out.txt" -c "$from/versions.txt" \
  "cellburst[worker] @ file://$from/$wheel" >&2
ln -sf "$uv" "$to/bin/uv"
"$to/bin/python" -c 'import cellburst_worker.__main__' >&2
printf %s "$version" >"$to/ready"
rm -rf "$from"
"""
)

# $me $name $build $token and the three scripts as values.
SETTLE = r"""
set -e
umask 077
mkdir -p "$me"
put() { printf '%s\n' "$2" >"$me/.part.$1" && mv "$me/.part.$1" "$me/$1"; }
put worker.sh "$worker"; put hold.sh "$hold"; put clear.sh "$clear"; put worker-token "$token"; put build "$build"
put name "$name"
"""

# `worker.sh start|stop|state|log`. Written with its values in front; run by sudo where the worker is root's.
WORKER = r"""
data=$me/data$as run=$me/run$as
runs() {
  pid=$(cat "$run/worker.lock" 2>/dev/null) || return 1
  case "$(tr '\0' ' ' <"/proc/${pid:-0}/cmdline" 2>/dev/null)" in *"--run-dir $run "*) return 0 ;; esac
  return 1
}
case $1 in
state) runs && echo runs || echo stopped ;;
start)
  runs && exit 0
  cd "$me" || exit 3
  [ -f worker.log ] && [ "$(wc -c <worker.log)" -gt 10000000 ] && mv worker.log worker.log.1
  umask 077
  : >>worker.log
  mkdir -p "$data/tools" "$run"
  umask 022
  if [ -n "$sandbox" ]; then ln -sf "$base/sandbox/$sandbox/runsc" "$data/tools/runsc"; fi
  set -- "$base/versions/$build/bin/python" -m cellburst_worker --join "http://127.0.0.1:$port" --token-file "$me/worker-token" \
    --data-dir "$data" --run-dir "$run" --name "$name" $more
  told=  # names only: values may hold a proxy's password, and arguments can be seen
  for one in HTTPS_PROXY HTTP_PROXY NO_PROXY https_proxy http_proxy no_proxy SSL_CERT_FILE UV_INDEX_URL UV_DEFAULT_INDEX; do
    eval "[ -n \"\${$one:-}\" ]" && told="$told -E $one"
  done
  if [ -n "$linger" ] && [ "$(id -u)" != 0 ] && systemd-run --user --quiet --collect --unit "cellburst-$whose" \
    -p KillMode=mixed -p TimeoutStopSec=60 -p "WorkingDirectory=$me" -p "StandardError=append:$me/worker.log" \
    -E "PATH=$PATH" $told -- "$@" >/dev/null 2>&1
  then exit 0
  fi
  setsid "$@" </dev/null >/dev/null 2>>worker.log &
  exit 0 ;;
stop)
  runs || exit 0
  kill "$pid"
  tries=0
  while runs && [ "$tries" -lt 600 ]; do sleep 0.1; tries=$((tries + 1)); done
  if runs; then kill -9 "$pid"; echo killed; fi
  exit 0 ;;
log) tail -n 15 "$me/worker.log" 2>/dev/null ;;
esac
exit 0
"""

# The next three are sent when they are needed, with $me in front, so that they are of this version. By sudo as WORKER.
STOP = r"""
[ -f "$me/worker.sh" ] || { echo gone; exit 0; }
case "$(sh "$me/worker.sh" state)" in stopped) echo stopped; exit 0 ;; esac
exec sh "$me/worker.sh" stop
"""

# After a worker that did not end by itself: a new one ends what it left (containers, mounts, networks) before it says that it
# starts. One that cannot start is given up; REMOVE looks whether anything is left.
TIDY = r"""
[ -f "$me/worker.sh" ] || exit 0
at=$(wc -c <"$me/worker.log" 2>/dev/null || echo 0)
sh "$me/worker.sh" start || exit 0
tries=0
while [ "$tries" -lt 300 ]; do
  tail -c "+$((at + 1))" "$me/worker.log" 2>/dev/null | grep -q 'worker starts' && break
  [ "$tries" -lt 100 ] || [ "$(sh "$me/worker.sh" state)" = runs ] || break
  sleep 0.1
  tries=$((tries + 1))
done
exec sh "$me/worker.sh" stop
"""

REMOVE = r"""
[ -d "$me" ] || exit 0
real=$(cd "$me" && pwd -P) || exit 6
if sed 's/\\040/ /g' /proc/self/mounts | grep -qF -e " $me/" -e " $me " -e " $real/" -e " $real "; then
  echo "something is still mounted below $me: a container of the worker's is left" >&2
  exit 6
fi
rm -rf "$me"
"""


def by(sudo: str, text: str, folder: str) -> str:
    """The line that runs one of these for a folder; `sudo` is what stands before it, or ""."""
    script = f"me={shlex.quote(folder)}\n{text}"
    return f"{sudo} sh -c {shlex.quote(script)}\n"


_SSHD = r"""
begun() { sed 's/^.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
"""

# Run by the tunnel's ssh. The server's process above it holds the forwarded port: `clear.sh` ends it by its pid and start time
# (SIGKILL: it may be stuck in writing to a network that is gone).
HOLD = (
    _SSHD
    + r"""
pid=$PPID
while [ "${pid:-1}" -gt 1 ]; do
  case "$(cat "/proc/$pid/comm" 2>/dev/null)" in sshd*) break ;; esac
  pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status")
done
umask 077
[ "${pid:-1}" -gt 1 ] && echo "$pid $(begun "$pid")" >"$me/tunnel"
$sudo sh "$me/worker.sh" start || exit 5
echo cellburst-ready
exec cat >/dev/null
"""
)

CLEAR = (
    _SSHD
    + r"""
read -r pid at <"$me/tunnel" || exit 0
case "$(cat "/proc/$pid/comm" 2>/dev/null)" in sshd*) [ "$(begun "$pid")" = "$at" ] && kill -9 "$pid" ;; esac
exit 0
"""
)
