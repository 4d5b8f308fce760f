"""`python -m cellburst.machine_keeper NAME`: keeps the tunnel of one connected machine up, until it is asked to end.

It leaves whoever started it, holds `RUN/machines/NAME.lock`, runs one `ssh` after the other as `machine_steps.Tunnel` decides,
and writes where it stands to `RUN/machines/NAME.json`. The ssh's command there (`hold.sh`) starts the worker where it
does not run, as after a reboot there, and stays for as long as its input is open: a killed keeper takes its tunnel with it.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from types import FrameType
from typing import IO

from cellburst_protocol.errors import CellburstError

from .config import Folders, folders
from .machine_record import Machine, TunnelNow, gateway_address, keeper_lock, machine, tell
from .machine_ssh import environment, failed, is_refusal, tunnel_command
from .machine_steps import Act, Loss, Tunnel, TunnelState

TICK_SECONDS = 0.25
UP_TICK_SECONDS = 1.0
SLEPT_SECONDS = 15.0  # a tick that took so long was this machine asleep, or this process stopped
READY_SECONDS = 40.0  # from the dial to the word of `hold.sh`, on a slow machine
CLEAR_SECONDS = 20.0
PORT_HELD = "remote port forwarding failed"
MAX_LINE_BYTES = 64 * 1024


class Keeper:
    """One machine's tunnel and its ssh."""

    def __init__(self, where: Folders, kept: Machine) -> None:
        self._where, self._machine = where, kept
        self.tunnel = Tunnel()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._heard = b""
        self._dialled = 0.0
        self._dials = 0
        self._told: tuple[str, str] = ("", "")
        self._asked = False
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def ask_to_end(self, number: int, frame: FrameType | None) -> None:
        """A signal."""
        self._asked = True
        os.write(self._waker, b"x")

    def run(self) -> None:
        """Keep it until asked, or until the gateway here is gone for good."""
        last = time.time()
        try:
            while self.tunnel.state is not TunnelState.ENDED:
                now = time.time()
                if abs(now - last) > SLEPT_SECONDS:
                    self._do(self.tunnel.woke(now))
                last = now
                self._do(self.tunnel.end() if self._asked else self.tunnel.tick(now, gateway_address(self._where)))
                self._tell()
                self._wait()
        finally:
            self._hang_up()
            self._tell()

    def _do(self, act: Act | None) -> None:
        if act is Act.DIAL:
            self._dial()
        elif act is Act.HANG_UP:
            self._hang_up()
            self._do(self.tunnel.lost(time.time(), Loss.LOST, "dialled anew"))
        elif act is Act.CLEAR:
            self._clear()
            self.tunnel.clear_done(time.time())

    def _dial(self) -> None:
        kept = self._machine
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with its ssh
        line = f"sh {shlex.quote(kept.folder)}/hold.sh"
        self._process = subprocess.Popen(
            tunnel_command(kept.dial, kept.port, self.tunnel.url, line, self.tunnel.dial_seconds(time.time())),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=environment(), start_new_session=True,
        )  # fmt: skip
        self._heard, self._dialled = b"", time.monotonic()
        self._dials += 1

    def _wait(self) -> None:
        """Until something is heard, or the next tick."""
        process = self._process
        if process is None:
            select.select([self._wake], [], [], TICK_SECONDS)
            return
        assert process.stdout is not None
        seconds = UP_TICK_SECONDS if self.tunnel.state is TunnelState.UP else TICK_SECONDS
        output = process.stdout.fileno()
        readable, _, _ = select.select([output, self._wake], [], [], seconds)
        if output in readable:
            data = os.read(output, 4096)
            if not data:
                self._ended()
                return
            if self.tunnel.state is TunnelState.DIALING:
                self._heard = (self._heard + data)[-MAX_LINE_BYTES:]
                if b"cellburst-ready\n" in self._heard:
                    self.tunnel.ready(time.time())
        if self.tunnel.state is TunnelState.DIALING and time.monotonic() - self._dialled > READY_SECONDS:
            self._hang_up()
            self._do(
                self.tunnel.lost(
                    time.time(), Loss.LOST, f"{self._machine.target} gave no sign within {READY_SECONDS:g} s"
                )
            )

    def _ended(self) -> None:
        """The ssh ended by itself."""
        said, status = self._hang_up()
        why = failed(self._machine.dial, said)
        loss = Loss.REFUSED if is_refusal(why) else Loss.LOST
        if PORT_HELD in said:
            loss, text = (
                Loss.PORT_HELD,
                f"port {self._machine.port} there is taken, or its ssh server forwards no ports (AllowTcpForwarding)",
            )
        elif status > 0 and status != 255:
            tail = " ".join(said.split())[-200:]
            text = f"what keeps the worker there ended with status {status}: {tail or 'no words'}; connect again"
        else:
            text = why.info.message if said.strip() else "the connection was lost"
        self._do(self.tunnel.lost(time.time(), loss, text))

    def _hang_up(self) -> tuple[str, int]:
        """End the ssh; what it said, and its status."""
        process, self._process = self._process, None
        if process is None:
            return "", 0
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        if process.poll() is None:
            try:
                process.wait(0.2)  # it ended by itself, or is about to
            except subprocess.TimeoutExpired:
                process.terminate()
        try:
            status = process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait()
        process.stdout.close()
        errors, self._errors = self._errors, None
        said = ""
        if errors is not None:
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            errors.close()
        return said, status

    def _clear(self) -> None:
        """End the other side of an earlier tunnel, which that machine has not noticed is over."""
        kept = self._machine
        command = tunnel_command(kept.dial, kept.port, self.tunnel.url, f"sh {shlex.quote(kept.folder)}/clear.sh", 15)
        at = command.index("-R")
        try:
            subprocess.run(
                [*command[:at], *command[at + 2 :]], stdin=subprocess.DEVNULL, capture_output=True, env=environment(),
                timeout=CLEAR_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            pass  # the next dial says why

    def _tell(self) -> None:
        tunnel = self.tunnel
        if (tunnel.state, tunnel.why) == self._told:
            return
        same_story = tunnel.why == self._told[1] and tunnel.state in (TunnelState.WAITING, TunnelState.DIALING)
        self._told = (tunnel.state, tunnel.why)
        now = time.time()
        refused = tunnel.state is TunnelState.WAITING and tunnel.next_at - now > 30
        tell(self._where, self._machine.name, TunnelNow(
            state=tunnel.state.value, why=tunnel.why, since_unix_seconds=now, refused=refused, dials=self._dials,
        ))  # fmt: skip
        if same_story:
            return  # a machine that is off for days must not fill the disk
        stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now))
        sys.stderr.write(f"{stamp} {tunnel.state.value}{': ' + tunnel.why if tunnel.why else ''}\n")
        sys.stderr.flush()


def main() -> int:
    """The program. Its first process ends at once, so that nobody has to wait for the keeper's end."""
    where, name = folders(), sys.argv[1]
    holds, tells = os.pipe()
    if os.fork():
        os.close(tells)
        os.read(holds, 1)  # until it holds the lock, or has ended
        os._exit(0)
    os.setsid()
    os.close(holds)
    with keeper_lock(where, name) as mine:
        try:
            keeper = Keeper(
                where, machine(where, name)
            )  # as it is now: who held the lock may have changed or forgotten it
        except CellburstError as why:
            sys.stderr.write(f"{why}\n")
            return 1
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, keeper.ask_to_end)
        os.close(tells)
        if mine:
            keeper.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
