"""The exposition format, and that the number of series is bounded."""

from __future__ import annotations

import pytest

from cellburst_gateway.metrics import Metrics


def test_text_format() -> None:
    metrics = Metrics()
    metrics.counter("a_total", "Things.")
    metrics.gauge("g", "Now.", lambda: [((("state", 'a"b\\c\nd'),), 2.5)])
    metrics.histogram("h_seconds", "Took.")
    metrics.add("a_total", fault="request")
    metrics.add("a_total", 2, fault="request")
    metrics.observe("h_seconds", 0.003)
    text = metrics.text()
    assert 'a_total{fault="request"} 3\n' in text
    assert 'g{state="a\\"b\\\\c\\nd"} 2.5\n' in text
    assert 'h_seconds_bucket{le="0.002"} 0\n' in text and 'h_seconds_bucket{le="0.005"} 1\n' in text
    assert 'h_seconds_bucket{le="+Inf"} 1\n' in text and "h_seconds_count 1\n" in text


def test_an_undeclared_name_is_a_defect() -> None:
    with pytest.raises(KeyError):
        Metrics().add("nothing")
