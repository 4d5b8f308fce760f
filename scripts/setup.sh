#!/usr/bin/env bash
# Sets this checkout up: setup.sh run | lab | test
#
# run:  a virtual environment in .venv with everything the product, the examples and the tests import; as root also
#       runsc (gVisor) in .tools, what its network needs (nft, ip) and what fetches the bases of images.
# lab:  run, and the JupyterLab panel, where there is Node 20.19 or later.
# test: lab, and as root also what the tests use as real counterparts (PostgreSQL's server programs, Chromium, an image
#       registry, buildah).
# Nothing is done twice: a stamp holds the hash of what was installed from.
set -euo pipefail
cd "$(dirname "$0")/.."
what=${1:-run}
say() { printf '\033[2m[setup]\033[0m %s\n' "$*"; }

python=""
for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    python=$candidate
    break
  fi
done

as_root() { [ "$(id -u)" = 0 ]; }
apt_install() {
  local missing=()
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} = 0 ] && return 0
  say "Debian packages: ${missing[*]}"
  if ! DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >.tools/apt.log 2>&1; then
    apt-get update -q >>.tools/apt.log 2>&1
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >>.tools/apt.log 2>&1 ||
      { tail -5 .tools/apt.log >&2; return 1; }
  fi
}

mkdir -p .tools
if [ -z "$python" ] && as_root && command -v apt-get >/dev/null; then
  apt_install python3-venv
  python=python3
fi
[ -n "$python" ] || { echo "Python 3.11 or later with venv is needed (Debian: apt install python3-venv); set PYTHON=..." >&2; exit 1; }

stamp=.venv/.cellburst-stamp
wanted=$(cat pyproject.toml constraints.txt scripts/setup.sh jupyter_ext/config/*/*.json | sha256sum)
if [ ! -x .venv/bin/python ] || [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  say "virtual environment in .venv with $($python --version)"
  [ -x .venv/bin/python ] || $python -m venv .venv
  .venv/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt uv
  say "Python packages (pinned in constraints.txt)"
  .venv/bin/uv pip install -q --python .venv/bin/python --compile-bytecode -c constraints.txt -e '.[all]' --group dev
  # An editable install has no data files; this is the wheel's own, which loads the magics in this environment's kernels.
  install -D -m 644 jupyter_ext/config/ipython/ipython_kernel_config.json .venv/etc/ipython/ipython_kernel_config.json
  install -D -m 644 jupyter_ext/config/server-config/cellburst.json .venv/etc/jupyter/jupyter_server_config.d/cellburst.json
  echo "$wanted" >"$stamp"
fi
[ "$what" = run ] || scripts/panel.sh

if as_root; then
  apt_install iproute2 nftables e2fsprogs debian-archive-keyring || say "without them containers have no network of their own"
  apt_install rclone fuse3 || say "without them buckets cannot be shown in containers"
  apt_install mmdebstrap skopeo umoci || say "without them images cannot be built here"
  if [ ! -x .tools/runsc ]; then
    say "runsc (gVisor) into .tools"
    scripts/install_runsc.sh "$PWD/.tools" || say "without runsc, cells run as plain processes"
  fi
  if [ "$what" = test ]; then
    apt_install postgresql chromium fonts-dejavu-core docker-registry buildah busybox-static openssh-client
  fi
fi
say "ready"
