"""What is compared, as data: read strictly, written back, and explained where it is wrong."""

from pathlib import Path
from typing import Any

import pytest

from emptyset.comparison import comparison_for
from emptyset.comparison.settings import Comparison
from emptyset.errors import RecipeError
from emptyset.recipe import Recipe

DIGITS = {"name": "embedded:digits-resnet"}


def comparison(**values: Any) -> Comparison:
    data = {"teacher": DIGITS, "methods": [{"method": "zeroq"}, {"method": "dffg"}]}
    return Comparison.parse(data | values)


def test_defaults_are_one_budget_in_proportion_to_the_images_and_four_bits() -> None:
    found = comparison(count=70)
    assert found.budget.image_iterations == 7000
    assert found.recipe_sections() == {"plan": {"bits": "w4a4"}}
    assert Recipe.parse(found.recipe_data(found.methods[1])).plan.bits == "w4a4"


def test_it_reads_back_what_it_writes(tmp_path: Path) -> None:
    found = comparison(
        count=9, budget={"seconds": 2.5}, real="photos", clip="a/b", seed=3,
        plan={"bits": "w3a3", "name": "every_layer", "strict": True},
        refine=[{"method": "distill", "steps": 3}], memory=2.0,
        methods=[{"method": "dffg", "label": "a", "restart": True}, {"method": "dffg"}],
    )  # fmt: skip
    (tmp_path / "c.yaml").write_text(found.to_yaml(), encoding="utf-8")
    back = Comparison.load(tmp_path / "c.yaml")
    assert back == found
    assert back.hash() == found.hash() != comparison().hash()


def test_a_row_is_a_recipe_with_the_shared_sections() -> None:
    found = comparison(count=9, seed=4, refine=[{"method": "distill", "steps": 3}], real="photos")
    recipe = Recipe.parse(found.recipe_data(found.methods[1], {"steps": 31}))
    assert recipe.synthesize is not None
    assert recipe.synthesize.method == "dffg"
    assert recipe.synthesize.count == 9
    assert recipe.synthesize.settings() == {"steps": 31}
    assert recipe.refine[0].settings() == {"steps": 3}
    assert recipe.seed == 4
    real = Recipe.parse(found.real_recipe_data())
    assert (real.images, real.count, real.synthesize) == ("photos", 9, None)
    assert real.refine == recipe.refine


def test_a_setting_names_its_row_by_label_also_where_two_have_one_method() -> None:
    found = comparison_for(
        DIGITS, ["dffg", "v1.5=dffg"],
        settings=["methods.v1.5.momentum=0.5", "methods.dffg.restart=true", "plan.bits=w3a3"],
    )  # fmt: skip
    assert [row.name for row in found.methods] == ["dffg", "v1.5"]
    assert [row.settings() for row in found.methods] == [{"restart": True}, {"momentum": 0.5}]
    assert found.recipe_sections()["plan"]["bits"] == "w3a3"


def test_options_go_where_they_belong() -> None:
    base = Recipe.parse(
        {"teacher": {"name": "timm:other"}, "synthesize": {"method": "noise", "count": 3},
         "plan": {"name": "every_layer", "bits": "w5a5"}, "refine": [{"method": "distill"}],
         "evaluate": {"images": "elsewhere", "layer_images": 5}, "seed": 8}
    )  # fmt: skip
    found = comparison_for(DIGITS, ["zeroq"], base=base, bits="w3a3", seconds=4.0, count=6)
    sections = found.recipe_sections()
    assert found.teacher.name == DIGITS["name"]
    assert (found.seed, found.count, found.budget.seconds) == (8, 6, 4.0)
    assert (sections["plan"]["name"], sections["plan"]["bits"]) == ("every_layer", "w3a3")
    assert [section["method"] for section in sections["refine"]] == ["distill"]
    assert sections["evaluate"]["layer_images"] == 5
    assert "images" not in sections["evaluate"]
    own = comparison_for(DIGITS, ["zeroq"], own_settings=True, refine=["calibrate", "distill"])
    assert own.budget.own_settings
    assert [section["method"] for section in own.recipe_sections()["refine"]] == [
        "calibrate", "distill",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methods": []}, "methods"),
        ({"methods": [{"method": "zerok"}]}, "Did you mean 'zeroq'"),
        ({"methods": [{"method": "zeroq", "clp": True}]}, "clp"),
        ({"methods": [{"method": "zeroq", "steps": 5}]}, "the budget decides the steps"),
        ({"methods": [{"method": "zeroq"}] * 2}, "two rows are called 'zeroq'"),
        ({"methods": [{"method": "zeroq", "label": "real"}], "real": "x"}, "called 'real'"),
        ({"methods": [{"method": "zeroq", "label": "../up"}]}, "letters, digits"),
        ({"budget": {"seconds": 3.0, "image_iterations": 5}}, "exactly one of"),
        ({"budget": {}}, "exactly one of"),
        ({"budget": {"secs": 3}}, "Did you mean 'seconds'"),
        ({"budget": {"seconds": 0.0}}, "budget.seconds"),
        ({"budgt": {"seconds": 3.0}}, "Did you mean 'budget'"),
        ({"synthesize": {"method": "zeroq"}}, "under `methods`"),
        ({"images": "photos"}, "under `real`"),
        ({"evaluate": {"images": "y"}}, "judges on `labelled`. Write that"),
        ({"count": 1}, "at least 2"),
        ({"plan": {"bits": "w9"}}, "plan.bits"),
        ({"refine": [{"method": "calibrat"}]}, "Did you mean 'calibrate'"),
        ({"real": "x/../y", "labelled": "y"}, "is the same as `labelled`"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said.replace(".", r"\.")):
        comparison(**values)


def test_with_own_settings_steps_may_be_chosen() -> None:
    rows = [{"method": "zeroq", "steps": 5}]
    assert comparison(methods=rows, budget={"own_settings": True}).methods[0].settings() == {
        "steps": 5
    }


def test_messages_name_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(
        "teacher: {name: embedded:digits-resnet}\nmethods:\n- method: zeroq\n- method: dfg\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match=r"c\.yaml:4: methods\.1\.method: No synthesizer"):
        Comparison.load(path)
    path.write_text(
        "teacher: {name: embedded:digits-resnet}\nmethods: [{method: zeroq}]\nplan:\n  bits: 4\n",
        encoding="utf-8",
    )
    with pytest.raises(RecipeError, match=r"c\.yaml:4: plan\.bits: expected a text"):
        Comparison.load(path)
    with pytest.raises(RecipeError, match="cannot be read"):
        Comparison.load(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", ["=zeroq", "a="])
def test_a_row_without_label_or_method_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="LABEL=METHOD"):
        comparison_for(DIGITS, [text])
