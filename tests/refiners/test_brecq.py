"""BRECQ: rounding first, activation scales after; what its settings come to."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.refiners.brecq import Brecq, BrecqConfig
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import InputSpec, Teacher


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.linear = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.linear(F.relu(x + self.body(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    levels = torch.randn(22, 3, 1, 1, generator=generator)
    return ImageSet(levels + 0.5 * torch.randn(22, 3, 6, 7, generator=generator))


@pytest.fixture(scope="module")
def calibrated(images: ImageSet) -> Student:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Residual().requires_grad_(False).eval()
        module.linear.weight.mul_(200.0)  # answers that depend on every output
    teacher = Teacher("test", module, InputSpec((3, 6, 7), (0.5,) * 3, (0.25,) * 3))
    student = prepare(teacher, "w3a3", plan="edges_8bit")
    Calibrate(CalibrateConfig()).refine(student, images)
    return student


def learnt(student: Student, images: ImageSet, **settings: object) -> Student:
    student = student.copy()
    given = {"steps": 15, "activation_steps": 15, "batch_size": 8, "activation_images": 9}
    Brecq(BrecqConfig(**given | {"rounding_learning_rate": 5e-2} | settings)).refine(
        student, images, seed=2
    )
    return student


def scales(student: Student, *, weights: bool) -> list[Tensor]:
    return [q.scale for q in student.quantizers.values() if (q.axis is not None) == weights]


def test_weights_learn_rounding_and_activations_scales(
    images: ImageSet, calibrated: Student
) -> None:
    student = learnt(calibrated, images)
    for before, after in zip(
        scales(calibrated, weights=True), scales(student, weights=True), strict=True
    ):
        assert torch.equal(before, after)
    assert all(
        quantizer.rounding is not None
        for quantizer in student.quantizers.values()
        if quantizer.axis is not None
    )
    moved = [
        not torch.equal(before, after)
        for before, after in zip(
            scales(calibrated, weights=False), scales(student, weights=False), strict=True
        )
    ]
    assert all(moved)


def test_without_activation_steps_activations_stay(images: ImageSet, calibrated: Student) -> None:
    student = learnt(calibrated, images, activation_steps=0)
    for before, after in zip(
        scales(calibrated, weights=False), scales(student, weights=False), strict=True
    ):
        assert torch.equal(before, after)


def test_the_second_stage_leaves_the_codes_of_the_first(
    images: ImageSet, calibrated: Student
) -> None:
    first, both = (learnt(calibrated, images, activation_steps=n) for n in (0, 15))
    for name, quantizer in first.quantizers.items():
        if quantizer.axis is not None:
            assert torch.equal(quantizer.base_codes, both.quantizers[name].base_codes)
            assert torch.equal(quantizer.rounding, both.quantizers[name].rounding)


@pytest.mark.parametrize("weighting", ["fisher", "fisher_full"])
def test_weighting_changes_what_is_learnt(
    weighting: str, images: ImageSet, calibrated: Student
) -> None:
    plain, weighted = (
        learnt(calibrated, images, activation_steps=0, steps=240, weighting=one)
        for one in ("none", weighting)
    )
    differ = [
        not torch.equal(quantizer.rounding, weighted.quantizers[name].rounding)
        for name, quantizer in plain.quantizers.items()
        if quantizer.axis is not None
    ]
    assert any(differ)


def test_defaults_are_those_of_the_released_code() -> None:
    weights, activations = BrecqConfig().courses()
    config = weights.config
    assert (weights.steps, config.batch_size, config.rounding_learning_rate) == (20_000, 32, 1e-3)
    assert (config.penalty, config.warm_up, config.beta_start, config.beta_end) == (
        0.01,
        0.2,
        20,
        2,
    )
    assert (weights.inputs, weights.prefix_activations, weights.activations) == (
        "quantized", False, False,
    )  # fmt: skip
    assert (weights.exponent, weights.weighting) == (2.0, "none")
    assert (activations.steps, activations.activation_scale_rate) == (5_000, 4e-4)
    assert (activations.inputs, activations.exponent, activations.rounding) == ("float", 2.4, False)
    assert activations.search_images == 64


@pytest.mark.parametrize(("settings", "named"), [
    ({"weighting": "hessian"}, "weighting"), ({"activation_steps": -1}, "activation_steps"),
    ({"activation_exponent": 0.0}, "activation_exponent"),
    ({"activation_images": 0}, "activation_images"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        BrecqConfig(**settings)
