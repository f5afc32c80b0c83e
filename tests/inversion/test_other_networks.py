"""Further networks: named, or told in as many words as a recipe's teacher, and strictly checked."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from emptyset import pipeline
from emptyset.errors import RecipeError, TeacherError, UnknownNameError
from emptyset.inversion.other_networks import NetworkSection, named_network, network_section
from emptyset.recipe import Recipe, TeacherSection
from emptyset.synthesizers.deep_inversion import DeepInversion, DeepInversionConfig
from emptyset.synthesizers.mixmix import MixMix, MixMixConfig
from emptyset.teachers import load_teacher

NETS = """
from torch import nn


def build(classes=4, width=3):
    return nn.Sequential(
        nn.Conv2d(2, width, 3), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(width, classes),
    )
"""
INPUT = {"input": [2, 8, 9], "mean": [0.4, 0.5], "std": [0.25, 0.3]}


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A network of a user, with weights that the function alone would not give."""
    (tmp_path / "nets_beside.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(NETS, names)
    module: nn.Module = names["build"](width=5)
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=torch.Generator().manual_seed(3)) + 0.5)
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    return {
        "name": "file:w.safetensors", "model": "nets_beside:build", "model_args": {"width": 5},
        **INPUT,
    }  # fmt: skip


def test_a_section_has_the_keys_of_a_recipes_teacher() -> None:
    keys = {field.name for field in dataclasses.fields(NetworkSection)}
    assert keys == set(TeacherSection.model_fields)


@pytest.mark.parametrize("size", [[2, 8, 9], "2x8x9", " 2X8 x 9"])
def test_a_file_network_is_the_one_that_the_teacher_options_give(
    told: dict[str, Any], size: Any
) -> None:
    found = named_network(told | {"input": size}, "teachers", 0)
    expected = load_teacher(
        told["name"], model=told["model"], model_args={"width": 5}, input_shape=(2, 8, 9),
        mean=(0.4, 0.5), std=(0.25, 0.3),
    )  # fmt: skip
    assert found.weights_hash == expected.weights_hash
    assert found.input == expected.input
    # The same network by another key, with names of its classes.
    Path("names.txt").write_text("a\nb\nc\nd\n", encoding="utf-8")
    apart = told | {"name": "file:", "weights": "w.safetensors", "classes": "names.txt"}
    again = named_network(apart, "student")
    assert again.weights_hash == expected.weights_hash
    assert again.class_names == ("a", "b", "c", "d")


def test_a_name_is_enough_where_the_source_knows_the_rest() -> None:
    assert named_network("embedded:digits-resnet", "student").name == "embedded:digits-resnet"
    section = {"name": "embedded:digits-resnet", "model": None, "mean": None}
    assert named_network(section, "student").name == "embedded:digits-resnet"


FILE = {"name": "file:x", "model": "m:f", **INPUT}


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("file:x", r"'file:x' does not say .* Missing: model, input, mean, std\. Write"),
        ({"name": "file:x", "model": "m:f", "mean": [0.5]}, r"Missing: input, std\."),
        (FILE | {"modle": "m:f"}, r"teachers\.1\.modle: no such setting\. Did you mean 'model'\?"),
        (FILE | {"input": "3x32"}, r"teachers\.1: 'input' must be CxHxW.*Got '3x32'"),
        (FILE | {"mean": 0.5}, r"teachers\.1\.mean: expected a list, got the number 0\.5"),
        (FILE | {"model_args": [1]}, r"teachers\.1\.model_args: expected a section"),
        ({"model": "m:f"}, r"teachers\.1\.name: is required, but missing"),
        (3, r"teachers\.1: expected a network's name or a section .* got int"),
    ],
)
def test_what_is_wrong_is_named_by_its_key_before_anything_is_loaded(
    network: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        network_section(network, "teachers", 1)
    with pytest.raises(RecipeError, match=message):
        MixMixConfig(teachers=("timm:resnet18", network))


def test_the_section_that_the_message_proposes_is_one() -> None:
    with pytest.raises(RecipeError) as found:
        network_section("file:x", "student")
    proposed = yaml.safe_load(str(found.value).partition("for example ")[2])
    assert network_section(proposed, "student").shape() == (3, 32, 32)


def test_what_cannot_be_loaded_names_the_setting_and_whose_the_options_are(
    told: dict[str, Any],
) -> None:
    with pytest.raises(TeacherError, match=r"student: --model .*key of that name in this") as found:
        named_network(told | {"model": "nets_beside:biuld"}, "student")
    assert "Did you mean 'build'?" in str(found.value)
    with pytest.raises(UnknownNameError, match=r"teachers\.0: No source of teachers"):
        named_network("tim:resnet18", "teachers", 0)
    torch.save(load_teacher, "pickled.pt")
    with pytest.raises(TeacherError, match=r"teachers\.2: .*there is no --allow-pickle"):
        named_network(told | {"name": "file:pickled.pt"}, "teachers", 2)


def test_methods_ask_the_networks_that_a_recipe_tells(told: dict[str, Any]) -> None:
    teacher = named_network(told, "teacher")
    beside = told | {"name": "file:", "model_args": {"width": 7}}
    made = pipeline.synthesize(teacher, "mixmix", 5, steps=2, warm_up=1, roll=1, teachers=[beside])
    assert made.history[0]["settings"]["teachers"] == ["file:nets_beside:build"]
    method = MixMix(MixMixConfig(teachers=(told, beside))).method(teacher)
    assert method.others[0].weights_hash == teacher.weights_hash
    competing = DeepInversionConfig(
        steps=2, low_resolution_share=0.0, warm_up=1, roll=1, adaptive_weight=0.2, student=beside
    )
    images = DeepInversion(competing).synthesize(teacher, 4, seed=0)
    assert json.loads(json.dumps(images.history))[0]["settings"]["student"] == beside


def test_a_recipe_and_its_set_option_take_both_forms(told: dict[str, Any]) -> None:
    data = {
        "teacher": {"name": "embedded:digits-resnet"},
        "synthesize": {"method": "mixmix", "teachers": ["timm:resnet18", told]},
    }
    recipe = Recipe.parse(data)
    assert Recipe.parse(recipe.to_data()).hash() == recipe.hash()
    assert recipe.synthesize is not None
    assert recipe.synthesize.settings()["teachers"] == ["timm:resnet18", told]
    changed = recipe.changed([f"synthesize.teachers={json.dumps([told])}"])
    assert changed.synthesize is not None
    assert changed.synthesize.settings()["teachers"] == [told]
    with pytest.raises(RecipeError, match=r"synthesize: teachers\.0\.modle: no such setting"):
        recipe.changed(['synthesize.teachers=[{"name": "file:x", "modle": "m:f"}]'])
    with pytest.raises(
        RecipeError, match=r"synthesize\.teachers\.0: expected a text.*Or: expected a"
    ):
        recipe.changed(["synthesize.teachers=[3]"])
