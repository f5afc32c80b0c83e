"""Images as sums of cosine waves, and how strong each wave is in a photograph."""

import math

import torch
from torch import Tensor


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
