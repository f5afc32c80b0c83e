"""Genie's small generator, as a canvas: its weights and the latents are what is optimised."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, interpolate, leaky_relu, linear

WEIGHTS = 10
"""Number of tensors that belong to the network; the latents come before them."""


@dataclass(frozen=True)
class LatentUpsampler:
    """Latents to images, through a linear layer and two upsampling convolutions.

        z → Linear → (W₁, H/4, W/4) → BN → ×2 → Conv3×3 → BN → LeakyReLU → ×2 → Conv3×3 → tanh
          → BN without weights

    Every BatchNorm uses the statistics of its batch, also when the images are taken: they are part
    of what was optimised. The last one leaves every colour channel of the batch with mean 0 and
    variance 1. Sizes that 4 does not divide are rounded up; the upsampling ends at the size.

    Source: Genie, Jeon et al. 2023, arXiv:2212.04780, generator of the released code; the first
        weights are drawn as torch draws them for these layers.

    Attributes:
        size: ``(H, W)`` of an image [pixels].
        latent: Length of a latent.
        widths: W₁ and W₂, channels after the linear layer and after the first convolution.
        slope: Of LeakyReLU for negative values.
        epsilon: Of every BatchNorm.
    """

    size: tuple[int, int]
    latent: int = 256
    widths: tuple[int, int] = (128, 64)
    slope: float = 0.2
    epsilon: float = 1e-5

    def start(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Gaussian latents ``(N, latent)``, then the weights of every layer."""
        count, channels = shape[:2]
        first, second = self.widths
        small = first * math.prod(self._sizes()[0])

        def uniform(*size: int, fan_in: int) -> Tensor:
            return (2 * torch.rand(size, generator=generator) - 1) / math.sqrt(fan_in)

        return [
            torch.randn(count, self.latent, generator=generator),
            uniform(small, self.latent, fan_in=self.latent),
            uniform(small, fan_in=self.latent),
            torch.ones(first),
            torch.zeros(first),
            uniform(second, first, 3, 3, fan_in=9 * first),
            uniform(second, fan_in=9 * first),
            torch.ones(second),
            torch.zeros(second),
            uniform(channels, second, 3, 3, fan_in=9 * second),
            uniform(channels, fan_in=9 * second),
        ]

    def render(self, variables: list[Tensor]) -> Tensor:
        """The images, ``(N, C, H, W)`` [standardised pixel units]."""
        latents, weight, bias, scale1, shift1, conv1, bias1, scale2, shift2, conv2, bias2 = (
            variables
        )
        small, middle, full = self._sizes()
        x = linear(latents, weight, bias).view(len(latents), self.widths[0], *small)
        x = self._normalised(x, scale1, shift1)
        x = _upsampled_convolution(x, conv1, bias1, middle)
        x = leaky_relu(self._normalised(x, scale2, shift2), self.slope)
        x = _upsampled_convolution(x, conv2, bias2, full)
        # In at least float32, whatever the convolutions run in: these are the pixels.
        x = x.to(torch.promote_types(x.dtype, torch.float32)).tanh()
        return self._normalised(x, None, None)

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Height and width after the linear layer and after each upsampling."""
        height, width = self.size
        small = (-(-height // 4), -(-width // 4))
        return small, (-(-height // 2), -(-width // 2)), self.size

    def _normalised(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return batch_norm(x, None, None, scale, shift, training=True, eps=self.epsilon)


def _upsampled_convolution(
    x_NCHW: Tensor, weight: Tensor, bias: Tensor, size: tuple[int, int]
) -> Tensor:
    """A 3 × 3 convolution of the nearest-neighbour upsampling, zeros around it.

    Where both sides double, the upsampling is never made. A pixel of the result sees 2 × 2 pixels
    of ``x`` only, and which of the nine weights fall on each depends on whether its row and its
    column are even: four small convolutions whose weights are sums, with less than half the work.

        even rows: w₀ on row i − 1, w₁ + w₂ on row i;   odd rows: w₀ + w₁ on row i, w₂ on row i + 1

    Args:
        x_NCHW: ``(N, C, H, W)``.
        weight: ``(K, C, 3, 3)``.
        bias: ``(K,)``.
        size: Height and width of the result.

    Returns:
        ``(N, K, *size)``.
    """
    height, width = x_NCHW.shape[2:]
    if size != (2 * height, 2 * width):
        return conv2d(interpolate(x_NCHW, size=size), weight, bias, padding=1)
    kernels = torch.cat([k for rows in _halves(weight, 2) for k in _halves(rows, 3)])
    found = conv2d(x_NCHW, kernels, bias.repeat(4), padding=1).permute(0, 2, 3, 1)
    rows = []
    for top, half in enumerate(found.chunk(2, dim=3)):
        columns = [
            quarter[:, top : top + height, left : left + width]
            for left, quarter in enumerate(half.chunk(2, dim=3))
        ]
        rows.append(_woven(columns, 2))
    return _woven(rows, 1).permute(0, 3, 1, 2)


def _halves(weight: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Weights of the even and of the odd places along one axis, two instead of three each."""
    first, second, third = weight.unbind(axis)
    return (
        torch.stack([first, second + third], axis),
        torch.stack([first + second, third], axis),
    )


def _woven(parts: list[Tensor], axis: int) -> Tensor:
    """Even and odd places along an axis, in turn."""
    return torch.stack(parts, axis + 1).flatten(axis, axis + 1)
