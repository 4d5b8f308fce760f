"""What a run card says, as plain data: events in, text and widget state out. Pure; time is passed in."""

from __future__ import annotations

import html
from collections import deque
from dataclasses import dataclass, field

import msgspec

from cellburst.money import usd_text
from cellburst_protocol.messages import BuildLog, CallEnded, ContainerInfo, GpuUsage, PhaseTime, UsageReport
from cellburst_protocol.states import CallState

POINTS = 60  # one minute of seconds
BUILD_LINE_CHARACTERS = 80
BUILT_BEFORE = ": there already"  # how the log of a build ends such a step's line
START_PHASES = ("queue", "image", "restore", "boot", "enter")
PHASE_WORDS = {"queue": "waited", "image": "image", "restore": "restored", "boot": "booted", "enter": "entered"}
PHASE_NOW = {
    "queue": "waiting for a place",
    "image": "making the image",
    "restore": "restoring",
    "boot": "starting the container",
    "enter": "preparing the kernel",
}
RUNGS = frozenset({"session", "warm pool", "template", "fork server"})  # details of the phases restore and boot
# As a line of a stream output stands, without the space that JupyterLab puts after HTML.
FOLDED_STYLE = (
    "color:var(--jp-ui-font-color2);font-family:var(--jp-ui-font-family);font-size:var(--jp-ui-font-size1);"
    "line-height:var(--jp-code-line-height);margin:0;padding-left:8px"
)


@dataclass
class CardModel:
    """One cell's card. `asked` is what the magic's line asks for, in words."""

    asked: str
    began: float
    phases: dict[str, float] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)  # of phases: which rung it was
    unusable: str = ""  # why a faster rung was not taken
    current_phase: str = ""
    phase_since: float = 0.0
    waiting: str = ""
    building: str = ""  # the step of an image's build
    build_line: str = ""  # the last line of its output
    container: ContainerInfo | None = None
    usage: UsageReport | None = None
    cpu: deque[float] = field(default_factory=lambda: deque(maxlen=POINTS))
    memory: deque[float] = field(default_factory=lambda: deque(maxlen=POINTS))
    gpu: deque[float] = field(default_factory=lambda: deque(maxlen=POINTS))
    notes: list[str] = field(default_factory=list)
    resumed: bool = False  # the container came back from where its session was parked
    running_since: float | None = None
    ended: CallEnded | None = None

    # -- events ----------------------------------------------------------------------------------------------------

    def phase(self, name: str, seconds: float | None, now: float) -> None:
        """A phase began (`seconds` None) or ended."""
        if seconds is None:
            self.current_phase, self.phase_since = name, now
        else:
            self.phases[name] = seconds
            if self.current_phase == name:
                self.current_phase = ""
        self.waiting = self.building = self.build_line = ""

    def build(self, log: BuildLog) -> bool:
        """An image is being built. True: another step than before. Layers that are there already are not worth a word."""
        lines = [line.strip() for line in log.lines if line.strip() and not line.endswith(BUILT_BEFORE)]
        if log.lines and not lines:
            return False
        last = next((line for line in reversed(lines) if not log.title or log.title not in line), "")
        words = f"building, step {log.step} of {log.steps}: {log.title}" if log.step else "building"
        is_new, self.waiting = words != self.building, ""
        self.building, self.build_line = words, last[:BUILD_LINE_CHARACTERS]
        return is_new

    def note(self, notes: list[str]) -> None:
        """Lesser modes of the container, each said once."""
        self.notes = list(dict.fromkeys([*self.notes, *notes]))

    def took(self, phases: list[PhaseTime]) -> None:
        """The whole list of phases, from who timed them."""
        for phase in phases:
            if phase.name in START_PHASES:
                self.phases[phase.name], self.details[phase.name] = phase.seconds, phase.detail
            if "unusable" in phase.detail:
                self.unusable = phase.detail

    def take_usage(self, report: UsageReport) -> None:
        """One second's figures."""
        self.usage = report
        usage = report.usage
        if usage.cpu_cores is not None:
            self.cpu.append(usage.cpu_cores)
        if usage.memory_bytes is not None:
            self.memory.append(usage.memory_bytes / 2**20)
        known = [g.utilization_ratio for g in usage.gpus if g.utilization_ratio is not None]
        if known:
            self.gpu.append(100 * sum(known) / len(known))

    # -- words -----------------------------------------------------------------------------------------------------

    def hardware(self) -> str:
        """The GPU or its absence, called simulated if it is."""
        gpus = self.container.gpus if self.container is not None else []
        if not gpus:
            return self.asked if self.container is None else "no GPU"
        name = gpus[0].type if len(gpus) == 1 else f"{len(gpus)} × {gpus[0].type}"
        return f"{name} SIMULATED" if any(g.simulated for g in gpus) else name

    def place(self) -> str:
        """Engine and machine."""
        if self.container is None:
            return ""
        engine = self.container.engine if self.container.isolates else f"{self.container.engine} (isolates nothing)"
        return " on ".join(word for word in (engine, self.container.machine) if word)

    def status(self, now: float) -> str:
        """What happens just now, or how it ended."""
        if self.ended is not None:
            seconds = f"ran {_seconds(self.ended.run_seconds)}"
            return (
                seconds
                if self.ended.state is CallState.SUCCEEDED
                else f"{self.ended.reason.value.replace('_', ' ')}, {seconds}"
            )
        if self.waiting:
            return self.waiting
        if self.building:
            step = f"{self.building} {_seconds(now - self.phase_since)}" if self.current_phase else self.building
            return f"{step}: {self.build_line}" if self.build_line else step
        if self.current_phase in PHASE_NOW:
            return f"{PHASE_NOW[self.current_phase]} {_seconds(now - self.phase_since)}"
        if self.running_since is not None:
            return f"running {_seconds(now - self.running_since)}"
        return f"starting {_seconds(now - self.began)}"

    def started(self) -> str:
        """The phases that a start took; of a parked session that came back, how long that took in all."""
        if self.resumed:
            waited = self.phases.get("queue", 0)
            took = sum(self.phases.get(name, 0) for name in START_PHASES if name != "queue")
            first = f"{PHASE_WORDS['queue']} {_seconds(waited)}, " if waited >= 0.05 else ""
            return f"{first}resumed in {_seconds(took)}"
        shown = [f"{PHASE_WORDS[n]} {_seconds(self.phases[n])}" for n in START_PHASES if self.phases.get(n, 0) >= 0.005]
        return ", ".join(shown)

    def explained(self) -> str:
        """The phases with which rung each was, and why a faster one was not taken: what is shown under the pointer."""
        rungs = [f"from {self.details[n]}" for n in ("restore", "boot") if self.details.get(n) in RUNGS]
        words = [self.started(), *rungs[:1], self.unusable]
        return "; ".join(word for word in words if word)

    def cost(self) -> str:
        """Cost so far or in all, and the rate, at reference prices."""
        rate = self.usage.usd_per_second if self.usage is not None else ""
        rate = rate or (self.container.usd_per_second if self.container is not None else "0")
        spent = self.ended.cost_usd if self.ended is not None else self.usage.call_cost_usd if self.usage else "0"
        return f"{usd_text(spent)} at {usd_text(rate, per_hour=True)}/h"

    def line(self, now: float, *, short: bool = False) -> str:
        """The card as one line of text; `short` gives a start's phases as one figure."""
        started = self.started()
        if short and "," in started and not self.resumed:
            started = f"started in {_seconds(sum(self.phases.get(name, 0) for name in START_PHASES))}"
        parts = [self.hardware(), self.place(), started, self.status(now)]
        if self.container is not None:
            parts.append(self.cost())
        return " · ".join(part for part in parts if part)

    def html(self, now: float) -> str:
        """The one line that is left after the cell, for the saved notebook. At most about 1 KB."""
        # Without the class, front ends that typeset mathematics take what stands between two dollar signs for a formula.
        more, text = (html.escape(words[:400]) for words in (self.explained(), self.line(now, short=True)))
        return f'<div class="mathjax_ignore" title="{more}" style="{FOLDED_STYLE}">{text}</div>'

    def state(self, now: float) -> dict[str, object]:
        """What the widget draws, and `gpus`: the last second's `GpuUsage` of each GPU, without the figures NVML lacks."""
        charts = []
        limits = self.usage.usage if self.usage is not None else None
        cores = self.container.cpu if self.container is not None else 0.0
        if self.gpu:
            simulated = limits is not None and any(gpu.simulated for gpu in limits.gpus)
            name = "GPU (simulated)" if simulated else "GPU"
            more = _gpu_words(limits.gpus) if limits is not None else ""
            charts.append(_chart(name, list(self.gpu), 100.0, f"{self.gpu[-1]:.0f} %", more))
        if self.cpu:
            charts.append(
                _chart(
                    "CPU",
                    list(self.cpu),
                    cores or max(self.cpu),
                    f"{self.cpu[-1]:.2f} of {cores:g} {'core' if cores == 1 else 'cores'}",
                )
            )
        if self.memory:
            top = (limits.memory_limit_bytes or 0) / 2**20 if limits is not None else 0.0
            charts.append(_chart("memory", list(self.memory), top or max(self.memory), _of_mib(self.memory[-1], top)))
        return {
            "hardware": self.hardware(),
            "simulated": "SIMULATED" in self.hardware(),
            "place": self.place(),
            "container": self.container.id if self.container is not None else "",
            "started": self.started(),
            "status": self.status(now),
            "cost": self.cost() if self.container is not None else "",
            "notes": self.notes,
            "charts": charts,
            "gpus": [msgspec.to_builtins(gpu) for gpu in limits.gpus] if limits is not None else [],
            "running": self.ended is None,
        }


def _chart(name: str, values: list[float], top: float, now: str, more: str = "") -> dict[str, object]:
    """A sparkline: values as ratios of `top`, its text alternative, and `more` words that are no line."""
    ratios = [round(min(1.0, value / top), 3) if top > 0 else 0.0 for value in values]
    label = f"{name} over the last {len(values)} s, now {', '.join(filter(None, (now, more)))}"
    return {"name": name, "ratios": ratios, "now": now, "more": more, "label": label}


def _gpu_words(gpus: list[GpuUsage]) -> str:
    """Memory and power of all GPUs together and the hottest one's temperature; what NVML does not give is left out."""
    words = []
    if used := [gpu.memory_used_mib for gpu in gpus if gpu.memory_used_mib is not None]:
        totals = [gpu.memory_total_mib for gpu in gpus if gpu.memory_used_mib is not None]
        words.append(_of_mib(sum(used), 0 if None in totals else sum(total or 0 for total in totals)))
    if watts := [gpu.power_watts for gpu in gpus if gpu.power_watts is not None]:
        words.append(f"{sum(watts):.0f} W")
    if celsius := [gpu.temperature_celsius for gpu in gpus if gpu.temperature_celsius is not None]:
        words.append(f"{max(celsius):.0f} °C")
    return ", ".join(words)


def _of_mib(used: float, limit: float) -> str:
    def text(mib: float) -> str:
        return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"

    return f"{text(used)} of {text(limit)}" if limit else text(used)


def _seconds(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
