"""Whether a recipe can be built on this machine at all. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cellburst_protocol.errors import ErrorCode, error
from cellburst_protocol.images import BASES, MAX_LAYERS, MAX_STEPS, METADATA, AnyStep, CopyFrom, FromStage, ImageRecipe


def check_recipe(recipe: ImageRecipe, architecture: str) -> None:
    """Raises RequestError (BAD_ARGUMENT). `architecture` is this machine's."""
    steps = [*recipe.steps, *recipe.adds]
    if recipe.architecture not in ("", architecture):
        raise error(
            ErrorCode.BAD_ARGUMENT, f"this image is for {recipe.architecture}, and this worker's machine is {architecture}",
            allowed=architecture, next="run it on a worker of that architecture",
        )  # fmt: skip
    if not recipe.steps or not isinstance(recipe.steps[0], BASES):
        raise error(ErrorCode.BAD_ARGUMENT, "an image begins with a base", next="begin with Image.debian_slim()")
    if any(isinstance(step, BASES) for step in steps[1:]):
        raise error(ErrorCode.BAD_ARGUMENT, "an image has one base only", next="leave out the second")
    if len(steps) > MAX_STEPS:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"the image has {len(steps)} steps", allowed=f"at most {MAX_STEPS}",
            next="put several commands into one run_commands",
        )  # fmt: skip
    if (layers := _most_layers(steps)) > MAX_LAYERS:
        raise error(
            ErrorCode.BAD_ARGUMENT, f"the image has {layers} layers with those of its stages", allowed=f"at most {MAX_LAYERS}",
            next="put several commands into one",
        )  # fmt: skip


def _most_layers(steps: Sequence[AnyStep]) -> int:
    """The layers of a chain of steps, or of a stage that one copies from where that has more."""
    chain, others = 0, [0]
    for step in steps:
        if isinstance(step, FromStage):
            chain += _most_layers(step.steps)
        elif not isinstance(step, METADATA):
            chain += 1
        if isinstance(step, CopyFrom):
            others.append(_most_layers(step.steps))
    return max(chain, *others)
