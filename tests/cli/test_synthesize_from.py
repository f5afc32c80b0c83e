"""`emptyset synthesize TEACHER --from FILE`: images of a generator that a run trained."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import emptyset
from emptyset.generators.generator_file import save_generator
from emptyset.images.image_set import ImageSet

DIGITS = "embedded:digits-resnet"
# Batches and images of each that the generators were trained on.
BATCHES, BATCH = 2, 5
SETTINGS: dict[str, dict[str, Any]] = {
    "qimera": {"mapped": 6, "superposed_classes": 3, "superposed_share": 0.5},
    "gdfq": {"latent": 6},
    "zaq": {"latent": 6},
}


@pytest.fixture(scope="module")
def teacher() -> Any:
    return emptyset.load(DIGITS)


@pytest.fixture(scope="module")
def trained(teacher: Any) -> dict[str, Any]:
    """Sources after a few lessons."""
    found = {}
    for name, settings in SETTINGS.items():
        source = emptyset.source(teacher, name, widths=(5, 4), **settings)
        source.begin(BATCHES, BATCH)
        for _ in range(BATCHES):
            source.next_batch(BATCH)
        found[name] = source
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, trained: dict[str, Any]) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("generators")
    for name, source in trained.items():
        save_generator(source, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in trained}


@pytest.fixture
def draw(command: Any, tmp_path: Path) -> Any:
    """The command; images go to a folder of the test."""

    def run(file: Path, *options: object, name: str = DIGITS) -> Any:
        out = ["--out", tmp_path / "drawn", "--device", "cpu", "-q"]
        return command("synthesize", name, "--from", file, *out, *options)

    return run


def test_more_images_than_it_was_trained_on_and_their_soft_labels(
    draw: Any, files: dict[str, Path], trained: dict[str, Any], tmp_path: Path
) -> None:
    count = 37
    assert count > BATCHES * BATCH
    result = draw(files["qimera"], "--count", count, "--seed", 4, "--json")
    assert result.exit_code == 0, result.output
    told, found = json.loads(result.stdout), ImageSet.load(tmp_path / "drawn")
    # The source that was never written and read.
    expected = trained["qimera"].drawn(count, seed=4)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.targets, expected.targets)
    assert (told["count"], told["digest"]) == (count, expected.digest())
    assert len(found.images.flatten(1).unique(dim=0)) == count
    assert found.targets.shape == (count, 10)
    torch.testing.assert_close(found.targets.sum(1), torch.ones(count))
    together = (found.targets > 0).sum(1)
    # Single classes, and up to three at once, drawn with replacement.
    assert (int(together.min()), int(together.max())) == (1, 3)
    (entry,) = found.history
    assert (entry["method"], entry["count"], entry["draw_seed"]) == ("qimera", count, 4)
    assert entry["lessons"] == BATCHES


def test_a_generator_draws_into_shards_what_it_draws_into_one_file(
    draw: Any, files: dict[str, Path], trained: dict[str, Any], tmp_path: Path
) -> None:
    result = draw(files["qimera"], "--count", 13, "--seed", 4, "--shards", 6, "--json")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert names == ["card.json", *(f"images-00000{number}.tar" for number in range(3))]
    expected, found = trained["qimera"].drawn(13, seed=4), ImageSet.load(tmp_path / "drawn")
    assert json.loads(result.stdout)["digest"] == expected.digest() == found.digest()
    assert torch.equal(found.targets, expected.targets)


@pytest.mark.parametrize(("name", "labelled"), [("gdfq", True), ("zaq", False)])
def test_labels_are_kept_as_the_method_has_them(
    draw: Any, files: dict[str, Path], tmp_path: Path, name: str, labelled: bool
) -> None:
    assert draw(files[name], "--count", 12).exit_code == 0
    targets = ImageSet.load(tmp_path / "drawn").targets
    assert (targets is not None) is labelled
    if labelled:
        assert targets.shape == (12,)
        assert set(targets.tolist()) <= set(range(10))


def test_a_seed_gives_its_images_and_another_one_others(draw: Any, files: dict[str, Path]) -> None:
    digests = []
    for seed in (0, 0, 1):
        result = draw(files["gdfq"], "--count", 3, "--seed", seed, "--overwrite", "--json")
        digests.append(json.loads(result.stdout)["digest"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--method", "zeroq"], "--method"),
        (["--set", "superposed_share=0.9"], "--set"),
        (["--method", "qimera", "--set", "steps=3"], "--method"),
    ],
)
def test_settings_were_fixed_in_training(
    draw: Any, files: dict[str, Path], tmp_path: Path, options: list[str], named: str
) -> None:
    result = draw(files["qimera"], "--count", 4, *options)
    assert result.exit_code == 2
    assert f"{named}: --from draws from a generator whose method" in result.stderr
    assert f"Leave {named} out." in result.stderr
    assert not (tmp_path / "drawn").exists()


def test_a_file_that_is_no_generator_is_refused(draw: Any, tmp_path: Path) -> None:
    student = tmp_path / "student.safetensors"
    save_file({"weight": torch.ones(2, 3)}, student)
    for path, said in (
        (student, "is no generator"),
        (tmp_path / "missing", "not a readable"),
        (tmp_path, "is a folder. Give the generator.safetensors"),
    ):
        result = draw(path, "--count", 4)
        assert result.exit_code == 2, result.output
        assert f"{path}: {said}" in result.stderr
        assert not (tmp_path / "drawn").exists()


def test_another_teacher_is_refused(draw: Any, files: dict[str, Path], tmp_path: Path) -> None:
    result = draw(files["gdfq"], "--count", 4, name="embedded:digits-mobilenet")
    assert result.exit_code == 2
    assert "was trained for another teacher" in result.stderr
    assert not (tmp_path / "drawn").exists()


def test_images_that_are_there_stay_unless_told(
    draw: Any, files: dict[str, Path], tmp_path: Path
) -> None:
    assert draw(files["gdfq"], "--count", 3).exit_code == 0
    refused = draw(files["gdfq"], "--count", 4)
    assert refused.exit_code == 5
    assert "--overwrite replaces them" in refused.stderr
    assert len(ImageSet.load(tmp_path / "drawn")) == 3
    assert draw(files["gdfq"], "--count", 4, "--overwrite").exit_code == 0
    assert len(ImageSet.load(tmp_path / "drawn")) == 4


def test_reconstruction_takes_its_images(
    draw: Any, files: dict[str, Path], tmp_path: Path, teacher: Any
) -> None:
    assert draw(files["qimera"], "--count", 9).exit_code == 0
    images = emptyset.images_from(tmp_path / "drawn", teacher)
    assert len(images) == 9
    student = emptyset.prepare(teacher, "w4a8")
    emptyset.refine(student, images, "calibrate")
    before = {name: value.clone() for name, value in student.state_dict().items()}
    emptyset.refine(student, images, "genie", steps=2, batch_size=4)
    (record,) = student.records
    assert [block["steps"] for block in record["blocks"]] == [2] * len(record["blocks"])
    assert len(record["blocks"]) > 3
    after = student.state_dict()
    # Rounding is learnt now where it was to nearest before.
    assert after.keys() - before.keys()
    with torch.no_grad():
        assert bool(torch.isfinite(student(images.image_set().images)).all())
