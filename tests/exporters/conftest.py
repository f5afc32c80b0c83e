"""Small networks of one's own, as teachers and as calibrated students."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.exporters.onnx import Artefact, export
from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import InputSpec, Teacher

SHAPE = (3, 8, 10)


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks draw their weights the same in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture
def teacher_of() -> Callable[..., Teacher]:
    def make(module: nn.Module, shape: tuple[int, int, int] = SHAPE) -> Teacher:
        """Frozen, in eval mode, every BatchNorm with statistics as training leaves them."""
        for norm in module.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_var is not None:
                nn.init.normal_(norm.running_mean, std=0.3)
                nn.init.uniform_(norm.running_var, 0.3, 2.0)
                if norm.affine:
                    nn.init.uniform_(norm.weight, 0.5, 1.5)
                    nn.init.normal_(norm.bias, std=0.3)
        module.requires_grad_(False).eval()
        return Teacher("test", module, InputSpec(shape, (0.5,) * shape[0], (0.25,) * shape[0]))

    return make


@pytest.fixture
def calibrated(teacher_of: Callable[..., Teacher]) -> Callable[..., tuple[Student, ImageSet]]:
    def make(
        module: nn.Module,
        bits: str = "w8a8",
        *,
        shape: tuple[int, int, int] = SHAPE,
        **options: Any,
    ) -> tuple[Student, ImageSet]:
        student = prepare(teacher_of(module, shape), bits, **options)
        images = ImageSet(torch.randn(7, *shape))
        entry = refiners.get("calibrate")
        entry.make(entry.config()).refine(student, images, seed=0)
        return student, images

    return make


@pytest.fixture
def exported(
    calibrated: Callable[..., tuple[Student, ImageSet]], tmp_path: Path
) -> Callable[..., tuple[Student, ImageSet, Artefact]]:
    def make(module: nn.Module, bits: str = "w8a8", **options: Any) -> Any:
        student, images = calibrated(module, bits, **options)
        return student, images, export(student, tmp_path / "model.onnx")

    return make


class Small(nn.Module):
    """Two convolutions, a residual addition, an average, a linear: every kind of rewriting."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.third = nn.Conv2d(6, 7, 3)
        self.last = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.norm(self.second(x)) + x)
        return self.last(F.relu6(self.third(x)).mean((2, 3)))


@pytest.fixture
def small() -> nn.Module:
    return Small()


@pytest.fixture
def calibrate() -> Callable[[Student, Tensor], ImageSet]:
    def run(student: Student, images: Tensor) -> ImageSet:
        """Give the student its ranges; the images as a set."""
        entry, stored = refiners.get("calibrate"), ImageSet(images)
        entry.make(entry.config()).refine(student, stored, seed=0)
        return stored

    return run
