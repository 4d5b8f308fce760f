"""Builds one image in a process of its own: image_side.py FOLDER STATE COMMAND. Prints the build's log and the result."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from tests.fakes.images import ImageHouse


async def main(folder: str, state: str, command: str) -> None:
    house = ImageHouse(Path(folder))
    house.state = Path(state)
    house.machine = replace(house.machine, gvisor=replace(house.machine.gvisor, root=Path(state)))
    image = await house.builder().build(house.recipe(command), house.file, lambda line: print(line, flush=True))
    print(f"INSTANCE {image.instance}", flush=True)
    image.release()


asyncio.run(main(*sys.argv[1:]))
