"""Plain loops, as released codes run them: nothing frozen, nothing fused, one thing at a time.

Written from the papers' settings. Teacher weights carry gradients, NCHW, float32, eager, torch's
own statistics, optimisers and schedules, the loss read in every step.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from torch.optim.lr_scheduler import ExponentialLR, ReduceLROnPlateau

LATENT = 256
EPSILON = 1e-6


def generator_network(size: int) -> nn.Sequential:
    """Genie's generator for images of ``size`` x ``size`` pixels."""
    small = size // 4
    return nn.Sequential(
        nn.Linear(LATENT, 128 * small * small),
        nn.Unflatten(1, (128, small, small)),
        nn.BatchNorm2d(128),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(128, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.LeakyReLU(0.2),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(64, 3, 3, padding=1),
        nn.Tanh(),
        nn.BatchNorm2d(3, affine=False),
    )


class Swing(nn.Module):
    """A strided convolution that sees a random crop of its reflect-padded input."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        top, left = torch.randint(3, (2,)).tolist()
        shifted = pad(x, (1, 1, 1, 1), mode="reflect")[:, :, top : top + height]
        return self.convolution(shifted[:, :, :, left : left + width])  # type: ignore[no-any-return]


def with_swing(module: nn.Module) -> nn.Module:
    """The network, in place, its strided convolutions wrapped."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and child.stride != (1, 1):
            setattr(module, name, Swing(child))
        else:
            with_swing(child)
    return module


class PlainGenie:
    """Genie-D: per batch a fresh generator, its weights and the latents optimised together.

    Source: Jeon et al. 2023, arXiv:2212.04780; settings of the released code.
    """

    def __init__(self, teacher: nn.Module, size: int) -> None:
        self.teacher = with_swing(teacher.eval())
        self.size = size
        self.norms = [m for m in self.teacher.modules() if isinstance(m, nn.BatchNorm2d)]
        self.inputs: list[Tensor] = []
        for norm in self.norms:
            norm.register_forward_pre_hook(lambda _module, given: self.inputs.append(given[0]))

    def batch(self, count: int, steps: Iterable[int]) -> Tensor:
        """``count`` images, optimised for ``steps``."""
        latents = torch.randn(count, LATENT, requires_grad=True)
        generator = generator_network(self.size)
        of_latents = torch.optim.Adam([latents], lr=0.1)
        of_generator = torch.optim.Adam(generator.parameters(), lr=0.01)
        plateau = ReduceLROnPlateau(of_latents, min_lr=1e-4, patience=100)
        decay = ExponentialLR(of_generator, gamma=0.95)
        images = torch.empty(0)
        for step in steps:
            self.teacher.zero_grad()
            of_latents.zero_grad()
            of_generator.zero_grad()
            images = generator(latents)
            loss = self.distance(images)
            loss.backward()  # type: ignore[no-untyped-call]
            of_latents.step()
            of_generator.step()
            plateau.step(loss.item())
            if (step + 1) % 100 == 0:
                decay.step()
        with torch.no_grad():
            return generator(latents).clone()  # type: ignore[no-any-return]

    def distance(self, images: Tensor) -> Tensor:
        """The published loss."""
        self.inputs.clear()
        self.teacher(images)
        spread = (images.var((2, 3)) + EPSILON).sqrt()
        total = (images.mean((2, 3)).square() + (spread - 1).square()).sum() / len(images)
        for x, norm in zip(self.inputs, self.norms, strict=True):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean, spread = x.mean((0, 2, 3)), (x.var((0, 2, 3)) + EPSILON).sqrt()
            total = total + (mean - norm.running_mean).square().mean()
            total = total + (spread - (norm.running_var + EPSILON).sqrt()).square().mean()
        return total


def random_box(height: int, width: int, smallest: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of one crop: torchvision's RandomResizedCrop."""
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(smallest, 1).item()
        aspect = math.exp(torch.empty(1).uniform_(math.log(3 / 4), math.log(4 / 3)).item())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(height - h + 1, (1,)))
            return top, int(torch.randint(width - w + 1, (1,))), h, w
    return 0, 0, height, width


def cropped_one_by_one(images_NCHW: Tensor, smallest: float) -> Tensor:
    """Of every image a random crop, resized and perhaps mirrored, in a Python loop."""
    size = images_NCHW.shape[2:]
    seen = []
    for number in range(len(images_NCHW)):
        top, left, height, width = random_box(size[0], size[1], smallest)
        crop = images_NCHW[number][None, :, top : top + height, left : left + width]
        crop = interpolate(crop, size=size, mode="bilinear", align_corners=False)
        seen.append(crop.flip(3)[0] if torch.rand(1) < 0.5 else crop[0])
    return torch.stack(seen)
