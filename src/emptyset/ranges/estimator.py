"""What every range estimator can do, and the last step that all of them share."""

from typing import Protocol

import torch
from torch import Tensor

from emptyset.errors import NotCalibratedError


class RangeEstimator(Protocol):
    """Watches a stream of tensors and tells the range that an integer grid should span."""

    def update(self, x: Tensor) -> None:
        """Take in one tensor of any shape [units of x]; memory does not grow with the calls."""

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Range so far, ``low <= 0 <= high`` [units of x]: 0-dim, or ``(C,)`` with an axis."""

    def state(self) -> dict[str, Tensor]:
        """Everything seen so far, to go on from later; empty before the first update."""

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what ``state`` gave."""


class RangeFactory(Protocol):
    """What a registered range method makes from its settings."""

    def estimator(
        self, *, axis: int | None, quant_min: int, quant_max: int, symmetric: bool
    ) -> RangeEstimator:
        """A fresh estimator.

        Args:
            axis: Channel axis; None: one range for the whole tensor.
            quant_min: Lowest code of the grid.
            quant_max: Highest code of the grid.
            symmetric: The zero point is in the middle (signed) or at ``quant_min`` (unsigned).
        """


def rows(x: Tensor, axis: int | None) -> Tensor:
    """The values of each channel as one row: ``(C, n)``, or ``(1, n)`` without an axis.

    Raises:
        NotCalibratedError: If ``x`` holds no values.
    """
    x = x.detach()
    if x.numel() == 0:
        raise NotCalibratedError(
            f"A range needs values, but a tensor of shape {tuple(x.shape)} came. "
            "Calibrate with at least one image."
        )
    return x.reshape(1, -1) if axis is None else x.movedim(axis, 0).reshape(x.shape[axis], -1)


def finish(
    low: Tensor, high: Tensor, *, axis: int | None, quant_min: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The range as a grid can take it: zero included, mirrored where the grid is symmetric.

    Args:
        low: ``(C,)`` [units of x]; ``(1,)`` without an axis.
        high: As ``low``.
        axis: None drops the only dimension.
        quant_min: Lowest code; not below zero means an unsigned grid.
        symmetric: Mirror the range around zero (signed) or start it at zero (unsigned).

    Returns:
        ``low <= 0 <= high``, 0-dim or ``(C,)``, float32.

    Raises:
        NotCalibratedError: If an end is not finite.
    """
    if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
        raise NotCalibratedError(
            "No range can be set: the observed values hold NaN or infinity. Look for them in "
            "the images and in the teacher's weights."
        )
    low, high = low.float().clamp(max=0.0), high.float().clamp(min=0.0)
    if symmetric and quant_min < 0:
        high = torch.maximum(-low, high)
        low = -high
    elif symmetric:
        low = torch.zeros_like(high)
    return (low[0], high[0]) if axis is None else (low, high)


def not_calibrated() -> NotCalibratedError:
    """The error of an estimator that is read before its first update."""
    return NotCalibratedError(
        "This range estimator has seen no values yet. Run calibration images through the "
        "network (refiner `calibrate`) before reading a range."
    )
