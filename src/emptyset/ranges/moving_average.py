"""Moving average of each batch's minimum and maximum.

Sources: the average, Jacob et al. 2018, arXiv:1712.05877, section 3.1; its bias correction, that
    of Adam, Kingma & Ba 2015, arXiv:1412.6980, section 3.
Differs from source: the released code of ZeroQ and its descendants (GDFQ, Qimera, AIT, AdaDFQ,
    IntraQ) stores the corrected value and corrects it again at the next step. A constant input
    of 1 then reads 1, 5.3, 17.8, up to 3945 after 21 steps, and 3.6 after 100. That rule is kept
    behind ``legacy_ema``; the default keeps the raw sums and divides only when read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.ranges.estimator import finish, not_calibrated, rows
from emptyset.registry import ranges


@dataclass(frozen=True, kw_only=True)
class MovingAverageConfig:
    """Settings of the moving average.

    Attributes:
        decay: Weight of the past in each update, from 0 up to below 1.
        legacy_ema: Use the compounding rule of the ZeroQ family.
    """

    decay: float = 0.9
    legacy_ema: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.decay < 1.0:
            raise ValueError(f"'decay' must be from 0 up to below 1. Got {self.decay}.")

    @classmethod
    def smallest(cls) -> "MovingAverageConfig":
        """The same: there is nothing to shrink."""
        return cls()


@ranges.register(
    "moving_average",
    MovingAverageConfig,
    sentence="Moving average of each batch's minimum and maximum, bias corrected.",
    source="Jacob et al. 2018, arXiv:1712.05877",
)
@dataclass(frozen=True)
class MovingAverage:
    """See the module docstring."""

    config: MovingAverageConfig

    def estimator(
        self, *, axis: int | None, quant_min: int, quant_max: int, symmetric: bool
    ) -> "MovingAverageEstimator":
        """A fresh estimator."""
        return MovingAverageEstimator(self.config, axis, quant_min, symmetric)


class MovingAverageEstimator:
    """Averages the ends of each batch's range, per tensor or per channel."""

    def __init__(
        self, config: MovingAverageConfig, axis: int | None, quant_min: int, symmetric: bool
    ) -> None:
        self._config, self._axis = config, axis
        self._quant_min, self._symmetric = quant_min, symmetric
        self._state: dict[str, Tensor] = {}

    def update(self, x: Tensor) -> None:
        """Move both ends towards those of ``x``."""
        decay = self._config.decay
        ends = torch.stack(torch.aminmax(rows(x, self._axis), dim=1)).double()
        past = self._state.get("ends", torch.zeros_like(ends))
        steps = self._state.get("steps", ends.new_zeros(())) + 1
        ends = decay * past + (1 - decay) * ends
        if self._config.legacy_ema:
            ends = ends / (1 - decay**steps)
        self._state = {"ends": ends, "steps": steps}

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Range so far."""
        if not self._state:
            raise not_calibrated()
        ends = self._state["ends"]
        if not self._config.legacy_ema:
            ends = ends / (1 - self._config.decay ** self._state["steps"])
        return finish(
            ends[0],
            ends[1],
            axis=self._axis,
            quant_min=self._quant_min,
            symmetric=self._symmetric,
        )

    def state(self) -> dict[str, Tensor]:
        """``ends`` ``(2, C)`` and ``steps`` (0-dim), double."""
        return dict(self._state)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._state = dict(state)
