"""Small teachers that the tests of the methods share."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from emptyset.teachers.teacher import InputSpec, Teacher

MakeTeacher = Callable[..., Teacher]


def _build(classes: int = 4, *, seed: int = 0, mean: float = 0.5, std: float = 0.25) -> Teacher:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, classes),
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        for norm in (module[1], module[4]):
            norm.weight.fill_(1.0)
            norm.running_mean.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
    module.requires_grad_(False).eval()
    return Teacher(f"test:{seed}", module, InputSpec((3, 8, 10), (mean,) * 3, (std,) * 3))


@pytest.fixture
def make_teacher() -> MakeTeacher:
    return _build


@pytest.fixture
def small_teacher() -> Teacher:
    return _build()
