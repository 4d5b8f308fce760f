#!/usr/bin/env bash
# Builds the JupyterLab panel (labextension/) into jupyter_ext/cellburst_jupyter/labextension, from where this checkout's
# JupyterLab and the wheel take it. Who installs the wheel needs no Node.
# Nothing is done when the sources are those of the last build. Without Node the rest of the project works; that is said.
set -euo pipefail
cd "$(dirname "$0")/.."
say() { printf '\033[2m[setup]\033[0m %s\n' "$*"; }

built=jupyter_ext/cellburst_jupyter/labextension
link=.venv/share/jupyter/labextensions/@cellburst/labextension
packages=$(cat package.json yarn.lock .yarnrc.yml | sha256sum)
wanted=$( (echo "$packages"; find labextension/src labextension/style labextension/schema tsconfig.json -type f -print0 | sort -z | xargs -0 sha256sum) | sha256sum)

if [ "$(cat $built/.stamp 2>/dev/null)" != "$wanted" ]; then
  if ! node -e 'const [a, b] = process.versions.node.split(".").map(Number); process.exit((a === 20 && b >= 19) || (a === 22 && b >= 12) || a > 22 ? 0 : 1)' 2>/dev/null; then
    say "the JupyterLab panel is not built: it needs Node 20.19 or later (everything else works without)"
    exit 0
  fi
  mkdir -p .tools
  export PATH="$PWD/.venv/bin:$PATH"
  # The package manager inside jlpm does not read npm's configuration; its registry is given here and written nowhere.
  registry=$(npm config get registry 2>/dev/null | tail -1)
  case $registry in
    https://*) export YARN_NPM_REGISTRY_SERVER=${registry%/} ;;
    http://*) export YARN_NPM_REGISTRY_SERVER=${registry%/}
      host=${registry#http://}; host=${host%%/*}
      export YARN_UNSAFE_HTTP_WHITELIST=${host%%:*} ;;
  esac
  if [ "$(cat node_modules/.cellburst-stamp 2>/dev/null)" != "$packages" ]; then
    say "Node packages for the JupyterLab panel (about a minute, once)"
    ok=""
    for attempt in 1 2; do
      if jlpm install --immutable >.tools/panel.log 2>&1; then ok=yes; break; fi
      [ "$attempt" = 2 ] || say "that failed (see .tools/panel.log); once more"
    done
    [ -n "$ok" ] || { tail -5 .tools/panel.log >&2; say "the JupyterLab panel is not built: its packages could not be fetched"; exit 0; }
    echo "$packages" >node_modules/.cellburst-stamp
  fi
  say "the JupyterLab panel"
  rm -rf "$built.before" labextension/lib
  [ ! -e "$built" ] || mv "$built" "$built.before"  # sources that do not compile leave the panel as it was
  if ! jlpm build >.tools/panel.log 2>&1; then
    tail -30 .tools/panel.log >&2
    rm -rf "$built"
    [ ! -e "$built.before" ] || mv "$built.before" "$built"
    exit 1
  fi
  rm -rf "$built.before"
  rm -f "$built"/schemas/@cellburst/labextension/package.json.orig
  echo "$wanted" >"$built/.stamp"
fi
if [ ! -e "$link/package.json" ] && [ -d .venv ]; then
  mkdir -p "$(dirname "$link")"
  ln -sfn "$PWD/$built" "$link"
fi
