"""`cellburst connect` and `upgrade`: runs what `machine_steps` decides, over one ssh connection."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import platform
import shlex
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cellburst_protocol.errors import CellburstError, ErrorCode, error
from cellburst_protocol.messages import GetStatus, Status, WorkerRow
from cellburst_protocol.peer import Peer
from cellburst_protocol.states import WorkerState

from . import __version__, machine_look, machine_package, machine_scripts
from .cli_common import ask
from .config import Folders, Settings
from .machine_record import (
    Machine,
    check_name,
    keep,
    keeper_pid,
    machines,
    start_keeper,
    stop_keepers,
    tunnel_now,
    without_keeper,
)
from .machine_ssh import CommandFailed, Ssh, Target, has_terminal
from .machine_steps import Connect, Step, Wanted

JOIN_SECONDS = 90.0  # the worker there tries its engines first
ASK_SECONDS = 0.2
LOOK_SECONDS = 10.0  # a worker that ended by itself is not waited for longer
INSTALL_SECONDS = 900.0
STOP_SECONDS = 90.0
NO_NETWORK = (
    "dns error",
    "error sending request",
    "Could not connect",
    "Connect",
    "timed out",
    "Network is unreachable",
    "tunnel error",
)

Say = Callable[[str, str], None]  # a step's name, and words


@dataclass(frozen=True)
class Ask:
    """What a person asked for."""

    target: Target
    name: str
    sudo: bool = False
    simulate_gpus: str = ""
    engine: str = ""
    upgrade: bool = False


async def _status(peer: Peer) -> Status:
    answer = await peer.request(GetStatus())
    assert isinstance(answer, Status)
    return answer


def status(*, start: bool = False) -> Status:
    """What the gateway says now."""
    return ask(_status, start=start)


def whose(folders: Folders) -> str:
    """What tells this user's gateway apart from others that use the same machine, and tells them nothing else."""
    return hashlib.sha256(b"machine:" + _token(folders).encode()).hexdigest()[:8]


def _token(folders: Folders) -> str:
    return (folders.data / "worker-token").read_text().strip()


def connect(asked: Ask, configured: Settings, say: Say) -> WorkerRow:
    """Make a machine this gateway's worker; what it joined as. Raises CellburstError, with what was done left as it is: the next
    `connect` goes on from there."""
    asked.target.check()
    check_name(asked.name)
    if configured.gateway_url:
        raise error(
            ErrorCode.NOT_YET, f"the gateway is {configured.gateway_url}, and `connect` is for this user's own on this machine",
            next="there: `cellburst worker --join URL --token-file FILE`; or unset CELLBURST_GATEWAY here",
        )  # fmt: skip
    folders = configured.folders
    known = next((one for one in machines(folders) if one.name == asked.name), None)
    before = status(start=True)
    _check_free(asked, known, before)
    with Ssh(asked.target, folders.run, ask=has_terminal()) as ssh:
        work = _Work(asked, folders, ssh, say, before, known)
        return work.run()


def _check_free(asked: Ask, known: Machine | None, before: Status) -> None:
    """Raises RequestError (CONFLICT) where the name is another machine's."""
    if known is not None and known.target != asked.target.name:
        raise error(
            ErrorCode.CONFLICT,
            f"{asked.name!r} is {known.target}",
            next="--name NAME, or `cellburst disconnect` that one first",
        )
    if known is None and any(row.id == asked.name and row.state is WorkerState.JOINED for row in before.workers):
        raise error(
            ErrorCode.CONFLICT, f"a worker that was not connected has the name {asked.name!r}", next="--name NAME"
        )


class _Work:
    def __init__(self, asked: Ask, folders: Folders, ssh: Ssh, say: Say, before: Status, known: Machine | None) -> None:
        self._asked, self._folders, self._ssh, self._say = asked, folders, ssh, say
        self._known = known
        self._old_pid = next((row.pid for row in before.workers if row.id == asked.name), 0)
        self._package = machine_package.package()
        self._uv, version = machine_package.find_uv()
        self._runsc = machine_package.find_runsc(folders.data)
        self._core = Connect(Wanted(
            asked.name, asked.target.name, platform.machine(), self._package.build, version, whose(folders), asked.sudo,
            _digest(self._runsc) if self._runsc else "", asked.upgrade, asked.engine, asked.simulate_gpus,
            (known.sudo, known.engine, known.simulate_gpus) if known is not None else None,
        ))  # fmt: skip
        self._alone = contextlib.ExitStack()  # while it is open no keeper starts the worker that was stopped
        self._python = ""
        self._row: WorkerRow | None = None

    def run(self) -> WorkerRow:
        """All steps."""
        with self._alone:
            return self._all()

    def _all(self) -> WorkerRow:
        do: dict[Step, Callable[[], str]] = {
            Step.DIAL: self._dial, Step.UV: self._send_uv, Step.PYTHON: self._have_python, Step.PACKAGE: self._install,
            Step.SANDBOX: self._send_sandbox, Step.STOP: self._stop, Step.SETTLE: self._settle, Step.TUNNEL: self._tunnel,
            Step.JOIN: self._join,
        }  # fmt: skip
        step = self._core.step
        while step is not Step.DONE:
            began = time.monotonic()
            if step is Step.LOOK:
                found = machine_look.read(self._script(machine_look.SCRIPT))
                next_step = self._core.looked(found)
                for line in machine_look.summary(found, self._asked.sudo):
                    self._say("found", line)
                self._say_others()
                step = next_step
                continue
            words = do[step]()
            next_step = self._core.did(step)
            self._say(step.value, f"{words} ({time.monotonic() - began:.1f} s)")
            step = next_step
        assert self._row is not None
        return self._row

    # -- the steps ---------------------------------------------------------------------------------------------------

    def _dial(self) -> str:
        self._ssh.open()
        return f"connected to {self._asked.target.name}"

    def _say_others(self) -> None:
        found, wanted = self._core.found, self._core.wanted
        others = [name for name, (runs, _) in found.workers.items() if runs and name != wanted.whose]
        if others:
            self._say("found", f"{len(others)} other gateway(s) use this machine too: each counts all of it as its own")
        if found.builds and wanted.build not in found.builds:
            self._say("found", f"other versions there: {', '.join(sorted(found.builds))}; they stay as they are")

    def _values(self) -> dict[str, str]:
        wanted = self._core.wanted
        minor = wanted.build.rpartition("-py")[2]
        return {
            "base": self._base,
            "uv_version": wanted.uv,
            "minor": minor,
            "build": wanted.build,
            "LC_ALL": "C",
        }

    @property
    def _base(self) -> str:
        return self._core.found.base

    @property
    def _me(self) -> str:
        return f"{self._base}/for/{self._core.wanted.whose}"

    def _script(self, text: str, values: dict[str, str] | None = None, seconds: float = 60.0) -> str:
        try:
            return self._ssh.script(text, seconds=seconds, values=values)
        except CommandFailed as why:
            raise self._wrong(why) from None

    def _send(self, line: str, data: Iterable[bytes]) -> None:
        try:
            self._ssh.send(line, data)
        except CommandFailed as why:
            raise self._wrong(why) from None

    def _wrong(self, why: CommandFailed) -> CellburstError:
        return failed_step(self._core.step, self._asked.target.name, self._base, why)

    def _send_uv(self) -> str:
        self._script(machine_scripts.FOLDER, {"base": self._base})
        folder = f"{self._base}/uv/{self._core.wanted.uv}"
        self._send(machine_scripts.file_line(shlex.quote(folder), "uv"), machine_package.compressed(self._uv))
        return f"sent uv {self._core.wanted.uv}"

    def _have_python(self) -> str:
        values = self._values()
        if found := _python(self._script(machine_scripts.FIND_PYTHON, values)):
            self._python = found
            return f"{found}, which was there"
        try:
            self._python = _python(
                self._ssh.script(machine_scripts.INSTALL_PYTHON, seconds=INSTALL_SECONDS, values=values)
            )
            return f"installed {self._python}"
        except CommandFailed:
            pass  # it has no way to where Pythons are: then ours goes there
        folder = f"{self._base}/python/{machine_package.python_name()}"
        with machine_package.python_file() as archive:
            self._send(
                machine_scripts.tree_line(shlex.quote(folder)),
                iter(lambda: archive.read(machine_package.BLOCK_BYTES), b""),
            )
        program = f"{folder}/bin/python3.{machine_package.python_name().split('.')[1]}"
        self._python = _python(self._script(machine_scripts.TRY_PYTHON, {**values, "found": program}))
        version = machine_package.python_name().removeprefix("sent-")
        return f"sent this machine's {version}: none there fits, and none can be fetched"

    def _install(self) -> str:
        incoming = shlex.quote(f"{self._base}/incoming/{self._package.build}")
        for file, data in (
            (self._package.name, self._package.data),
            ("constraints.txt", machine_package.constraints().encode()),
        ):
            self._send(machine_scripts.file_line(incoming, file), [gzip.compress(data, 1)])
        more = {"python": self._python, "wheel": self._package.name, "version": __version__}
        self._script(machine_scripts.INSTALL, {**self._values(), **more}, INSTALL_SECONDS)
        return f"installed cellburst {__version__} in {self._base}/versions/{self._package.build}"

    def _send_sandbox(self) -> str:
        assert self._runsc is not None
        folder = f"{self._base}/sandbox/{self._core.wanted.sandbox}"
        self._send(machine_scripts.file_line(shlex.quote(folder), "runsc"), machine_package.compressed(self._runsc))
        return "sent gVisor (runsc)"

    def _stop(self) -> str:
        self._alone.enter_context(without_keeper(self._folders, self._asked.name))
        said = self._script(
            machine_scripts.by(self._sudo, machine_scripts.STOP, self._me), seconds=STOP_SECONDS
        ).strip()
        return "the worker ended" + (" (it had to be killed)" if said == "killed" else "")

    @property
    def _sudo(self) -> str:
        return "sudo -n" if self._asked.sudo and not self._core.found.is_root else ""

    def _settle(self) -> str:
        core, asked = self._core, self._asked
        self._script(machine_scripts.FOLDER, {"base": self._base})
        port = machine_look.free_port(core.found, int(core.wanted.whose, 16))
        if self._known is not None and core.found.workers.get(core.wanted.whose, (False, ""))[0] and not asked.upgrade:
            port = self._known.port  # a worker runs, and dials that one
        more = [
            w for o, v in (("--simulate-gpus", asked.simulate_gpus), ("--engine", asked.engine)) if v for w in (o, v)
        ]
        head = {
            "me": self._me, "base": self._base, "whose": core.wanted.whose, "build": core.wanted.build, "name": asked.name,
            "port": str(port), "more": " ".join(more), "linger": "yes" if core.found.linger else "", "sudo": self._sudo,
            "as": "-root" if self._sudo else "", "sandbox": core.wanted.sandbox,
        }  # fmt: skip
        lines = "".join(f"{name}={shlex.quote(value)}\n" for name, value in head.items())
        self._script(machine_scripts.SETTLE, {
            **head, "worker": lines + machine_scripts.WORKER, "hold": lines + machine_scripts.HOLD,
            "clear": lines + machine_scripts.CLEAR, "token": _token(self._folders),
        })  # fmt: skip
        self._kept = Machine(
            name=asked.name, target=asked.target.name, options=list(asked.target.options), base=self._base,
            whose=core.wanted.whose, build=core.wanted.build, port=port, sudo=bool(self._sudo),
            simulate_gpus=asked.simulate_gpus, engine=asked.engine, system=core.found.system, connected_unix_seconds=time.time(),
        )  # fmt: skip
        keep(self._folders, self._kept)
        self._alone.close()
        if self._known is None or (self._known.port, self._known.options) != (port, self._kept.options):
            stop_keepers(self._folders, [asked.name])
        return f"its things are in {self._me}"

    def _tunnel(self) -> str:
        if tunnel_now(self._folders, self._asked.name).state != "up":
            stop_keepers(self._folders, [self._asked.name])  # it may wait, with an agent that is gone
        if not keeper_pid(self._folders, self._asked.name):
            start_keeper(self._folders, self._asked.name)
        deadline = time.monotonic() + JOIN_SECONDS
        while (now := tunnel_now(self._folders, self._asked.name)).state != "up":
            if time.monotonic() > deadline or now.refused or now.state == "no keeper":
                log = self._folders.data / "logs" / f"machine-{self._asked.name}.log"
                raise error(
                    ErrorCode.UNAVAILABLE, f"the tunnel to {self._asked.target.name} does not come up: {now.why or now.state}",
                    allowed="a login without questions (a key, or an agent), and port forwarding there", next=f"its log is {log}",
                )  # fmt: skip
            time.sleep(0.05)
        return f"port {self._kept.port} there leads to the gateway here"

    def _join(self) -> str:
        name, began = self._asked.name, time.monotonic()
        deadline, look_at = began + JOIN_SECONDS, began + LOOK_SECONDS
        while time.monotonic() < deadline:
            for row in status().workers:
                fresh = not self._asked.upgrade or row.pid != self._old_pid
                if row.id == name and row.state is WorkerState.JOINED and fresh:
                    self._row = row
                    engine = row.inventory.engines[0].name if row.inventory.engines else "none"
                    return f"the worker {name} is there, engine {engine}"
            if time.monotonic() > look_at:
                if _worker(self._ssh, self._me, self._sudo, "state") == "stopped":
                    break
                look_at = time.monotonic() + LOOK_SECONDS
            time.sleep(ASK_SECONDS)
        tail = _worker(self._ssh, self._me, self._sudo, "log") or "it wrote nothing"
        waited = f"{time.monotonic() - began:.0f} s"
        raise error(
            ErrorCode.NO_WORKER, f"the worker {name} did not join within {waited}. The end of its log:\n{tail}",
            next=f"its whole log is {self._me}/worker.log there",
        )  # fmt: skip


def failed_step(step: Step, name: str, base: str, why: CommandFailed) -> CellburstError:
    """A step's failure on the machine `name`, in words that say what to do; `base` is our folder there."""
    if "No space left" in why.why or "quota exceeded" in why.why.lower():
        return error(
            ErrorCode.DISK_FULL, f"the disk of {name} is full ({base})", next="free some space there, and connect again"
        )
    if step in (Step.PYTHON, Step.PACKAGE) and any(words in why.why for words in NO_NETWORK):
        return error(
            ErrorCode.UNAVAILABLE, f"{name} cannot reach its package index: {why.last_lines(1)}",
            allowed="outgoing https to an index of Python packages",
            next="give it the network, or its proxy and index (HTTPS_PROXY, or /etc/uv/uv.toml there), and connect again",
        )  # fmt: skip
    return error(
        ErrorCode.UNAVAILABLE, f"the step {step.value!r} on {name} failed with status {why.status}: {why.last_lines()}",
        next="put that right there, and connect again: it goes on from here",
    )  # fmt: skip


def _worker(ssh: Ssh, folder: str, sudo: str, word: str) -> str:
    """One word to `worker.sh` there that only asks; "" where it does not answer."""
    with contextlib.suppress(CommandFailed):
        return ssh.script(f"{sudo} sh {shlex.quote(folder)}/worker.sh {word}\n", seconds=STOP_SECONDS).strip()
    return ""


def _python(said: str) -> str:
    lines = [line.partition("=")[2] for line in said.splitlines() if line.startswith("python=")]
    return lines[-1] if lines else ""


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
