"""QDrop: what its settings come to, and that it learns rounding and activation scales at once."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.refiners.qdrop import QDrop, QDropConfig
from emptyset.teachers.teacher import InputSpec, Teacher


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 7, 3)
        self.linear = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Chain().requires_grad_(False).eval()
    return Teacher("test", module, InputSpec((3, 8, 7), (0.5,) * 3, (0.25,) * 3))


@pytest.fixture(scope="module")
def images() -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    levels = torch.randn(22, 3, 1, 1, generator=generator)
    return ImageSet(levels + 0.5 * torch.randn(22, 3, 8, 7, generator=generator))


def learnt(teacher: Teacher, images: ImageSet, **settings: object) -> Student:
    student = prepare(teacher, "w3a3", plan="edges_8bit")
    given = {"steps": 20, "batch_size": 8, "rounding_learning_rate": 5e-2} | settings
    QDrop(QDropConfig(**given)).refine(student, images, seed=2)
    return student


def test_a_student_without_ranges_is_calibrated_first(teacher: Teacher, images: ImageSet) -> None:
    student = learnt(teacher, images, steps=0)
    assert all(bool(quantizer.calibrated) for quantizer in student.quantizers.values())


def test_rounding_and_activation_scales_are_learnt_and_weight_scales_stay(
    teacher: Teacher, images: ImageSet
) -> None:
    start, student = learnt(teacher, images, steps=0), learnt(teacher, images)
    moved = {"scale": 0, "rounding": 0}
    for name, quantizer in start.quantizers.items():
        other = student.quantizers[name]
        if quantizer.axis is None:
            moved["scale"] += int(not torch.equal(quantizer.scale, other.scale))
        else:
            assert torch.equal(quantizer.scale, other.scale)
            moved["rounding"] += int((quantizer.rounding != other.rounding).sum())
    assert moved["scale"] >= 1
    assert moved["rounding"] > 10


def test_what_is_dropped_decides_what_is_learnt(teacher: Teacher, images: ImageSet) -> None:
    half, nothing = (learnt(teacher, images, kept=kept) for kept in (0.5, 1.0))
    weight = "second.weight"
    assert not torch.equal(half.quantizers[weight].rounding, nothing.quantizers[weight].rounding)


def test_defaults_are_those_of_the_released_code() -> None:
    course = QDropConfig().course()
    config = course.config
    assert (course.steps, config.batch_size, config.rounding_learning_rate) == (20_000, 32, 1e-3)
    assert (config.penalty, config.warm_up, config.beta_start, config.beta_end) == (
        0.01,
        0.2,
        20,
        2,
    )
    assert (course.activation_scale_rate, course.weight_scale_rate) == (4e-5, 0.0)
    assert course.scale_gradient_factor
    assert (course.inputs, course.kept, course.mask, course.order) == (
        "mixed", 0.5, "code", "replacement",
    )  # fmt: skip


@pytest.mark.parametrize(("settings", "named"), [
    ({"kept": 1.5}, "kept"),
    ({"activation_scale_learning_rate": -1.0}, "activation_scale_learning_rate"),
])  # fmt: skip
def test_settings_that_cannot_be_are_refused_by_name(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        QDropConfig(**settings)
