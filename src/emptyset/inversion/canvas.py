"""What is optimised, and how it becomes images."""

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
    """The images themselves, from Gaussian noise on.

    Attributes:
        spread: Standard deviation of the noise [standardised pixel units].
    """

    spread: float = 1.0

    def start(self, shape: tuple[int, int, int, int], generator: torch.Generator) -> list[Tensor]:
        """Noise."""
        return [self.spread * torch.randn(shape, generator=generator)]

    def render(self, variables: list[Tensor]) -> Tensor:
        """The pixels."""
        return variables[0]
