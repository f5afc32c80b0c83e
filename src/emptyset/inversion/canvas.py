"""What is optimised, and how it becomes images."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


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


def cosine_basis(size: int, device: torch.device) -> Tensor:
    """The orthonormal cosine transform (DCT-II): row k is the wave of k half periods.

    Args:
        size: n, in pixels.
        device: Where it is needed.

    Returns:
        ``(n, n)``.
    """
    numbers = torch.arange(size, device=device, dtype=torch.float32)
    waves = torch.cos(math.pi / size * (numbers + 0.5) * numbers[:, None])
    norms = torch.where(numbers == 0, math.sqrt(1 / size), math.sqrt(2 / size))
    return waves * norms[:, None]


def photo_amplitudes(height: int, width: int, exponent: float, device: torch.device) -> Tensor:
    """What coefficients are multiplied by: ``frequency ** -exponent``, of mean square 1.

    Args:
        height: H, in pixels.
        width: W, in pixels.
        exponent: 0: all alike.
        device: Where they are needed.

    Returns:
        ``(H, W)``. Frequencies count half periods along the shorter side; the mean's is taken as 1.
    """
    shorter = min(height, width)
    rows = torch.arange(height, device=device, dtype=torch.float32) * (shorter / height)
    columns = torch.arange(width, device=device, dtype=torch.float32) * (shorter / width)
    frequency = (rows[:, None].square() + columns.square()).sqrt().clamp_min(1.0)
    amplitudes = frequency**-exponent
    return amplitudes / amplitudes.square().mean().sqrt()
