"""The system's own `ssh`: the user's configuration, agent, jump hosts and known hosts decide; nothing weakens them.

A first connection (`open`) is a master that the commands of one `cellburst connect` share. It asks questions only where there
is a terminal; without one, and for the tunnel, ssh runs in batch mode and what would have been asked is an error.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error

OPEN_SECONDS = 30  # TCP and key exchange, through jump hosts
PERSON_SECONDS = 180.0  # to answer ssh's questions
COMMAND_SECONDS = 60.0
ALIVE = ("ServerAliveInterval=5", "ServerAliveCountMax=3")  # a dead link is given up within 20 s
TARGET = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.\\-]*@)?[A-Za-z0-9\[][A-Za-z0-9._:\[\]%-]*")
# Options that name files. ssh reads a relative path from where it runs, and the keeper runs elsewhere than `connect`.
_FILE_OPTIONS = frozenset(
    ("identityfile", "certificatefile", "userknownhostsfile", "globalknownhostsfile", "identityagent", "pkcs11provider")
)
_NOT_RELATIVE = ("/", "~", "%", "$", "none", "yes", "no", "SSH_AUTH_SOCK")
# What a user's configuration may say for a login of a person, and what a command or a tunnel must not do.
PLAIN = ("RequestTTY=no", "RemoteCommand=none", "PermitLocalCommand=no", "ForwardAgent=no", "ForwardX11=no")


@dataclass(frozen=True)
class Target:
    """Whom to dial: `user@host` or a name of the user's configuration, and options for ssh."""

    name: str
    options: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises RequestError for a name that ssh would take for an option, or that no host can have."""
        if not TARGET.fullmatch(self.name):
            raise error(
                ErrorCode.BAD_ARGUMENT,
                f"{self.name!r} is no user@host",
                allowed="user@host, a host, or a name of your ssh configuration",
            )
        if shutil.which("ssh") is None:
            raise error(ErrorCode.NOT_FOUND, "there is no ssh here", next="install OpenSSH's client")


class Ssh:
    """Commands on one machine over one master connection; use it as a context."""

    def __init__(self, target: Target, folder: Path, *, ask: bool = False) -> None:
        self.target = target
        self._ask = ask
        self._folder = folder
        self._place: tempfile.TemporaryDirectory[str] | None = None
        self._master: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Ssh:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Dial. Raises CellburstError that says why not.

        Where a person sits there, ssh may ask about a host key that is not known yet. Then it must do without questions all the
        same, as the tunnel later has to.
        """
        self.target.check()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._place = tempfile.TemporaryDirectory(prefix="s", dir=self._folder)
        try:
            self._dial(ask=False)
        except CellburstError as why:
            if not self._ask or why.code is not ErrorCode.UNAUTHENTICATED:
                raise
            self._hang_up()
            self._dial(ask=True)
            self._hang_up()
            self._dial(ask=False)

    def _dial(self, *, ask: bool) -> None:
        assert self._place is not None
        said = Path(self._place.name, "e")
        options = (
            f"BatchMode={'no' if ask else 'yes'}", f"ConnectTimeout={OPEN_SECONDS}", "ControlMaster=yes",
            f"ControlPath={self._socket}", "ControlPersist=no", "ClearAllForwardings=yes", *ALIVE,
        )  # fmt: skip
        with open(said, "wb") as errors:
            self._master = subprocess.Popen(
                [*command(self.target, options), "-N", "--", self.target.name],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=None if ask else errors, env=environment(),
                start_new_session=not ask,  # for its questions it needs the terminal
            )  # fmt: skip
        deadline = time.monotonic() + (PERSON_SECONDS if ask else OPEN_SECONDS * 2)
        while not self._socket.exists():
            if self._master.poll() is not None:
                raise failed(self.target, said.read_text(errors="replace") if not ask else "Permission denied")
            if time.monotonic() > deadline:
                raise failed(self.target, "ssh: connect: timed out")
            time.sleep(0.02)

    @property
    def _socket(self) -> Path:
        assert self._place is not None
        return Path(self._place.name, "c")

    def script(self, text: str, *, seconds: float = COMMAND_SECONDS, values: dict[str, str] | None = None) -> str:
        """Run a shell script there, with `values` as its variables; what it printed.

        Raises CellburstError (UNAVAILABLE) with its last words when it fails or takes longer.
        """
        head = "".join(f"{name}={shlex.quote(value)}\n" for name, value in (values or {}).items())
        return self._run("sh -s", [(head + text).encode()], seconds)

    def send(self, line: str, data: Iterable[bytes], *, seconds: float = 600.0) -> str:
        """Run one shell line there that reads `data` as its input; what it printed. Raises as `script`."""
        return self._run(f"sh -c {shlex.quote(line)}", data, seconds)

    def _run(self, line: str, data: Iterable[bytes], seconds: float) -> str:
        options = ("BatchMode=yes", f"ControlPath={self._socket}", "ControlMaster=no")
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                [*command(self.target, options), "--", self.target.name, line],
                stdin=subprocess.PIPE, stdout=output, stderr=errors, env=environment(), start_new_session=True,
            )  # fmt: skip
            assert process.stdin is not None
            try:
                with contextlib.suppress(BrokenPipeError):  # its words say why
                    for block in data:
                        process.stdin.write(block)
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                raise error(
                    ErrorCode.UNAVAILABLE, f"a command on {self.target.name} took longer than {seconds:g} s"
                ) from None
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if not process.stdin.closed:
                    with contextlib.suppress(BrokenPipeError):
                        process.stdin.close()
            output.seek(0)
            errors.seek(0)
            said, why = output.read().decode(errors="replace"), errors.read().decode(errors="replace")
        if code == 255 and self._master is not None and self._master.poll() is not None:
            raise failed(self.target, why or "the connection was lost")
        if code != 0:
            raise CommandFailed(self.target.name, code, said, why)
        return said

    def close(self) -> None:
        """Hang up."""
        self._hang_up()
        if self._place is not None:
            self._place.cleanup()
            self._place = None

    def _hang_up(self) -> None:
        if self._master is not None:
            self._master.terminate()
            try:
                self._master.wait(5)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
            self._master = None
            self._socket.unlink(missing_ok=True)


class CommandFailed(Exception):
    """A command on the machine ended with another status than 0; `said` and `why` are what it printed."""

    def __init__(self, where: str, status: int, said: str, why: str) -> None:
        super().__init__(f"{where}: status {status}: {why or said}")
        self.where, self.status, self.said, self.why = where, status, said, why

    def last_lines(self, count: int = 6) -> str:
        """The end of what it said, for a person."""
        lines = [line for line in (self.why.strip() or self.said.strip()).splitlines() if line.strip()]
        return "\n".join(lines[-count:])


def command(target: Target, options: Sequence[str]) -> list[str]:
    """ssh's command line up to the host: ours first, since ssh takes the first value that it is given for an option."""
    words = ["ssh", "-T"]
    for option in (*options, *PLAIN):
        words += ["-o", option]
    return [*words, *target.options]


def tunnel_command(target: Target, port: int, gateway: str, line: str, dial_seconds: int) -> list[str]:
    """The ssh that holds a tunnel: `port` of that machine's loopback leads to `gateway` (HOST:PORT), and `line` runs there."""
    options = (
        "BatchMode=yes", f"ConnectTimeout={dial_seconds}", *ALIVE, "ExitOnForwardFailure=yes",
        "ControlPath=none", "ControlMaster=no", "TCPKeepAlive=yes",
    )  # fmt: skip
    return [*command(target, options), "-R", f"127.0.0.1:{port}:{gateway}", "--", target.name, line]


def absolute(option: str, value: str) -> str:
    """A value of ssh's option -i, -F or -o that means the same in any folder."""
    if option in ("-i", "-F"):
        return _absolute_path(value)
    match = re.fullmatch(r"\s*(\w+)\s*[=\s]\s*(.*)", value, re.DOTALL)
    if option != "-o" or match is None or match[1].lower() not in _FILE_OPTIONS:
        return value
    try:
        paths = [_absolute_path(word) for word in shlex.split(match[2])]
    except ValueError:  # a quote without its end: ssh says so
        return value
    return f"{match[1]}={' '.join(_quoted(path) for path in paths)}"


def _absolute_path(path: str) -> str:
    is_whole = path.startswith(_NOT_RELATIVE[:4]) or path in _NOT_RELATIVE[4:]
    return path if not path or is_whole else str(Path(path).absolute())


def _quoted(path: str) -> str:
    return f'"{path}"' if any(sign in path for sign in " \t") else path


def environment() -> dict[str, str]:
    """ssh's words are read, so they are not translated."""
    return {**os.environ, "LC_ALL": "C"}


def has_terminal() -> bool:
    """Whether a person can answer ssh's questions."""
    return sys.stdin.isatty() and sys.stderr.isatty()


# ssh says why it failed in words only: its exit code is 255 for all of it.
_WORDS: tuple[tuple[str, ErrorCode, str, str], ...] = (
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", ErrorCode.FORBIDDEN, "the host key of {} is not the one your known_hosts has: "
     "another machine may answer in its place, so nothing was sent",
     "ask who runs it whether it was installed anew; only then `ssh-keygen -R HOST` and `ssh {}`"),
    ("Host key verification failed", ErrorCode.UNAUTHENTICATED, "the host key of {} is not known here yet",
     "`ssh {}` once in a terminal: compare the fingerprint that it shows, and accept it there"),
    ("No ED25519 host key is known", ErrorCode.UNAUTHENTICATED, "the host key of {} is not known here yet",
     "`ssh {}` once in a terminal: compare the fingerprint that it shows, and accept it there"),
    ("Could not resolve hostname", ErrorCode.NOT_FOUND, "there is no host of the name in {}", "check it, or your ssh config"),
    ("Permission denied", ErrorCode.UNAUTHENTICATED, "{} does not let you in without a password or another key",
     "`ssh-copy-id {}` puts your key there; a key with a passphrase needs ssh-agent (`ssh-add`)"),
    ("Too many authentication failures", ErrorCode.UNAUTHENTICATED, "{} refused all keys that your agent offers",
     "name the right one: -i FILE"),
    ("Connection refused", ErrorCode.UNAVAILABLE, "{} refuses: no ssh server listens there", "check host and port (-p)"),
    ("timed out", ErrorCode.UNAVAILABLE, "{} does not answer", "check that it is on, and that this network reaches it"),
    ("No route to host", ErrorCode.UNAVAILABLE, "this network does not reach {}", "check that it is on, and the network"),
    ("Network is unreachable", ErrorCode.UNAVAILABLE, "this network does not reach {}", "check that it is on, and the network"),
)  # fmt: skip


def failed(target: Target, said: str) -> CellburstError:
    """Why ssh could not connect, from its own words."""
    for words, code, message, following in _WORDS:
        if words in said:
            return error(code, message.format(target.name), next=following.format(target.name))
    lines = [line for line in said.splitlines() if line.strip()]
    why = lines[-1].strip() if lines else "ssh ended without a word"
    return error(
        ErrorCode.UNAVAILABLE, f"ssh to {target.name} failed: {why}", next=f"`ssh {target.name}` shows the whole of it"
    )


def is_refusal(why: CellburstError) -> bool:
    """Whether only a person can mend it."""
    return why.code in (ErrorCode.FORBIDDEN, ErrorCode.UNAUTHENTICATED)
