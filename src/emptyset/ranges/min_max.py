"""Smallest and largest value seen: nothing is ever clipped.

Source: the usual min-max observer, e.g. Krishnamoorthi 2018, arXiv:1806.08342, section 3.1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.ranges.estimator import finish, not_calibrated, rows
from emptyset.registry import ranges


@dataclass(frozen=True, kw_only=True)
class MinMaxConfig:
    """Min-max has no settings."""

    @classmethod
    def smallest(cls) -> "MinMaxConfig":
        """The same: there is nothing to shrink."""
        return cls()


@ranges.register(
    "min_max",
    MinMaxConfig,
    sentence="Smallest and largest value seen.",
    source="Krishnamoorthi 2018, arXiv:1806.08342",
)
@dataclass(frozen=True)
class MinMax:
    """See the module docstring."""

    config: MinMaxConfig

    def estimator(
        self, *, axis: int | None, quant_min: int, quant_max: int, symmetric: bool
    ) -> "MinMaxEstimator":
        """A fresh estimator."""
        return MinMaxEstimator(axis, quant_min, symmetric)


class MinMaxEstimator:
    """Running minimum and maximum, per tensor or per channel."""

    def __init__(self, axis: int | None, quant_min: int, symmetric: bool) -> None:
        self._axis, self._quant_min, self._symmetric = axis, quant_min, symmetric
        self._state: dict[str, Tensor] = {}

    def update(self, x: Tensor) -> None:
        """Widen the range to the values of ``x``."""
        low, high = torch.aminmax(rows(x, self._axis), dim=1)
        if self._state:
            low = torch.minimum(low, self._state["low"])
            high = torch.maximum(high, self._state["high"])
        self._state = {"low": low, "high": high}

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Range so far."""
        if not self._state:
            raise not_calibrated()
        return finish(
            self._state["low"],
            self._state["high"],
            axis=self._axis,
            quant_min=self._quant_min,
            symmetric=self._symmetric,
        )

    def state(self) -> dict[str, Tensor]:
        """``low`` and ``high``, ``(C,)`` each."""
        return dict(self._state)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._state = dict(state)
