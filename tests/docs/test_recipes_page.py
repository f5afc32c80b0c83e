"""The page about recipes says what the file of the practical recipes holds."""

import re
from pathlib import Path

import pytest

from emptyset.recipe import Recipe, find_recipe
from emptyset.recipe_by_bits import practical_choice, practical_recipe, practical_recipes
from emptyset.teachers.cost import NetworkCost

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
# As counted by `cost_of` on the networks of torchvision's layout.
RESNETS = {
    "ResNet-20": NetworkCost(40_600_000, 188_000, False, "cpu"),
    "ResNet-18": NetworkCost(1_814_100_000, 2_485_000, False, "cpu"),
    "ResNet-50": NetworkCost(4_089_200_000, 11_115_000, False, "cpu"),
}


def row(start: str) -> list[str]:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {start}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("recipe", practical_recipes(), ids=lambda recipe: recipe.name)
def test_the_table_tells_what_a_practical_recipe_does(recipe: object) -> None:
    known = {r.name: r for r in practical_recipes()}
    chosen = known[recipe.name]  # type: ignore[attr-defined]
    _, _, images, refine = row(f"`{chosen.name}`")
    if images != "the same":
        assert f"{chosen.synthesize['count']:,} of `{chosen.synthesize['method']}`" in images
        assert f"{chosen.synthesize['steps']} steps" in images
        if "snapshots" in chosen.synthesize:
            assert f"{chosen.synthesize['snapshots']} of each one" in images
    # Once where it is set one way for some images and another way for others.
    methods = list(dict.fromkeys(section["method"] for section in chosen.refine))
    assert re.findall(r"`(\w+)`", refine) == methods
    for section in chosen.refine:
        if "steps" in section:
            assert f"{section['steps']:,} " in refine


def test_the_same_images_are_the_same() -> None:
    made = [r.synthesize for r in practical_recipes() if row(f"`{r.name}`")[2] == "the same"]
    assert made
    assert all(images == practical_recipe("w4a8").synthesize for images in made)


@pytest.mark.parametrize("name", RESNETS)
def test_the_table_tells_what_a_network_is_given(name: str) -> None:
    for cell, bits in zip(row(name)[2:], ("w8a8", "w4a4"), strict=True):
        choice = practical_choice(practical_recipe(bits), RESNETS[name])
        assert choice.cut is not None
        images, refine = choice.data["synthesize"], choice.data["refine"]
        if choice.cut.share == 1:
            assert cell == "whole"
            continue
        assert f"{images['count']} images" in cell
        if bits == "w4a4":
            assert f"of {images['steps']} steps, {refine[0]['steps']} steps a block" in cell
            assert ("no distillation" in cell) == (len(refine) == 1)


def test_every_reproduction_that_the_page_names_is_there() -> None:
    named = [n for n in re.findall(r"`(digits_\w+)`", PAGE) if "edges8bit" in n]
    assert len(named) == 4
    for name in named:
        recipe = Recipe.load(find_recipe(name))
        assert recipe.plan.name == "edges_8bit"
        assert recipe.synthesize is not None
        assert recipe.synthesize.count == 1024
