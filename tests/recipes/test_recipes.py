"""Every shipped recipe loads, is named after what it holds, and finishes."""

from pathlib import Path
from typing import Any

import pytest

import emptyset
from emptyset.inversion.config import InversionConfig
from emptyset.recipe import Recipe, find_recipe
from emptyset.registry import refiners, synthesizers
from emptyset.run_folder import LOG

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


def with_own_file() -> set[Path]:
    """Recipes among which every network comes with every plan that it has, and every refiner.

    The file depends on nothing else: who made the images is over when the student is done. Those
    that bring most come first.
    """
    brought = {}
    for path in RECIPES:
        recipe = Recipe.load(path)
        brought[path] = {(recipe.teacher.name, recipe.plan.name)}
        brought[path] |= {section.method for section in recipe.refine}
    found: set[Path] = set()
    missing = set().union(*brought.values())
    while missing:
        best = max(RECIPES, key=lambda path: len(brought[path] & missing))
        found.add(best)
        missing -= brought[best]
    return found


WITH_OWN_FILE = with_own_file()


def students_to_make() -> list[Any]:
    """Every recipe; of those that differ in nothing but the plan, one is quick and others slow.

    Which one goes round, so that the quick ones have every plan among them. Those of
    ``WITH_OWN_FILE`` are made there.
    """
    found = []
    for number, name in enumerate(sorted({subject(path) for path in RECIPES})):
        same = [path for path in RECIPES if subject(path) == name]
        others = [path for path in same if path not in WITH_OWN_FILE]
        for position, path in enumerate(others):
            quick = len(others) == len(same) and position == number % len(same)
            found.append(
                pytest.param(path, marks=[] if quick else [pytest.mark.slow], id=path.stem)
            )
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


def smallest(path: Path, labelled: Path) -> Recipe:
    recipe = Recipe.load(path)
    changes = ["evaluate.layer_images=2", "evaluate.latency_rounds=1", "device=cpu"]
    changes += [f"evaluate.images={labelled}"]
    if recipe.synthesize is not None:
        least = synthesizers.get(recipe.synthesize.method).config.smallest()
        changes += ["synthesize.count=6"]
        if hasattr(least, "steps"):
            changes += [f"synthesize.steps={least.steps}"]
    for section in recipe.refine:
        least = refiners.get(section.method).config.smallest()
        for name in {"steps", "activation_steps", "batch_size"} & set(least.__dataclass_fields__):
            changes.append(f"refine.{section.method}.{name}={getattr(least, name)}")
    return recipe.changed(changes)


@pytest.mark.parametrize("path", sorted(WITH_OWN_FILE), ids=lambda path: path.stem)
def test_a_recipe_finishes_with_the_smallest_settings(
    path: Path, tmp_path: Path, few_labelled: Path
) -> None:
    result = emptyset.run(smallest(path, few_labelled), tmp_path / "r")
    assert result.metrics["certificate"]["holds"]
    assert result.report.is_file()


class ReachedTheFileError(Exception):
    """In place of an export."""


@pytest.mark.parametrize("path", students_to_make())
def test_a_recipe_makes_its_student_with_the_smallest_settings(
    path: Path, tmp_path: Path, few_labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = []

    def reached(student: Any, *_: Any, **__: Any) -> None:
        students.append(student)
        raise ReachedTheFileError

    monkeypatch.setattr("emptyset.pipeline.export", reached)
    recipe = smallest(path, few_labelled)
    with pytest.raises(ReachedTheFileError):
        emptyset.run(recipe, tmp_path / "r")
    assert (str(students[0].bits), students[0].plan) == (recipe.plan.bits, recipe.plan.name)
    assert "student: finished" in (tmp_path / "r" / LOG).read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(set(RECIPES) - WITH_OWN_FILE), ids=lambda path: path.stem)
def test_every_other_recipe_finishes_too(path: Path, tmp_path: Path, few_labelled: Path) -> None:
    result = emptyset.run(smallest(path, few_labelled), tmp_path / "r")
    assert result.metrics["certificate"]["holds"]
