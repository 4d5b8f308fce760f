"""What `cellburst connect` finds on another machine before it changes anything there: one shell script, and its reading.

The script needs a POSIX shell and what Linux always has; each line that it prints is KEY=VALUE. Whether the machine can be used
is decided here, by `problem`: nothing is sent to one that cannot.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from cellburst_protocol.errors import CellburstError, ErrorCode, error

LEAST_FREE_BYTES = 2 * 1024**3  # Python, packages and a first image's working space
LEAST_GLIBC = (2, 28)  # what wheels are built for, and the executor's own packages
NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "afs", "fuse.sshfs")
SANDBOX_TOOLS = {"ip", "nft", "mmdebstrap"}  # of the packages iproute2, nftables, mmdebstrap
FIRST_PORT, PORTS = 21000, 9000  # below the range from which systems take ports for outgoing connections (32768)

SCRIPT = r"""
LC_ALL=C; export LC_ALL
say() { printf '%s=%s\n' "$1" "$2"; }
say os "$(uname -s)"
say arch "$(uname -m)"
say uid "$(id -u)"
say user "$(id -un 2>/dev/null)"
say hostname "$(uname -n)"
say home "$HOME"
[ -r /etc/os-release ] && say system "$(. /etc/os-release; printf %s "$PRETTY_NAME")"
say libc "$( (getconf GNU_LIBC_VERSION || ldd --version || ldd /bin/sh) 2>&1 | head -n 1)"
say cores "$(nproc 2>/dev/null)"
say memory_kib "$(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo 2>/dev/null)"
disk() {
  say "$1" "$2"
  say "$1_free_kib" "$(df -Pk "$2" 2>/dev/null | sed -n '2s/^.* \([0-9][0-9]*\)  *[0-9][0-9]*% .*$/\1/p')"
  say "$1_kind" "$(stat -f -c %T "$2" 2>/dev/null)"
}
disk folder "$HOME"
[ -d /var/tmp ] && disk spare /var/tmp
[ -w "$HOME" ] && say home_writable yes
for version in /proc/driver/nvidia/version; do
  [ -r "$version" ] && say driver "$(sed -n 's/^NVRM.* \([0-9][0-9.]*\) .*$/\1/p' "$version" | head -n 1)"
done
if command -v nvidia-smi >/dev/null 2>&1; then
  nvidia-smi --query-gpu=name,memory.total --format=csv,noheader 2>/dev/null | while read -r gpu; do say gpu "$gpu"; done
fi
for tool in gzip tar setsid ip nft mmdebstrap; do
  PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null 2>&1 && say tool "$tool"
done
sudo -n true 2>/dev/null && say sudo yes
if systemctl --user show-environment >/dev/null 2>&1; then
  say systemd yes
  [ "$(loginctl show-user "$(id -un)" --property=Linger --value 2>/dev/null)" = yes ] && say linger yes
fi
sed -n 's/^ *[0-9]*: [0-9A-F]*:\([0-9A-F]\{4\}\) [0-9A-F:]* 0A .*$/\1/p' /proc/net/tcp /proc/net/tcp6 2>/dev/null |
  sort -u | while read -r port; do say port "$port"; done
uid=$(id -u)
for base in "$HOME/.local/share/cellburst/machine" "/var/tmp/cellburst-machine-$uid"; do
  for ready in "$base"/versions/*/ready; do
    [ -f "$ready" ] && say build "$(basename "$(dirname "$ready")") $(cat "$ready")"
  done
  for uv in "$base"/uv/*/uv; do [ -x "$uv" ] && say uv "$(basename "$(dirname "$uv")")"; done
  for runsc in "$base"/sandbox/*/runsc; do [ -x "$runsc" ] && say sandbox "$(basename "$(dirname "$runsc")")"; done
  for one in "$base"/for/*; do
    [ -d "$one" ] || continue
    state=stopped
    for run in "$one/run" "$one/run-root"; do
      [ -d "$run" ] || continue
      pid=$(cat "$run/worker.lock" 2>/dev/null || sudo -n cat "$run/worker.lock" 2>/dev/null)
      case "$(tr '\0' ' ' <"/proc/${pid:-0}/cmdline" 2>/dev/null)" in *"--run-dir $run "*) state=runs ;; esac
    done
    say worker "$(basename "$one") $state $(cat "$one/build" 2>/dev/null)"
    [ -f "$one/name" ] && say called "$(basename "$one") $(cat "$one/name")"
  done
done
say end yes
"""


@dataclass(frozen=True)
class Disk:
    """A folder's file system: bytes free there, and its kind in `stat -f`'s word."""

    path: str
    free_bytes: int
    kind: str

    @property
    def is_network(self) -> bool:
        """Whether locks, sockets and container files on it would be another machine's."""
        return self.kind.startswith(NETWORK_FILE_SYSTEMS)


@dataclass(frozen=True)
class Found:
    """A machine as the look found it. `glibc` is (0, 0) where it has another C library; memory and disks in bytes."""

    os: str = ""
    arch: str = ""
    system: str = ""
    hostname: str = ""
    user: str = ""
    uid: int = -1
    glibc: tuple[int, int] = (0, 0)
    libc_words: str = ""
    cores: int = 0
    memory_bytes: int = 0
    home: Disk = Disk("", 0, "")
    spare: Disk = Disk("", 0, "")
    home_writable: bool = False
    driver: str = ""
    gpus: tuple[str, ...] = ()
    tools: frozenset[str] = frozenset()
    can_sudo: bool = False
    systemd: bool = False
    linger: bool = False
    busy_ports: frozenset[int] = frozenset()
    builds: dict[str, str] = field(default_factory=dict)  # build -> the version that it names
    uvs: frozenset[str] = frozenset()
    sandboxes: frozenset[str] = frozenset()
    workers: dict[str, tuple[bool, str]] = field(default_factory=dict)  # whose -> (runs, its build)
    called: dict[str, str] = field(default_factory=dict)  # whose -> the name that it was connected by
    whole: bool = False

    @property
    def is_root(self) -> bool:
        """Whether the login is root's."""
        return self.uid == 0

    @property
    def uses_spare(self) -> bool:
        """Whether our folder lies outside the home folder, which is on a network file system."""
        return self.home.is_network and bool(self.spare.path) and not self.spare.is_network

    @property
    def base(self) -> str:
        """Our folder there."""
        return (
            f"{self.spare.path}/cellburst-machine-{self.uid}"
            if self.uses_spare
            else f"{self.home.path}/.local/share/cellburst/machine"
        )


def read(text: str) -> Found:
    """What the script printed. Lines that it did not print (a banner, a login script) are passed over."""
    one: dict[str, str] = {}
    many: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and key.replace("_", "").isalpha():
            one[key] = value.strip()
            many.setdefault(key, []).append(value.strip())
    glibc = re.search(r"(?:GLIBC|glibc|GNU libc)\D*(\d+)\.(\d+)", one.get("libc", ""))
    workers = (line.split() for line in many.get("worker", []))
    return Found(
        os=one.get("os", ""), arch=one.get("arch", ""), system=one.get("system", ""), hostname=one.get("hostname", ""),
        user=one.get("user", ""), uid=int(one["uid"]) if one.get("uid", "").isdigit() else -1,
        glibc=(int(glibc[1]), int(glibc[2])) if glibc else (0, 0), libc_words=one.get("libc", ""),
        cores=_number(one.get("cores")), memory_bytes=_number(one.get("memory_kib")) * 1024,
        home=_disk(one, "folder"), spare=_disk(one, "spare"), home_writable=one.get("home_writable") == "yes",
        driver=one.get("driver", ""), gpus=tuple(many.get("gpu", [])), tools=frozenset(many.get("tool", [])),
        can_sudo=one.get("sudo") == "yes", systemd=one.get("systemd") == "yes", linger=one.get("linger") == "yes",
        busy_ports=frozenset(int(port, 16) for port in many.get("port", []) if re.fullmatch("[0-9A-F]{4}", port)),
        builds={words[0]: " ".join(words[1:]) for line in many.get("build", []) if (words := line.split())},
        uvs=frozenset(many.get("uv", [])), sandboxes=frozenset(many.get("sandbox", [])),
        workers={words[0]: (words[1] == "runs", words[2] if len(words) > 2 else "") for words in workers if len(words) > 1},
        called={words[0]: words[1] for line in many.get("called", []) if len(words := line.split()) == 2},
        whole=one.get("end") == "yes",
    )  # fmt: skip


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else 0


def _disk(one: dict[str, str], name: str) -> Disk:
    path = one.get("home", "") if name == "folder" else one.get(name, "")
    return Disk(path, _number(one.get(f"{name}_free_kib")) * 1024, one.get(f"{name}_kind", ""))


def problem(found: Found, arch: str, target: str) -> CellburstError | None:
    """Why this machine cannot be used from one of architecture `arch`, or None."""
    if not found.whole:
        return error(
            ErrorCode.UNAVAILABLE, f"{target} did not answer a shell script to its end",
            allowed="a login with a POSIX shell (sh)", next=f"`ssh {target} sh -c true` shows what its login does",
        )  # fmt: skip
    if found.os != "Linux":
        name = "macOS" if found.os == "Darwin" else found.os
        return error(
            ErrorCode.NOT_YET, f"{target} runs {name}", allowed="Linux with glibc",
            next="there, `pip install 'cellburst[worker]'` and `cellburst worker --join URL --token-file FILE`",
        )  # fmt: skip
    if found.arch != arch:
        return error(
            ErrorCode.NOT_YET,
            f"{target} is {found.arch}, and this machine is {arch}: what is sent from here would not run there",
            allowed=arch, next="there, `pip install 'cellburst[worker]'` and `cellburst worker --join URL --token-file FILE`",
        )  # fmt: skip
    if found.glibc < LEAST_GLIBC:
        return error(
            ErrorCode.NOT_YET, f"{target} has {found.libc_words or 'no C library that says its name'}",
            allowed=f"glibc {LEAST_GLIBC[0]}.{LEAST_GLIBC[1]} or later", next="use a newer system there",
        )  # fmt: skip
    disk = found.spare if found.uses_spare else found.home
    if not found.uses_spare and not found.home_writable:
        return error(
            ErrorCode.FORBIDDEN, f"the home folder {disk.path!r} on {target} cannot be written",
            next=f"make it {found.user or 'this user'}'s own there",
        )  # fmt: skip
    if disk.free_bytes < LEAST_FREE_BYTES:
        return error(
            ErrorCode.DISK_FULL, f"{target} has {disk.free_bytes / 1024**3:.1f} GiB free in {disk.path}",
            allowed=f"{LEAST_FREE_BYTES // 1024**3} GiB or more", next="free some space there",
        )  # fmt: skip
    if missing := {"gzip", "tar", "setsid"} - found.tools:
        return error(
            ErrorCode.NOT_FOUND,
            f"{target} has no {', '.join(sorted(missing))}",
            next="install it there (gzip, tar, util-linux)",
        )
    return None


def summary(found: Found, sudo: bool) -> list[str]:
    """What was found, in two or three lines. `sudo`: whether the worker will be started by sudo."""
    gpus = _gpu_words(found)
    lines = [
        f"{found.system or found.os}, {found.arch}, glibc {found.glibc[0]}.{found.glibc[1]}; {found.cores} cores, "
        f"{found.memory_bytes / 1024**3:.1f} GiB; {gpus}",
        f"user {found.user or '?'}{' (root)' if found.is_root else ''}; "
        f"{(found.spare if found.uses_spare else found.home).free_bytes / 1024**3:.0f} GiB free; "
        + (
            "sandbox with snapshots possible"
            if found.is_root or sudo
            else "no root: sandbox without snapshots, or none"
        ),
    ]
    if (found.is_root or sudo) and (missing := SANDBOX_TOOLS - found.tools):
        lines.append(f"without {', '.join(sorted(missing))} there, no image is built and containers have no network")
    if found.uses_spare:
        lines.append(
            f"the home folder is on a network file system ({found.home.kind}): Cellburst goes to {found.spare.path}"
        )
    return lines


def _gpu_words(found: Found) -> str:
    if found.gpus:
        return f"{', '.join(found.gpus)}, driver {found.driver or 'unknown'}"
    return f"no GPU that answers, driver {found.driver}" if found.driver else "no GPU"


def free_port(found: Found, wish: int) -> int:
    """A port of the machine's loopback on which nothing listens, the same for the same `wish` where it is free."""
    for step in range(PORTS):
        port = FIRST_PORT + (wish + step) % PORTS
        if port not in found.busy_ports:
            return port
    raise error(ErrorCode.UNAVAILABLE, f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free there")
