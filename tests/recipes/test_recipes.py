"""Every shipped recipe loads, is named after what it holds, and finishes."""

from pathlib import Path

import pytest

import emptyset
from emptyset.recipe import Recipe, find_recipe
from emptyset.registry import refiners, synthesizers

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


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


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_finishes_with_the_smallest_settings(path: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(path)
    changes = ["evaluate.layer_images=2", "evaluate.latency_rounds=1", "device=cpu"]
    if recipe.synthesize is not None:
        smallest = synthesizers.get(recipe.synthesize.method).config.smallest()
        changes += ["synthesize.count=6", f"synthesize.steps={smallest.steps}"]
    for section in recipe.refine:
        smallest = refiners.get(section.method).config.smallest()
        for name in {"steps", "batch_size"} & set(smallest.__dataclass_fields__):
            changes.append(f"refine.{section.method}.{name}={getattr(smallest, name)}")
    result = emptyset.run(recipe.changed(changes), tmp_path / "r")
    assert result.metrics["certificate"]["holds"]
    assert result.report.is_file()
