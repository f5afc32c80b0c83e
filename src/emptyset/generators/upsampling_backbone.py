"""GDFQ's generators for CIFAR and for ImageNet, and ZAQ's: one topology, latent to image."""

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from emptyset.generators.conditional_norm import LabelledNorm
from emptyset.generators.doubled_convolution import DoubledConvolution

SLOPE = 0.2
# Larger images get the ImageNet form.
LARGEST_SMALL_IMAGE = 64


class UpsamplingBackbone(nn.Module):
    """Latents to images through a linear layer and two doublings.

        z → Linear → (W₁, H/4, W/4) → BN → ×2 → Conv3×3 → BN → LeakyReLU → ×2 → Conv3×3 → BN
          → LeakyReLU → Conv3×3 → tanh → BN without weights

    BatchNorm uses the statistics of its batch. The last one leaves every colour channel of the
    batch with mean 0 and variance 1: standardised pixel units, without bounds. Sizes that 4 does
    not divide are rounded up; the upsampling ends at the size.

    Source: GDFQ, Xu et al. 2020, arXiv:2003.03603, generator of the released code (after ACGAN).
        There the second and third BatchNorm have ε = 0.8 (a decay given at the place of ε), which
        dampens weak channels, so it is kept.

    Attributes:
        latent: Length of a latent.
        conditional: Whether BatchNorm takes gain and shift from the labels.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        latent: int,
        widths: tuple[int, int] = (128, 64),
        classes: int | None = None,
        epsilon: float = 0.8,
    ) -> None:
        """Build it; ``initialised`` gives it values.

        Args:
            shape: ``(C, H, W)`` of an image [pixels].
            latent: Length of a latent.
            widths: W₁ and W₂, channels before and after the second doubling's convolution.
            classes: Number of classes where BatchNorm is class-conditional (ImageNet form).
            epsilon: ε of the second and third BatchNorm.
        """
        super().__init__()
        channels, height, width = shape
        first, second = widths
        self.latent, self.conditional = latent, classes is not None
        self._small = (-(-height // 4), -(-width // 4))
        self._middle, self._full = (-(-height // 2), -(-width // 2)), (height, width)
        self.linear = nn.Linear(latent, first * self._small[0] * self._small[1])
        self.norm0 = LabelledNorm(first, classes)
        self.conv1 = DoubledConvolution(first, first)
        self.norm1 = LabelledNorm(first, classes, epsilon=epsilon)
        self.conv2 = DoubledConvolution(first, second)
        self.norm2 = LabelledNorm(second, classes, epsilon=epsilon)
        self.conv3 = nn.Conv2d(second, channels, 3, padding=1)
        self.norm3 = nn.BatchNorm2d(channels, affine=False)

    def forward(self, latents: Tensor, weights: Tensor | None) -> Tensor:
        """``(N, C, H, W)`` images [standardised pixel units].

        Args:
            latents: ``(N, latent)``.
            weights: ``(N, classes)`` for class-conditional BatchNorm, else unused.
        """
        x = self.linear(latents).view(len(latents), -1, *self._small)
        x = self.norm0(x.contiguous(memory_format=torch.channels_last), weights)
        x = leaky_relu(self.norm1(self.conv1(x, self._middle), weights), SLOPE)
        x = leaky_relu(self.norm2(self.conv2(x, self._full), weights), SLOPE)
        return as_pixels(self.conv3(x), self.norm3)


def as_pixels(x: Tensor, norm: nn.Module) -> Tensor:
    """The end of every generator: tanh and standardisation, in at least float32."""
    x = x.to(torch.promote_types(x.dtype, torch.float32)).tanh()
    pixels: Tensor = norm(x)
    return pixels


def is_small(shape: tuple[int, int, int]) -> bool:
    """Whether images of this ``(C, H, W)`` get the CIFAR form."""
    return max(shape[1:]) <= LARGEST_SMALL_IMAGE
