"""Counters and gauges in Prometheus' text format. Labels are fixed sets, so the number of series is bounded.

Source of the format: https://prometheus.io/docs/instrumenting/exposition_formats/ (text, version 0.0.4).
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BUCKETS_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)

Labels = tuple[tuple[str, str], ...]
Gauge = Callable[[], Iterable[tuple[Labels, float]]]


class Metrics:
    """All figures of one gateway. Names are declared first; an undeclared one is a KeyError, a defect of ours."""

    def __init__(self) -> None:
        self._help: dict[str, tuple[str, str]] = {}
        self._counters: dict[str, dict[Labels, float]] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, tuple[list[int], list[float]]] = {}

    def counter(self, name: str, text: str) -> None:
        """Declare a counter."""
        self._help[name] = ("counter", text)
        self._counters[name] = {}

    def gauge(self, name: str, text: str, read: Gauge) -> None:
        """Declare a gauge that is read when it is asked for."""
        self._help[name] = ("gauge", text)
        self._gauges[name] = read

    def histogram(self, name: str, text: str) -> None:
        """Declare a histogram of seconds."""
        self._help[name] = ("histogram", text)
        self._histograms[name] = ([0] * (len(LATENCY_BUCKETS_SECONDS) + 1), [0.0])

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Count up. Label values come from enums, never from users."""
        series = self._counters[name]
        key = tuple(sorted(labels.items()))
        series[key] = series.get(key, 0.0) + amount

    def observe(self, name: str, seconds: float) -> None:
        """Put one duration into a histogram."""
        counts, total = self._histograms[name]
        counts[bisect.bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += 1
        total[0] += seconds

    def text(self) -> str:
        """Everything in the exposition format."""
        lines: list[str] = []
        for name, (kind, text) in self._help.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            if name in self._counters:
                lines += [_line(name, labels, value) for labels, value in sorted(self._counters[name].items())]
            elif name in self._gauges:
                lines += [_line(name, labels, value) for labels, value in self._gauges[name]()]
            else:
                lines += self._histogram_lines(name)
        return "\n".join(lines) + "\n"

    def _histogram_lines(self, name: str) -> list[str]:
        counts, total = self._histograms[name]
        lines, below = [], 0
        for bound, count in zip((*map(str, LATENCY_BUCKETS_SECONDS), "+Inf"), counts, strict=True):
            below += count
            lines.append(_line(f"{name}_bucket", (("le", bound),), below))
        return [*lines, _line(f"{name}_sum", (), total[0]), _line(f"{name}_count", (), below)]


def _line(name: str, labels: Labels, value: float) -> str:
    shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:g}" if shown else f"{name} {value:g}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
