"""Clip the rarest values: the range that holds all but a small share at either end.

Source: McKinstry et al. 2018, arXiv:1809.04191; with 99.999 as in FQ-ViT, Lin et al. 2022,
    arXiv:2111.13824, and RepQ-ViT, Li et al. 2023, arXiv:2212.08254 (three shares).
Differs from source: read from a growing histogram, to within one of its bins.
"""

from dataclasses import dataclass

from torch import Tensor

from emptyset.ranges.estimator import finish, not_calibrated, rows
from emptyset.ranges.histogram import Histogram
from emptyset.registry import ranges


@dataclass(frozen=True, kw_only=True)
class PercentileConfig:
    """Settings of the percentile range.

    Attributes:
        percentile: Share kept at either end [percent], above 50 up to 100.
        bins: Bins of the histogram. Ours.
    """

    percentile: float = 99.99
    bins: int = 4096

    def __post_init__(self) -> None:
        if not 50.0 < self.percentile <= 100.0:
            raise ValueError(
                f"'percentile' must be above 50 and at most 100. Got {self.percentile}."
            )
        if self.bins < 2:
            raise ValueError(f"'bins' must be at least 2. Got {self.bins}.")

    @classmethod
    def smallest(cls) -> "PercentileConfig":
        """A coarse histogram."""
        return cls(bins=64)


@ranges.register(
    "percentile",
    PercentileConfig,
    sentence="All but a small share of the values at either end.",
    source="McKinstry et al. 2018, arXiv:1809.04191",
)
@dataclass(frozen=True)
class Percentile:
    """See the module docstring."""

    config: PercentileConfig

    def estimator(
        self, *, axis: int | None, quant_min: int, quant_max: int, symmetric: bool
    ) -> "PercentileEstimator":
        """A fresh estimator."""
        return PercentileEstimator(self.config, axis, quant_min, symmetric)


class PercentileEstimator:
    """Two quantiles of everything seen, per tensor or per channel."""

    def __init__(
        self, config: PercentileConfig, axis: int | None, quant_min: int, symmetric: bool
    ) -> None:
        self._share, self._axis = config.percentile / 100.0, axis
        self._quant_min, self._symmetric = quant_min, symmetric
        self._histogram = Histogram(config.bins)

    def update(self, x: Tensor) -> None:
        """Count the values of ``x``."""
        self._histogram.update(rows(x, self._axis))

    def low_high(self) -> tuple[Tensor, Tensor]:
        """Range so far."""
        if self._histogram.empty:
            raise not_calibrated()
        return finish(
            self._histogram.quantile(1.0 - self._share),
            self._histogram.quantile(self._share),
            axis=self._axis,
            quant_min=self._quant_min,
            symmetric=self._symmetric,
        )

    def state(self) -> dict[str, Tensor]:
        """The histogram."""
        return self._histogram.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from ``state``."""
        self._histogram.load_state(state)
