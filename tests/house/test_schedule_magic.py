"""`%modal schedule` in a real kernel: the notebook as it is saved, made, changed, refused and listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.harness import House
from cellburst_protocol.messages import GetSchedule
from tests.gateway.scheduled import notebook
from tests.house.test_schedules import ask

pytestmark = [pytest.mark.gvisor, pytest.mark.timeout(300)]


def test_a_notebook_schedules_itself(place: House) -> None:
    kernel = place.kernel()
    try:
        path = Path(json.loads(kernel.check("import json, os; print(json.dumps(os.environ['JPY_SESSION_NAME']))").text))
        path.write_bytes(notebook("rate = 1.0", "x = input()"))
        kernel.check("%load_ext cellburst_jupyter")
        assert "no schedule" in kernel.check("%modal schedule").text
        made = kernel.check('%modal schedule "0 7 * * 1-5" timezone=Europe/Berlin gpu=A100 name=mine').text
        assert "at 07:00 on Monday to Friday, Europe/Berlin time" in made and "input() waits for a person" in made
        assert "changed: mine, every 2 hours" in kernel.check("%modal schedule every=2h name=mine").text
        kernel.check("import cellburst\nimg = cellburst.Image.debian_slim().env({'A': 'b'})")
        kernel.check("%modal schedule every=2h name=mine image=img")
        kept = ask(place, GetSchedule(schedule="mine")).spec
        assert kept.image_name == "img" and kept.recipe.steps[-1].variables == {"A": "b"} and kept.frozen is not None
        assert kernel.check("%modal schedule").text.startswith("mine: every 2 hours")
        for line, said in (
            ('"61 * * * *"', "minute 61"), ("every=2h p.rate=2", "no cell of the notebook has the tag"), ("evry=2h", "did you mean every"),
            ('"* * * * *" timezone=Berlin', "Europe/Berlin"), ("every=2h image=imgs", "imgs is no variable of this notebook"),
        ):  # fmt: skip
            assert said in kernel.run(f"%modal schedule {line}").error, line
    finally:
        kernel.close()
