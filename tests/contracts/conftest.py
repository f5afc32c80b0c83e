"""A tiny teacher that every contract runs on."""

import pytest
import torch
from torch import nn

from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights


class Tiny(nn.Module):
    """Two convolutions with BatchNorm and a linear; 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 7, 3, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(7)
        self.linear = nn.Linear(7, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.linear(x.mean((2, 3)))


def build_tiny_teacher() -> Teacher:
    generator = torch.Generator().manual_seed(0)
    module = Tiny()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        for norm in (module.bn1, module.bn2):
            norm.weight.fill_(1.0)
            norm.running_mean.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
    module.requires_grad_(False).eval()
    spec = InputSpec((3, 8, 9), (0.5, 0.4, 0.45), (0.25, 0.2, 0.3))
    return Teacher("test:tiny", module, spec, weights_hash=hash_of_weights(module))


@pytest.fixture
def tiny_teacher() -> Teacher:
    return build_tiny_teacher()
