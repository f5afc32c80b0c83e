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
        x = conv2d(interpolate(x, size=middle), conv1, bias1, padding=1)
        x = leaky_relu(self._normalised(x, scale2, shift2), self.slope)
        x = conv2d(interpolate(x, size=full), conv2, bias2, padding=1).tanh()
        return self._normalised(x, None, None)

    def _sizes(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Height and width after the linear layer and after each upsampling."""
        height, width = self.size
        small = (-(-height // 4), -(-width // 4))
        return small, (-(-height // 2), -(-width // 2)), self.size

    def _normalised(self, x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
        return batch_norm(x, None, None, scale, shift, training=True, eps=self.epsilon)
