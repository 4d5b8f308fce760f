"""What the modules need that open the panel."""

from __future__ import annotations

import shutil

import pytest

NEEDS_PANEL = [
    pytest.mark.browser,
    pytest.mark.gvisor,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("node") is None, reason="the panel is built with Node 20.19 or later"),
]
