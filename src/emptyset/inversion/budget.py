"""What images cost in image-iterations, and the settings that spend a given budget of them.

One image-iteration is one image in one step: a forward and a backward through one teacher, at
whatever size. Methods differ in how many images they optimise at once, how many they harvest of
one, and how many teachers they ask; all of that is read off the method's own parts.

The schedule of a method is in its settings ``steps`` and ``warm_up`` and in those whose names end
in ``_patience`` or ``_every``. When a budget changes ``steps``, the others scale with it, so that
the schedule keeps its form: a shorter run is the same run in small. Only patience stays at 5 steps
at least, since a shorter one would answer to noise.
"""

from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any, Protocol, runtime_checkable

import torch

from emptyset.errors import RecipeError
from emptyset.inversion.batch_plan import plan_batches
from emptyset.inversion.method import Method
from emptyset.registry import Entry
from emptyset.teachers.teacher import Teacher

STEPS = "steps"
_WARM_UP, _PATIENCE, _EVERY = "warm_up", "_patience", "_every"
_LEAST_PATIENCE = 5


@runtime_checkable
class MadeOfParts(Protocol):
    """A synthesizer that the engine runs."""

    def method(self, teacher: Teacher) -> Method:
        """The parts that the engine puts together."""


@runtime_checkable
class CountsItsWork(Protocol):
    """A synthesizer with a loop of its own that says what it costs."""

    def image_iterations(self, teacher: Teacher, count: int) -> int:
        """Of ``count`` images; in proportion to the setting ``steps``."""


def image_iterations(synthesizer: Any, teacher: Teacher, count: int) -> int | None:
    """What ``count`` images cost.

    Args:
        synthesizer: With its settings.
        teacher: The trained network.
        count: Number of images.

    Returns:
        Image-iterations; 0 for a method without steps, None for one that has steps, yet says
        nothing of their cost.
    """
    if isinstance(synthesizer, CountsItsWork):
        return synthesizer.image_iterations(teacher, count)
    if isinstance(synthesizer, MadeOfParts):
        return cost_of(synthesizer.method(teacher), count)
    return None if has_steps(synthesizer.config) else 0


def cost_of(method: Method, count: int) -> int:
    """Image-iterations of ``count`` images by the parts that the engine runs.

    batches · images optimised together · steps · teachers asked in a step
    """
    plan = plan_batches(-(-count // max(1, len(method.snapshots))), method.batch_size, seed=0)
    return plan.batches * plan.size * method.steps * _teachers(method, plan.size)


def _teachers(method: Method, size: int) -> int:
    """How many teachers a step asks; equally many in every step."""
    if not method.others or method.draw is None:
        return 1
    drawn = method.draw(0, torch.Generator().manual_seed(0), size)
    return 1 + sum(f"other.{number}" in drawn for number in range(len(method.others)))


def has_steps(config: Any) -> bool:
    """Whether a budget can change what the method does."""
    return STEPS in getattr(config, "__dataclass_fields__", {})


def with_steps(config: Any, steps: int, *, given: Collection[str] = ()) -> Any:
    """The same settings with another number of steps, the schedule in proportion.

    Args:
        config: The method's settings.
        steps: The new number.
        given: Settings that a person chose; they stay.

    Raises:
        RecipeError: If the method refuses so few steps.
    """
    if steps < 1:
        raise RecipeError("the budget is less than one step of every batch.")
    changed: dict[str, Any] = {STEPS: steps}
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in given or not _scales(field.name) or not isinstance(value, int):
            continue
        least = min(value, _LEAST_PATIENCE if field.name.endswith(_PATIENCE) else 1)
        changed[field.name] = max(least, round(value * steps / config.steps))
    try:
        return replace(config, **changed)
    except ValueError as error:
        raise RecipeError(
            f"the budget allows {steps} steps, which the settings refuse: {error}"
        ) from error


def _scales(name: str) -> bool:
    return name == _WARM_UP or name.endswith((_PATIENCE, _EVERY))


def within_image_iterations(
    entry: Entry,
    config: Any,
    teacher: Teacher,
    count: int,
    budget: int,
    *,
    given: Collection[str] = (),
) -> Any:
    """Settings with as many steps as the budget allows.

    Args:
        entry: The method.
        config: Its settings.
        teacher: The trained network.
        count: Images to make.
        budget: Image-iterations.
        given: Settings that a person chose; they stay.

    Returns:
        The settings; unchanged for a method without steps.

    Raises:
        RecipeError: If the method says nothing of its cost, or cannot do with so few steps.
    """
    if not has_steps(config):
        return config
    cost = image_iterations(entry.make(config), teacher, count)
    if not cost:
        raise RecipeError(
            f"{entry.name} does not say what a step costs (no `method(teacher)` and no "
            "`image_iterations(teacher, count)`). Give a budget in seconds."
        )
    return with_steps(config, budget * config.steps // cost, given=given)
