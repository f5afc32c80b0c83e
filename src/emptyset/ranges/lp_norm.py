"""The range with the smallest Lp quantization error.

Sources: BRECQ, Li et al. 2021, arXiv:2102.05426; QDrop, Wei et al. 2022, arXiv:2203.05740 (two
    ends); p = 2.4 and 100 candidates as in Genie, Jeon et al. 2023, arXiv:2212.04780.
Differs from source: activations are searched over all calibration images at once, through a
    growing histogram, instead of averaging the best range of each batch. Tensors with a channel
    axis are searched exactly while only one update was made (weights), and through one histogram
    per channel from the second on.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from emptyset.ranges.estimator import not_calibrated, rows
from emptyset.ranges.histogram import Histogram
from emptyset.ranges.lp_search import lp_search, lp_search_points
from emptyset.registry import ranges


@dataclass(frozen=True, kw_only=True)
class LpNormConfig:
    """Settings of the Lp search.

    Attributes:
        exponent: p of the norm.
        candidates: Shrink factors, evenly from 1 down to ``1 / candidates``.
        independent_ends: Where values have both signs and no axis is given, also search low and
            high on their own.
        bins: Bins of the histogram. Ours.
    """

    exponent: float = 2.4
    candidates: int = 100
    independent_ends: bool = True
    bins: int = 4096

    def __post_init__(self) -> None:
        if not self.exponent > 0:
            raise ValueError(f"'exponent' must be positive. Got {self.exponent}.")
        if self.candidates < 1:
            raise ValueError(f"'candidates' must be at least 1. Got {self.candidates}.")
        if self.bins < 2:
            raise ValueError(f"'bins' must be at least 2. Got {self.bins}.")

    @classmethod
    def smallest(cls) -> "LpNormConfig":
        """A few candidates on a coarse histogram."""
        return cls(candidates=4, bins=64)


@ranges.register(
    "lp_norm",
    LpNormConfig,
    sentence="The range with the smallest Lp quantization error (p = 2.4).",
    source="BRECQ, Li et al. 2021, arXiv:2102.05426",
)
@dataclass(frozen=True)
class LpNorm:
    """See the module docstring."""

    config: LpNormConfig

    def estimator(
        self, *, axis: int | None, quant_min: int, quant_max: int, symmetric: bool
    ) -> "LpNormEstimator":
        """A fresh estimator."""
        return LpNormEstimator(self.config, axis, quant_min, quant_max, symmetric)


class LpNormEstimator:
    """Searches over everything seen, per tensor or per channel."""

    def __init__(
        self,
        config: LpNormConfig,
        axis: int | None,
        quant_min: int,
        quant_max: int,
        symmetric: bool,
    ) -> None:
        self._config, self._axis = config, axis
        self._quant_min, self._quant_max, self._symmetric = quant_min, quant_max, symmetric
        self._histogram = Histogram(config.bins)
        self._only: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Take in the values of ``x``."""
        values_Cn = rows(x, self._axis)
        if self._axis is not None and self._only is None and self._histogram.empty:
            self._only = values_Cn.clone()
            return
        if self._only is not None:
            self._histogram.update(self._only)
            self._only = None
        self._histogram.update(values_Cn)

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Range so far."""
        config = self._config
        if self._only is not None:
            return lp_search(
                self._only,
                axis=0,
                quant_min=self._quant_min,
                quant_max=self._quant_max,
                symmetric=self._symmetric,
                exponent=config.exponent,
                candidates=config.candidates,
            )
        if self._histogram.empty:
            raise not_calibrated()
        values_Cn, counts_Cn = self._histogram.points()
        smallest, largest = self._histogram.ends()
        # The outermost bins stand for the extremes, so that the first candidate is min-max.
        values_Cn = torch.cat([smallest[:, None], values_Cn, largest[:, None]], dim=1)
        ends = torch.full_like(smallest[:, None], 1e-9)
        low, high = lp_search_points(
            values_Cn,
            torch.cat([ends, counts_Cn, ends], dim=1),
            quant_min=self._quant_min,
            quant_max=self._quant_max,
            symmetric=self._symmetric,
            exponent=config.exponent,
            candidates=config.candidates,
            independent_ends=config.independent_ends and self._axis is None,
        )
        return (low[0], high[0]) if self._axis is None else (low, high)

    def state(self) -> dict[str, Tensor]:
        """The histogram, or the only tensor so far."""
        return self._histogram.state() if self._only is None else {"only": self._only.clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._only = state["only"].clone() if "only" in state else None
        self._histogram.load_state({} if "only" in state else state)
