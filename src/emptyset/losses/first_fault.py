"""In which batch something first was not finite, kept on the device: nobody waits for it."""

import torch
from torch import Tensor

NEVER = 2**62


def never(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Nothing was wrong so far."""
    return torch.full(shape, NEVER, dtype=torch.int64, device=device)


def noted(since: Tensor, fine: Tensor, batch: int) -> Tensor:
    """``since`` with this batch where something is not fine, and was until now.

    Args:
        since: Batches, from ``never`` or from here.
        fine: Whether all is well, shaped as ``since``.
        batch: Number of this batch.
    """
    return torch.where(fine, since, since.clamp(max=batch))
