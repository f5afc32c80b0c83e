"""Networks for the refiners that need no training, with statistics as training leaves them."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emptyset.images.image_set import ImageSet
from emptyset.teachers.teacher import InputSpec, Teacher, hash_of_weights


def block(inputs: int, outputs: int, size: int = 3, *, groups: int = 1) -> nn.Sequential:
    padding = size // 2
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Mobile(nn.Module):
    """Expand, filter, project twice, the second time around a shortcut; clips at 6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 4)
        self.expand, self.depthwise = block(4, 10, 1), block(10, 10, groups=10)
        self.project = block(10, 6, 1)
        self.again = nn.ModuleList([block(6, 12, 1), block(12, 12, groups=12), block(12, 6, 1)])
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu6(self.expand(F.relu6(self.stem(x))))))
        x = self.project(x)
        expand, depthwise, project = self.again
        x = x + project(F.relu(depthwise(F.relu(expand(x)))))
        return self.head(x.mean((2, 3)))


class Plain(nn.Module):
    """A chain of layers without padding, and a linear behind a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(6, 7, 1, bias=False), nn.BatchNorm2d(7), nn.ReLU())
        self.third = nn.Conv2d(7, 4, 3, bias=False)
        self.head = nn.Linear(4 * 3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.third(F.max_pool2d(self.second(self.first(x)), 2)))
        return self.head(x.flatten(1))


def teacher_of(
    module: nn.Module, seed: int = 0, shape: tuple[int, int, int] = (3, 8, 12)
) -> Teacher:
    """Frozen; weights of very different size per channel; statistics measured on its images."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() > 1:
                spread = torch.randn(len(parameter), generator=generator).exp()
                parameter.mul_(spread.view(-1, *[1] * (parameter.dim() - 1)))
        norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
        for norm in norms:
            norm.weight.uniform_(0.3, 2.5, generator=generator)
            norm.momentum = None
            norm.reset_running_stats()
        module.train()
        module(images(400, shape=shape).images)
    module.requires_grad_(False).eval()
    spec = InputSpec(shape, (0.5, 0.4, 0.45), (0.25, 0.2, 0.3))
    return Teacher("test:small", module, spec, weights_hash=hash_of_weights(module))


def images(count: int, seed: int = 1, shape: tuple[int, int, int] = (3, 8, 12)) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    # No pixel is darker than black or lighter than white.
    return ImageSet(torch.randn(count, *shape, generator=generator).clamp(-2.0, 3.0))


@pytest.fixture(scope="session")
def small() -> SimpleNamespace:
    """What this file defines, for tests that build their own."""
    return SimpleNamespace(
        Mobile=Mobile, Plain=Plain, block=block, images=images, teacher_of=teacher_of
    )
