"""Every shipped recipe loads, is named after what it holds, and finishes."""

from pathlib import Path
from typing import Any

import pytest

import emptyset
from emptyset.inversion.config import InversionConfig
from emptyset.recipe import Recipe, find_recipe
from emptyset.registry import refiners, synthesizers

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
# What a whole method of the inversion family says of its student beside preset `published`; the
# other losses are then the preset's. Noise has no labels; it is what the others are compared with.
STUDENTS: dict[str, dict[str, float]] = {
    "dffg": {},
    "intraq": {},
    "hast": {"cross_entropy": 0.0, "feature_attention": 1000.0, "perturbation": 0.01},
    "noise": {"cross_entropy": 0.0},
}
LOSSES = (
    "cross_entropy", "distillation", "temperature", "kd_reduction", "feature_attention",
    "perturbation", "flatness", "logit_distance", "relations", "mixing",
)  # fmt: skip


def subject(path: Path) -> str:
    """The name without plan and bits: recipes that make and train in the same way share it."""
    return path.stem.rsplit("_", 2)[0]


def to_run() -> list[Any]:
    """Every recipe; of those that differ in nothing but the plan, one is quick and others slow.

    Which one goes round, so that the quick ones have every plan among them.
    """
    found = []
    for number, name in enumerate(sorted({subject(path) for path in RECIPES})):
        same = [path for path in RECIPES if subject(path) == name]
        for position, path in enumerate(same):
            marks = [] if position == number % len(same) else [pytest.mark.slow]
            found.append(pytest.param(path, marks=marks, id=path.stem))
    return found


def test_every_inversion_method_has_a_recipe_for_every_convolutional_plan() -> None:
    there = {
        (recipe.synthesize.method, recipe.plan.name)
        for recipe in map(Recipe.load, RECIPES)
        if recipe.synthesize is not None
    }
    for entry in synthesizers.entries():
        if issubclass(entry.config, InversionConfig):
            for plan in ("every_layer", "edges_8bit", "integer"):
                assert (entry.name, plan) in there


def published_students() -> list[Recipe]:
    """Recipes that make images, then train on them by the family's own protocol."""
    return [
        recipe
        for recipe in map(Recipe.load, RECIPES)
        if recipe.synthesize is not None
        and [section.method for section in recipe.refine] == ["distill"]
        and recipe.refine[0].settings().get("preset") == "published"
    ]


@pytest.mark.parametrize("method", STUDENTS)
def test_a_whole_method_trains_its_student_as_its_family_does(method: str) -> None:
    found = [one for one in published_students() if one.synthesize.method == method]
    assert found, f"no recipe trains on images of {method} with preset published"
    for recipe in found:
        # Published learning rates are for these; see DESIGN.
        assert (recipe.plan.name, recipe.plan.batch_norm) == ("every_layer", "frozen")
        settings = recipe.refine[0].settings()
        assert {k: v for k, v in settings.items() if k in LOSSES} == STUDENTS[method]


def test_one_of_them_takes_its_ranges_as_they_were_released() -> None:
    asked = [one.refine[0].settings().get("ranges_from", "images") for one in published_students()]
    assert set(asked) == {"images", "gdfq"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_found_by_its_name_and_named_after_what_it_holds(path: Path) -> None:
    recipe = Recipe.load(find_recipe(path.stem))
    words = path.stem.split("_")
    assert words[-1] == recipe.plan.bits
    assert recipe.plan.name.replace("_", "") in words
    if recipe.synthesize is not None:
        assert recipe.synthesize.method in path.stem
    model = recipe.teacher.name.partition(":")[2].replace("-", "_").replace(".", "_")
    assert path.stem.startswith(model)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_opens_with_what_it_is_and_how_to_run_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert f"emptyset run recipes/{path.name}" in text
    assert "# Needs: " in text


@pytest.mark.parametrize("path", to_run())
def test_a_recipe_finishes_with_the_smallest_settings(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    changes = ["evaluate.layer_images=2", "evaluate.latency_rounds=1", "device=cpu"]
    if recipe.synthesize is not None:
        smallest = synthesizers.get(recipe.synthesize.method).config.smallest()
        changes += ["synthesize.count=6"]
        if hasattr(smallest, "steps"):
            changes += [f"synthesize.steps={smallest.steps}"]
    for section in recipe.refine:
        smallest = refiners.get(section.method).config.smallest()
        for name in {"steps", "activation_steps", "batch_size"} & set(
            smallest.__dataclass_fields__
        ):
            changes.append(f"refine.{section.method}.{name}={getattr(smallest, name)}")
    result = emptyset.run(recipe.changed(changes), tmp_path / "r")
    assert result.metrics["certificate"]["holds"]
    assert result.report.is_file()
