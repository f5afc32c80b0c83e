"""A recipe from what a person typed: options on top of a base, or of the recipe for the bits."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emptyset.errors import UnknownNameError
from emptyset.job.from_recipe import load_from
from emptyset.quantizers.bits import Bits
from emptyset.recipe import Recipe
from emptyset.recipe_by_bits import (
    BY_BITS,
    Choice,
    practical_choice,
    practical_recipe,
    reason,
)
from emptyset.recipe_without_images import DATA_FREE_REFINERS, NONE
from emptyset.registry import nearest, sources, synthesizers
from emptyset.teachers.cost import NetworkCost, cost_of
from emptyset.teachers.teacher import Teacher

DEFAULT_BITS = "w8a8"
_WITHOUT_IMAGES = (
    "Recipe for {bits} without any image: {methods}, since what BatchNorm stored in training tells "
    "ranges and means. --recipe NAME or --set KEY=VALUE changes that."
)


@dataclass(frozen=True)
class Options:
    """What options say; None leaves the base's value.

    Attributes:
        bits: For example ``w4a8``.
        plan: Name of the plan.
        images: A synthesizer's name, a folder or file of images, or ``none``.
        count: Number of images.
        seed: Seed of everything random.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        memory: Memory that forwards of the student may take [GB].
        budget: Mixed precision within this budget.
        min_agreement: Fail below this agreement, 0..1.
        settings: ``KEY=VALUE`` changes on top.
    """

    bits: str | None = None
    plan: str | None = None
    images: str | None = None
    count: int | None = None
    seed: int | None = None
    device: str | None = None
    memory: float | None = None
    budget: str | float | None = None
    min_agreement: float | None = None
    settings: Sequence[str] = ()


def recipe_for(
    teacher: Mapping[str, Any],
    *,
    base: Recipe | None = None,
    practical: str = BY_BITS,
    network: NetworkCost | None = None,
    **options: Any,
) -> Recipe:
    """A recipe from a base and what the options say.

    Args:
        teacher: The recipe's ``teacher`` section.
        base: What holds where nothing is said; a practical recipe where None.
        practical: Which practical recipe: ``practical`` is the one for the bits.
        network: What an image costs the teacher; None: not known.
        **options: Those of ``Options``.

    Raises:
        RecipeError: If a value is wrong.
        UnknownNameError: If there is no such practical recipe.
    """
    given = Options(**options)
    if base is None:
        data, choice = _practical_data(practical, given, network)
    else:
        data, choice = base.to_data(), None
        data.pop("about", None)
        if given.images is not None:
            _set_images(data, given.images)
    data["teacher"] = dict(teacher)
    _set_rest(data, given)
    recipe = Recipe.parse(data, settings=given.settings)
    if base is not None or (network is None and recipe.images != NONE):
        return recipe
    return recipe.model_copy(update={"about": _about(recipe, choice)})


def chosen_recipe(
    teacher: Mapping[str, Any],
    *,
    practical: str = BY_BITS,
    allow_pickle: bool = False,
    **options: Any,
) -> tuple[Recipe, Teacher | None]:
    """The practical recipe for a teacher, and the teacher, where it had to be loaded for that.

    What was chosen and why stands in the recipe's ``about``.

    Args:
        teacher: The recipe's ``teacher`` section.
        practical: Which practical recipe: ``practical`` is the one for the bits.
        allow_pickle: Run code that a checkpoint's pickle holds. Only for files you trust.
        **options: Those of ``Options``.

    Raises:
        RecipeError: If a value is wrong.
        UnknownNameError: If there is no such practical recipe.
    """
    # First without the network: a typo should not wait for a download.
    unfitted = recipe_for(teacher, practical=practical, **options)
    if unfitted.images == NONE:
        return unfitted, None
    loaded = load_from(unfitted, allow_pickle=allow_pickle)
    fitted = recipe_for(teacher, practical=practical, network=_cost(loaded), **options)
    return fitted, loaded


def _cost(teacher: Teacher) -> NetworkCost | None:
    try:
        return cost_of(teacher)
    # Whatever a network raises: the stage that runs it next names it and says what to do.
    except Exception:
        return None


def _practical_data(
    practical: str, given: Options, network: NetworkCost | None
) -> tuple[dict[str, Any], Choice | None]:
    """Sections of the practical recipe with the images that the options name."""
    named = practical != BY_BITS
    recipe = practical_recipe(
        given.bits or DEFAULT_BITS, name=practical, within_budget=given.budget is not None
    )
    # A recipe by name brings its bits along.
    bits = str(Bits.parse(given.bits or (recipe.bits if named else DEFAULT_BITS)))
    plan = {"name": "integer", "bits": bits}
    if given.images == NONE:
        return {"images": NONE, "plan": plan, "refine": _without_images()}, None
    own = given.images in (None, recipe.synthesize["method"])
    stored = given.images is not None and _is_path(given.images)
    choice = practical_choice(recipe, network, made=own, stored=stored, count=given.count)
    data = {"synthesize": choice.data["synthesize"], "plan": plan, "refine": choice.data["refine"]}
    if given.images is not None:
        _set_images(data, given.images)
    if "images" in data:
        data["count"] = recipe.synthesize["count"]
    return data, choice


def _about(recipe: Recipe, choice: Choice | None) -> str:
    mixed = recipe.mixed_precision
    bits = f"{recipe.plan.bits} within {mixed.budget}" if mixed else recipe.plan.bits
    if choice is None:
        methods = ", ".join(section.method for section in recipe.refine)
        return _WITHOUT_IMAGES.format(bits=bits, methods=methods)
    return reason(bits, recipe.to_data(), choice)


def _without_images() -> list[dict[str, Any]]:
    return [dict(section) for section in DATA_FREE_REFINERS]


def _set_images(data: dict[str, Any], images: str) -> None:
    """``--images``: what exists on disk is a folder or file, everything else a method."""
    if images != NONE and _is_path(images):
        data.pop("synthesize", None)
        data["images"] = images
        return
    data.pop("count", None)  # of the images that the base had on disk
    if images == NONE:
        data.pop("synthesize", None)
        data["images"] = images
        if data.get("refine") == [{"method": "calibrate"}]:
            data["refine"] = _without_images()
        return
    known = synthesizers.names()
    if images not in (*known, *sources.names()):
        raise UnknownNameError(
            f"--images: '{images}' is no file or folder that exists, and no way to make images."
            f"{nearest(images, known)} Ways: {', '.join(known)}; or 'none'."
        )
    if data.get("synthesize", {}).get("method") != images:
        count = data.get("synthesize", {}).get("count")
        data["synthesize"] = {"method": images} | ({"count": count} if count else {})
        data.pop("images", None)


def _is_path(images: str) -> bool:
    path = Path(images)
    return path.exists() or {"/", os.sep} & set(images) != set() or path.suffix != ""


def _set_rest(data: dict[str, Any], given: Options) -> None:
    """Everything but where images come from."""
    if given.count is not None:
        if "images" in data:
            data["count"] = given.count
        else:
            data["synthesize" if "synthesize" in data else "source"]["count"] = given.count
    for section, key, value in (
        ("plan", "bits", given.bits),
        ("plan", "name", given.plan),
        ("mixed_precision", "budget", given.budget),
        ("evaluate", "min_agreement", given.min_agreement),
    ):
        if value is not None:
            data.setdefault(section, {})[key] = value
    whole_run = (("seed", given.seed), ("device", given.device), ("memory", given.memory))
    data |= {key: value for key, value in whole_run if value is not None}
