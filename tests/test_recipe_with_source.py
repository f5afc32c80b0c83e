"""A recipe with a source is refused where nothing, or too much, would learn from it."""

from typing import Any

import pytest

from emptyset.errors import RecipeError
from emptyset.recipe import Recipe
from emptyset.recipe_text import read_marked

DISTILL = {"method": "distill", "steps": 5}
WITHOUT_IMAGES = {"method": "calibrate", "activation_values": "batch_norm"}
MADE = {"synthesize": {"method": "zeroq", "count": 6}}


def parsed(**sections: Any) -> Recipe:
    common = {"teacher": {"name": "embedded:digits-resnet"}, "source": {"method": "gdfq"}}
    return Recipe.parse(common | sections)


def refusal(**sections: Any) -> str:
    with pytest.raises(RecipeError) as error:
        parsed(**sections)
    return str(error.value)


def test_no_images_at_all_and_a_source_exclude_each_other() -> None:
    said = refusal(images="none", refine=[WITHOUT_IMAGES])
    assert said == "source: `images: none` and a `source`, which makes images, exclude each other."


@pytest.mark.parametrize(
    ("refine", "got"),
    [
        ([{"method": "calibrate"}], "no such refiner"),
        ([], "no such refiner"),
        ([DISTILL, DISTILL], "2 such refiners"),
        ([DISTILL, WITHOUT_IMAGES, DISTILL, DISTILL], "3 such refiners"),
    ],
)
@pytest.mark.parametrize("others", [{}, MADE], ids=["alone", "beside made images"])
def test_exactly_one_refiner_trains_it(refine: list[Any], got: str, others: dict[str, Any]) -> None:
    expected = f"is trained beside the student by one refiner, `distill`. Got {got}."
    assert refusal(refine=refine, **others) == f"source: {expected}"


# Everything but the source's own refiner has no images before the source is trained.
NEEDING: dict[str, tuple[dict[str, Any], str]] = {
    "mixed precision": ({"mixed_precision": {"budget": 0.5}}, "mixed_precision: needs images"),
    "selectors": ({"select": [{"method": "energy"}]}, "select: needs images"),
    "a refiner before": (
        {"refine": [{"method": "calibrate"}, DISTILL]},
        "refine.0.method: 'calibrate' as it is set needs images",
    ),
    "a refiner behind": (
        {"refine": [WITHOUT_IMAGES, DISTILL, {"method": "genie"}]},
        "refine.2.method: 'genie' as it is set needs images",
    ),
}


@pytest.mark.parametrize("case", NEEDING)
def test_what_needs_images_is_refused_where_there_are_none_yet(case: str) -> None:
    sections, said = NEEDING[case]
    message = refusal(**sections)
    assert message.startswith(said)
    assert message.endswith(
        ", and this recipe has none before its source is trained. Add `synthesize` or `images`."
    )


@pytest.mark.parametrize("case", NEEDING)
@pytest.mark.parametrize("images", [MADE, {"images": "photos"}], ids=["made", "real"])
def test_it_may_stand_beside_other_images(case: str, images: dict[str, Any]) -> None:
    recipe = parsed(**NEEDING[case][0], **images)
    assert recipe.source is not None


def test_what_needs_no_images_may_stand_before_it() -> None:
    recipe = parsed(refine=[WITHOUT_IMAGES, DISTILL])
    assert [section.method for section in recipe.refine] == ["calibrate", "distill"]


def test_where_nothing_is_said_it_is_trained_by_distill() -> None:
    recipe = parsed()
    assert [section.method for section in recipe.refine] == ["distill"]
    assert (recipe.synthesize, recipe.images) == (None, None)


def test_a_recipe_without_a_source_is_none_of_its_business() -> None:
    recipe = parsed(source=None, refine=[{"method": "calibrate"}, DISTILL, DISTILL])
    assert len(recipe.refine) == 3


def test_the_message_names_the_line() -> None:
    text = (
        "teacher: {name: 'embedded:digits-resnet'}\n"
        "source: {method: gdfq}\n"
        "refine:\n"
        "  - {method: bias_correction, statistics: empirical}\n"
        "  - {method: distill}\n"
    )
    with pytest.raises(RecipeError, match=r"^mine\.yaml:4: refine\.0\.method: 'bias_correction'"):
        Recipe.parse(*read_marked(text, "mine.yaml"))
