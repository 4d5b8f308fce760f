"""A second machine for tests: a Debian of its own in namespaces of its own, with a real `sshd` on one end of a veth pair.

It has no Cellburst and no Python; its packages come from where this machine gets them, through a proxy. What it writes lies in
an overlay. It ends when `close` is called, or when the process that made it does: its first process reads a pipe.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import IO

from cellburst_runtime.image_base import _sources
from cellburst_runtime.image_index import certificates, package_source

# What any small machine has; no Python, nothing of ours.
PACKAGES = "openssh-server bash dash coreutils sed grep gzip tar util-linux findutils hostname libc-bin base-files mount procps iproute2"
INIT = r"""
set -e
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$place/upper,workdir=$place/work" "$place/root"
cd "$place/root"
mkdir -p proc dev sys run tmp root home/ada var/tmp run/sshd
mount -t proc proc proc
mount -t tmpfs -o size=16m,mode=755 tmpfs dev
for node in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
  mknod -m 666 "dev/${node%%:*}" c "$(echo $node | cut -d: -f2)" "$(echo $node | cut -d: -f3)"
done
mkdir -p dev/shm dev/pts .old
mount -t tmpfs -o size=256m,mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
chmod 1777 tmp var/tmp
chown 1000:1000 home/ada
. "$place/mounts.sh"
hostname "$name"
ip link set lo up
exec 3>"$place/sshd.log"
pivot_root . .old
umount -l .old
PATH=/usr/sbin:/usr/bin:/sbin:/bin
/usr/sbin/sshd -D -e -f /etc/ssh/sshd_config 2>&3 &
echo started
read -r _ || :
"""


def debian(folder: Path) -> Path:
    """The file system that the machines share, read-only; made once (6 s)."""
    root = folder / "far-debian"
    if not root.exists():
        part = folder / "far-debian.part"
        shutil.rmtree(part, ignore_errors=True)
        listed = folder / "far-debian.list"
        listed.write_text("".join(f"{line}\n" for line in asyncio.run(_sources("bookworm"))))
        words = ["mmdebstrap", "--mode=root", "--variant=extract", f"--include={PACKAGES}", "bookworm", str(part)]
        if listed.stat().st_size:
            words.append(str(listed))
        subprocess.run(words, check=True, capture_output=True, timeout=180)
        part.rename(root)
    return root


class FarMachine:
    """One machine: `address` is its own, `login` an `ssh` configuration file that leads to it as `box` (user ada) and `box-root`."""

    def __init__(self, lower: Path, number: int = 0) -> None:
        self.place = Path(tempfile.mkdtemp(prefix="cbf", dir="/var/tmp"))
        self.name = "box"
        net = 4 * ((os.getpid() * 7 + number) % 16000)
        self._near, self.address = (f"10.222.{(net + n) // 256}.{(net + n) % 256}" for n in (1, 2))
        self._link = f"cbf{os.getpid()}n{number}"[:15]
        self._init: subprocess.Popen[bytes] | None = None
        self.proxy = Proxy()
        try:
            self._make(lower)
        except BaseException:
            self.close()
            raise

    def _make(self, lower: Path) -> None:
        place = self.place
        for folder in ("upper", "work", "root"):
            (place / folder).mkdir()
        upper = place / "upper"
        (upper / "etc/ssh/keys").mkdir(parents=True)
        for key in ("host", "mine"):
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / key)], check=True)
        shutil.copy(place / "host", upper / "etc/ssh/host")
        for user in ("root", "ada"):
            shutil.copy(place / "mine.pub", upper / "etc/ssh/keys" / user)
        (upper / "etc/passwd").write_text(
            "root:x:0:0:root:/root:/bin/bash\nada:x:1000:1000::/home/ada:/bin/bash\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\n"
            "nopasswd:x:1001:1001::/tmp:/bin/sh\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
        )
        (upper / "etc/group").write_text("root:x:0:\ntty:x:5:\nada:x:1000:\nnogroup:x:65534:\n")
        (upper / "etc/shadow").write_text(
            "".join(f"{user}:*:19000::::::\n" for user in ("root", "ada", "sshd", "nopasswd"))
        )
        (upper / "etc/machine-id").write_text(os.urandom(16).hex() + "\n")
        (upper / "etc/hosts").write_text("127.0.0.1 localhost box\n")
        (upper / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
        self.proxy.start()
        source, trust = package_source(), certificates()
        told = {**source.environment, **trust.environment, "HTTPS_PROXY": f"http://{self._near}:{self.proxy.port}",
                "UV_HTTP_RETRIES": "0"}  # fmt: skip
        told["HTTP_PROXY"] = told["HTTPS_PROXY"]
        lines = [f'mkdir -p "./{m.destination}"' if os.path.isdir(m.source) else f'mkdir -p "./{os.path.dirname(m.destination)}"; : >"./{m.destination}"'
                 for m in (*source.mounts, *trust.mounts)]  # fmt: skip
        lines += [
            f'mount --bind -o ro {shlex.quote(m.source)} "./{m.destination}"' for m in (*source.mounts, *trust.mounts)
        ]
        (place / "mounts.sh").write_text("\n".join(lines) + "\n")
        (upper / "etc/ssh/sshd_config").write_text(
            "Port 22\nUsePAM no\nHostKey /etc/ssh/host\nAuthorizedKeysFile /etc/ssh/keys/%u\nPermitRootLogin prohibit-password\n"
            "PasswordAuthentication yes\nUseDNS no\nMaxStartups 100\n"
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in told.items()) + "\n"
        )  # fmt: skip
        self._lower = lower
        self._boot()
        words = (place / "host.pub").read_text().split()
        (place / "known").write_text(f"{self.address} {words[0]} {words[1]}\n")
        (place / "ssh.conf").write_text(
            f"Host box box-root box-nobody box-jump\n HostName {self.address}\n UserKnownHostsFile {place}/known\n"
            f" IdentityFile {place}/mine\n IdentitiesOnly yes\n IdentityAgent none\n"
            "Host box box-jump\n User ada\nHost box-root\n User root\nHost box-nobody\n User nopasswd\nHost box-jump\n ProxyJump box-root\n"
        )  # fmt: skip
        self.until_serves()

    def _boot(self) -> None:
        place = self.place
        with open(place / "init.log", "wb") as log:
            self._init = self._start(self._lower, log)
        assert self._init.stdout is not None
        assert self._init.stdout.readline() == b"started\n", (place / "init.log").read_text()
        pid = str(self._init.pid)
        there = ["nsenter", f"--net=/proc/{pid}/ns/net"]
        for command in (
            ["ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", pid],
            ["ip", "addr", "add", f"{self._near}/30", "dev", self._link], ["ip", "link", "set", self._link, "up"],
            [*there, "ip", "addr", "add", f"{self.address}/30", "dev", "eth0"], [*there, "ip", "link", "set", "eth0", "up"],
            [*there, "ip", "route", "add", "default", "via", self._near],
        ):  # fmt: skip
            subprocess.run(command, check=True, capture_output=True)

    def _start(self, lower: Path, log: IO[bytes]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "lower": str(lower), "place": str(self.place), "name": self.name}
        own = ["--net", "--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--propagation", "private"]
        return subprocess.Popen(
            ["unshare", *own, "sh", "-c", INIT],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )

    @property
    def login(self) -> Path:
        """The ssh configuration."""
        return self.place / "ssh.conf"

    def until_serves(self) -> None:
        """Until its ssh server answers."""
        deadline = time.monotonic() + 20
        while True:
            said = self.run("true", check=False)
            if said is not None:
                return
            assert time.monotonic() < deadline, (self.place / "sshd.log").read_text()

    def run(self, command: str, *, user: str = "box", check: bool = True) -> str | None:
        """A command there, by ssh."""
        done = subprocess.run(
            ["ssh", "-F", str(self.login), "-o", "BatchMode=yes", user, command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode == 0:
            return done.stdout
        assert not check, done.stderr + done.stdout
        return None

    def inside(self, *command: str) -> None:
        """A command in its network namespace, with this machine's programs."""
        assert self._init is not None
        subprocess.run(
            ["nsenter", f"--net=/proc/{self._init.pid}/ns/net", *command], check=True, capture_output=True, timeout=20
        )

    def cut(self) -> None:
        """Nothing comes in or out any more, and nobody is told."""
        self.inside("nft", "add table inet cut; add chain inet cut i { type filter hook input priority 0; policy accept; }; "
                    "add chain inet cut o { type filter hook output priority 0; policy accept; }; "
                    "add rule inet cut i iifname eth0 drop; add rule inet cut o oifname eth0 drop")  # fmt: skip

    def heal(self) -> None:
        """As before `cut`."""
        self.inside("nft", "delete table inet cut")

    def reboot(self) -> None:
        """All that runs there ends at once; what it wrote to its disk is there again."""
        self._off()
        self._boot()
        self.until_serves()

    def close(self) -> None:
        """End it, with all that runs there."""
        self._off()
        self.proxy.close()
        shutil.rmtree(self.place, ignore_errors=True)

    def _off(self) -> None:
        if self._init is not None:
            assert self._init.stdin is not None and self._init.stdout is not None
            self._init.stdin.close()
            try:
                self._init.wait(10)
            except subprocess.TimeoutExpired:
                self._init.kill()
                self._init.wait()
            self._init.stdout.close()
            self._init = None
        subprocess.run(["ip", "link", "del", self._link], capture_output=True, check=False)


class Proxy:
    """An HTTP proxy that only knows CONNECT, in a thread of its own."""

    def __init__(self) -> None:
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._ready = threading.Event()
        self._end: asyncio.Event | None = None

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        if self._thread.is_alive() and self._end is not None:
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join(10)
        elif not self._loop.is_running():
            self._loop.close()

    def _serve(self) -> None:
        self._loop.run_until_complete(self._main())
        self._loop.close()

    async def _main(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._one, "0.0.0.0", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            method, where, _ = head.split(b" ", 2)
            if method != b"CONNECT":
                writer.write(b"HTTP/1.1 405 only CONNECT\r\n\r\n")
                return
            host, _, port = where.decode().rpartition(":")
            back, there = await asyncio.open_connection(host, int(port))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(_copy(reader, there), _copy(back, writer))
        except (OSError, asyncio.IncompleteReadError, ValueError):
            pass
        finally:
            for end in (writer, there):
                if end is not None:
                    end.close()
                    with contextlib.suppress(OSError):
                        await end.wait_closed()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()
