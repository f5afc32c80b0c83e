"""What is optimised, and how it becomes images."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from emptyset.images.cosine_spectrum import cosine_basis, photo_amplitudes


class Canvas(Protocol):
    """One or more tensors that are optimised, and the images they stand for."""

    def start(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
        """First values, float32 on the CPU; ``shape`` is ``(N, C, H, W)`` of the images."""

    def render(self, variables: list[Tensor]) -> Tensor:
        """The images, ``(N, C, H, W)`` [standardised pixel units], differentiable."""


@dataclass(frozen=True)
class Pixels:
    """The images themselves, from noise on.

    Attributes:
        spread: Standard deviation of the noise [standardised pixel units].
        even: Every value of a range as likely as any other, instead of Gaussian.
    """

    spread: float = 1.0
    even: bool = False

    def start(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Noise."""
        if not self.even:
            return [self.spread * torch.randn(shape, generator=generator)]
        # An even distribution of width 1 has the standard deviation 1 / sqrt(12).
        width = self.spread * math.sqrt(12)
        return [width * (torch.rand(shape, generator=generator) - 0.5)]

    def render(self, variables: list[Tensor]) -> Tensor:
        """The pixels."""
        return variables[0]


@dataclass(frozen=True)
class Spectrum:
    """Cosine coefficients of the images, whose values are bounded softly.

    A photograph's amplitudes fall about as 1 / frequency. With coefficients scaled like that, one
    step size serves all of them: coarse structure moves far and pixel noise little, and what the
    optimiser starts from is a random photograph's spectrum instead of white noise. Ours; the idea
    is that of Olah et al., "Feature Visualization", Distill 2017, who use a Fourier basis.

        images = middle + half · tanh((Cᵀ (amplitudes · z) C − middle) / half)

    Attributes:
        exponent: Amplitudes fall with ``frequency ** -exponent``.
        low: Lowest value per channel [standardised pixel units].
        high: Highest value per channel.
        spread: Standard deviation of the first images before they are bounded.
    """

    exponent: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    spread: float = 1.0

    def start(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Noise of equal size for every coefficient."""
        return [self.spread * torch.randn(shape, generator=generator)]

    def render(self, variables: list[Tensor]) -> Tensor:
        """The images; always in float32."""
        coefficients = variables[0]
        height, width = coefficients.shape[2:]
        device = coefficients.device
        with torch.autocast(device.type, enabled=False):
            rows, columns = cosine_basis(height, device), cosine_basis(width, device)
            scaled = coefficients * photo_amplitudes(height, width, self.exponent, device)
            free = rows.T @ scaled @ columns
            low, high = (
                torch.tensor(values, device=device).view(-1, 1, 1)
                for values in (self.low, self.high)
            )
            middle, half = (low + high) / 2, (high - low) / 2
            return middle + half * torch.tanh((free - middle) / half)
