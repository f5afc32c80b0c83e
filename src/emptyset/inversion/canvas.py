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
