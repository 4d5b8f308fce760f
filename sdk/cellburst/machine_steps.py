"""The steps of `cellburst connect` and `upgrade`, and the life of a tunnel: events in, instructions out, time passed in.

    dial -> look -> [uv] -> [python] -> [package] -> [sandbox] -> [stop] -> settle -> tunnel -> join -> done

What is in brackets is left out where it is there already. The shells (`machine_connect`, `machine_keeper`) run one
instruction and come back with one event.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from cellburst_protocol.errors import ErrorCode, error

from .machine_look import Found, problem

FIRST_RETRY_SECONDS = 0.2
QUICK_RETRY_SECONDS = 1.0  # a network that comes back is used within that, and a handshake
SLOW_RETRY_SECONDS = 15.0  # a machine that is off for the night is asked four times a minute
QUICK_FOR_SECONDS = 600.0
REFUSED_RETRY_SECONDS = 60.0  # a wrong key mends itself only when a person does something
QUICK_DIAL_SECONDS = 3  # a lost packet more, and the next dial would be the faster one
SLOW_DIAL_SECONDS = 15  # a far or busy machine, through jump hosts
SHORT_LOSS_SECONDS = 120.0
GATEWAY_GONE_SECONDS = 60.0  # without a gateway here nobody needs the tunnel: who starts one starts the keepers


class Step(enum.StrEnum):
    """One thing that is done, in this order."""

    DIAL = "dial"
    LOOK = "look"
    UV = "uv"
    PYTHON = "python"
    PACKAGE = "package"
    SANDBOX = "sandbox"
    STOP = "stop"
    SETTLE = "settle"
    TUNNEL = "tunnel"
    JOIN = "join"
    DONE = "done"


@dataclass(frozen=True)
class Wanted:
    """What should be there in the end."""

    name: str
    target: str
    arch: str  # of this machine
    build: str  # of what is sent
    uv: str  # its version
    whose: str  # tells this gateway's things there from those of others
    sudo: bool = False
    sandbox: str = ""  # the runsc that is sent, by its hash; "" where there is none here
    upgrade: bool = False
    engine: str = ""
    simulate_gpus: str = ""
    before: tuple[bool, str, str] | None = (
        None  # sudo, engine and simulated GPUs of the last connection; None: there was none
    )


@dataclass
class Connect:
    """A connection in the making. `steps` are those still to be done; the first is being done."""

    wanted: Wanted
    steps: list[Step] = field(default_factory=lambda: [Step.DIAL, Step.LOOK])
    found: Found = field(default_factory=Found)

    @property
    def step(self) -> Step:
        """What is being done now; DONE at the end."""
        return self.steps[0] if self.steps else Step.DONE

    def looked(self, found: Found) -> Step:
        """The look came back. Raises CellburstError for a machine that cannot be used; returns the next step."""
        assert self.step is Step.LOOK, self.step
        wanted = self.wanted
        if (why := problem(found, wanted.arch, wanted.target)) is not None:
            raise why
        if wanted.sudo and not found.is_root and not found.can_sudo:
            raise error(
                ErrorCode.FORBIDDEN, f"sudo on {wanted.target} asks for a password, or is not allowed",
                allowed="--sudo with a login that may `sudo` without a password",
                next="leave --sudo out (no snapshots then), or log in as root",
            )  # fmt: skip
        self.found = found
        runs, build = found.workers.get(wanted.whose, (False, ""))
        if runs and build != wanted.build and not wanted.upgrade:
            raise error(
                ErrorCode.CONFLICT,
                f"a worker of build {build or 'unknown'} runs on {wanted.target} already, and this is {wanted.build}",
                next=f"`cellburst upgrade {wanted.name}` replaces it, and says what would end",
            )  # fmt: skip
        if (called := found.called.get(wanted.whose, wanted.name)) != wanted.name:
            raise error(
                ErrorCode.CONFLICT, f"{wanted.target} is connected as {called!r} already",
                next=f"--name {called}, or `cellburst disconnect {called}` first",
            )  # fmt: skip
        now = (wanted.sudo and not found.is_root, wanted.engine, wanted.simulate_gpus)
        if runs and not wanted.upgrade and wanted.before is not None and now != wanted.before:
            raise error(
                ErrorCode.CONFLICT,
                f"the worker on {wanted.target} was started with {_words(*wanted.before)}, and this asks for {_words(*now)}",
                allowed="the same again", next=f"`cellburst disconnect {wanted.name}` first, which ends what runs there",
            )  # fmt: skip
        self.steps = _missing(found, wanted)
        return self.step

    def did(self, step: Step) -> Step:
        """A step is done; returns the next one."""
        assert step is self.step and step is not Step.LOOK, (step, self.step)
        self.steps.pop(0)
        return self.step


def _words(sudo: bool, engine: str, simulate_gpus: str) -> str:
    words = [*(["--sudo"] if sudo else []), *([f"--engine {engine}"] if engine else [])]
    words += [f"--simulate-gpus {simulate_gpus}"] if simulate_gpus else []
    return " ".join(words) or "no options"


def _missing(found: Found, wanted: Wanted) -> list[Step]:
    steps: list[Step] = []
    if wanted.build not in found.builds:
        if wanted.uv not in found.uvs:
            steps.append(Step.UV)
        steps += [Step.PYTHON, Step.PACKAGE]
    if wanted.sandbox and wanted.sandbox not in found.sandboxes:
        steps.append(Step.SANDBOX)
    if wanted.upgrade and found.workers.get(wanted.whose, (False, ""))[0]:
        steps.append(Step.STOP)
    return [*steps, Step.SETTLE, Step.TUNNEL, Step.JOIN]


# -- the tunnel ------------------------------------------------------------------------------------------------------


class TunnelState(enum.StrEnum):
    """Where a tunnel stands."""

    WAITING = "waiting"  # for the gateway here, or for the next try
    DIALING = "dialing"
    UP = "up"
    CLEARING = "clearing"  # an earlier tunnel's end still holds the port there
    ENDED = "ended"


class Loss(enum.StrEnum):
    """Why an ssh ended."""

    LOST = "lost"  # the network, the machine, or it was asked to
    PORT_HELD = "port_held"
    REFUSED = "refused"  # a key, a password, a changed host key


class Act(enum.StrEnum):
    """What the keeper is to do."""

    DIAL = "dial"
    CLEAR = "clear"
    HANG_UP = "hang_up"
    END = "end"


_MOVES: dict[TunnelState, frozenset[TunnelState]] = {
    TunnelState.WAITING: frozenset({TunnelState.DIALING, TunnelState.ENDED}),
    TunnelState.DIALING: frozenset({TunnelState.UP, TunnelState.WAITING, TunnelState.CLEARING, TunnelState.ENDED}),
    TunnelState.UP: frozenset({TunnelState.WAITING, TunnelState.ENDED}),
    TunnelState.CLEARING: frozenset({TunnelState.WAITING, TunnelState.ENDED}),
    TunnelState.ENDED: frozenset(),
}


@dataclass
class Tunnel:
    """One machine's tunnel. All times are seconds of one clock that goes on while this machine sleeps."""

    state: TunnelState = TunnelState.WAITING
    url: str = ""  # of the gateway that it leads to
    why: str = ""
    tries: int = 0
    cleared: int = 0
    next_at: float = 0.0
    down_since: float | None = None
    gone_since: float | None = None

    def tick(self, now: float, url: str) -> Act | None:
        """Time passed; `url` is where the gateway serves here, "" where none does."""
        if self.state is TunnelState.ENDED:
            return None
        if not url:
            self.gone_since = now if self.gone_since is None else self.gone_since
            if now - self.gone_since >= GATEWAY_GONE_SECONDS:
                return self.end()
            return None
        self.gone_since = None
        if self.state is TunnelState.WAITING and now >= self.next_at:
            self._move(TunnelState.DIALING)
            self.url = url
            self.tries += 1
            return Act.DIAL
        if self.state in (TunnelState.UP, TunnelState.DIALING) and url != self.url:
            return Act.HANG_UP  # its end comes as `lost`, and the next dial leads to the new place
        return None

    def ready(self, now: float) -> None:
        """The machine's side answered: the port is there, the worker runs."""
        self._move(TunnelState.UP)
        self.tries = self.cleared = 0
        self.down_since, self.why = None, ""

    def lost(self, now: float, loss: Loss, why: str) -> Act | None:
        """The ssh ended."""
        if self.state is TunnelState.ENDED:
            return None
        self.why = why
        self.down_since = now if self.down_since is None else self.down_since
        if loss is Loss.PORT_HELD and self.state is TunnelState.DIALING and self.cleared == 0:
            self.cleared += 1
            self._move(TunnelState.CLEARING)
            return Act.CLEAR
        self.cleared = 0
        self._move(TunnelState.WAITING)
        self.next_at = now + (
            REFUSED_RETRY_SECONDS if loss is Loss.REFUSED else retry_seconds(self.tries, now - self.down_since)
        )
        return None

    def clear_done(self, now: float) -> None:
        """The earlier tunnel's end was told to go: the next dial may come at once."""
        self._move(TunnelState.WAITING)
        self.next_at = now

    def woke(self, now: float) -> Act | None:
        """This machine slept, or its network changed: what waits is tried now, what is up is dialled anew."""
        self.tries, self.next_at = 0, now
        self.down_since = now if self.down_since is not None else None
        return Act.HANG_UP if self.state in (TunnelState.UP, TunnelState.DIALING) else None

    def end(self) -> Act | None:
        """Somebody asked, or nobody needs it."""
        if self.state is TunnelState.ENDED:
            return None
        self._move(TunnelState.ENDED)
        return Act.END

    def dial_seconds(self, now: float) -> int:
        """How long the next dial may take."""
        if self.down_since is None:
            return SLOW_DIAL_SECONDS
        if now - self.down_since < SHORT_LOSS_SECONDS:
            return QUICK_DIAL_SECONDS
        return QUICK_DIAL_SECONDS if self.tries % 2 else SLOW_DIAL_SECONDS

    def _move(self, to: TunnelState) -> None:
        if to not in _MOVES[self.state]:
            raise error(ErrorCode.INTERNAL, f"a tunnel does not go from {self.state} to {to}")
        self.state = to


def retry_seconds(tries: int, down_seconds: float) -> float:
    """How long to wait before the next dial."""
    longest = QUICK_RETRY_SECONDS if down_seconds < QUICK_FOR_SECONDS else SLOW_RETRY_SECONDS
    return float(min(FIRST_RETRY_SECONDS * 2 ** min(max(tries - 1, 0), 10), longest))
