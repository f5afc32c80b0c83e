"""AdaRound: less error per layer than rounding to nearest, codes at most one away from it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.reconstruction.units import weight_paths
from emptyset.refiners.adaround import AdaRound, AdaRoundConfig
from emptyset.refiners.calibrate import Calibrate, CalibrateConfig
from emptyset.teachers.teacher import InputSpec, Teacher


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.conv(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Two().requires_grad_(False).eval()
    return Teacher("test", module, InputSpec((3, 6, 7), (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    levels = torch.randn(22, 3, 1, 1, generator=generator)
    return ImageSet(levels + 0.5 * torch.randn(22, 3, 6, 7, generator=generator))


@pytest.fixture(scope="module")
def nearest(teacher: Teacher, images: ImageSet) -> Student:
    student = prepare(teacher, "w3a8", plan="every_layer")
    Calibrate(CalibrateConfig()).refine(student, images)
    return student


def learnt(student: Student, images: ImageSet, **settings: object) -> Student:
    student = student.copy()
    given = {"steps": 250, "batch_size": 8, "rounding_learning_rate": 2e-2} | settings
    AdaRound(AdaRoundConfig(**given)).refine(student, images, seed=2)
    return student


def test_a_layer_gives_less_error_than_rounded_to_nearest(
    teacher: Teacher, images: ImageSet, nearest: Student
) -> None:
    module = teacher.module
    expected = F.relu(module.conv(images.images))

    def error(student: Student) -> float:
        weight = student.quantizers["conv.weight"](student.program.get_parameter("conv.weight"))
        out = F.relu(F.conv2d(images.images, weight, module.conv.bias))
        return (out - expected).square().mean().item()

    assert error(learnt(nearest, images)) < 0.9 * error(nearest)


def test_codes_are_at_most_one_away_from_the_nearest(images: ImageSet, nearest: Student) -> None:
    student, moved = learnt(nearest, images), 0
    for name, path in weight_paths(nearest).items():
        before = nearest.quantizers[name].codes(nearest.program.get_parameter(path))
        after = student.quantizers[name].codes(student.program.get_parameter(path))
        assert (after - before).abs().max().item() <= 1
        moved += int((after != before).sum())
    assert moved > 5


def test_scales_and_activations_stay_as_they_are(images: ImageSet, nearest: Student) -> None:
    student = learnt(nearest, images, steps=20)
    for name, quantizer in nearest.quantizers.items():
        assert torch.equal(student.quantizers[name].scale, quantizer.scale)
        assert torch.equal(student.quantizers[name].zero_point, quantizer.zero_point)


def test_defaults_are_the_papers() -> None:
    course = AdaRoundConfig().course()
    config = course.config
    assert (course.steps, config.batch_size, config.rounding_learning_rate) == (10_000, 32, 1e-3)
    assert (config.penalty, config.warm_up, config.beta_start, config.beta_end) == (
        0.01,
        0.2,
        20,
        2,
    )
    assert (course.by_layer, course.inputs, course.activations) == (True, "quantized", False)
    assert course.prefix_activations
    assert not AdaRoundConfig(quantized_activations=False).course().prefix_activations
