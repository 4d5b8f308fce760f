#!/usr/bin/env bash
# Puts the pinned runsc (gVisor) into the project's own tool folder: install_runsc.sh DEST
#
# Debian 12's own runsc restores slowly and has no systrap platform; the one in Debian 13 is a static binary. It comes
# through apt from the "trixie" suite of the Debian mirror this machine already uses: apt checks the archive's signature
# with Debian's keyring, and a sources file and lists folder of our own leave the machine's apt configuration alone.
set -euo pipefail

VERSION=0.0~20240729.0
dest=${1:?"usage: install_runsc.sh DEST"}
binary="$dest/runsc-$VERSION"
if [ -x "$binary" ] && "$binary" --version >/dev/null 2>&1; then
  ln -sfn "runsc-$VERSION" "$dest/runsc"
  echo "runsc $VERSION is there"
  exit 0
fi
command -v apt-get >/dev/null || { echo "runsc: no apt on this machine; put a runsc into $dest/runsc yourself" >&2; exit 3; }

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ -r "$keyring" ] || { echo "runsc: $keyring is missing (package debian-archive-keyring)" >&2; exit 3; }
mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 2>/dev/null | awk '$2=="Debian" && $3=="Debian" {print $1; exit}')
[ -n "$mirror" ] || mirror=$(apt-get indextargets --format '$(REPO_URI)' 2>/dev/null | grep -m1 '/debian/\?$') || true
[ -n "$mirror" ] || { echo "runsc: apt is configured with no Debian mirror" >&2; exit 3; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$dest"
echo "deb [signed-by=$keyring] $mirror trixie main" > "$work/sources.list"
options=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$work/lists"
         -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root -o Acquire::Languages=none)
apt-get "${options[@]}" -qq update
found=$(apt-cache "${options[@]}" madison runsc | awk '{print $3; exit}')
case "$found" in "$VERSION"*) ;; *) echo "runsc: the mirror has ${found:-none}, not the pinned $VERSION" >&2; exit 4 ;; esac
(cd "$work" && apt-get "${options[@]}" -qq download "runsc=$found")
dpkg -x "$work"/runsc_*.deb "$work/unpacked"
install -m 0755 "$work/unpacked/usr/bin/runsc" "$binary.part"
mv "$binary.part" "$binary"
ln -sfn "runsc-$VERSION" "$dest/runsc"
"$binary" --version | sed -n 1p
