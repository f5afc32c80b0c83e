"""Networks of a test's own as teachers and as calibrated students."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from emptyset.graph.student import Student, prepare
from emptyset.images.image_set import ImageSet
from emptyset.registry import refiners
from emptyset.teachers.teacher import InputSpec, Teacher

SHAPE = (3, 8, 10)


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
