"""The functions of the data flow, each alone."""

from pathlib import Path

import pytest
import torch
from small_teachers import two_convolutions
from torch import Tensor, nn

from emptyset import measurement, pipeline
from emptyset.errors import ImagesError, RecipeError, UnknownNameError
from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher


class SumOfPixels(nn.Module):
    """Logits that can be computed by hand: the sums of the three channels."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sum(dim=(2, 3))


TEACHER = Teacher("sums", SumOfPixels(), InputSpec((3, 2, 5), (0.5,) * 3, (0.25,) * 3))


def images(labels: list[int]) -> ImageSet:
    """Images whose channel `label` is the brightest."""
    pixels = torch.zeros(len(labels), 3, 2, 5)
    for index, label in enumerate(labels):
        pixels[index, label] = 1.0
    return ImageSet(pixels, torch.tensor(labels))


def test_measures_accuracy_and_agreement() -> None:
    shown = images([0, 1, 2, 2, 1, 0, 0])

    def two_wrong(batch: Tensor) -> Tensor:
        logits = batch.sum(dim=(2, 3))
        # Class 2 is never named: two of seven images change.
        logits[:, 2] = -9.0
        return logits

    found = measurement.measure(two_wrong, TEACHER, shown, batch_size=3)
    assert found.teacher is not None
    assert found.quantized is not None
    assert found.teacher.top1 == 1.0
    assert found.quantized.top1 == pytest.approx(5 / 7)
    assert found.agreement.share == pytest.approx(5 / 7)
    assert found.to_json()["agreement"]["count"] == 7


def test_without_class_indices_only_agreement_is_measured() -> None:
    shown = images([0, 1, 2])
    unlabelled = ImageSet(shown.images)
    soft = ImageSet(shown.images, torch.full((3, 3), 1 / 3))
    for some in (unlabelled, soft):
        assert not measurement.has_labels(some)
        found = measurement.measure(TEACHER, TEACHER, some)
        assert found.teacher is None
        assert found.quantized is None
        assert found.agreement.share == 1.0


def test_the_device_is_chosen_once_and_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pipeline.chosen_device("auto") == torch.device("cpu")
    with pytest.raises(RecipeError, match="no usable cuda"):
        pipeline.chosen_device("cuda")
    with pytest.raises(RecipeError, match="expected auto, cpu, cuda or mps"):
        pipeline.chosen_device("tpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pipeline.chosen_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pipeline.chosen_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(
    ("shape", "expected"),
    # 256 images of 3 x 64 x 64 hold as many numbers as 20.9 of 3 x 224 x 224.
    [((3, 32, 32), 256), ((3, 64, 64), 256), ((3, 224, 224), 20), ((3, 4096, 4096), 1)],
)
def test_batches_shrink_as_images_grow(shape: tuple[int, int, int], expected: int) -> None:
    assert measurement.batch_size_for(shape) == expected


def test_images_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImagesError, match=r"photos: there is no such file or folder of images"):
        pipeline.images_from(tmp_path / "photos", TEACHER)


@pytest.mark.parametrize(
    ("network", "doubted"),
    [("right", False), ("one of three", True), ("always the first", True)],
)
def test_a_float_network_that_only_guesses_casts_doubt_on_its_images(
    network: str, doubted: bool
) -> None:
    shown = images([0, 1, 2] * 7)

    def teacher(batch: Tensor) -> Tensor:
        logits = batch.sum(dim=(2, 3))
        if network == "one of three":
            # Of 21 images 7 stay right, as many as by chance.
            return logits.roll(1, dims=0)[:, [0, 2, 1]]
        return logits if network == "right" else torch.eye(3)[:1].expand(len(batch), 3)

    doubt = measurement.measure(TEACHER, teacher, shown).doubt()
    assert (doubt is not None) == doubted
    if doubt is not None:
        assert "33.3% of these images" in doubt
        assert "3 classes" in doubt


def test_without_labels_there_is_no_doubt() -> None:
    assert measurement.measure(TEACHER, TEACHER, ImageSet(images([0, 1]).images)).doubt() is None


def test_a_plain_tensor_is_no_set_of_images() -> None:
    student = pipeline.prepare(two_convolutions(), "w8a8")
    with pytest.raises(ImagesError, match=r"got a Tensor.*emptyset\.ImageSet\(tensor\)"):
        pipeline.refine(student, torch.zeros(4, 3, 8, 8), "calibrate")


@pytest.mark.parametrize("method", ["noise", "zeroq"])
def test_images_made_into_shards_are_those_made_in_memory(tmp_path: Path, method: str) -> None:
    settings = {} if method == "noise" else {"steps": 2, "batch_size": 3}
    teacher = two_convolutions()
    expected = pipeline.synthesize(teacher, method, 7, seed=4, **settings)
    card = pipeline.synthesize_to(tmp_path, teacher, method, 7, seed=4, per_shard=5, **settings)
    assert card["digest"] == expected.digest()
    assert [p.name for p in sorted(tmp_path.glob("*.tar"))] == [
        "images-000000.tar",
        "images-000001.tar",
    ]
    (batch,) = pipeline.images_from(tmp_path, teacher).batches(7)
    assert torch.equal(batch.images, expected.images)
    with pytest.raises(ImagesError, match=r"at least 1 image\. Got 0 per shard"):
        pipeline.synthesize_to(tmp_path / "x", teacher, method, 7, per_shard=0, **settings)


def test_unknown_methods_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'zeroq'"):
        pipeline.synthesize(TEACHER, "zeroqq")
    with pytest.raises(UnknownNameError, match="Did you mean 'energy'"):
        pipeline.select(images([0, 1]), TEACHER, "energi")
    with pytest.raises(UnknownNameError, match="Did you mean 'integer'"):
        pipeline.prepare(TEACHER, plan="integr")


def test_a_teacher_in_training_mode_is_measured_as_in_eval_mode_and_stays_as_it_was() -> None:
    teacher = two_convolutions()
    shown = ImageSet(torch.randn(9, 3, 8, 12, generator=torch.Generator().manual_seed(2)))
    with torch.no_grad():
        expected = teacher.module(shown.images)
    teacher.module.train()
    before = {name: value.clone() for name, value in teacher.module.state_dict().items()}
    torch.testing.assert_close(measurement.predictor(teacher)(shown.images), expected)
    found = teacher.module.state_dict()
    assert all(torch.equal(found[name], value) for name, value in before.items())
    assert all(module.training for module in teacher.module.modules())
