"""Labels on their way from files into training, and image sets in shards, from the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored_arrays import arrays_of

from emptyset.images.image_set import ImageSet
from emptyset.teachers.embedded import train_images_path

DIGITS = "embedded:digits-resnet"
RECIPE = """
teacher: {{name: "embedded:digits-resnet"}}
device: cpu
images: {images}
plan: {{name: every_layer, bits: w4a4, batch_norm: frozen}}
refine:
  - {{method: distill, preset: published, steps: 4, batch_size: 5, {settings}}}
evaluate: {{layer_images: 2, latency_rounds: 1}}
"""


def distilled(
    command: Any, folder: Path, images: Path, settings: str = "cross_entropy: 1.0"
) -> Any:
    """`emptyset run` of a recipe that learns from labels."""
    recipe = folder / "labels.yaml"
    recipe.write_text(RECIPE.format(images=images, settings=settings), encoding="utf-8")
    return command("run", recipe, "--out", folder / "run", "--json", "-q")


def labelled(path: Path, label: int) -> Path:
    """A few real digits that are all called alike."""
    images = arrays_of(train_images_path())["images"][:12]
    np.savez(path, images=images, labels=np.full(12, label))
    return path


@pytest.mark.parametrize("label", [12, -1])
@pytest.mark.parametrize("settings", ["cross_entropy: 1.0", "cross_entropy: 0.0, mixing: mixup"])
def test_a_label_that_is_no_class_is_explained(
    tmp_path: Path, command: Any, label: int, settings: str
) -> None:
    result = distilled(command, tmp_path, labelled(tmp_path / "digits.npz", label), settings)
    assert result.exit_code == 2, result.output
    said = f"distill: labels run from {label} to {label}, but the teacher has 10 classes (0 to 9)"
    assert said in result.stderr
    assert "defect" not in result.stderr


def mixed(command: Any, out: Path, *options: str) -> ImageSet:
    """Images with two labels each, as MixMix mixes them, stored."""
    result = command(
        "synthesize", DIGITS, "--method", "mixmix", "--count", 12, "--set", "steps=2",
        "--set", "batch_size=7", "--device", "cpu", "-q", *options, "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return ImageSet.load(out)


def test_soft_labels_are_learnt_from_after_they_were_stored(tmp_path: Path, command: Any) -> None:
    targets = mixed(command, tmp_path / "made").targets
    assert targets is not None
    assert targets.shape == (12, 10)
    result = distilled(command, tmp_path, tmp_path / "made")
    assert result.exit_code == 0, result.output
    metrics = json.loads(result.stdout)["metrics"]
    assert metrics["images"]["history"][0]["method"] == "mixmix"
    assert metrics["image_quality"]["images"]["diversity"]["labelled"] is True


@pytest.mark.parametrize("options", [[], ["--shards", "5"]], ids=["one file", "shards"])
def test_the_classes_of_soft_labels_are_judged_shown_and_selected(
    tmp_path: Path, command: Any, options: list[str]
) -> None:
    made, page = tmp_path / "made", tmp_path / "page.html"
    targets = mixed(command, made, *options).targets
    assert targets is not None
    arguments = ["evaluate", made, "--teacher", DIGITS, "--device", "cpu", "-q"]
    result = command(*arguments, "--json", "--report", page)
    assert result.exit_code == 0, result.output
    assert page.is_file()
    told = json.loads(result.stdout)["images"]["diversity"]
    assert told["labelled"] is True
    assert told["class_agreement"] is not None
    assert told["classes"] == len(set(targets.argmax(dim=1).tolist()))

    kept = tmp_path / "kept"
    selected = command("select", made, DIGITS, "--set", "keep=0.5", "--out", kept, "--json")
    assert selected.exit_code == 0, selected.output
    found = ImageSet.load(kept)
    assert found.targets is not None
    rows = [row for row in targets if any(torch.equal(row, other) for other in found.targets)]
    assert len(rows) == len(found) < 12


def test_images_of_another_normalisation_are_not_selected(tmp_path: Path, command: Any) -> None:
    made, other = tmp_path / "made", ["--mean", "0.1", "--std", "0.9"]
    arguments = ["synthesize", DIGITS, "--count", "4", "--set", "steps=2", "--device", "cpu", "-q"]
    assert command(*arguments, *other, "--out", made).exit_code == 0
    result = command("select", made, DIGITS, "--set", "keep=0.5", "--out", tmp_path / "kept")
    assert result.exit_code == 2, result.output
    assert "Give the same --mean" in result.stderr
    assert not (tmp_path / "kept").exists()
    again = command("select", made, DIGITS, *other, "--set", "keep=0.5", "--out", tmp_path / "kept")
    assert again.exit_code == 0, again.output


def test_shards_hold_what_one_file_would(tmp_path: Path, command: Any) -> None:
    arguments = ["synthesize", DIGITS, "--count", "7", "--set", "steps=2", "--device", "cpu", "-q"]
    told = {}
    for name, options in (("whole", []), ("shards", ["--shards", "3"])):
        result = command(*arguments, *options, "--out", tmp_path / name, "--json")
        assert result.exit_code == 0, result.output
        told[name] = json.loads(result.stdout)
    assert told["whole"]["digest"] == told["shards"]["digest"]
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == ["card.json", *(f"images-00000{number}.tar" for number in range(3))]
    assert ImageSet.load(tmp_path / "shards").digest() == told["whole"]["digest"]
    refused = command(*arguments, "--out", tmp_path / "shards")
    assert refused.exit_code == 5
    assert command(*arguments, "--out", tmp_path / "shards", "--overwrite").exit_code == 0
    names = sorted(path.name for path in (tmp_path / "shards").iterdir())
    assert names == ["card.json", "images.safetensors"]


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_images_are_not_written_into_a_run(
    overwrite: list[str], tmp_path: Path, command: Any
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("mine", encoding="utf-8")
    images = ImageSet(torch.zeros(3, 1, 16, 16))
    images.save(tmp_path / "images")
    out = ["--out", tmp_path / "run", *overwrite]
    for asked in (
        ["synthesize", DIGITS, "--count", "2", *out],
        ["select", tmp_path / "images", DIGITS, *out],
    ):
        result = command(*asked)
        assert result.exit_code == 5, result.output
        assert "holds a run (recipe.yaml)" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["recipe.yaml"]
