"""Recipes: strict, with a message that says where, what was expected, what came, what to do."""

from pathlib import Path
from typing import Any

import pytest

from emptyset.errors import RecipeError, UnknownNameError
from emptyset.recipe import Recipe, find_recipe

GOOD = """\
# A recipe.
seed: 3
teacher: {name: "embedded:digits-resnet"}
synthesize:
  method: zeroq
  count: 32
  steps: 7
plan: {name: integer, bits: w4a8}
refine:
  - method: calibrate
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message_of(folder: Path, text: str, settings: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeError) as caught:
        Recipe.load(written(folder, text), settings)
    return str(caught.value).replace(str(folder), "")


def test_reads_every_section(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, GOOD))
    assert recipe.seed == 3
    assert recipe.teacher.name == "embedded:digits-resnet"
    assert recipe.synthesize is not None
    assert (recipe.synthesize.method, recipe.synthesize.count) == ("zeroq", 32)
    assert recipe.synthesize.settings() == {"steps": 7}
    assert recipe.plan.bits == "w4a8"
    assert [section.method for section in recipe.refine] == ["calibrate"]


def test_written_yaml_reads_back_equal(tmp_path: Path) -> None:
    recipe = Recipe.load(written(tmp_path, GOOD))
    again = Recipe.load(written(tmp_path, recipe.to_yaml()))
    assert again == recipe
    assert again.hash() == recipe.hash()


def test_the_hash_ignores_order_and_comments_but_no_value(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    turned = "\n".join([*lines[3:], *lines[1:3]])
    assert (
        Recipe.load(written(tmp_path, turned)).hash() == Recipe.load(written(tmp_path, GOOD)).hash()
    )
    changed = GOOD.replace("steps: 7", "steps: 8")
    assert (
        Recipe.load(written(tmp_path, changed)).hash()
        != Recipe.load(written(tmp_path, GOOD)).hash()
    )


def test_a_typo_in_a_method_names_line_and_nearest_setting(tmp_path: Path) -> None:
    said = message_of(tmp_path, GOOD.replace("steps: 7", "stpes: 7"))
    assert "r.yaml:7: synthesize.stpes: zeroq has no such setting. Did you mean 'steps'?" in said
    assert "Settings: method, count, " in said


@pytest.mark.parametrize(
    ("good", "bad", "expected"),
    [
        ("seed: 3", "sead: 3", "r.yaml:2: sead: no such setting. Did you mean 'seed'?"),
        ("steps: 7", "steps: many", "r.yaml:7: synthesize.steps: expected a whole number, got "
         "the text 'many'."),
        ("steps: 7", "learning_rate: 1e-3", "r.yaml:7: synthesize.learning_rate: expected a "
         "number, got the text '1e-3'. YAML reads 1e-3 as text; write 1.0e-3."),
        ("steps: 7", "steps: 7.5", "r.yaml:7: synthesize.steps: expected a whole number, got the "
         "number 7.5."),
        ("method: zeroq", "method: zerok", "r.yaml:5: synthesize.method: No synthesizer is called "
         "'zerok'. Did you mean 'zeroq'?"),
        ("bits: w4a8", "bits: w4", "r.yaml:8: plan.bits: bits: expected w<bits>a<bits>"),
        ("bits: w4a8", "bits: w0a4", "r.yaml:8: plan.bits: bits: weights must have 2 to 8"),
        ("bits: w4a8", "bits: w4a99", "r.yaml:8: plan.bits: bits: activations must have 2 to 8"),
        ("name: integer", "name: integr", "r.yaml:8: plan.name: No plan is called 'integr'."),
        ("bits: w4a8", "bits: w4a8, batch_norm: none", "r.yaml:8: plan.batch_norm: expected "
         "'fold' or 'frozen', got the text 'none'."),
        ("- method: calibrate", "- method: calibrat", "r.yaml:10: refine.0.method: No refiner is "
         "called 'calibrat'. Did you mean 'calibrate'?"),
        ("count: 32", "count: 0", "r.yaml:6: synthesize.count"),
        ('name: "embedded:digits-resnet"', 'nam: "x"', "r.yaml:3: teacher.nam: no such setting."),
        ("seed: 3", "images: none", "a recipe has either `images` or `synthesize`"),
        ("seed: 3", "seed: 3\nseed: 4", "r.yaml:3: 'seed' is written twice."),
        ("seed: 3", "seed: [1", "not readable as YAML"),
        ("count: 32", "cuont: 32", "r.yaml:6: synthesize.cuont: zeroq has no such setting. Did "
         "you mean 'count'?"),
    ],
)  # fmt: skip
def test_a_mistake_is_explained(tmp_path: Path, good: str, bad: str, expected: str) -> None:
    said = message_of(tmp_path, GOOD.replace(good, bad))
    assert expected in said


def test_a_required_value_that_is_missing_is_named(tmp_path: Path) -> None:
    assert "teacher: is required, but missing." in message_of(tmp_path, "seed: 1\n")


def test_several_mistakes_are_told_together(tmp_path: Path) -> None:
    said = message_of(tmp_path, GOOD.replace("seed: 3", "sead: 3").replace("w4a8", "w4"))
    assert "r.yaml:2: sead" in said
    assert "r.yaml:8: plan.bits" in said


def test_set_changes_values_and_is_named_in_messages(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    recipe = Recipe.load(path, ["synthesize.steps=9", "seed=5", "plan.overrides.layer1.0=w8a8"])
    assert recipe.synthesize is not None
    assert recipe.synthesize.settings() == {"steps": 9}
    assert recipe.seed == 5
    assert recipe.plan.overrides == {"layer1.0": "w8a8"}
    said = message_of(tmp_path, GOOD, ("synthesize.stpes=9",))
    assert "--set synthesize.stpes=9: synthesize.stpes: zeroq has no such setting." in said
    said = message_of(tmp_path, GOOD, ("clip=true",))
    assert "a method has its section before it, as in synthesize.clip." in said
    assert "expected KEY=VALUE" in message_of(tmp_path, GOOD, ("steps",))
    assert "has no item 'brecq'" in message_of(tmp_path, GOOD, ("refine.brecq.steps=1",))


def test_a_list_item_is_set_by_number_or_by_method(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    by_number = Recipe.load(path, ["refine.0.batch_size=16"])
    by_method = Recipe.load(path, ["refine.calibrate.batch_size=16"])
    assert by_number == by_method
    assert by_number.refine[0].settings() == {"batch_size": 16}


def test_images_and_synthesize_exclude_each_other(tmp_path: Path) -> None:
    said = message_of(tmp_path, GOOD + "images: photos\n")
    assert "r.yaml:11: images: a recipe has either `images` or `synthesize`." in said


@pytest.mark.parametrize("value", ["3x32x32", [3, 32, 32]], ids=["as text", "as a list"])
def test_input_size_is_read_from_text_or_list(value: Any) -> None:
    recipe = Recipe.parse({"teacher": {"name": "file:w", "input": value}})
    assert recipe.teacher.input == (3, 32, 32)


def test_input_size_of_another_form_is_refused() -> None:
    with pytest.raises(RecipeError, match="expected channels x height x width"):
        Recipe.parse({"teacher": {"name": "file:w", "input": "32x32"}})


def test_what_a_recipe_says_about_itself_decides_nothing() -> None:
    silent = Recipe.parse({"teacher": {"name": "timm:x"}})
    told = Recipe.parse({"teacher": {"name": "timm:x"}, "about": "chosen by hand"})
    assert told.hash() == silent.hash()
    assert told.decisive_data() == silent.to_data()
    assert Recipe.parse(told.to_data()) == told
    # It was said of another recipe than the changed one.
    assert told.changed(["seed=3"]).about is None
    assert told.changed(["about=mine"]).about == "mine"


def test_an_unknown_recipe_name_is_explained(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine_w8a8.yaml").write_text(GOOD, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("mine_w8a8") == Path("recipes/mine_w8a8.yaml")
    with pytest.raises(UnknownNameError, match="Did you mean 'mine_w8a8'"):
        find_recipe("mine_w8a9")
    with pytest.raises(UnknownNameError, match="no such recipe file"):
        find_recipe("other.yaml")
